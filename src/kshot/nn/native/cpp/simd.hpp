// Vectors of channels.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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
