// Batch normalisation of one block: z = scale * xhat + shift with xhat = (y - mean) / sqrt(variance + eps), where the
// mean and the variance are those of y over all M pixels of all images of the group (Ioffe and Szegedy 2015).
#pragma once

#include <cmath>

#include "shape.hpp"
#include "simd.hpp"

namespace kshot {

constexpr double kEpsilon = 1e-5;

// Channel by channel; sums are kept in double precision.
using Sums = double[kChannels];

struct Normalisation {
    double count;  // M
    Sums mean;
    Sums variance;
    Sums inverse;  // 1 / sqrt(variance + eps)
    // Left by the backward pass: sums over the pixels that pooling chose of delta = dL/dz, and of delta * xhat.
    Sums delta;
    Sums delta_xhat;

    void set(int channel, double new_mean, double new_variance) {
        mean[channel] = new_mean;
        // Rounding may leave a variance of zero a little below; a NaN passes.
        variance[channel] = new_variance < 0 ? 0 : new_variance;
        inverse[channel] = 1 / std::sqrt(variance[channel] + kEpsilon);
    }
};

// Left by the R-operator (see tangent.hpp): derivatives of the above as parameters move along a direction. With
// k = mean(y' (y - mean)) / sqrt(variance + eps), the derivative of `inverse` is -inverse^2 k.
struct NormalisationTangent {
    Sums mean;
    Sums k;
    Sums delta;
    Sums delta_xhat;
};

// z is linear in y:  z = slope * y + constant.
template <class T>
struct Affine {
    T slope[kChannels];
    T constant[kChannels];

    Affine(const Normalisation& norm, const T* scale, const T* shift) {
        for (int c = 0; c < kChannels; ++c) {
            const double exact = scale[c] * norm.inverse[c];
            slope[c] = T(exact);
            constant[c] = T(shift[c] - exact * norm.mean[c]);
        }
    }
};

// The gradient of the loss by y is, for each channel, linear in what was stored:
//
//     dL/dy = on_conv y + on_conv_tangent y' + constant + [pooling chose y] (on_delta delta + on_delta_tangent delta')
template <class T>
struct Gradient {
    T on_conv[kChannels];
    T on_conv_tangent[kChannels];
    T constant[kChannels];
    T on_delta[kChannels];
    T on_delta_tangent[kChannels];
};

// dL/dy = scale / s * (delta - mean(delta) - xhat * mean(delta * xhat)), with s = sqrt(variance + eps).
template <class T>
Gradient<T> gradient_by_conv(const Normalisation& norm, const T* scale) {
    Gradient<T> gradient = {};
    for (int c = 0; c < kChannels; ++c) {
        const double slope = scale[c] * norm.inverse[c];
        const double on_conv = -slope * norm.inverse[c] * norm.delta_xhat[c] / norm.count;
        gradient.on_conv[c] = T(on_conv);
        gradient.constant[c] = T(-slope * norm.delta[c] / norm.count - on_conv * norm.mean[c]);
        gradient.on_delta[c] = T(slope);
    }
    return gradient;
}

// The derivative of gradient_by_conv along a direction, by the product rule.
template <class T>
Gradient<T> gradient_by_conv_tangent(const Normalisation& norm, const NormalisationTangent& tangent, const T* scale,
                                     const T* scale_tangent) {
    Gradient<T> gradient = {};
    for (int c = 0; c < kChannels; ++c) {
        const double r = norm.inverse[c];
        const double slope = scale[c] * r;
        const double slope_tangent = scale_tangent[c] * r - scale[c] * r * r * tangent.k[c];
        const double delta = norm.delta[c] / norm.count;
        const double delta_xhat = norm.delta_xhat[c] / norm.count;
        const double delta_tangent = tangent.delta[c] / norm.count;
        const double delta_xhat_tangent = tangent.delta_xhat[c] / norm.count;
        // xhat = r (y - mean) and xhat' = r (y' - mean') - r k xhat.
        const double on_xhat = -slope_tangent * delta_xhat - slope * delta_xhat_tangent;
        const double on_xhat_tangent = -slope * delta_xhat;
        const double on_conv = (on_xhat - on_xhat_tangent * r * tangent.k[c]) * r;
        gradient.on_conv[c] = T(on_conv);
        gradient.on_conv_tangent[c] = T(on_xhat_tangent * r);
        gradient.constant[c] = T(-slope_tangent * delta - slope * delta_tangent - on_conv * norm.mean[c] -
                                 on_xhat_tangent * r * tangent.mean[c]);
        gradient.on_delta[c] = T(slope_tangent);
        gradient.on_delta_tangent[c] = T(slope);
    }
    return gradient;
}

}  // namespace kshot
