// Parameters of the network, in one vector and in the frequency domain.
#pragma once

#include <algorithm>
#include <type_traits>

#include "conv_block.hpp"
#include "parallel.hpp"

namespace kshot {

// Where a parameter lies in the vector: convolutions as [tap][out][in] (the first as [in][tap][out]), scales
// [block][channel], shifts [block][channel], then the head [way][feature] and its bias [way], if there is one.
namespace layout {

constexpr long conv(int block) {
    return block == 0 ? 0 : kTaps * (long(kInputs) * kChannels + (block - 1L) * kFilterSize);
}
constexpr long scale(int block) {
    return conv(kBlocks) + block * kChannels;
}
constexpr long shift(int block) {
    return scale(kBlocks) + block * kChannels;
}
constexpr long head = shift(kBlocks);
constexpr long size(int ways) {
    return head + ways * (kFeatures + 1L);
}

}  // namespace layout

// Larger tiles need fewer products but more room for filters, which pays where an image has many tiles.
template <int SIDE>
using TileFor = std::conditional_t<(SIDE > 3), Tile4, Tile2>;

template <int SIDE>
constexpr long tiling_size() {
    return Tiling<TileFor<SIDE>, SIDE>::size;
}

constexpr int filter_frequencies(int block) {
    return kSides[block] > 3 ? Tile4::in * Tile4::in : Tile2::in * Tile2::in;
}

constexpr long frequency_size(int block) {
    return long(filter_frequencies(block)) * kFilterSize;
}

// Calls use(std::integral_constant<int, side>()) with the side of the images of block 1, 2 or 3 (counted from 0).
template <class Use>
void with_side(int block, Use use) {
    if (block == 1) {
        use(std::integral_constant<int, kSides[1]>());
    } else if (block == 2) {
        use(std::integral_constant<int, kSides[2]>());
    } else {
        use(std::integral_constant<int, kSides[3]>());
    }
}

// to [C][C] = from^T, square by square, which stay in the cache.
template <class T>
void transpose_channels(const T* from, T* to) {
    constexpr int square = 16;
    for (int top = 0; top < kChannels; top += square) {
        for (int left = 0; left < kChannels; left += square) {
            for (int c = left; c < left + square; ++c) {
                for (int r = top; r < top + square; ++r) {
                    to[c * kChannels + r] = from[r * kChannels + c];
                }
            }
        }
    }
}

// How PyTorch orders what is ordered otherwise here: calls use(place here, place there) for every parameter. There,
// convolutions are [out][in][tap], and features, by which the head is multiplied, [channel][pixel].
template <class Use>
void for_places(long size, Use use) {
    for (int block = 0; block < kBlocks; ++block) {
        // The filters of the first block are seen as those of one channel with 9 taps for each channel that comes in.
        const long count = block == 0 ? kChannels : kFilterSize;
        const int taps = block == 0 ? kTaps * kInputs : kTaps;
        for (int tap = 0; tap < taps; ++tap) {
            for (long k = 0; k < count; ++k) {
                use(layout::conv(block) + tap * count + k, layout::conv(block) + k * taps + tap);
            }
        }
    }
    for (long i = layout::scale(0); i < layout::head; ++i) {
        use(i, i);
    }
    const long ways = (size - layout::head) / (kFeatures + 1);
    for (long row = layout::head; row < layout::head + ways * kFeatures; row += kFeatures) {
        for (long feature = 0; feature < kFeatures; ++feature) {
            use(row + feature, row + place_in_torch(feature));
        }
    }
    for (long i = layout::head + ways * kFeatures; i < size; ++i) {
        use(i, i);
    }
}

template <class T>
void from_torch(const T* torch, long size, T* flat) {
    for_places(size, [&](long here, long there) { flat[here] = torch[there]; });
}

template <class T>
void to_torch(const T* flat, long size, T* torch) {
    for_places(size, [&](long here, long there) { torch[there] = flat[here]; });
}

// Parameters, or a direction in which they move.
template <class T>
class Parameters {
  public:
    // The vector is not copied, and must live as long.
    void set(const T* flat, int threads = 1) {
        flat_ = flat;
        norms_ = flat + layout::scale(0);
        arena_.lay_out([&](Cursor& cursor) {
            for (int block = 1; block < kBlocks; ++block) {
                forward_[block] = cursor.take<T>(frequency_size(block));
                backward_[block] = cursor.take<T>(frequency_size(block));
                turned_[block] = cursor.take<T>(kTaps * kFilterSize);
            }
        });
        parallel_for(kBlocks - 1, threads, [&](int index) {
            const int block = index + 1;
            for (int tap = 0; tap < kTaps; ++tap) {
                transpose_channels(conv(block) + tap * kFilterSize, turned_[block] + tap * kFilterSize);
            }
            with_side(block, [&](auto side) {
                transform_filter<T, TileFor<side.value>>(turned_[block], forward_[block]);
                transform_filter<T, TileFor<side.value>>(conv(block), backward_[block]);
            });
        });
    }

    // Takes scales and shifts from elsewhere, laid out alike, until the next call of either.
    void use_norms(const T* norms) { norms_ = norms; }

    const T* flat() const { return flat_; }
    const T* conv(int block) const { return flat_ + layout::conv(block); }
    const T* scale(int block) const { return norms_ + block * kChannels; }
    const T* shift(int block) const { return norms_ + (kBlocks + block) * kChannels; }
    const T* head() const { return flat_ + layout::head; }

    // In the frequency domain: [frequency][in][out] for the forward pass, [frequency][out][in] for the backward pass.
    const T* forward_filter(int block) const { return forward_[block]; }
    const T* backward_filter(int block) const { return backward_[block]; }

  private:
    const T* flat_ = nullptr;
    const T* norms_ = nullptr;
    T* forward_[kBlocks] = {};
    T* backward_[kBlocks] = {};
    T* turned_[kBlocks] = {};
    Arena arena_;
};

}  // namespace kshot
