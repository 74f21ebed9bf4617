// The shape of the network, which is fixed when the library is compiled: loops of known length are twice as fast.
//
// Every image in it is stored as [row][column][channel]; those that come in as PyTorch has them, [channel][row][column].
#pragma once

#include <algorithm>

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
#ifndef KSHOT_POOLS
#define KSHOT_POOLS 4
#endif

constexpr int kInputs = KSHOT_INPUTS;     // channels of the images that come in
constexpr int kImageSide = KSHOT_SIDE;    // their side in pixels
constexpr int kChannels = KSHOT_FILTERS;  // of every block

constexpr int kBlocks = 4;
constexpr int kPools = KSHOT_POOLS;  // the first so many blocks end in pooling; the others leave the side as it is
constexpr int side_after(int blocks) {
    return kImageSide >> std::min(blocks, kPools);
}
constexpr int kSides[kBlocks + 1] = {side_after(0), side_after(1), side_after(2), side_after(3), side_after(4)};
static_assert(kInputs > 0 && 0 < kPools && kPools <= kBlocks && kSides[kBlocks] > 0 && kChannels % 16 == 0,
              "no such network");

// Side of the windows of which a block on images of this side keeps the highest pixel.
constexpr int window_of(int side) {
    return side == kSides[kBlocks] ? 1 : 2;
}

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
