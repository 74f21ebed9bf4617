// The R-operator (Pearlmutter 1994, "Fast exact multiplication by the Hessian"): how everything that the forward and the
// backward pass computed changes as the parameters move along a direction v. The change of the gradient is H v, at about
// twice the price of the gradient, without a graph. Names that end in _tangent are such derivatives.
#pragma once

#include "head.hpp"
#include "network.hpp"

namespace kshot {

template <class T>
struct BlockTangent {
    Buffer<T> conv;
    Buffer<T> xhat;  // at the peaks
    Buffer<T> out;
    Buffer<T> delta;
    NormalisationTangent norm;
};

template <class T>
struct PassTangent {
    BlockTangent<T> block[kBlocks];
    Buffer<T> d_filter_unused;
};

// First block: out' = [out > 0] (scale' xhat + scale xhat' + shift'), linear in the chosen patch like y and y' are.
template <class T>
void first_forward_tangent(const Pass<T>& pass, const Parameters<T>& theta, const Parameters<T>& direction, T* squares,
                           BlockTangent<T>& tangent) {
    const BlockState<T>& state = pass.block[0];
    const Normalisation<T>& norm = state.norm;
    const T* taps = theta.conv(0);
    const T* taps_tangent = direction.conv(0);
    alignas(64) T folded[kTaps * kChannels];
    alignas(64) T constant[kChannels];
    for (int c = 0; c < kChannels; ++c) {
        double mean = 0;
        double covariance = 0;
        for (int k = 0; k < kTaps; ++k) {
            const double tap = taps_tangent[k * kChannels + c];
            mean += tap * pass.moments.mean[k];
            for (int j = 0; j < kTaps; ++j) {
                covariance += tap * taps[j * kChannels + c] * pass.moments.covariance[k][j];
            }
        }
        const double r = norm.inverse[c];
        const double k = r * covariance;
        tangent.norm.mean[c] = mean;
        tangent.norm.k[c] = k;
        const double on_y = direction.scale(0)[c] * r - theta.scale(0)[c] * r * k * r;
        const double on_y_tangent = theta.scale(0)[c] * r;
        constant[c] = T(direction.shift(0)[c] - on_y * norm.mean[c] - on_y_tangent * mean);
        for (int t = 0; t < kTaps; ++t) {
            folded[t * kChannels + c] = T(on_y * taps[t * kChannels + c] + on_y_tangent * taps_tangent[t * kChannels + c]);
        }
    }
    const Vector<T> zero{};
    T* out = tangent.out.resize(pass.n_images * pixels(1));
    for (int image = 0; image < pass.n_images; ++image) {
        cut_squares(pass.images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> tap[kTaps];
            for (int k = 0; k < kTaps; ++k) {
                tap[k] = load(folded + k * kChannels + channel);
            }
            const Vector<T> start = load(constant + channel);
            long at = image * pixels(1) + channel;
            for (int window = 0; window < kWindows; ++window, at += kChannels) {
                const Integers<T> place = chosen_place<T>(state.where.data() + at);
                Vector<T> z = start;
#pragma GCC unroll 9
                for (int k = 0; k < kTaps; ++k) {
                    z += pick<T>(squares + window * kSquare, place + kTapPlace[k]) * tap[k];
                }
                store(out + at, load(state.out.data() + at) > zero ? z : zero);
            }
        }
    }
}

// The derivative of first_backward, written to `hv`.
template <class T>
void first_backward_tangent(const Pass<T>& pass, const TapSums& sums, const TapSums& sums_tangent,
                            const Parameters<T>& theta, const Parameters<T>& direction, NormalisationTangent& tangent,
                            T* hv) {
    const Normalisation<T>& norm = pass.block[0].norm;
    const T* taps = theta.conv(0);
    const T* taps_tangent = direction.conv(0);
    for (int c = 0; c < kChannels; ++c) {
        double delta_y_tangent = 0;  // of the sum of delta (y - mean)
        for (int k = 0; k < kTaps; ++k) {
            delta_y_tangent += taps[k * kChannels + c] * sums_tangent.tap[k][c];
            delta_y_tangent += taps_tangent[k * kChannels + c] * sums.tap[k][c];
        }
        delta_y_tangent -= norm.mean[c] * sums_tangent.delta[c] + tangent.mean[c] * sums.delta[c];
        const double r = norm.inverse[c];
        const double r_tangent = -r * r * tangent.k[c];
        const double delta_xhat = norm.delta_xhat[c];
        tangent.delta[c] = sums_tangent.delta[c];
        tangent.delta_xhat[c] = r * delta_y_tangent + r_tangent / r * delta_xhat;
        hv[Layout::shift(0) + c] = T(tangent.delta[c]);
        hv[Layout::scale(0) + c] = T(tangent.delta_xhat[c]);
        const double slope = theta.scale(0)[c] * r;
        const double slope_tangent = direction.scale(0)[c] * r + theta.scale(0)[c] * r_tangent;
        for (int k = 0; k < kTaps; ++k) {
            double covariance = 0;
            double covariance_tangent = 0;
            for (int j = 0; j < kTaps; ++j) {
                covariance += pass.moments.covariance[k][j] * taps[j * kChannels + c];
                covariance_tangent += pass.moments.covariance[k][j] * taps_tangent[j * kChannels + c];
            }
            const double plain = sums.tap[k][c] - norm.delta[c] * pass.moments.mean[k] - delta_xhat * r * covariance;
            const double plain_tangent = sums_tangent.tap[k][c] - tangent.delta[c] * pass.moments.mean[k] -
                                         tangent.delta_xhat[c] * r * covariance -
                                         delta_xhat * (r_tangent * covariance + r * covariance_tangent);
            hv[k * kChannels + c] = T(slope * plain_tangent + slope_tangent * plain);
        }
    }
}

struct ConvTangentSums {
    Sums y = {};    // of y'
    Sums y_y = {};  // of y' (y - mean)
};

// Ends a tangent convolution: leaves y' and its values at the peaks, and sums.
template <class T, class Tile, int SIDE>
void pick_and_sum(const T* frequencies, int n_images, const T* conv, const uint8_t* where, const Normalisation<T>& norm,
                  T* conv_tangent, T* peak_tangent, ConvTangentSums& sums) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int out = Tile::out;
    constexpr int half = SIDE / 2;
    constexpr bool whole = SIDE % out == 0;
    for (int image = 0; image < n_images; ++image) {
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> mean;
            for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
                mean[lane] = T(norm.mean[channel + lane]);
            }
            const long pixel_image = long(image) * SIDE * SIDE * kChannels + channel;
            const long window_image = long(image) * half * half * kChannels + channel;
            const T* from = frequencies + long(image) * Tiles::per_image * kChannels + channel;
            for (int i = 0; i < Tiles::per_side; ++i) {
                Vector<T> sum{};
                Vector<T> sum_y{};
                for (int j = 0; j < Tiles::per_side; ++j, from += kChannels) {
                    Vector<T> y[out * out];
                    transform_output<T, Tile>(from, Tiles::stride, y);
#pragma GCC unroll 16
                    for (int p = 0; p < out * out; ++p) {
                        const int row = i * out + p / out;
                        const int column = j * out + p % out;
                        if (whole || (row < SIDE && column < SIDE)) {
                            const long at = pixel_image + (row * SIDE + column) * kChannels;
                            store(conv_tangent + at, y[p]);
                            sum += y[p];
                            sum_y += y[p] * (load(conv + at) - mean);
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
                        const long at = window_image + (row * half + column) * kChannels;
                        const Integers<T> chosen = load_integers<T>(where + at);
                        Vector<T> picked = y[corner];
#pragma GCC unroll 3
                        for (int pixel = 1; pixel < 4; ++pixel) {
                            picked = chosen == pixel ? y[corner + (pixel / 2) * out + pixel % 2] : picked;
                        }
                        store(peak_tangent + at, picked);
                    }
                }
                add_lanes<T>(sum, sums.y + channel);
                add_lanes<T>(sum_y, sums.y_y + channel);
            }
        }
    }
}

