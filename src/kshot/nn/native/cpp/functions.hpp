// Exponentials and logarithms of whole vectors, to within a few units of the last place.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.hpp"

namespace kshot {

// Added to squared lengths of keys and of rows, as in kshot.nn.memory.
constexpr double kSquareFloor = 1e-6;

// How floating-point numbers are laid out, and how many terms of a series reach their precision.
template <class T>
struct Layout;

template <>
struct Layout<float> {
    static constexpr int mantissa_bits = 23;
    static constexpr int32_t bias = 127;
    static constexpr float lowest = -87.0f;
    static constexpr float highest = 88.0f;
    static constexpr float ln2_high = 0.693359375f;
    static constexpr float ln2_low = -2.12194440e-4f;
    static constexpr int exp_terms = 7;
    static constexpr int log_terms = 5;
};

template <>
struct Layout<double> {
    static constexpr int mantissa_bits = 52;
    static constexpr int64_t bias = 1023;
    static constexpr double lowest = -708.0;
    static constexpr double highest = 709.0;
    static constexpr double ln2_high = 6.93145751953125e-1;
    static constexpr double ln2_low = 1.42860682030941723212e-6;
    static constexpr int exp_terms = 13;
    static constexpr int log_terms = 11;
};

template <class To, class From>
KSHOT_INLINE To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <class T>
KSHOT_INLINE Vector<T> broadcast(T value) {
    return Vector<T>{} + value;
}

// e^x = 2^n e^r with |r| <= ln 2 / 2, and e^r by its series. Beyond the range of T the ends of it; NaN stays NaN.
template <class T>
KSHOT_INLINE Vector<T> exponential(Vector<T> x) {
    using L = Layout<T>;
    const Vector<T> low = broadcast(L::lowest), high = broadcast(L::highest);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vector<T> scaled = x * T(1.4426950408889634);
    const Vector<T> half = scaled < 0 ? broadcast(T(-0.5)) : broadcast(T(0.5));
    const Integers<T> n = __builtin_convertvector(scaled + half, Integers<T>);
    const Vector<T> whole = __builtin_convertvector(n, Vector<T>);
    const Vector<T> r = x - whole * L::ln2_high - whole * L::ln2_low;
    Vector<T> sum = broadcast(T(1));
    for (int k = L::exp_terms; k >= 1; --k) {
        sum = sum * r * T(1.0 / k) + T(1);
    }
    const Vector<T> power = same_bits<Vector<T>>((n + L::bias) << L::mantissa_bits);
    return x == x ? sum * power : x;
}

// log x = n log 2 + log m with m near 1, and log m = 2 artanh((m - 1) / (m + 1)) by its series; for normal x > 0.
template <class T>
KSHOT_INLINE Vector<T> logarithm(Vector<T> x) {
    using L = Layout<T>;
    const Integers<T> bits = same_bits<Integers<T>>(x);
    // The exponent that leaves a mantissa within [sqrt(1/2), sqrt(2)).
    const Integers<T> root_half = same_bits<Integers<T>>(broadcast(T(0.70710678118654752)));
    const Integers<T> n = (bits - root_half) >> L::mantissa_bits;
    const Vector<T> m = same_bits<Vector<T>>(bits - (n << L::mantissa_bits));
    const Vector<T> s = (m - T(1)) / (m + T(1)), square = s * s;
    Vector<T> sum = broadcast(T(1.0 / (2 * L::log_terms + 1)));
    for (int k = L::log_terms - 1; k >= 0; --k) {
        sum = sum * square + T(1.0 / (2 * k + 1));
    }
    const Vector<T> whole = __builtin_convertvector(n, Vector<T>);
    const Vector<T> value = whole * L::ln2_high + (whole * L::ln2_low + T(2) * s * sum);
    return x == x ? value : x;
}

template <class T>
KSHOT_INLINE Vector<T> sigmoid(Vector<T> x) {
    return T(1) / (T(1) + exponential<T>(-x));
}

template <class T>
KSHOT_INLINE Vector<T> hyperbolic_tangent(Vector<T> x) {
    return T(2) / (T(1) + exponential<T>(T(-2) * x)) - T(1);
}

template <class T>
KSHOT_INLINE T sum_of(Vector<T> value) {
    T sum = 0;
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
        sum += value[lane];
    }
    return sum;
}

// out[i] = function(in[i]) for any count; in and out may be one.
template <class T, class Function>
KSHOT_INLINE void map(int count, const T* in, T* out, Function function) {
    constexpr int lanes = Simd<T>::lanes;
    int i = 0;
    for (; i + lanes <= count; i += lanes) {
        store(out + i, function(load(in + i)));
    }
    if (i < count) {
        T rest[lanes] = {};
        std::copy(in + i, in + count, rest);
        store(rest, function(load(rest)));
        std::copy(rest, rest + (count - i), out + i);
    }
}

// A vector over the slots of a memory, rounded up to whole hardware vectors; the rest holds zeros.
template <class T>
class Slots {
  public:
    explicit Slots(int count) : count_(count), padded_((count + lanes - 1) / lanes * lanes) {}

    int count() const { return count_; }
    int padded() const { return padded_; }

    template <class Work>
    KSHOT_INLINE void each(Work work) const {
        for (int i = 0; i < padded_; i += lanes) {
            work(i);
        }
    }

    KSHOT_INLINE void clear_rest(T* values) const { std::fill(values + count_, values + padded_, T(0)); }

    KSHOT_INLINE T dot(const T* a, const T* b) const {
        Vector<T> sum{};
        each([&](int i) { sum += load(a + i) * load(b + i); });
        return sum_of<T>(sum);
    }

    KSHOT_INLINE void add_multiple(T factor, const T* from, T* to) const {
        each([&](int i) { store(to + i, load(to + i) + factor * load(from + i)); });
    }

    // values <- softmax(factor * values).
    KSHOT_INLINE void softmax(T factor, T* values) const {
        T highest = -std::numeric_limits<T>::infinity();
        for (int i = 0; i < count_; ++i) {
            highest = std::max(highest, factor * values[i]);
        }
        Vector<T> sum{};
        each([&](int i) { store(values + i, exponential<T>(factor * load(values + i) - highest)); });
        clear_rest(values);
        each([&](int i) { sum += load(values + i); });
        const T scale = T(1) / sum_of<T>(sum);
        each([&](int i) { store(values + i, scale * load(values + i)); });
    }

    // With w = softmax(z): gradient by w -> gradient by z, in place.
    KSHOT_INLINE void softmax_backward(const T* w, T* gradient) const {
        const T mean = dot(w, gradient);
        each([&](int i) { store(gradient + i, load(w + i) * (load(gradient + i) - mean)); });
    }

  private:
    static constexpr int lanes = Simd<T>::lanes;
    int count_;
    int padded_;
};

}  // namespace kshot
