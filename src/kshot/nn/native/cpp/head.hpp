// A linear head with softmax cross-entropy, for one task:  z = W f + b,  p = softmax(z),  L = mean_i -log p_i[label_i].
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "features.hpp"

namespace kshot {

// W as [way][feature], then b as [way].
template <class T>
struct Head {
    const T* weight;
    int ways;

    const T* row(int way) const { return weight + long(way) * kFeatures; }
    T bias(int way) const { return weight[long(ways) * kFeatures + way]; }
};

// Softmax of each example, and dL/dz = (p - [label]) / n.
template <class T>
struct HeadState {
    std::vector<T> probability;  // (n, way)
    std::vector<T> d_score;      // (n, way)
    std::vector<T> d_features;   // (n, D)
};

// Leaves probabilities, dL/dz and dL/df; returns the loss.
template <class T>
T head_forward(const Head<T>& head, const T* features, const int* labels, int n, HeadState<T>& state) {
    const int ways = head.ways;
    state.probability.resize(long(n) * ways);
    state.d_score.resize(long(n) * ways);
    state.d_features.assign(long(n) * kFeatures, T(0));
    double loss = 0;
    for (int i = 0; i < n; ++i) {
        T* p = state.probability.data() + long(i) * ways;
        T* d = state.d_score.data() + long(i) * ways;
        for (int way = 0; way < ways; ++way) {
            p[way] = head.bias(way) + dot(features + i * kFeatures, head.row(way));
        }
        const T highest = *std::max_element(p, p + ways);
        const T own = p[labels[i]];
        T sum = 0;
        for (int way = 0; way < ways; ++way) {
            p[way] = std::exp(p[way] - highest);
            sum += p[way];
        }
        loss += std::log(sum) + highest - own;
        for (int way = 0; way < ways; ++way) {
            p[way] /= sum;
            d[way] = (p[way] - T(way == labels[i])) / n;
            add_multiple(d[way], head.row(way), state.d_features.data() + i * kFeatures);
        }
    }
    return T(loss / n);
}

// Adds dL/dW and dL/db to `grad`, laid out as the head.
template <class T>
void head_backward(const T* features, int n, int ways, const HeadState<T>& state, T* grad) {
    for (int i = 0; i < n; ++i) {
        for (int way = 0; way < ways; ++way) {
            const T d = state.d_score[long(i) * ways + way];
            add_multiple(d, features + i * kFeatures, grad + long(way) * kFeatures);
            grad[long(ways) * kFeatures + way] += d;
        }
    }
}

// Derivatives of dL/dW, dL/db (added to `grad`) and of dL/df (d_features_tangent) along a direction of the parameters:
// z' = W f' + W' f + b',  p' = p (z' - p.z').
template <class T>
void head_tangent(const Head<T>& head, const Head<T>& direction, const T* features, const T* features_tangent, int n,
                  const HeadState<T>& state, T* grad, T* d_features_tangent) {
    const int ways = head.ways;
    std::vector<T> z_tangent(ways);
    std::fill(d_features_tangent, d_features_tangent + long(n) * kFeatures, T(0));
    for (int i = 0; i < n; ++i) {
        const T* f = features + i * kFeatures;
        const T* f_tangent = features_tangent + i * kFeatures;
        const T* p = state.probability.data() + long(i) * ways;
        T mean = 0;
        for (int way = 0; way < ways; ++way) {
            z_tangent[way] = direction.bias(way) + dot(f_tangent, head.row(way)) + dot(f, direction.row(way));
            mean += p[way] * z_tangent[way];
        }
        for (int way = 0; way < ways; ++way) {
            const T d = state.d_score[long(i) * ways + way];
            const T d_tangent = p[way] * (z_tangent[way] - mean) / n;
            grad[long(ways) * kFeatures + way] += d_tangent;
            add_multiple(d_tangent, f, grad + long(way) * kFeatures);
            add_multiple(d, f_tangent, grad + long(way) * kFeatures);
            add_multiple(d_tangent, head.row(way), d_features_tangent + i * kFeatures);
            add_multiple(d, direction.row(way), d_features_tangent + i * kFeatures);
        }
    }
}

}  // namespace kshot