// xhat' in the place of y' at the peaks, and out'.
template <class T>
void normalise_tangent(const BlockState<T>& state, int n_images, int block, const Parameters<T>& theta,
                       const Parameters<T>& direction, BlockTangent<T>& tangent) {
    const Vector<T> zero{};
    const long size = n_images * pixels(block + 1);
    T* out = tangent.out.resize(size);
    T* xhat_tangent = tangent.xhat.data();
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        Vector<T> mean;
        Vector<T> mean_tangent;
        Vector<T> r;
        Vector<T> k;
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
            mean[lane] = T(state.norm.mean[channel + lane]);
            mean_tangent[lane] = T(tangent.norm.mean[channel + lane]);
            r[lane] = T(state.norm.inverse[channel + lane]);
            k[lane] = T(tangent.norm.k[channel + lane]);
        }
        const Vector<T> scale = load(theta.scale(block) + channel);
        const Vector<T> scale_tangent = load(direction.scale(block) + channel);
        const Vector<T> shift_tangent = load(direction.shift(block) + channel);
        for (long p = channel; p < size; p += kChannels) {
            const Vector<T> xhat = r * (load(state.peak.data() + p) - mean);
            const Vector<T> moved = r * (load(xhat_tangent + p) - mean_tangent) - xhat * r * k;
            store(xhat_tangent + p, moved);
            const Vector<T> z = scale_tangent * xhat + scale * moved + shift_tangent;
            store(out + p, load(state.out.data() + p) > zero ? z : zero);
        }
    }
}

