// The R-operator (Pearlmutter 1994, "Fast exact multiplication by the Hessian"): how everything that the forward and
// the backward pass computed changes as the parameters move along a direction v. The change of the gradient is H v, at
// about twice the price of the gradient, without a graph. Names that end in _tangent, and y' in comments, are such
// derivatives.
#pragma once

#include "first_tangent.hpp"

namespace kshot {

template <class T>
struct BlockTangent {
    T* conv;
    T* xhat;  // at the peaks
    T* out;
    T* delta;
    NormalisationTangent norm;

    void take(Cursor& cursor, int block, int n_images) {
        conv = block > 0 ? cursor.take<T>(n_images * image_size(block)) : nullptr;
        xhat = block > 0 ? cursor.take<T>(n_images * image_size(block + 1)) : nullptr;
        out = cursor.take<T>(n_images * image_size(block + 1));
        delta = cursor.take<T>(n_images * image_size(block + 1));
    }
};

template <class T>
struct PassTangent {
    BlockTangent<T> block[kBlocks];

    void start(int n_images) {
        arena_.lay_out([&](Cursor& cursor) {
            for (int b = 0; b < kBlocks; ++b) {
                block[b].take(cursor, b, n_images);
            }
        });
    }

  private:
    Arena arena_;
};

struct ConvTangentSums {
    Sums y = {};    // of y'
    Sums y_y = {};  // of y' (y - mean)
};

// Ends a tangent convolution: leaves y' and its values at the peaks, and sums.
template <class T, class Tile, int SIDE>
void pick_and_sum(const T* frequencies, int n_images, const T* conv, const uint8_t* where, const Normalisation& norm,
                  T* conv_tangent, T* peak_tangent, ConvTangentSums& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    for_tile_rows<T, Tile, SIDE>(n_images, [&](const TileRow& at) {
        const Vector<T> mean = load_rounded<T>(norm.mean + at.channel);
        Vector<T> sum{};
        Vector<T> sum_y{};
        for (int j = 0; j < Tiles::per_side; ++j) {
            Vector<T> y[Tile::out * Tile::out];
            transform_output<T, Tile>(frequencies + at.tiles + j * kChannels, Tiles::stride, y);
            for_pixels<Tile, SIDE>(at.row, j, [&](int p, int row, int column) {
                const long pixel = at.pixels + (row * SIDE + column) * kChannels;
                store(conv_tangent + pixel, y[p]);
                sum += y[p];
                sum_y += y[p] * (load(conv + pixel) - mean);
            });
            for_windows<Tile, SIDE>(at.row, j, [&](int first, int row, int column) {
                const long window = at.windows + window_offset<SIDE>(row, column);
                const Integers<T> chosen = load_integers<T>(where + window);
                Vector<T> picked = y[first];
#pragma GCC unroll 3
                for (int pixel = 1; pixel < window_pixels<SIDE>; ++pixel) {
                    picked = chosen == pixel ? y[window_pixel<Tile>(first, pixel)] : picked;
                }
                store(peak_tangent + window, picked);
            });
        }
        add_lanes<T>(sum, sums.y + at.channel);
        add_lanes<T>(sum_y, sums.y_y + at.channel);
    });
}

// Turns y' at the peaks into xhat', and leaves out'.
template <class T>
void normalise_tangent(const BlockState<T>& state, long size, int block, const Parameters<T>& theta,
                       const Parameters<T>& direction, const BlockTangent<T>& tangent) {
    const Vector<T> zero{};
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        const Vector<T> mean = load_rounded<T>(state.norm.mean + channel);
        const Vector<T> mean_tangent = load_rounded<T>(tangent.norm.mean + channel);
        const Vector<T> r = load_rounded<T>(state.norm.inverse + channel);
        const Vector<T> k = load_rounded<T>(tangent.norm.k + channel);
        const Vector<T> scale = load(theta.scale(block) + channel);
        const Vector<T> scale_tangent = load(direction.scale(block) + channel);
        const Vector<T> shift_tangent = load(direction.shift(block) + channel);
        for (long p = channel; p < size; p += kChannels) {
            const Vector<T> xhat = r * (load(state.peak + p) - mean);
            const Vector<T> xhat_tangent = r * (load(tangent.xhat + p) - mean_tangent) - xhat * r * k;
            const Vector<T> z_tangent = scale_tangent * xhat + scale * xhat_tangent + shift_tangent;
            store(tangent.xhat + p, xhat_tangent);
            store(tangent.out + p, load(state.out + p) > zero ? z_tangent : zero);
        }
    }
}

