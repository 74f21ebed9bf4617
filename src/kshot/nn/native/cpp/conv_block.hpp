// Blocks 2 to 4: a 3x3 convolution of as many channels in as out by Winograd's method, batch normalisation, pooling and ReLU.
// The transforms do the work of normalisation and pooling in passing, while their tiles are in registers.
#pragma once

#include "matrix.hpp"
#include "memory.hpp"
#include "normalisation.hpp"
#include "tiles.hpp"

namespace kshot {

// What the forward pass of one block leaves for the backward pass, for all images of a group.
template <class T>
struct BlockState {
    T* conv;         // y, (N, side, side, C); not of the first block
    T* peak;         // the y that pooling chose, or all, (N, next side, next side, C); not of the first block
    uint8_t* where;  // which pixel of the window it was
    T* out;          // relu(z), pooled
    T* delta;        // dL/dout, then dL/dz: zero where out is
    Normalisation norm;

    void take(Cursor& cursor, int block, int n_images) {
        conv = block > 0 ? cursor.take<T>(n_images * image_size(block)) : nullptr;
        peak = block > 0 ? cursor.take<T>(n_images * image_size(block + 1)) : nullptr;
        where = cursor.take<uint8_t>(n_images * image_size(block + 1));
        out = cursor.take<T>(n_images * image_size(block + 1));
        delta = cursor.take<T>(n_images * image_size(block + 1));
    }
};

// Room for the tiles of a few images.
template <class T>
struct TileMemory {
    T* input;
    T* gradient;
    T* product;
};

struct ConvSums {
    Sums y = {};
    Sums y_squared = {};
};

// The highest of the pixels of a window (of y times sign), and which one it is.
template <class T, class Tile, int SIDE>
KSHOT_INLINE Vector<T> pool(const Vector<T>* y, int first, Vector<T> sign, Integers<T>& chosen) {
    Vector<T> best = y[first] * sign;
    chosen = Integers<T>{};
#pragma GCC unroll 3
    for (int pixel = 1; pixel < window_pixels<SIDE>; ++pixel) {
        const Vector<T> candidate = y[window_pixel<Tile>(first, pixel)] * sign;
        const Integers<T> better = candidate > best;
        best = better ? candidate : best;
        chosen = better ? Integers<T>{} + pixel : chosen;
    }
    return best * sign;
}

// Ends a convolution: leaves y, the peak of each window (the lowest y where scale is negative), and sums over y.
template <class T, class Tile, int SIDE>
void pool_and_sum(const T* frequencies, int n_images, const T* scale, T* conv, T* peak, uint8_t* where,
                  ConvSums& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    for_tile_rows<T, Tile, SIDE>(n_images, [&](const TileRow& at) {
        const Vector<T> zero{};
        const Vector<T> one = zero + T(1);
        const Vector<T> sign = load(scale + at.channel) < zero ? -one : one;
        Vector<T> sum{};
        Vector<T> sum_squared{};
        for (int j = 0; j < Tiles::per_side; ++j) {
            Vector<T> y[Tile::out * Tile::out];
            transform_output<T, Tile>(frequencies + at.tiles + j * kChannels, Tiles::stride, y);
            for_pixels<Tile, SIDE>(at.row, j, [&](int p, int row, int column) {
                store(conv + at.pixels + (row * SIDE + column) * kChannels, y[p]);
                sum += y[p];
                sum_squared += y[p] * y[p];
            });
            for_windows<Tile, SIDE>(at.row, j, [&](int first, int row, int column) {
                const long window = at.windows + window_offset<SIDE>(row, column);
                Integers<T> chosen;
                store(peak + window, pool<T, Tile, SIDE>(y, first, sign, chosen));
                store_integers<T>(where + window, chosen);
            });
        }
        add_lanes<T>(sum, sums.y + at.channel);
        add_lanes<T>(sum_squared, sums.y_squared + at.channel);
    });
}

// Convolves some images; `filter` is in the frequency domain, [frequency][in][out].
template <class T, class Tile, int SIDE>
void conv_forward(const T* in, int n_images, const T* filter, const T* scale, T* conv, T* peak, uint8_t* where,
                  const TileMemory<T>& memory, ConvSums& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    transform_input<T, Tile, SIDE>(in, n_images, memory.input);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        multiply(n_images * Tiles::per_image, memory.input + f * Tiles::stride, filter + f * kFilterSize,
                 memory.product + f * Tiles::stride);
    }
    pool_and_sum<T, Tile, SIDE>(memory.product, n_images, scale, conv, peak, where, sums);
}

inline void finish_conv(const ConvSums& sums, double count, Normalisation& norm) {
    norm.count = count;
    for (int c = 0; c < kChannels; ++c) {
        const double mean = sums.y[c] / count;
        norm.set(c, mean, sums.y_squared[c] / count - mean * mean);
    }
}

