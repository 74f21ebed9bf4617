// Vectors of channels.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#define KSHOT_INLINE inline __attribute__((always_inline))

namespace kshot {

// Width of a hardware vector, and how many of them one row of a matrix kernel holds without spilling registers.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kKernelVectors = 4;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kKernelVectors = 2;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kKernelVectors = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kKernelVectors = 2;
#endif

template <class T>
struct Simd {
    static constexpr int lanes = kVectorBytes / sizeof(T);
    using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Vector __attribute__((vector_size(kVectorBytes)));
    typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
    typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
    typedef uint8_t Bytes __attribute__((vector_size(lanes)));
};

template <class T>
using Vector = typename Simd<T>::Vector;

template <class T>
using Integers = typename Simd<T>::Integers;

template <class T>
KSHOT_INLINE Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}

template <class T>
KSHOT_INLINE void store(T* to, Vector<T> value) {
    *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

// sum + factor * line, rounded once where the processor can. A compiler that chooses by itself was seen to round blocks of
// three rows once and single rows twice (GCC for AMD's Zen 3), so that results depended on how rows were shared out.
template <class T>
KSHOT_INLINE Vector<T> multiply_add(T factor, Vector<T> line, Vector<T> sum) {
#if defined(__FMA__) && defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        return (Vector<T>)_mm512_fmadd_ps(_mm512_set1_ps(factor), (__m512)line, (__m512)sum);
    } else {
        return (Vector<T>)_mm512_fmadd_pd(_mm512_set1_pd(factor), (__m512d)line, (__m512d)sum);
    }
#elif defined(__FMA__)
    if constexpr (sizeof(T) == 4) {
        return (Vector<T>)_mm256_fmadd_ps(_mm256_set1_ps(factor), (__m256)line, (__m256)sum);
    } else {
        return (Vector<T>)_mm256_fmadd_pd(_mm256_set1_pd(factor), (__m256d)line, (__m256d)sum);
    }
#else
    return sum + factor * line;
#endif
}

// One small integer for each channel, widened to the size of T.
template <class T>
KSHOT_INLINE Integers<T> load_integers(const uint8_t* from) {
    typename Simd<T>::Bytes bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    return __builtin_convertvector(bytes, Integers<T>);
}

template <class T>
KSHOT_INLINE void store_integers(uint8_t* to, Integers<T> value) {
    const auto bytes = __builtin_convertvector(value, typename Simd<T>::Bytes);
    std::memcpy(to, &bytes, sizeof(bytes));
}

// One number for each channel, rounded to T.
template <class T>
KSHOT_INLINE Vector<T> load_rounded(const double* from) {
    Vector<T> value;
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
        value[lane] = T(from[lane]);
    }
    return value;
}

template <class T>
KSHOT_INLINE void add_lanes(Vector<T> value, double* sums) {
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
        sums[lane] += value[lane];
    }
}

// max(value, 0), but NaN stays NaN so that divergence is seen.
template <class T>
KSHOT_INLINE Vector<T> relu(Vector<T> value) {
    const Vector<T> zero{};
    return value < zero ? zero : value;
}

}  // namespace kshot