// product = in' * W + in * W' of some images, in the frequency domain, with W' of the direction.
template <class T, class Tile, int SIDE>
void conv_forward_tangent(const T* in, const T* in_tangent, int n_images, const T* filter, const T* filter_tangent,
                          const TileMemory<T>& memory) {
    using Tiles = Tiling<Tile, SIDE>;
    const int tiles = n_images * Tiles::per_image;
    transform_input<T, Tile, SIDE>(in_tangent, n_images, memory.input);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const long at = f * Tiles::stride;
        multiply(tiles, memory.input + at, filter + f * kFilterSize, memory.product + at);
    }
    transform_input<T, Tile, SIDE>(in, n_images, memory.input);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const long at = f * Tiles::stride;
        multiply_add(tiles, memory.input + at, filter_tangent + f * kFilterSize, memory.product + at);
    }
}

// Leaves the features' derivatives in the last block's out.
template <class T>
void forward_tangent(const Parameters<T>& theta, const Parameters<T>& direction, const Pass<T>& pass,
                     const Worker<T>& worker, PassTangent<T>& tangent) {
    tangent.start(pass.n_images);
    BlockTangent<T>& first = tangent.block[0];
    const Normalisation& first_norm = pass.block[0].norm;
    normalise_first_tangent(pass.moments, first_norm, theta.conv(0), direction.conv(0), first.norm);
    first_forward_tangent(pass, FirstTangent<T>(theta, direction, first_norm, first.norm), worker.squares, first.out);
    for (int b = 1; b < kBlocks; ++b) {
        const BlockState<T>& here = pass.block[b];
        BlockTangent<T>& there = tangent.block[b];
        ConvTangentSums sums;
        for_images(b, {0, pass.n_images}, [&](int i, int n, auto side) {
            using Tile = TileFor<side.value>;
            const long in = i * image_size(b);
            const long out = i * image_size(b + 1);
            conv_forward_tangent<T, Tile, side.value>(pass.block[b - 1].out + in, tangent.block[b - 1].out + in, n,
                                                      theta.forward_filter(b), direction.forward_filter(b),
                                                      worker.tiles);
            pick_and_sum<T, Tile, side.value>(worker.tiles.product, n, here.conv + in, here.where + out, here.norm,
                                              there.conv + in, there.xhat + out, sums);
        });
        for (int c = 0; c < kChannels; ++c) {
            there.norm.mean[c] = sums.y[c] / here.norm.count;
            there.norm.k[c] = sums.y_y[c] / here.norm.count * here.norm.inverse[c];
        }
        normalise_tangent(here, pass.n_images * image_size(b + 1), b, theta, direction, there);
    }
}

// delta' = dL/dout' where out > 0, and the derivatives of the sums of delta and of delta * xhat.
template <class T>
void mask_and_sum_tangent(const BlockState<T>& state, int n_images, long size, BlockTangent<T>& tangent) {
    const Vector<T> zero{};
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        const Vector<T> mean = load_rounded<T>(state.norm.mean + channel);
        const Vector<T> r = load_rounded<T>(state.norm.inverse + channel);
        double* const delta = tangent.norm.delta + channel;
        double* const delta_xhat = tangent.norm.delta_xhat + channel;
        std::fill_n(delta, Simd<T>::lanes, 0.0);
        std::fill_n(delta_xhat, Simd<T>::lanes, 0.0);
        for (int image = 0; image < n_images; ++image) {
            Vector<T> sum{};
            Vector<T> sum_xhat{};
            for (long p = image * size + channel; p < (image + 1) * size; p += kChannels) {
                const Vector<T> masked = load(state.out + p) > zero ? load(tangent.delta + p) : zero;
                store(tangent.delta + p, masked);
                sum += masked;
                sum_xhat += masked * (load(state.peak + p) - mean) * r;
                sum_xhat += load(state.delta + p) * load(tangent.xhat + p);
            }
            add_lanes<T>(sum, delta);
            add_lanes<T>(sum_xhat, delta_xhat);
        }
    }
}

