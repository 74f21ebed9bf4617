// The shape of the network, which is fixed when the library is compiled: loops of known length are twice as fast.
//
// Every image in it is stored as [row][column][channel]; those that come in as PyTorch has them, [channel][row][column].
#pragma once

namespace kshot {

#ifndef KSHOT_INPUTS
#define KSHOT_INPUTS 1
#endif
#ifndef KSHOT_SIDE
#define KSHOT_SIDE 28
#endif
#ifndef KSHOT_FILTERS
#define KSHOT_FILTERS 64
#endif

constexpr int kInputs = KSHOT_INPUTS;     // channels of the images that come in
constexpr int kImageSide = KSHOT_SIDE;    // their side in pixels
constexpr int kChannels = KSHOT_FILTERS;  // of every block

constexpr int kBlocks = 4;
constexpr int kSides[kBlocks + 1] = {kImageSide, kImageSide / 2, kImageSide / 4, kImageSide / 8, kImageSide / 16};
static_assert(kInputs > 0 && kSides[kBlocks] > 0 && kChannels % 16 == 0, "no such network");

// Numbers in one image before a block (but the first); after the last block, in one feature vector.
constexpr long image_size(int block) {
    return long(kSides[block]) * kSides[block] * kChannels;
}
constexpr long kFeatures = image_size(kBlocks);

// Where PyTorch, which flattens [channel][row][column], has a feature.
constexpr long place_in_torch(long feature) {
    constexpr long pixels = long(kSides[kBlocks]) * kSides[kBlocks];
    return feature % kChannels * pixels + feature / kChannels;
}

}  // namespace kshot
