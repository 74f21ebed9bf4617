// Blocks 2 to 4: a 3x3 convolution of 64 to 64 channels by Winograd's method, batch normalisation, pooling and ReLU.
// Between the transforms of the images and the normalisation nothing is written that is read only once.
#pragma once

#include <vector>

#include "matrix.hpp"
#include "normalisation.hpp"
#include "parallel.hpp"
#include "winograd.hpp"

namespace kshot {

constexpr int kBlocks = 4;
constexpr int kSides[kBlocks + 1] = {28, 14, 7, 3, 1};

constexpr long pixels(int block) { return long(kSides[block]) * kSides[block] * kChannels; }

// What the forward pass of one block leaves for the backward pass, for all images of a group.
template <class T>
struct BlockState {
    Buffer<T> conv;         // y, (N, side, side, 64); blocks 2 to 4 only
    Buffer<T> peak;         // the y that pooling chose, (N, side / 2, side / 2, 64); blocks 2 to 4 only
    Buffer<uint8_t> where;  // which of the four pixels of the window it was
    Buffer<T> out;          // relu(scale * xhat + shift), pooled
    Buffer<T> delta;        // dL/dout, then dL/dz: zero where out is
    Normalisation<T> norm;

    void reserve(int block, int n_images) {
        if (block > 0) {
            conv.resize(n_images * pixels(block));
            peak.resize(n_images * pixels(block + 1));
        }
        where.resize(n_images * pixels(block + 1));
        out.resize(n_images * pixels(block + 1));
    }
};

// Memory for the tiles of a few images, one for each thread.
template <class T>
struct TileMemory {
    Buffer<T> input;
    Buffer<T> gradient;
    Buffer<T> product;
};

template <class T>
struct ConvSums {
    Sums y = {};
    Sums y_squared = {};
};

// Ends a convolution: leaves y, the peak of each 2x2 window (the lowest y where scale is negative), and sums over y.
template <class T, class Tile, int SIDE>
void pool_and_sum(const T* frequencies, int n_images, const T* scale, T* conv, T* peak, uint8_t* where,
                  ConvSums<T>& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int out = Tile::out;
    constexpr int half = SIDE / 2;
    constexpr bool whole = SIDE % out == 0;
    const Vector<T> zero{};
    for (int image = 0; image < n_images; ++image) {
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            const Vector<T> one = zero + T(1);
            const Vector<T> sign = load(scale + channel) < zero ? -one : one;
            T* const y_image = conv + long(image) * SIDE * SIDE * kChannels + channel;
            const long window_image = long(image) * half * half * kChannels + channel;
            const T* from = frequencies + long(image) * Tiles::per_image * kChannels + channel;
            for (int i = 0; i < Tiles::per_side; ++i) {
                Vector<T> sum{};
                Vector<T> sum_squared{};
                for (int j = 0; j < Tiles::per_side; ++j, from += kChannels) {
                    Vector<T> y[out * out];
                    transform_output<T, Tile>(from, Tiles::stride, y);
#pragma GCC unroll 16
                    for (int p = 0; p < out * out; ++p) {
                        const int row = i * out + p / out;
                        const int column = j * out + p % out;
                        if (whole || (row < SIDE && column < SIDE)) {
                            store(y_image + (row * SIDE + column) * kChannels, y[p]);
                            sum += y[p];
                            sum_squared += y[p] * y[p];
                        }
                    }
#pragma GCC unroll 4
                    for (int w = 0; w < out * out / 4; ++w) {
                        const int row = i * (out / 2) + w / (out / 2);
                        const int column = j * (out / 2) + w % (out / 2);
                        if (!whole && (row >= half || column >= half)) {
                            continue;
                        }
                        const int corner = 2 * (w / (out / 2)) * out + 2 * (w % (out / 2));
                        Vector<T> best = y[corner] * sign;
                        Integers<T> chosen{};
#pragma GCC unroll 3
                        for (int pixel = 1; pixel < 4; ++pixel) {
                            const Vector<T> candidate = y[corner + (pixel / 2) * out + pixel % 2] * sign;
                            const Integers<T> better = candidate > best;
                            best = better ? candidate : best;
                            chosen = better ? Integers<T>{} + pixel : chosen;
                        }
                        const long at = window_image + (row * half + column) * kChannels;
                        store(peak + at, best * sign);
                        store_integers<T>(where + at, chosen);
                    }
                }
                add_lanes<T>(sum, sums.y + channel);
                add_lanes<T>(sum_squared, sums.y_squared + channel);
            }
        }
    }
}

