// The weights of a Neural Turing Machine's controller and heads, laid out for products from either side.
#pragma once

#include <vector>

#include "ntm_record.hpp"
#include "product.hpp"

namespace kshot {

template <class T>
struct NtmWeights {
    // Weights as PyTorch has them: (outputs, inputs).
    void pack(const NtmShape& s, const T* w_controller, const T* w_heads, const T* bias) {
        gates_padded = padded<T>(s.gates());
        emitted_padded = padded<T>(s.emitted());
        inputs_padded = padded<T>(s.inputs());
        hidden_padded = padded<T>(s.hidden);
        copy(w_controller, s.gates(), s.inputs(), inputs_padded, controller);
        copy(w_heads, s.emitted(), s.hidden, hidden_padded, heads);
        transpose(w_controller, s.gates(), s.inputs(), gates_padded, controller_transposed);
        transpose(w_heads, s.emitted(), s.hidden, emitted_padded, heads_transposed);
        b_heads.assign(emitted_padded, T(0));
        std::copy_n(bias, s.emitted(), b_heads.begin());
    }

    int gates_padded = 0;
    int emitted_padded = 0;
    int inputs_padded = 0;
    int hidden_padded = 0;
    std::vector<T> controller, controller_transposed, heads, heads_transposed, b_heads;

  private:
    static void copy(const T* from, int rows, int columns, int stride, std::vector<T>& to) {
        to.assign(size_t(rows) * stride, T(0));
        for (int row = 0; row < rows; ++row) {
            std::copy_n(from + size_t(row) * columns, columns, to.begin() + size_t(row) * stride);
        }
    }

    static void transpose(const T* from, int rows, int columns, int stride, std::vector<T>& to) {
        to.assign(size_t(columns) * stride, T(0));
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < columns; ++column) {
                to[size_t(column) * stride + row] = from[size_t(row) * columns + column];
            }
        }
    }
};

}  // namespace kshot
