// One layer of the controller of a Neural Turing Machine from its sums to its hidden units, and back.
#pragma once

#include "ntm_record.hpp"

namespace kshot {

// LSTM: c = f c' + i g, h = o tanh(c), with the gates in the order i, f, g, o. Feed-forward: h = tanh(z).
template <class T>
void controller_forward(const NtmShape& shape, const T* z, const T* c_before, const KeptLayer<T>& kept, T* h) {
    const int n = shape.hidden;
    T* gates = kept.gates;
    if (!shape.lstm) {
        map(n, z, gates, hyperbolic_tangent<T>);
        std::copy_n(gates, n, h);
        return;
    }
    map(2 * n, z, gates, sigmoid<T>);
    map(n, z + 2 * n, gates + 2 * n, hyperbolic_tangent<T>);
    map(n, z + 3 * n, gates + 3 * n, sigmoid<T>);
    T* c = kept.cell;
    T* tanh_c = kept.tanh_cell;
    for (int i = 0; i < n; ++i) {
        c[i] = gates[n + i] * c_before[i] + gates[i] * gates[2 * n + i];
    }
    map(n, c, tanh_c, hyperbolic_tangent<T>);
    for (int i = 0; i < n; ++i) {
        h[i] = gates[3 * n + i] * tanh_c[i];
    }
}

template <class T>
void controller_backward(const NtmShape& shape, const KeptLayer<T>& kept, const T* c_before, const T* d_h, T* d_c,
                         T* d_z) {
    const int n = shape.hidden;
    const T* g = kept.gates;
    if (!shape.lstm) {
        for (int i = 0; i < n; ++i) {
            d_z[i] = d_h[i] * (1 - g[i] * g[i]);
        }
        return;
    }
    const T* tanh_c = kept.tanh_cell;
    for (int i = 0; i < n; ++i) {
        const T in = g[i], forget = g[n + i], value = g[2 * n + i], out = g[3 * n + i];
        const T d = d_c[i] + d_h[i] * out * (1 - tanh_c[i] * tanh_c[i]);
        d_z[i] = d * value * in * (1 - in);
        d_z[n + i] = d * c_before[i] * forget * (1 - forget);
        d_z[2 * n + i] = d * in * (1 - value * value);
        d_z[3 * n + i] = d_h[i] * tanh_c[i] * out * (1 - out);
        d_c[i] = d * forget;
    }
}

}  // namespace kshot
