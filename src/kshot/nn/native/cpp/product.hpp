// Products of small matrices of any width, for recurrent networks: a few rows (sequences) times the weights.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "simd.hpp"

namespace kshot {

template <class T>
constexpr int padded(int width) {
    constexpr int lanes = Simd<T>::lanes;
    return (width + lanes - 1) / lanes * lanes;
}

// out (ROWS, VECTORS * lanes) += left (ROWS, depth) * right (depth, ...), sums kept in registers.
template <class T, int ROWS, int VECTORS>
KSHOT_INLINE void product_tile(const T* left, int left_stride, int depth, const T* right, int right_stride, T* out,
                               int out_stride) {
    constexpr int lanes = Simd<T>::lanes;
    Vector<T> sums[ROWS][VECTORS];
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < VECTORS; ++v) {
            sums[row][v] = load(out + long(row) * out_stride + v * lanes);
        }
    }
    for (int k = 0; k < depth; ++k) {
        Vector<T> line[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            line[v] = load(right + long(k) * right_stride + v * lanes);
        }
        for (int row = 0; row < ROWS; ++row) {
            const T factor = left[long(row) * left_stride + k];
            for (int v = 0; v < VECTORS; ++v) {
                sums[row][v] = multiply_add<T>(factor, line[v], sums[row][v]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < VECTORS; ++v) {
            store(out + long(row) * out_stride + v * lanes, sums[row][v]);
        }
    }
}

template <class T, int ROWS, int VECTORS>
KSHOT_INLINE void product_columns(int vectors, const T* left, int left_stride, int depth, const T* right,
                                  int right_stride, T* out, int out_stride) {
    constexpr int lanes = Simd<T>::lanes;
    int v = 0;
    for (; v + VECTORS <= vectors; v += VECTORS) {
        product_tile<T, ROWS, VECTORS>(left, left_stride, depth, right + v * lanes, right_stride, out + v * lanes,
                                       out_stride);
    }
    if constexpr (VECTORS > 1) {
        if (v < vectors) {
            product_columns<T, ROWS, VECTORS / 2>(vectors - v, left, left_stride, depth, right + v * lanes,
                                                  right_stride, out + v * lanes, out_stride);
        }
    }
}

// out (rows, width) += left (rows, depth) * right (depth, width); width is a whole number of vectors.
template <class T>
void product_add(int rows, const T* left, int left_stride, int depth, const T* right, int width, T* out,
                 int out_stride) {
    constexpr int most = 6;
    const int vectors = width / Simd<T>::lanes;
    int row = 0;
    const auto step = [&](auto count, auto wide) {
        for (; row + count.value <= rows; row += count.value) {
            product_columns<T, count.value, wide.value>(vectors, left + long(row) * left_stride, left_stride, depth,
                                                        right, width, out + long(row) * out_stride, out_stride);
        }
    };
    step(std::integral_constant<int, most>{}, std::integral_constant<int, kKernelVectors>{});
    step(std::integral_constant<int, 3>{}, std::integral_constant<int, kKernelVectors>{});
    step(std::integral_constant<int, 1>{}, std::integral_constant<int, 2 * kKernelVectors>{});
}

// to (rows, stride) = from (rows, columns), the rest zeros.
template <class T>
void copy_rows(const T* from, int rows, int columns, int stride, std::vector<T>& to) {
    to.assign(size_t(rows) * stride, T(0));
    for (int row = 0; row < rows; ++row) {
        std::copy_n(from + size_t(row) * columns, columns, to.begin() + size_t(row) * stride);
    }
}

// to (columns, stride) = from (rows, columns)^T, the rest zeros.
template <class T>
void transpose_rows(const T* from, int rows, int columns, int stride, std::vector<T>& to) {
    to.assign(size_t(columns) * stride, T(0));
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) {
            to[size_t(column) * stride + row] = from[size_t(row) * columns + column];
        }
    }
}

}  // namespace kshot