// dW' = in'^T dy + in^T dy' (added) and din' = dy W'^T + dy' W^T of some images; filters are [frequency][out][in].
template <class T, class Tile, int SIDE>
void conv_backward_tangent(const T* in, const T* in_tangent, const Stored<T>& stored, int n_images,
                           const Gradient<T>& gradient, const Gradient<T>& gradient_tangent, const T* filter,
                           const T* filter_tangent, const TileMemory<T>& memory, T* d_filter, T* d_in_tangent) {
    using Tiles = Tiling<Tile, SIDE>;
    const int tiles = n_images * Tiles::per_image;
    transform_input<T, Tile, SIDE>(in_tangent, n_images, memory.input);
    transform_gradient<T, Tile, SIDE, false>(stored, n_images, gradient, memory.gradient);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const long at = f * Tiles::stride;
        multiply_transposed_add(tiles, memory.gradient + at, memory.input + at, d_filter + f * kFilterSize);
        multiply(tiles, memory.gradient + at, filter_tangent + f * kFilterSize, memory.product + at);
    }
    transform_input<T, Tile, SIDE>(in, n_images, memory.input);
    transform_gradient<T, Tile, SIDE, true>(stored, n_images, gradient_tangent, memory.gradient);
    for (int f = 0; f < Tiles::frequencies; ++f) {
        const long at = f * Tiles::stride;
        multiply_transposed_add(tiles, memory.gradient + at, memory.input + at, d_filter + f * kFilterSize);
        multiply_add(tiles, memory.gradient + at, filter + f * kFilterSize, memory.product + at);
    }
    transform_input_adjoint<T, Tile, SIDE>(memory.product, n_images, d_in_tangent);
}

// One of blocks 2 to 4, whose delta' is given; leaves that of the block below, unmasked.
template <class T>
void backward_block_tangent(const Parameters<T>& theta, const Parameters<T>& direction, const Pass<T>& pass, int b,
                            Worker<T>& worker, PassTangent<T>& tangent, T* hv) {
    const BlockState<T>& here = pass.block[b];
    BlockTangent<T>& there = tangent.block[b];
    mask_and_sum_tangent(here, pass.n_images, image_size(b + 1), there);
    std::copy_n(there.norm.delta_xhat, kChannels, hv + layout::scale(b));
    std::copy_n(there.norm.delta, kChannels, hv + layout::shift(b));
    const Gradient<T> gradient = gradient_by_conv(here.norm, theta.scale(b));
    const Gradient<T> gradient_tangent =
        gradient_by_conv_tangent(here.norm, there.norm, theta.scale(b), direction.scale(b));
    for_images(b, {0, pass.n_images}, [&](int i, int n, auto side) {
        const long in = i * image_size(b);
        const long out = i * image_size(b + 1);
        const Stored<T> stored = {here.conv + in, here.delta + out, here.where + out, there.conv + in,
                                  there.delta + out};
        conv_backward_tangent<T, TileFor<side.value>, side.value>(
            pass.block[b - 1].out + in, tangent.block[b - 1].out + in, stored, n, gradient, gradient_tangent,
            theta.backward_filter(b), direction.backward_filter(b), worker.tiles, worker.d_filter[b],
            tangent.block[b - 1].delta + in);
    });
    with_side(b, [&](auto side) {
        transform_filter_adjoint<T, TileFor<side.value>>(worker.d_filter[b], hv + layout::conv(b));
    });
}

// Writes the derivative of the gradient to `hv`, but for the head; the last block's delta holds dL/dfeatures'.
template <class T>
void backward_tangent(const Parameters<T>& theta, const Parameters<T>& direction, const Pass<T>& pass,
                      const TapSums& taps, Worker<T>& worker, PassTangent<T>& tangent, T* hv) {
    worker.clear_filters();
    for (int b = kBlocks - 1; b > 0; --b) {
        backward_block_tangent(theta, direction, pass, b, worker, tangent, hv);
    }
    const BlockState<T>& first = pass.block[0];
    TapSums taps_tangent;
    add_tap_sums(pass.images, pass.n_images, first.out, tangent.block[0].delta, first.where, worker.squares,
                 taps_tangent);
    first_backward_tangent(pass, taps, taps_tangent, theta, direction, tangent.block[0].norm, hv);
}

}  // namespace kshot
