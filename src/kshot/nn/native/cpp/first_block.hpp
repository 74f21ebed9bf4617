// The first block, whose images have few channels.
//
// Its convolution is never stored. Pixel p sees the patch x(p) of 9 numbers of each channel, so y(p) = sum_k w_k x_k(p), and all sums
// over pixels that batch normalisation needs follow from the first and second moments of the patches, which are the
// same for all channels:  mean(y) = sum_k w_k mean(x_k),  variance(y) = sum_kj w_k w_j cov(x_k, x_j). What remains is
// the one pixel of each window that pooling chose.
#pragma once

#include <algorithm>

#include "normalisation.hpp"
#include "tiles.hpp"

namespace kshot {

constexpr int kPlane = kImageSide * kImageSide;
constexpr int kImageSize = kInputs * kPlane;
constexpr int kPatch = kInputs * kTaps;
constexpr int kPooledSide = kImageSide / 2;
constexpr int kWindows = kPooledSide * kPooledSide;

// The 3x3 patches of the four pixels of a window lie in one 4x4 square, for each channel.
constexpr int kOneSquare = 16;
constexpr int kSquare = kInputs * kOneSquare;

// Where in the square of its channel tap k of the first pixel is.
constexpr int tap_place(int k) {
    return k % kTaps / 3 * 4 + k % 3;
}

struct PatchMoments {
    double mean[kPatch];
    double covariance[kPatch][kPatch];
};

// Sums over all pixels of x_k, and of x_k x_j.
struct PatchSums {
    double first[kPatch] = {};
    double second[kPatch][kPatch] = {};
};

// The channels of an image, each with a border of zeros, which the padding of the convolution asks for.
template <class T>
struct PaddedImage {
    static constexpr int stride = (kImageSide + 3) / 4 * 4 + 4;
    static constexpr int plane = (kImageSide + 2) * stride;
    alignas(64) T pixels[kInputs * plane] = {};

    template <class From>
    explicit PaddedImage(const From* image) {
        for (int line = 0; line < kInputs * kImageSide; ++line) {
            T* to = pixels + line / kImageSide * plane + (line % kImageSide + 1) * stride + 1;
            std::copy_n(image + line * kImageSide, kImageSide, to);
        }
    }

