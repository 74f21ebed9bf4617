// Arithmetic of feature vectors.
#pragma once

#include "shape.hpp"
#include "simd.hpp"

namespace kshot {

template <class T>
T sum_lanes(Vector<T> value) {
    T sum = 0;
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
        sum += value[lane];
    }
    return sum;
}

template <class T>
T dot(const T* a, const T* b) {
    Vector<T> sum{};
    for (int c = 0; c < kFeatures; c += Simd<T>::lanes) {
        sum += load(a + c) * load(b + c);
    }
    return sum_lanes<T>(sum);
}

// Leaves a - b in `difference` and returns |a - b|^2.
template <class T>
T squared_distance(const T* a, const T* b, T* difference) {
    Vector<T> sum{};
    for (int c = 0; c < kFeatures; c += Simd<T>::lanes) {
        const Vector<T> d = load(a + c) - load(b + c);
        store(difference + c, d);
        sum += d * d;
    }
    return sum_lanes<T>(sum);
}

// to += factor * from.
template <class T>
void add_multiple(T factor, const T* from, T* to) {
    for (int c = 0; c < kFeatures; c += Simd<T>::lanes) {
        store(to + c, load(to + c) + factor * load(from + c));
    }
}

}  // namespace kshot
