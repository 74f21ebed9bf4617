// The first block, whose images have one channel.
//
// Its convolution is never stored. Pixel p sees the patch x(p) of 9 numbers, so y(p) = sum_k w_k x_k(p), and all sums
// over pixels that batch normalisation needs follow from the first and second moments of the patches, which are the
// same for all channels:  mean(y) = sum_k w_k mean(x_k),  variance(y) = sum_kj w_k w_j cov(x_k, x_j). What remains is
// the one pixel of each window that pooling chose.
#pragma once

#include <vector>

#include "normalisation.hpp"
#include "simd.hpp"

namespace kshot {

constexpr int kImageSide = 28;
constexpr int kImageSize = kImageSide * kImageSide;
constexpr int kPooledSide = kImageSide / 2;
constexpr int kWindows = kPooledSide * kPooledSide;
constexpr int kTaps = 9;
// The 3x3 patches of the four pixels of a window lie in one 4x4 square.
constexpr int kSquare = 16;

// Where in the square tap k of window pixel 0 is, and how much further it is for window pixel `chosen`.
constexpr int kTapPlace[kTaps] = {0, 1, 2, 4, 5, 6, 8, 9, 10};

template <class T>
struct PatchMoments {
    double mean[kTaps];
    double covariance[kTaps][kTaps];
};

// Sums over all pixels of n images of x_k, and of x_k x_j for j >= k.
struct PatchSums {
    double first[kTaps] = {};
    double second[kTaps][kTaps] = {};
};

template <class T>
struct PaddedImage {
    static constexpr int stride = 32;
    alignas(64) T pixels[(kImageSide + 2) * stride] = {};

    void set(const T* image) {
        for (int row = 0; row < kImageSide; ++row) {
            std::memcpy(pixels + (row + 1) * stride + 1, image + row * kImageSide, kImageSide * sizeof(T));
        }
    }
};

template <class T>
void add_patch_sums(const T* images, int n_images, PatchSums& sums) {
    typedef double Four __attribute__((vector_size(32)));
    constexpr int groups = kImageSide / 4;
    constexpr int stride = 32;
    alignas(64) double padded[(kImageSide + 2) * stride] = {};
    for (int image = 0; image < n_images; ++image) {
        for (int p = 0; p < kImageSize; ++p) {
            padded[(p / kImageSide + 1) * stride + p % kImageSide + 1] = images[long(image) * kImageSize + p];
        }
        for (int k = 0; k < kTaps; ++k) {
            Four first{};
            Four second[kTaps] = {};
            for (int row = 0; row < kImageSide; ++row) {
                for (int g = 0; g < groups; ++g) {
                    const double* corner = padded + row * stride + 4 * g;
                    const auto tap = [&](int t) {
                        Four x;
                        std::memcpy(&x, corner + (t / 3) * stride + t % 3, sizeof(x));
                        return x;
                    };
                    const Four x = tap(k);
                    first += x;
#pragma GCC unroll 9
                    for (int j = 0; j < kTaps; ++j) {
                        second[j] += x * tap(j);
                    }
                }
            }
            for (int lane = 0; lane < 4; ++lane) {
                sums.first[k] += first[lane];
                for (int j = 0; j < kTaps; ++j) {
                    sums.second[k][j] += second[j][lane];
                }
            }
        }
    }
}

template <class T>
PatchMoments<T> patch_moments(const PatchSums& sums, double count) {
    PatchMoments<T> moments;
    for (int k = 0; k < kTaps; ++k) {
        moments.mean[k] = sums.first[k] / count;
    }
    for (int k = 0; k < kTaps; ++k) {
        for (int j = 0; j < kTaps; ++j) {
            moments.covariance[k][j] = sums.second[k][j] / count - moments.mean[k] * moments.mean[j];
        }
    }
    return moments;
}

// The 4x4 squares of all windows of one image, one after the other.
template <class T>
void cut_squares(const T* image, T* squares) {
    PaddedImage<T> padded;
    padded.set(image);
    for (int i = 0; i < kPooledSide; ++i) {
        for (int j = 0; j < kPooledSide; ++j, squares += kSquare) {
            for (int row = 0; row < 4; ++row) {
                const T* from = padded.pixels + (2 * i + row) * PaddedImage<T>::stride + 2 * j;
                std::memcpy(squares + 4 * row, from, 4 * sizeof(T));
            }
        }
    }
}

// Channel by channel, the entry of a square at a place.
template <class T>
KSHOT_INLINE Vector<T> pick(const T* square, Integers<T> place) {
#if defined(__GNUC__) && !defined(__clang__)
    if constexpr (Simd<T>::lanes == 16) {
        return __builtin_shuffle(load(square), place);
    } else if constexpr (Simd<T>::lanes == 8) {
        return __builtin_shuffle(load(square), load(square + 8), place);
    }
#endif
    Vector<T> picked;
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
        picked[lane] = square[place[lane]];
    }
    return picked;
}

// Place of tap 0 of the window pixel that pooling chose: 0, 1, 4 or 5.
template <class T>
KSHOT_INLINE Integers<T> chosen_place(const uint8_t* where) {
    const Integers<T> chosen = load_integers<T>(where);
    return chosen + (chosen & 2);
}

