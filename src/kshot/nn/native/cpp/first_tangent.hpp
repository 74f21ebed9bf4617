// The R-operator of the first block (see tangent.hpp): like the block itself, it needs only moments of patches and the
// patches that pooling chose.
#pragma once

#include "network.hpp"

namespace kshot {

// mean(y') and k of NormalisationTangent.
template <class T>
void normalise_first_tangent(const PatchMoments& moments, const Normalisation& norm, const T* taps,
                             const T* taps_tangent, NormalisationTangent& tangent) {
    for (int c = 0; c < kChannels; ++c) {
        double mean = 0;
        double covariance = 0;
        for (int k = 0; k < kPatch; ++k) {
            const double tap_tangent = taps_tangent[k * kChannels + c];
            mean += tap_tangent * moments.mean[k];
            for (int j = 0; j < kPatch; ++j) {
                covariance += tap_tangent * taps[j * kChannels + c] * moments.covariance[k][j];
            }
        }
        tangent.mean[c] = mean;
        tangent.k[c] = norm.inverse[c] * covariance;
    }
}

// out' = [out > 0] (scale' xhat + scale xhat' + shift') is linear in y and y', and so in the patch that pooling chose.
template <class T>
struct FirstTangent {
    T taps[kPatch * kChannels];
    T constant[kChannels];

    FirstTangent(const Parameters<T>& theta, const Parameters<T>& direction, const Normalisation& norm,
                 const NormalisationTangent& tangent) {
        for (int c = 0; c < kChannels; ++c) {
            const double r = norm.inverse[c];
            const double on_y = direction.scale(0)[c] * r - theta.scale(0)[c] * r * tangent.k[c] * r;
            const double on_y_tangent = theta.scale(0)[c] * r;
            constant[c] = T(direction.shift(0)[c] - on_y * norm.mean[c] - on_y_tangent * tangent.mean[c]);
            for (int i = c; i < kPatch * kChannels; i += kChannels) {
                taps[i] = T(on_y * theta.conv(0)[i] + on_y_tangent * direction.conv(0)[i]);
            }
        }
    }
};

template <class T>
void first_forward_tangent(const Pass<T>& pass, const FirstTangent<T>& linear, T* squares, T* out_tangent) {
    const BlockState<T>& state = pass.block[0];
    const Vector<T> zero{};
    for (int image = 0; image < pass.n_images; ++image) {
        cut_squares(pass.images + long(image) * kImageSize, squares);
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            Vector<T> tap[kPatch];
            for (int k = 0; k < kPatch; ++k) {
                tap[k] = load(linear.taps + k * kChannels + channel);
            }
            const Vector<T> constant = load(linear.constant + channel);
            long at = image * image_size(1) + channel;
            for (int window = 0; window < kWindows; ++window, at += kChannels) {
                const Integers<T> place = chosen_place<T>(state.where + at);
                Vector<T> z = constant;
#pragma GCC unroll 27
                for (int k = 0; k < kPatch; ++k) {
                    z += pick<T>(squares + window * kSquare + k / kTaps * kOneSquare, place + tap_place(k)) * tap[k];
                }
                store(out_tangent + at, load(state.out + at) > zero ? z : zero);
            }
        }
    }
}

// Channel c of cov(x_k, sum_j w_j x_j).
template <class T>
double patch_covariance(const PatchMoments& moments, const T* taps, int k, int c) {
    double covariance = 0;
    for (int j = 0; j < kPatch; ++j) {
        covariance += moments.covariance[k][j] * taps[j * kChannels + c];
    }
    return covariance;
}

// Derivatives of dL/dshift and dL/dscale, left in `tangent` too.
template <class T>
void finish_first_tangent(const TapSums& sums, const TapSums& sums_tangent, const T* taps, const T* taps_tangent,
                          const Normalisation& norm, NormalisationTangent& tangent, T* hv) {
    for (int c = 0; c < kChannels; ++c) {
        double delta_y_tangent = -norm.mean[c] * sums_tangent.delta[c] - tangent.mean[c] * sums.delta[c];
        for (int k = 0; k < kPatch; ++k) {
            delta_y_tangent += taps[k * kChannels + c] * sums_tangent.tap[k][c];
            delta_y_tangent += taps_tangent[k * kChannels + c] * sums.tap[k][c];
        }
        const double r = norm.inverse[c];
        tangent.delta[c] = sums_tangent.delta[c];
        tangent.delta_xhat[c] = r * delta_y_tangent - r * tangent.k[c] * norm.delta_xhat[c];
        hv[layout::shift(0) + c] = T(tangent.delta[c]);
        hv[layout::scale(0) + c] = T(tangent.delta_xhat[c]);
    }
}

// The derivative of first_backward, written to `hv`.
template <class T>
void first_backward_tangent(const Pass<T>& pass, const TapSums& sums, const TapSums& sums_tangent,
                            const Parameters<T>& theta, const Parameters<T>& direction, NormalisationTangent& tangent,
                            T* hv) {
    const Normalisation& norm = pass.block[0].norm;
    finish_first_tangent(sums, sums_tangent, theta.conv(0), direction.conv(0), norm, tangent, hv);
    for (int c = 0; c < kChannels; ++c) {
        const double r = norm.inverse[c];
        const double r_tangent = -r * r * tangent.k[c];
        const double slope = theta.scale(0)[c] * r;
        const double slope_tangent = direction.scale(0)[c] * r + theta.scale(0)[c] * r_tangent;
        for (int k = 0; k < kPatch; ++k) {
            const double mean = pass.moments.mean[k];
            const double covariance = patch_covariance(pass.moments, theta.conv(0), k, c);
            const double covariance_tangent = patch_covariance(pass.moments, direction.conv(0), k, c);
            const double plain = sums.tap[k][c] - norm.delta[c] * mean - norm.delta_xhat[c] * r * covariance;
            const double plain_tangent = sums_tangent.tap[k][c] - tangent.delta[c] * mean -
                                         tangent.delta_xhat[c] * r * covariance -
                                         norm.delta_xhat[c] * (r_tangent * covariance + r * covariance_tangent);
            hv[layout::conv(0) + k * kChannels + c] = T(slope * plain_tangent + slope_tangent * plain);
        }
    }
}

}  // namespace kshot