// out = relu(z) at the peaks.
template <class T>
void normalise_peaks(const T* peak, long size, const Affine<T>& affine, T* out) {
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        const Vector<T> slope = load(affine.slope + channel);
        const Vector<T> constant = load(affine.constant + channel);
        for (long p = channel; p < size; p += kChannels) {
            store(out + p, relu<T>(load(peak + p) * slope + constant));
        }
    }
}

struct DeltaSums {
    Sums delta = {};
    Sums delta_y = {};  // of delta * (y - mean)
};

// delta: dL/dout becomes dL/dz, and is summed; `size` numbers make an image.
template <class T>
void mask_and_sum(const T* out, const T* peak, int n_images, long size, const Normalisation& norm, T* delta,
                  DeltaSums& sums) {
    const Vector<T> zero{};
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        const Vector<T> mean = load_rounded<T>(norm.mean + channel);
        for (int image = 0; image < n_images; ++image) {
            Vector<T> sum{};
            Vector<T> sum_y{};
            for (long p = image * size + channel; p < (image + 1) * size; p += kChannels) {
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

// Adds dL/dscale and dL/dshift.
template <class T>
void finish_delta(const DeltaSums& sums, Normalisation& norm, T* d_scale, T* d_shift) {
    for (int c = 0; c < kChannels; ++c) {
        norm.delta[c] = sums.delta[c];
        norm.delta_xhat[c] = sums.delta_y[c] * norm.inverse[c];
        d_shift[c] += T(norm.delta[c]);
        d_scale[c] += T(norm.delta_xhat[c]);
    }
}

// What dL/dy is made of, for some images of one block; the derivatives along a direction may be null.
template <class T>
struct Stored {
    const T* conv;
    const T* delta;
    const uint8_t* where;
    const T* conv_tangent;
    const T* delta_tangent;
};

// frequencies = A (dL/dy) A^T of each tile; see Gradient for dL/dy.
template <class T, class Tile, int SIDE, bool TANGENT>
void transform_gradient(const Stored<T>& stored, int n_images, const Gradient<T>& gradient, T* frequencies) {
    using Tiles = Tiling<Tile, SIDE>;
    for_tile_rows<T, Tile, SIDE>(n_images, [&](const TileRow& at) {
        const Vector<T> zero{};
        const Vector<T> on_conv = load(gradient.on_conv + at.channel);
        const Vector<T> constant = load(gradient.constant + at.channel);
        const Vector<T> on_delta = load(gradient.on_delta + at.channel);
        const Vector<T> on_conv_tangent = TANGENT ? load(gradient.on_conv_tangent + at.channel) : zero;
        const Vector<T> on_delta_tangent = TANGENT ? load(gradient.on_delta_tangent + at.channel) : zero;
        for (int j = 0; j < Tiles::per_side; ++j) {
            Vector<T> dy[Tile::out * Tile::out] = {};
            for_pixels<Tile, SIDE>(at.row, j, [&](int p, int row, int column) {
                const long pixel = at.pixels + (row * SIDE + column) * kChannels;
                dy[p] = load(stored.conv + pixel) * on_conv + constant;
                if constexpr (TANGENT) {
                    dy[p] += load(stored.conv_tangent + pixel) * on_conv_tangent;
                }
            });
            for_windows<Tile, SIDE>(at.row, j, [&](int first, int row, int column) {
                const long window = at.windows + window_offset<SIDE>(row, column);
                Vector<T> delta = load(stored.delta + window) * on_delta;
                if constexpr (TANGENT) {
                    delta += load(stored.delta_tangent + window) * on_delta_tangent;
                }
                const Integers<T> chosen = load_integers<T>(stored.where + window);
#pragma GCC unroll 4
                for (int pixel = 0; pixel < window_pixels<SIDE>; ++pixel) {
                    dy[window_pixel<Tile>(first, pixel)] += chosen == pixel ? delta : zero;
                }
            });
            transform_output_adjoint<T, Tile>(dy, frequencies + at.tiles + j * kChannels, Tiles::stride);
        }
    });
}

// Adds dL/dU, [frequency][out][in], to d_filter and leaves dL/din of some images; `filter` is [frequency][out][in] too.
template <class T, class Tile, int SIDE>
void conv_backward(const T* in, const Stored<T>& stored, int n_images, const Gradient<T>& gradient, const T* filter,
                   const TileMemory<T>& memory, T* d_filter, T* d_in) {
    using Tiles = Tiling<Tile, SIDE>;
    const int tiles = n_images * Tiles::per_image;
    transform_input<T, Tile, SIDE>(in, n_images, memory.input);
    transform_gradient<T, Tile, SIDE, false>(stored, n_images, gradient, memory.gradient);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const T* dy = memory.gradient + f * Tiles::stride;
        multiply_transposed_add(tiles, dy, memory.input + f * Tiles::stride, d_filter + f * kFilterSize);
        multiply(tiles, dy, filter + f * kFilterSize, memory.product + f * Tiles::stride);
    }
    transform_input_adjoint<T, Tile, SIDE>(memory.product, n_images, d_in);
}

}  // namespace kshot