// Convolves some images; `filter` is in the frequency domain.
template <class T, class Tile, int SIDE>
void conv_forward(const T* in, int n_images, const T* filter, const T* scale, T* conv, T* peak, uint8_t* where,
                  TileMemory<T>& memory, ConvSums<T>& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    T* input = memory.input.resize(Tiles::size);
    T* product = memory.product.resize(Tiles::size);
    transform_input<T, Tile, SIDE>(in, n_images, input);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        multiply(n_images * Tiles::per_image, input + f * Tiles::stride, filter + f * kFilterSize,
                 product + f * Tiles::stride);
    }
    pool_and_sum<T, Tile, SIDE>(product, n_images, scale, conv, peak, where, sums);
}

template <class T>
void finish_sums(const ConvSums<T>& sums, double count, Normalisation<T>& norm) {
    norm.count = count;
    for (int c = 0; c < kChannels; ++c) {
        const double mean = sums.y[c] / count;
        const double variance = sums.y_squared[c] / count - mean * mean;
        norm.mean[c] = mean;
        norm.variance[c] = variance < 0 ? 0 : variance;
        norm.finish(c);
    }
}

// out = relu(scale * xhat + shift) at the peaks.
template <class T>
void normalise_peaks(const T* peak, long size, const Normalisation<T>& norm, const T* scale, const T* shift, T* out) {
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        Vector<T> slope;
        Vector<T> constant;
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
            const int c = channel + lane;
            slope[lane] = T(scale[c] * norm.inverse[c]);
            constant[lane] = T(shift[c] - scale[c] * norm.inverse[c] * norm.mean[c]);
        }
        for (long p = channel; p < size; p += kChannels) {
            store(out + p, relu<T>(load(peak + p) * slope + constant));
        }
    }
}

struct DeltaSums {
    Sums delta = {};
    Sums delta_y = {};  // of delta * (y - mean)
};

// delta: dL/dout becomes dL/dz, and is summed.
template <class T>
void mask_and_sum(const T* out, const T* peak, int n_images, long image_size, const Normalisation<T>& norm, T* delta,
                  DeltaSums& sums) {
    const Vector<T> zero{};
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        Vector<T> mean;
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
            mean[lane] = T(norm.mean[channel + lane]);
        }
        for (int image = 0; image < n_images; ++image) {
            Vector<T> sum{};
            Vector<T> sum_y{};
            for (long p = image * image_size + channel; p < (image + 1) * image_size; p += kChannels) {
                const Vector<T> masked = load(out + p) > zero ? load(delta + p) : zero;
                store(delta + p, masked);
                sum += masked;
                sum_y += masked * (load(peak + p) - mean);
            }
            add_lanes<T>(sum, sums.delta + channel);
            add_lanes<T>(sum_y, sums.delta_y + channel);
        }
    }
}

template <class T>
void finish_delta(const DeltaSums& sums, Normalisation<T>& norm, T* d_scale, T* d_shift) {
    for (int c = 0; c < kChannels; ++c) {
        norm.delta[c] = sums.delta[c];
        norm.delta_xhat[c] = sums.delta_y[c] * norm.inverse[c];
        d_shift[c] += T(norm.delta[c]);
        d_scale[c] += T(norm.delta_xhat[c]);
    }
}

// Images of one block, and their derivatives along a direction if there is one.
template <class T>
struct Images {
    const T* conv;
    const T* delta;
    const uint8_t* where;
    const T* conv_tangent;
    const T* delta_tangent;
};

