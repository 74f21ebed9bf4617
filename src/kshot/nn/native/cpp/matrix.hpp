// Products of matrices whose rows are the 64 channels of pixels (or of tiles of a Winograd frequency).
#pragma once

#include "simd.hpp"

namespace kshot {

// ROWS rows of out (+)= left * right, kept in registers while the depth is summed over.
template <class T, int ROWS, bool ACCUMULATE>
KSHOT_INLINE void multiply_rows(const T* left, long row_stride, long depth_stride, int depth, const T* right, T* out) {
    constexpr int lanes = Simd<T>::lanes;
    Vector<T> sums[ROWS][kKernelVectors];
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < kKernelVectors; ++v) {
            sums[row][v] = ACCUMULATE ? load(out + row * kChannels + v * lanes) : Vector<T>{};
        }
    }
    for (int k = 0; k < depth; ++k) {
        Vector<T> line[kKernelVectors];
        for (int v = 0; v < kKernelVectors; ++v) {
            line[v] = load(right + k * kChannels + v * lanes);
        }
        for (int row = 0; row < ROWS; ++row) {
            const T factor = left[row * row_stride + k * depth_stride];
            for (int v = 0; v < kKernelVectors; ++v) {
                sums[row][v] += factor * line[v];
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < kKernelVectors; ++v) {
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
    for (int channel = 0; channel < kChannels; channel += kKernelVectors * Simd<T>::lanes) {
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

// out (rows, 64) = left (rows, 64) * right (64, 64).
template <class T>
void multiply(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, false>(rows, left, kChannels, 1, kChannels, right, out);
}

// out (rows, 64) += left (rows, 64) * right (64, 64).
template <class T>
void multiply_add(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, true>(rows, left, kChannels, 1, kChannels, right, out);
}

// out (64, 64) += left^T * right, both (rows, 64).
template <class T>
void multiply_transposed_add(int rows, const T* left, const T* right, T* out) {
    multiply_strided<T, true>(kChannels, left, 1, kChannels, rows, right, out);
}

}  // namespace kshot