template <class T>
void forward_tangent(const Parameters<T>& theta, const Parameters<T>& direction, const Pass<T>& pass, Worker<T>& worker,
                     PassTangent<T>& tangent) {
    const int n_images = pass.n_images;
    first_forward_tangent(pass, theta, direction, worker.squares.resize(kWindows * kSquare), tangent.block[0]);
    for (int b = 1; b < kBlocks; ++b) {
        const BlockState<T>& here = pass.block[b];
        BlockTangent<T>& there = tangent.block[b];
        T* conv_tangent = there.conv.resize(n_images * pixels(b));
        T* peak_tangent = there.xhat.resize(n_images * pixels(b + 1));
        ConvTangentSums sums;
        with_side(b, [&](auto side) {
            constexpr int SIDE = decltype(side)::value;
            using Tile = TileFor<SIDE>;
            using Tiles = Tiling<Tile, SIDE>;
            T* input = worker.tiles.input.resize(Tiles::size);
            T* product = worker.tiles.product.resize(Tiles::size);
            for (int i = 0; i < n_images; i += Tiles::images_at_once) {
                const int n = std::min(Tiles::images_at_once, n_images - i);
                const long in = i * pixels(b);
                const long out = i * pixels(b + 1);
                // y' = conv(in', W) + conv(in, W').
                transform_input<T, Tile, SIDE>(tangent.block[b - 1].out.data() + in, n, input);
                for (int f = 0; f < Tiles::frequencies; ++f) {
                    multiply(n * Tiles::per_image, input + f * Tiles::stride,
                             theta.filter[b].data() + f * kFilterSize, product + f * Tiles::stride);
                }
                transform_input<T, Tile, SIDE>(pass.block[b - 1].out.data() + in, n, input);
                for (int f = 0; f < Tiles::frequencies; ++f) {
                    multiply_add(n * Tiles::per_image, input + f * Tiles::stride,
                                 direction.filter[b].data() + f * kFilterSize, product + f * Tiles::stride);
                }
                pick_and_sum<T, Tile, SIDE>(product, n, here.conv.data() + in, here.where.data() + out, here.norm,
                                            conv_tangent + in, peak_tangent + out, sums);
            }
        });
        for (int c = 0; c < kChannels; ++c) {
            there.norm.mean[c] = sums.y[c] / here.norm.count;
            there.norm.k[c] = sums.y_y[c] / here.norm.count * here.norm.inverse[c];
        }
        normalise_tangent(here, n_images, b, theta, direction, there);
    }
}

// delta' = dL/dout' where out > 0, and the derivatives of the sums of delta and of delta * xhat.
template <class T>
void mask_and_sum_tangent(const BlockState<T>& state, int n_images, long image_size, BlockTangent<T>& tangent) {
    const Vector<T> zero{};
    T* delta_tangent = tangent.delta.data();
    for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
        Sums sum = {};
        Sums sum_y = {};
        Sums sum_xhat = {};
        Vector<T> mean;
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
            mean[lane] = T(state.norm.mean[channel + lane]);
        }
        for (int image = 0; image < n_images; ++image) {
            Vector<T> image_sum{};
            Vector<T> image_sum_y{};
            Vector<T> image_sum_xhat{};
            for (long p = image * image_size + channel; p < (image + 1) * image_size; p += kChannels) {
                const Vector<T> masked = load(state.out.data() + p) > zero ? load(delta_tangent + p) : zero;
                store(delta_tangent + p, masked);
                image_sum += masked;
                image_sum_y += masked * (load(state.peak.data() + p) - mean);
                image_sum_xhat += load(state.delta.data() + p) * load(tangent.xhat.data() + p);
            }
            add_lanes<T>(image_sum, sum);
            add_lanes<T>(image_sum_y, sum_y);
            add_lanes<T>(image_sum_xhat, sum_xhat);
        }
        for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
            tangent.norm.delta[channel + lane] = sum[lane];
            tangent.norm.delta_xhat[channel + lane] =
                sum_y[lane] * state.norm.inverse[channel + lane] + sum_xhat[lane];
        }
    }
}