// frequencies = A (dL/dy) A^T of each tile; see Gradient for dL/dy.
template <class T, class Tile, int SIDE, bool TANGENT>
void transform_gradient(const Images<T>& images, int n_images, const Gradient<T>& gradient, T* frequencies) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int out = Tile::out;
    constexpr int half = SIDE / 2;
    constexpr bool whole = SIDE % out == 0;
    const Vector<T> zero{};
    for (int image = 0; image < n_images; ++image) {
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            const Vector<T> on_conv = load(gradient.on_conv + channel);
            const Vector<T> constant = load(gradient.constant + channel);
            const Vector<T> on_delta = load(gradient.on_delta + channel);
            const Vector<T> on_conv_tangent = TANGENT ? load(gradient.on_conv_tangent + channel) : zero;
            const Vector<T> on_delta_tangent = TANGENT ? load(gradient.on_delta_tangent + channel) : zero;
            const long pixel_image = long(image) * SIDE * SIDE * kChannels + channel;
            const long window_image = long(image) * half * half * kChannels + channel;
            T* to = frequencies + long(image) * Tiles::per_image * kChannels + channel;
            for (int i = 0; i < Tiles::per_side; ++i) {
                for (int j = 0; j < Tiles::per_side; ++j, to += kChannels) {
                    Vector<T> dy[out * out];
#pragma GCC unroll 16
                    for (int p = 0; p < out * out; ++p) {
                        const int row = i * out + p / out;
                        const int column = j * out + p % out;
                        dy[p] = zero;
                        if (whole || (row < SIDE && column < SIDE)) {
                            const long at = pixel_image + (row * SIDE + column) * kChannels;
                            dy[p] = load(images.conv + at) * on_conv + constant;
                            if (TANGENT) {
                                dy[p] += load(images.conv_tangent + at) * on_conv_tangent;
                            }
                        }
                    }
#pragma GCC unroll 4
                    for (int w = 0; w < out * out / 4; ++w) {
                        const int row = i * (out / 2) + w / (out / 2);
                        const int column = j * (out / 2) + w % (out / 2);
                        if (!whole && (row >= half || column >= half)) {
                            continue;
                        }
                        const long at = window_image + (row * half + column) * kChannels;
                        Vector<T> delta = load(images.delta + at) * on_delta;
                        if (TANGENT) {
                            delta += load(images.delta_tangent + at) * on_delta_tangent;
                        }
                        const Integers<T> chosen = load_integers<T>(images.where + at);
                        const int corner = 2 * (w / (out / 2)) * out + 2 * (w % (out / 2));
#pragma GCC unroll 4
                        for (int pixel = 0; pixel < 4; ++pixel) {
                            dy[corner + (pixel / 2) * out + pixel % 2] += chosen == pixel ? delta : zero;
                        }
                    }
                    transform_output_adjoint<T, Tile>(dy, to, Tiles::stride);
                }
            }
        }
    }
}

// d_filter += dL/dU and d_in = dL/din of some images, in the frequency domain; `exchanged` is the filter.
template <class T, class Tile, int SIDE>
void conv_backward(const T* in, const Images<T>& images, int n_images, const Gradient<T>& gradient,
                   const T* exchanged, TileMemory<T>& memory, T* d_filter, T* d_in) {
    using Tiles = Tiling<Tile, SIDE>;
    T* input = memory.input.resize(Tiles::size);
    T* dy = memory.gradient.resize(Tiles::size);
    T* product = memory.product.resize(Tiles::size);
    const int tiles = n_images * Tiles::per_image;
    transform_input<T, Tile, SIDE>(in, n_images, input);
    transform_gradient<T, Tile, SIDE, false>(images, n_images, gradient, dy);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const long at = f * Tiles::stride;
        multiply_transposed_add(tiles, input + at, dy + at, d_filter + f * kFilterSize);
        multiply(tiles, dy + at, exchanged + f * kFilterSize, product + at);
    }
    transform_input_adjoint<T, Tile, SIDE>(product, n_images, d_in);
}

}  // namespace kshot
