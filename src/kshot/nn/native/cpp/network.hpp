// The four blocks one after the other: forward and backward for one group of images, which share their statistics.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "conv_block.hpp"
#include "first_block.hpp"

namespace kshot {

// Where a parameter lies in the flat vector: convolutions as [tap][in][out], scales [block][64], shifts [block][64],
// then the head [way][64] and its bias [way], if there is one.
struct Layout {
    static constexpr long conv(int block) { return block == 0 ? 0 : kTaps * kChannels + (block - 1) * 9L * kFilterSize; }
    static constexpr long scale(int block) { return conv(kBlocks) + block * kChannels; }
    static constexpr long shift(int block) { return scale(kBlocks) + block * kChannels; }
    static constexpr long head() { return conv(kBlocks) + 2 * kBlocks * kChannels; }
    static constexpr long size(int ways) { return head() + ways * (kChannels + 1L); }
};

// to [columns][rows] = from [rows][columns], square by square, which stay in the cache.
template <class T>
void transpose(const T* from, int rows, int columns, T* to) {
    constexpr int square = 16;
    for (int top = 0; top < rows; top += square) {
        for (int left = 0; left < columns; left += square) {
            for (int c = left; c < std::min(left + square, columns); ++c) {
                for (int r = top; r < std::min(top + square, rows); ++r) {
                    to[long(c) * rows + r] = from[long(r) * columns + c];
                }
            }
        }
    }
}

// PyTorch stores convolutions as [out][in][tap]; all else is the same.
template <class T>
void from_torch(const T* torch, long size, T* flat) {
    transpose(torch, kChannels, kTaps, flat);
    Buffer<T> turned;
    turned.resize(kTaps * kFilterSize);
    for (int block = 1; block < kBlocks; ++block) {
        transpose(torch + Layout::conv(block), kFilterSize, kTaps, turned.data());
        for (int tap = 0; tap < kTaps; ++tap) {
            transpose(turned.data() + tap * kFilterSize, kChannels, kChannels,
                      flat + Layout::conv(block) + tap * kFilterSize);
        }
    }
    std::copy(torch + Layout::scale(0), torch + size, flat + Layout::scale(0));
}

template <class T>
void to_torch(const T* flat, long size, T* torch) {
    transpose(flat, kTaps, kChannels, torch);
    Buffer<T> turned;
    turned.resize(kTaps * kFilterSize);
    for (int block = 1; block < kBlocks; ++block) {
        for (int tap = 0; tap < kTaps; ++tap) {
            transpose(flat + Layout::conv(block) + tap * kFilterSize, kChannels, kChannels,
                      turned.data() + tap * kFilterSize);
        }
        transpose(turned.data(), kTaps, kFilterSize, torch + Layout::conv(block));
    }
    std::copy(flat + Layout::scale(0), flat + size, torch + Layout::scale(0));
}

// Parameters (or a direction in which they move), with the filters in the frequency domain.
template <class T>
struct Parameters {
    const T* flat = nullptr;
    Buffer<T> filter[kBlocks];     // [frequency][in][out]; not for the first block
    Buffer<T> exchanged[kBlocks];  // [frequency][out][in]

    Buffer<T> scratch;

    void set(const T* parameters);
    const T* conv(int block) const { return flat + Layout::conv(block); }
    const T* scale(int block) const { return flat + Layout::scale(block); }
    const T* shift(int block) const { return flat + Layout::shift(block); }
    const T* head() const { return flat + Layout::head(); }
};

// The tile size is chosen by side.
template <int SIDE>
using TileFor = Tile2;

constexpr long kFrequencySize = Tile2::in * Tile2::in * kFilterSize;

// Calls use(std::integral_constant<int, side>) with the side of a block's images.
template <class Use>
void with_side(int block, Use use) {
    switch (block) {
        case 1:
            use(std::integral_constant<int, kSides[1]>());
            break;
        case 2:
            use(std::integral_constant<int, kSides[2]>());
            break;
        default:
            use(std::integral_constant<int, kSides[3]>());
            break;
    }
}

template <class T>
void Parameters<T>::set(const T* parameters) {
    flat = parameters;
    for (int block = 1; block < kBlocks; ++block) {
        T* turned = scratch.resize(9L * kFilterSize);
        for (int tap = 0; tap < kTaps; ++tap) {
            transpose(conv(block) + tap * kFilterSize, kChannels, kChannels, turned + tap * kFilterSize);
        }
        with_side(block, [&](auto side) {
            transform_filter<T, TileFor<decltype(side)::value>>(conv(block), filter[block].resize(kFrequencySize));
            transform_filter<T, TileFor<decltype(side)::value>>(turned, exchanged[block].resize(kFrequencySize));
        });
    }
}

// What each thread has of its own.
template <class T>
struct Worker {
    TileMemory<T> tiles;
    Buffer<T> squares;
    Buffer<T> d_filter[kBlocks];  // gradient by the filters, in the frequency domain
    PatchSums patches;
    ConvSums<T> conv;
    DeltaSums delta;
    TapSums taps;