    // Where tap k of the patch of the first pixel is.
    static constexpr int place(int k) { return k / kTaps * plane + k % kTaps / 3 * stride + k % 3; }
};

// Adds sum x_k and, for all j, sum x_k x_j, four pixels at a time.
inline void add_tap_moments(const double* padded, int k, PatchSums& sums) {
    typedef double Four __attribute__((vector_size(32)));
    using Image = PaddedImage<double>;
    Four first{};
    Four second[kPatch] = {};
    for (int row = 0; row < kImageSide; ++row) {
        for (int column = 0; column < kImageSide; column += 4) {
            const double* corner = padded + row * Image::stride + column;
            const auto tap = [&](int t) {
                Four x;
                std::memcpy(&x, corner + Image::place(t), sizeof(x));
                return x;
            };
            Four x = tap(k);
            for (int lane = kImageSide - column; lane < 4; ++lane) {
                x[lane] = 0;  // beyond the image
            }
            first += x;
#pragma GCC unroll 27
            for (int j = 0; j < kPatch; ++j) {
                second[j] += x * tap(j);
            }
        }
    }
    for (int lane = 0; lane < 4; ++lane) {
        sums.first[k] += first[lane];
        for (int j = 0; j < kPatch; ++j) {
            sums.second[k][j] += second[j][lane];
        }
    }
}

template <class T>
void add_patch_sums(const T* images, int n_images, PatchSums& sums) {
    for (int image = 0; image < n_images; ++image) {
        const PaddedImage<double> padded(images + long(image) * kImageSize);
        for (int k = 0; k < kPatch; ++k) {
            add_tap_moments(padded.pixels, k, sums);
        }
    }
}

inline PatchMoments patch_moments(const PatchSums& sums, double count) {
    PatchMoments moments;
    for (int k = 0; k < kPatch; ++k) {
        moments.mean[k] = sums.first[k] / count;
        for (int j = 0; j < kPatch; ++j) {
            moments.covariance[k][j] = sums.second[k][j] / count - moments.mean[k] * sums.first[j] / count;
        }
    }
    return moments;
}

// The 4x4 squares of all windows of one image, one after the other, the channels of each together.
template <class T>
void cut_squares(const T* image, T* squares) {
    using Image = PaddedImage<T>;
    const Image padded(image);
    for (int i = 0; i < kPooledSide; ++i) {
        for (int j = 0; j < kPooledSide; ++j) {
            for (int line = 0; line < 4 * kInputs; ++line, squares += 4) {
                const int row = 2 * i + line % 4;
                std::memcpy(squares, padded.pixels + line / 4 * Image::plane + row * Image::stride + 2 * j, 4 * sizeof(T));
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
void normalise_first(const PatchMoments& moments, const T* taps, double count, Normalisation& norm) {
    norm.count = count;
    for (int c = 0; c < kChannels; ++c) {
        double mean = 0;
        double variance = 0;
        for (int k = 0; k < kPatch; ++k) {
            const double tap = taps[k * kChannels + c];
            mean += tap * moments.mean[k];
            for (int j = 0; j < kPatch; ++j) {
                variance += tap * taps[j * kChannels + c] * moments.covariance[k][j];
            }
        }
        norm.set(c, mean, variance);
    }
}

// For each window, the highest of its four pixels of z = constant + sum_k tap_k x_k, and which one it is.
template <class T>
KSHOT_INLINE Vector<T> pool_window(const T* square, const Vector<T>* tap, Vector<T> constant, Integers<T>& chosen) {
    Vector<T> best{};
    chosen = Integers<T>{};
#pragma GCC unroll 4
    for (int pixel = 0; pixel < 4; ++pixel) {
        const T* corner = square + pixel + (pixel & 2);
        Vector<T> z = constant;
#pragma GCC unroll 27
        for (int k = 0; k < kPatch; ++k) {
            z += corner[k / kTaps * kOneSquare + tap_place(k)] * tap[k];
        }
        const Integers<T> better = z > best;
        best = pixel == 0 ? z : (better ? z : best);
        chosen = pixel == 0 ? chosen : (better ? Integers<T>{} + pixel : chosen);
    }
    return best;
}

// Convolution, normalisation (folded into the taps), pooling and ReLU of some images; `squares` is scratch.
template <class T>
void first_forward(const T* images, int n_images, const T* taps, const Affine<T>& affine, T* squares, T* out,
                   uint8_t* where) {
    for (int image = 0; image < n_images; ++image) {
        cut_squares(images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> folded[kPatch];
            for (int k = 0; k < kPatch; ++k) {
                folded[k] = load(taps + k * kChannels + channel) * load(affine.slope + channel);
            }
            const Vector<T> constant = load(affine.constant + channel);
            long at = long(image) * kWindows * kChannels + channel;
            for (int window = 0; window < kWindows; ++window, at += kChannels) {
                Integers<T> chosen;
                const Vector<T> z = pool_window(squares + window * kSquare, folded, constant, chosen);
                store(out + at, relu<T>(z));
                store_integers<T>(where + at, chosen);
            }
        }
    }
}

// Sums over windows of delta, and of delta * x_k at the chosen pixel; delta = d_out where out > 0.
struct TapSums {
    Sums delta = {};
    Sums tap[kPatch] = {};
};

template <class T>
void add_tap_sums(const T* images, int n_images, const T* out, const T* d_out, const uint8_t* where, T* squares,
                  TapSums& sums) {
    const Vector<T> zero{};
    for (int image = 0; image < n_images; ++image) {
        cut_squares(images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> total{};
            Vector<T> tap[kPatch] = {};
            const long first = long(image) * kWindows * kChannels + channel;
            for (int window = 0; window < kWindows; ++window) {
                const long at = first + window * kChannels;
                const Vector<T> delta = load(out + at) > zero ? load(d_out + at) : zero;
                const Integers<T> place = chosen_place<T>(where + at);
                total += delta;
#pragma GCC unroll 27
                for (int k = 0; k < kPatch; ++k) {
                    tap[k] += delta * pick<T>(squares + window * kSquare + k / kTaps * kOneSquare, place + tap_place(k));
                }
            }
            add_lanes<T>(total, sums.delta + channel);
            for (int k = 0; k < kPatch; ++k) {
                add_lanes<T>(tap[k], sums.tap[k] + channel);
            }
        }
    }
}

// Adds dL/dw_k = slope (sum delta x_k - mean(delta) sum x_k - mean(delta xhat) sum xhat x_k), dL/dscale and dL/dshift.
template <class T>
void first_backward(const PatchMoments& moments, const TapSums& sums, const T* taps, const T* scale,
                    Normalisation& norm, T* d_taps, T* d_scale, T* d_shift) {
    for (int c = 0; c < kChannels; ++c) {
        const double r = norm.inverse[c];
        double delta_y = 0;
        for (int k = 0; k < kPatch; ++k) {
            delta_y += taps[k * kChannels + c] * sums.tap[k][c];
        }
        norm.delta[c] = sums.delta[c];
        norm.delta_xhat[c] = r * (delta_y - norm.mean[c] * sums.delta[c]);
        d_shift[c] += T(norm.delta[c]);
        d_scale[c] += T(norm.delta_xhat[c]);
        for (int k = 0; k < kPatch; ++k) {
            double covariance = 0;
            for (int j = 0; j < kPatch; ++j) {
                covariance += moments.covariance[k][j] * taps[j * kChannels + c];
            }
            const double plain = sums.tap[k][c] - norm.delta[c] * moments.mean[k] - norm.delta_xhat[c] * r * covariance;
            d_taps[k * kChannels + c] += T(scale[c] * r * plain);
        }
    }
}

}  // namespace kshot