// mean and variance of w * x over all pixels.
template <class T>
void normalise_first(const PatchMoments<T>& moments, const T* taps, double count, Normalisation<T>& norm) {
    norm.count = count;
    for (int c = 0; c < kChannels; ++c) {
        double mean = 0;
        double variance = 0;
        for (int k = 0; k < kTaps; ++k) {
            const double tap = taps[k * kChannels + c];
            mean += tap * moments.mean[k];
            for (int j = 0; j < kTaps; ++j) {
                variance += tap * taps[j * kChannels + c] * moments.covariance[k][j];
            }
        }
        norm.mean[c] = mean;
        norm.variance[c] = variance < 0 ? 0 : variance;
        norm.finish(c);
    }
}

// Convolution, normalisation (folded into the taps), pooling and ReLU of some images; `squares` is scratch.
template <class T>
void first_forward(const T* images, int n_images, const T* taps, const T* scale, const T* shift,
                   const Normalisation<T>& norm, T* squares, T* out, uint8_t* where) {
    alignas(64) T folded[kTaps * kChannels];
    alignas(64) T constant[kChannels];
    for (int c = 0; c < kChannels; ++c) {
        const double slope = scale[c] * norm.inverse[c];
        constant[c] = T(shift[c] - slope * norm.mean[c]);
        for (int k = 0; k < kTaps; ++k) {
            folded[k * kChannels + c] = T(slope * taps[k * kChannels + c]);
        }
    }
    for (int image = 0; image < n_images; ++image) {
        cut_squares(images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> tap[kTaps];
            for (int k = 0; k < kTaps; ++k) {
                tap[k] = load(folded + k * kChannels + channel);
            }
            const Vector<T> start = load(constant + channel);
            const long first = long(image) * kWindows * kChannels + channel;
            for (int window = 0; window < kWindows; ++window) {
                const T* square = squares + window * kSquare;
                Vector<T> best{};
                Integers<T> chosen{};
#pragma GCC unroll 4
                for (int pixel = 0; pixel < 4; ++pixel) {
                    const T* corner = square + pixel + (pixel & 2);
                    Vector<T> y = start;
#pragma GCC unroll 9
                    for (int k = 0; k < kTaps; ++k) {
                        y += corner[kTapPlace[k]] * tap[k];
                    }
                    const Integers<T> better = y > best;
                    best = pixel == 0 ? y : (better ? y : best);
                    chosen = pixel == 0 ? chosen : (better ? Integers<T>{} + pixel : chosen);
                }
                store(out + first + window * kChannels, relu<T>(best));
                store_integers<T>(where + first + window * kChannels, chosen);
            }
        }
    }
}

// Sums over windows of delta, and of delta * x_k at the chosen pixel; delta = d_out where out > 0.
struct TapSums {
    Sums delta = {};
    Sums tap[kTaps] = {};
};

template <class T>
void add_tap_sums(const T* images, int n_images, const T* out, const T* d_out, const uint8_t* where, T* squares,
                  TapSums& sums) {
    const Vector<T> zero{};
    for (int image = 0; image < n_images; ++image) {
        cut_squares(images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> total{};
            Vector<T> tap[kTaps] = {};
            const long first = long(image) * kWindows * kChannels + channel;
            for (int window = 0; window < kWindows; ++window) {
                const long at = first + window * kChannels;
                const Vector<T> delta = load(out + at) > zero ? load(d_out + at) : zero;
                const Integers<T> place = chosen_place<T>(where + at);
                total += delta;
#pragma GCC unroll 9
                for (int k = 0; k < kTaps; ++k) {
                    tap[k] += delta * pick<T>(squares + window * kSquare, place + kTapPlace[k]);
                }
            }
            add_lanes<T>(total, sums.delta + channel);
            for (int k = 0; k < kTaps; ++k) {
                add_lanes<T>(tap[k], sums.tap[k] + channel);
            }
        }
    }
}

// Adds dL/dw_k = slope (sum delta x_k - mean(delta) sum x_k - mean(delta xhat) sum xhat x_k), dL/dscale and dL/dshift.
template <class T>
void first_backward(const PatchMoments<T>& moments, const TapSums& sums, const T* taps, const T* scale,
                    Normalisation<T>& norm, T* d_taps, T* d_scale, T* d_shift) {
    for (int c = 0; c < kChannels; ++c) {
        const double r = norm.inverse[c];
        double delta_y = 0;
        for (int k = 0; k < kTaps; ++k) {
            delta_y += taps[k * kChannels + c] * sums.tap[k][c];
        }
        norm.delta[c] = sums.delta[c];
        norm.delta_xhat[c] = r * (delta_y - norm.mean[c] * sums.delta[c]);
        d_shift[c] += T(norm.delta[c]);
        d_scale[c] += T(norm.delta_xhat[c]);
        for (int k = 0; k < kTaps; ++k) {
            double covariance = 0;
            for (int j = 0; j < kTaps; ++j) {
                covariance += moments.covariance[k][j] * taps[j * kChannels + c];
            }
            const double plain = sums.tap[k][c] - norm.delta[c] * moments.mean[k] - norm.delta_xhat[c] * r * covariance;
            d_taps[k * kChannels + c] += T(scale[c] * r * plain);
        }
    }
}

}  // namespace kshot