// Writes the derivative of the gradient to `hv`, but for the head; tangent.block[3].delta holds dL/dfeatures'.
template <class T>
void backward_tangent(const Parameters<T>& theta, const Parameters<T>& direction, const Pass<T>& pass,
                      const TapSums& taps, Worker<T>& worker, PassTangent<T>& tangent, T* hv) {
    const int n_images = pass.n_images;
    for (int b = kBlocks - 1; b > 0; --b) {
        const BlockState<T>& here = pass.block[b];
        BlockTangent<T>& there = tangent.block[b];
        mask_and_sum_tangent(here, n_images, pixels(b + 1), there);
        for (int c = 0; c < kChannels; ++c) {
            hv[Layout::scale(b) + c] = T(there.norm.delta_xhat[c]);
            hv[Layout::shift(b) + c] = T(there.norm.delta[c]);
        }
        Gradient<T> gradient;
        Gradient<T> gradient_tangent;
        gradient_by_conv(here.norm, theta.scale(b), gradient);
        gradient_by_conv_tangent(here.norm, there.norm, theta.scale(b), direction.scale(b), gradient_tangent);
        T* d_in = tangent.block[b - 1].delta.resize(n_images * pixels(b));
        T* d_filter = worker.d_filter[b].zeros(kFrequencySize);
        with_side(b, [&](auto side) {
            constexpr int SIDE = decltype(side)::value;
            using Tile = TileFor<SIDE>;
            using Tiles = Tiling<Tile, SIDE>;
            T* input = worker.tiles.input.resize(Tiles::size);
            T* dy = worker.tiles.gradient.resize(Tiles::size);
            T* product = worker.tiles.product.resize(Tiles::size);
            for (int i = 0; i < n_images; i += Tiles::images_at_once) {
                const int n = std::min(Tiles::images_at_once, n_images - i);
                const int tiles = n * Tiles::per_image;
                const long in = i * pixels(b);
                const long out = i * pixels(b + 1);
                const Images<T> images = {here.conv.data() + in, here.delta.data() + out, here.where.data() + out,
                                          there.conv.data() + in, there.delta.data() + out};
                // dW' = in'^T dy + in^T dy' and din' = dy W'^T + dy' W^T.
                transform_input<T, Tile, SIDE>(tangent.block[b - 1].out.data() + in, n, input);
                transform_gradient<T, Tile, SIDE, false>(images, n, gradient, dy);
                for (int f = 0; f < Tiles::frequencies; ++f) {
                    const long at = f * Tiles::stride;
                    multiply_transposed_add(tiles, input + at, dy + at, d_filter + f * kFilterSize);
                    multiply(tiles, dy + at, direction.exchanged[b].data() + f * kFilterSize, product + at);
                }
                transform_input<T, Tile, SIDE>(pass.block[b - 1].out.data() + in, n, input);
                transform_gradient<T, Tile, SIDE, true>(images, n, gradient_tangent, dy);
                for (int f = 0; f < Tiles::frequencies; ++f) {
                    const long at = f * Tiles::stride;
                    multiply_transposed_add(tiles, input + at, dy + at, d_filter + f * kFilterSize);
                    multiply_add(tiles, dy + at, theta.exchanged[b].data() + f * kFilterSize, product + at);
                }
                transform_input_adjoint<T, Tile, SIDE>(product, n, d_in + in);
            }
            transform_filter_adjoint<T, Tile>(d_filter, hv + Layout::conv(b));
        });
    }
    TapSums taps_tangent;
    add_tap_sums(pass.images, n_images, pass.block[0].out.data(), tangent.block[0].delta.data(),
                 pass.block[0].where.data(), worker.squares.resize(kWindows * kSquare), taps_tangent);
    first_backward_tangent(pass, taps, taps_tangent, theta, direction, tangent.block[0].norm, hv);
}

}  // namespace kshot