    void clear_gradient() {
        for (int block = 1; block < kBlocks; ++block) {
            d_filter[block].zeros(kFrequencySize);
        }
    }
};

template <class T>
using Workers = std::vector<Worker<T>>;

// One group of images on its way through the network.
template <class T>
struct Pass {
    const T* images = nullptr;
    int n_images = 0;
    PatchMoments<T> moments;
    BlockState<T> block[kBlocks];

    const T* features() const { return block[kBlocks - 1].out.data(); }
};

inline void add(const double* from, long size, double* to) {
    for (long i = 0; i < size; ++i) {
        to[i] += from[i];
    }
}

// The workers' sums of one kind, added in the order of the workers.
template <class S, class T>
S total(const Workers<T>& workers, S Worker<T>::*member) {
    S sum = workers[0].*member;
    for (size_t w = 1; w < workers.size(); ++w) {
        add(reinterpret_cast<const double*>(&(workers[w].*member)), sizeof(S) / sizeof(double),
            reinterpret_cast<double*>(&sum));
    }
    return sum;
}

template <class T>
void forward(const Parameters<T>& theta, const T* images, int n_images, Pass<T>& pass, Workers<T>& workers) {
    const int parts = int(workers.size());
    pass.images = images;
    pass.n_images = n_images;
    for (int b = 0; b < kBlocks; ++b) {
        pass.block[b].reserve(b, n_images);
    }
    parallel_for(parts, parts, [&](int part) {
        const Range mine = share(n_images, part, parts);
        workers[part].patches = PatchSums();
        add_patch_sums(images + long(mine.begin) * kImageSize, mine.end - mine.begin, workers[part].patches);
    });
    const double image_count = n_images;
    pass.moments = patch_moments<T>(total(workers, &Worker<T>::patches), image_count * kImageSize);
    BlockState<T>& first = pass.block[0];
    normalise_first(pass.moments, theta.conv(0), image_count * kImageSize, first.norm);
    for (int b = 1; b < kBlocks; ++b) {
        BlockState<T>& below = pass.block[b - 1];
        BlockState<T>& here = pass.block[b];
        parallel_for(parts, parts, [&](int part) {
            Worker<T>& worker = workers[part];
            worker.conv = ConvSums<T>();
            const Range mine = share(n_images, part, parts);
            with_side(b, [&](auto side) {
                constexpr int SIDE = decltype(side)::value;
                using Tile = TileFor<SIDE>;
                const int step = Tiling<Tile, SIDE>::images_at_once;
                for (int i = mine.begin; i < mine.end; i += step) {
                    const int n = std::min(step, mine.end - i);
                    const long in = i * pixels(b);
                    const long out = i * pixels(b + 1);
                    if (b == 1) {
                        first_forward(images + long(i) * kImageSize, n, theta.conv(0), theta.scale(0), theta.shift(0),
                                      first.norm, worker.squares.resize(kWindows * kSquare), first.out.data() + in,
                                      first.where.data() + in);
                    } else {
                        normalise_peaks(below.peak.data() + in, n * pixels(b), below.norm, theta.scale(b - 1),
                                        theta.shift(b - 1), below.out.data() + in);
                    }
                    conv_forward<T, Tile, SIDE>(below.out.data() + in, n, theta.filter[b].data(), theta.scale(b),
                                                here.conv.data() + in, here.peak.data() + out, here.where.data() + out,
                                                worker.tiles, worker.conv);
                }
            });
        });
        finish_sums(total(workers, &Worker<T>::conv), image_count * kSides[b] * kSides[b], here.norm);
    }
    BlockState<T>& last = pass.block[kBlocks - 1];
    normalise_peaks(last.peak.data(), n_images * pixels(kBlocks), last.norm, theta.scale(kBlocks - 1),
                    theta.shift(kBlocks - 1), last.out.data());
}

// Adds the gradient by everything but the filters to `grad`, and that by the filters to the workers' `d_filter`.
template <class T>
void backward(const Parameters<T>& theta, Pass<T>& pass, const T* d_features, T* grad, Workers<T>& workers) {
    const int parts = int(workers.size());
    const int n_images = pass.n_images;
    BlockState<T>& last = pass.block[kBlocks - 1];
    T* d_last = last.delta.resize(n_images * pixels(kBlocks));
    std::copy(d_features, d_features + n_images * pixels(kBlocks), d_last);
    DeltaSums sums;
    mask_and_sum(last.out.data(), last.peak.data(), n_images, pixels(kBlocks), last.norm, d_last, sums);
    for (int b = kBlocks - 1; b > 0; --b) {
        BlockState<T>& here = pass.block[b];
        BlockState<T>& below = pass.block[b - 1];
        finish_delta(sums, here.norm, grad + Layout::scale(b), grad + Layout::shift(b));
        Gradient<T> gradient;
        gradient_by_conv(here.norm, theta.scale(b), gradient);
        below.delta.resize(n_images * pixels(b));
        parallel_for(parts, parts, [&](int part) {
            Worker<T>& worker = workers[part];
            worker.delta = DeltaSums();
            worker.taps = TapSums();
            const Range mine = share(n_images, part, parts);
            with_side(b, [&](auto side) {
                constexpr int SIDE = decltype(side)::value;
                using Tile = TileFor<SIDE>;
                const int step = Tiling<Tile, SIDE>::images_at_once;
                for (int i = mine.begin; i < mine.end; i += step) {
                    const int n = std::min(step, mine.end - i);
                    const long in = i * pixels(b);
                    const long out = i * pixels(b + 1);
                    const Images<T> stored = {here.conv.data() + in, here.delta.data() + out, here.where.data() + out,
                                              nullptr, nullptr};
                    T* d_in = below.delta.data() + in;
                    conv_backward<T, Tile, SIDE>(below.out.data() + in, stored, n, gradient, theta.exchanged[b].data(),
                                                 worker.tiles, worker.d_filter[b].data(), d_in);
                    if (b == 1) {
                        add_tap_sums(pass.images + long(i) * kImageSize, n, below.out.data() + in, d_in,
                                     below.where.data() + in, worker.squares.resize(kWindows * kSquare), worker.taps);
                    } else {
                        mask_and_sum(below.out.data() + in, below.peak.data() + in, n, pixels(b), below.norm, d_in,
                                     worker.delta);
                    }
                }
            });
        });
        sums = total(workers, &Worker<T>::delta);
    }
    first_backward(pass.moments, total(workers, &Worker<T>::taps), theta.conv(0), theta.scale(0), pass.block[0].norm,
                   grad + Layout::conv(0), grad + Layout::scale(0), grad + Layout::shift(0));
}

// Adds the workers' gradients by the filters, and takes them out of the frequency domain.
template <class T>
void collect_filters(Workers<T>& workers, T* grad) {
    parallel_for(kBlocks - 1, int(workers.size()), [&](int index) {
        const int b = index + 1;
        T* sum = workers[0].d_filter[b].data();
        for (size_t w = 1; w < workers.size(); ++w) {
            const T* more = workers[w].d_filter[b].data();
            for (long i = 0; i < kFrequencySize; ++i) {
                sum[i] += more[i];
            }
        }
        transform_filter_adjoint<T, Tile2>(sum, grad + Layout::conv(b));
    });
}

}  // namespace kshot
