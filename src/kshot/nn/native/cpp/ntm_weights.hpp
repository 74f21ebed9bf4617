// The weights of a Neural Turing Machine's controller and heads, laid out for products from either side.
#pragma once

#include <vector>

#include "ntm_record.hpp"
#include "product.hpp"

namespace kshot {

// Weights as Python has them: (outputs, inputs). Those of the upper layers stand one after the other; the bias of the
// first is in the sums that are given.
template <class T>
struct NtmGiven {
    const T* controller;
    const T* upper;
    const T* b_upper;
    const T* heads;
    const T* b_heads;
};

template <class T>
struct NtmWeights {
    struct Layer {
        int inputs = 0;
        int inputs_padded = 0;
        std::vector<T> plain, transposed;
    };

    void pack(const NtmShape& s, const NtmGiven<T>& given) {
        gates_padded = padded<T>(s.gates());
        emitted_padded = padded<T>(s.emitted());
        units_padded = padded<T>(s.units());
        most_inputs = 0;
        layers.resize(s.layers);
        for (int layer = 0; layer < s.layers; ++layer) {
            Layer& own = layers[layer];
            own.inputs = s.inputs(layer);
            own.inputs_padded = padded<T>(own.inputs);
            most_inputs = std::max(most_inputs, own.inputs_padded);
            const T* w = layer == 0 ? given.controller : given.upper + size_t(layer - 1) * s.gates() * own.inputs;
            copy_rows(w, s.gates(), own.inputs, own.inputs_padded, own.plain);
            transpose_rows(w, s.gates(), own.inputs, gates_padded, own.transposed);
        }
        b_upper.assign(given.b_upper, given.b_upper + size_t(s.layers - 1) * s.gates());
        copy_rows(given.heads, s.emitted(), s.units(), units_padded, heads);
        transpose_rows(given.heads, s.emitted(), s.units(), emitted_padded, heads_transposed);
        b_heads.assign(emitted_padded, T(0));
        std::copy_n(given.b_heads, s.emitted(), b_heads.begin());
    }

    int gates_padded = 0;
    int emitted_padded = 0;
    int units_padded = 0;
    int most_inputs = 0;  // of a layer, padded
    std::vector<Layer> layers;
    std::vector<T> b_upper, heads, heads_transposed, b_heads;
};

}  // namespace kshot
