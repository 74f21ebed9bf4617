// Products of matrices whose rows are the C channels of pixels (or of tiles of a Winograd frequency).
#pragma once

#include "shape.hpp"
#include "simd.hpp"

namespace kshot {

// How many vectors of a row are worked on at once: as many as there is room for, but no remainder.
template <class T>
constexpr int vectors_at_once() {
    constexpr int all = kChannels / Simd<T>::lanes;
    int most = kKernelVectors < all ? kKernelVectors : all;
    while (all % most != 0) {
        --most;
    }
    return most;
}

// ROWS rows of out (+)= left * right, kept in registers while the depth is summed over.
template <class T, int ROWS, bool ACCUMULATE>
KSHOT_INLINE void multiply_rows(const T* left, long row_stride, long depth_stride, int depth, const T* right, T* out) {
    constexpr int lanes = Simd<T>::lanes;
    constexpr int vectors = vectors_at_once<T>();
    Vector<T> sums[ROWS][vectors];
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < vectors; ++v) {
            sums[row][v] = ACCUMULATE ? load(out + row * kChannels + v * lanes) : Vector<T>{};
        }
    }
    for (int k = 0; k < depth; ++k) {
        Vector<T> line[vectors];
        for (int v = 0; v < vectors; ++v) {
            line[v] = load(right + k * kChannels + v * lanes);
        }
        for (int row = 0; row < ROWS; ++row) {
            const T factor = left[row * row_stride + k * depth_stride];
            for (int v = 0; v < vectors; ++v) {
                sums[row][v] = multiply_add<T>(factor, line[v], sums[row][v]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < vectors; ++v) {
            store(out + row * kChannels + v * lanes, sums[row][v]);
        }
    }
}

// The last rows, fewer than there are registers for.
template <class T, int ROWS, bool ACCUMULATE>
KSHOT_INLINE void multiply_rest(int rows, const T* left, long row_stride, long depth_stride, int depth, const T* right,
                                T* out) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) {
            multiply_rows<T, ROWS, ACCUMULATE>(left, row_stride, depth_stride, depth, right, out);
        } else {
            multiply_rest<T, ROWS - 1, ACCUMULATE>(rows, left, row_stride, depth_stride, depth, right, out);
        }
    }
}

template <class T, bool ACCUMULATE>
void multiply_strided(int rows, const T* left, long row_stride, long depth_stride, int depth, const T* right, T* out) {
    constexpr int most = 6;
    for (int channel = 0; channel < kChannels; channel += vectors_at_once<T>() * Simd<T>::lanes) {
        const T* columns = right + channel;
        int row = 0;
        for (; row + most <= rows; row += most) {
            multiply_rows<T, most, ACCUMULATE>(left + row * row_stride, row_stride, depth_stride, depth, columns,
                                               out + row * kChannels + channel);
        }
        multiply_rest<T, most - 1, ACCUMULATE>(rows - row, left + row * row_stride, row_stride, depth_stride, depth,
                                               columns, out + row * kChannels + channel);
    }
}

// out (rows, C) = left (rows, C) * right (C, C).
template <class T>
void multiply(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, false>(rows, left, kChannels, 1, kChannels, right, out);
}

// out (rows, C) += left (rows, C) * right (C, C).
template <class T>
void multiply_add(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, true>(rows, left, kChannels, 1, kChannels, right, out);
}

// out (C, C) += left^T * right, both (rows, C).
template <class T>
void multiply_transposed_add(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, true>(kChannels, left, 1, kChannels, rows, right, out);
}

}  // namespace kshot
