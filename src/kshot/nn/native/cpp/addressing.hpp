// How a head of a Neural Turing Machine finds its place (Graves, Wayne, Danihelka 2014, arXiv:1410.5401, section 3.3),
// and the gradient of that. A memory is stored [column][slot], so that all loops run over slots.
#pragma once

#include <cmath>
#include <vector>

#include "functions.hpp"

namespace kshot {

// Added to weightings before their logarithm, as in kshot.nn.memory.ntm.
constexpr double kWeightFloor = 1e-16;

// One head's parameters after their squashing, in the order in which the controller emits them.
template <class T>
struct HeadParameters {
    T* key;  // (width)
    T* strength;
    T* gate;
    T* shift;  // (shifts)
    T* sharpness;
    T* erase;  // (width), of a write head
    T* add;    // (width), of a write head
};

// What a head remembers of one step for its gradient; each over the slots.
template <class T>
struct Place {
    T* cosine;
    T* content;  // Eq. 5
    T* gated;    // Eq. 7
    T* shifted;  // Eq. 8
    T* weights;  // Eq. 9
};

template <class T>
struct MemoryView {
    const T* values;         // (width, padded slots)
    const T* inverse_norms;  // (padded slots)
};

template <class T>
T softplus(T x) {
    return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

template <class T>
class Addressing {
  public:
    Addressing(int slots, int width, int shifts)
        : slots_(slots), width_(width), shifts_(shifts), wrapped_(slots_.padded() + shifts + 64) {}

    const Slots<T>& slots() const { return slots_; }

    // 1 / |M_i|, floored.
    void inverse_norms(const T* memory, T* out) const {
        const int n = slots_.padded();
        slots_.each([&](int i) {
            Vector<T> square = broadcast(T(kSquareFloor));
            for (int m = 0; m < width_; ++m) {
                const Vector<T> value = load(memory + long(m) * n + i);
                square += value * value;
            }
            for (int lane = 0; lane < Simd<T>::lanes; ++lane) {
                square[lane] = 1 / std::sqrt(square[lane]);
            }
            store(out + i, square);
        });
    }

    void forward(const MemoryView<T>& memory, const HeadParameters<T>& head, const T* before, const Place<T>& place) {
        cosines(memory, head.key, place.cosine);
        slots_.each([&](int i) { store(place.content + i, load(place.cosine + i)); });
        slots_.softmax(*head.strength, place.content);
        const T g = *head.gate;
        slots_.each([&](int i) {
            store(place.gated + i, g * load(place.content + i) + (1 - g) * load(before + i));
        });
        wrap(place.gated);
        slots_.each([&](int i) {
            Vector<T> sum{};
            for (int j = 0; j < shifts_; ++j) {
                sum += head.shift[j] * load(wrapped_.data() + i + shifts_ - 1 - j);
            }
            store(place.shifted + i, sum);
        });
        slots_.clear_rest(place.shifted);
        slots_.each([&](int i) {
            store(place.weights + i, logarithm<T>(load(place.shifted + i) + T(kWeightFloor)));
        });
        slots_.softmax(*head.sharpness, place.weights);
    }

    // d_weights is overwritten by the gradient by the weighting before; d_memory and d_head are added to.
    void backward(const MemoryView<T>& memory, const HeadParameters<T>& head, const T* before, const Place<T>& place,
                  T* d_weights, T* d_memory, const HeadParameters<T>& d_head, T* scratch) {
        T* d_gated = scratch;
        slots_.softmax_backward(place.weights, d_weights);
        T d_sharpness = 0;
        const T sharpness = *head.sharpness;
        Vector<T> sum{};
        slots_.each([&](int i) {
            const Vector<T> floored = load(place.shifted + i) + T(kWeightFloor);
            sum += load(d_weights + i) * logarithm<T>(floored);
            store(d_weights + i, sharpness * load(d_weights + i) / floored);
        });
        d_sharpness = sum_of<T>(sum);
        slots_.clear_rest(d_weights);
        *d_head.sharpness += d_sharpness * (1 - std::exp(1 - sharpness));  // of 1 + softplus

        shift_backward(head, place.gated, d_weights, d_gated, d_head.shift);

        T d_gate = 0;
        const T g = *head.gate;
        Vector<T> by_gate{};
        slots_.each([&](int i) {
            by_gate += load(d_gated + i) * (load(place.content + i) - load(before + i));
            store(d_weights + i, (1 - g) * load(d_gated + i));
            store(d_gated + i, g * load(d_gated + i));
        });
        d_gate = sum_of<T>(by_gate);
        *d_head.gate += d_gate * g * (1 - g);

        T* d_cosine = d_gated;
        slots_.softmax_backward(place.content, d_cosine);
        const T strength = *head.strength;
        *d_head.strength += slots_.dot(d_cosine, place.cosine) * (1 - std::exp(-strength));  // of softplus
        slots_.each([&](int i) { store(d_cosine + i, strength * load(d_cosine + i)); });
        cosines_backward(memory, head.key, place.cosine, d_cosine, d_memory, d_head.key);
    }

  private:
    T inverse_norm(const T* key) const {
        T square = T(kSquareFloor);
        for (int m = 0; m < width_; ++m) {
            square += key[m] * key[m];
        }
        return 1 / std::sqrt(square);
    }

    // Eq. 6.
    void cosines(const MemoryView<T>& memory, const T* key, T* out) const {
        const T inverse = inverse_norm(key);
        const int n = slots_.padded();
        slots_.each([&](int i) {
            Vector<T> product{};
            for (int m = 0; m < width_; ++m) {
                product += key[m] * load(memory.values + long(m) * n + i);
            }
            store(out + i, inverse * product * load(memory.inverse_norms + i));
        });
        slots_.clear_rest(out);
    }

    // With c = k.M / (|k| |M|): dk = M / (|k| |M|) - c k / |k|^2, and likewise dM.
    void cosines_backward(const MemoryView<T>& memory, const T* key, const T* cosine, T* d_cosine, T* d_memory,
                          T* d_key) const {
        const T inverse = inverse_norm(key);
        const int n = slots_.padded();
        const T own = inverse * inverse * slots_.dot(d_cosine, cosine);
        slots_.each([&](int i) { store(d_cosine + i, load(d_cosine + i) * load(memory.inverse_norms + i)); });
        for (int m = 0; m < width_; ++m) {
            const T* column = memory.values + long(m) * n;
            T* d_column = d_memory + long(m) * n;
            const T k = inverse * key[m];
            Vector<T> sum{};
            slots_.each([&](int i) {
                const Vector<T> d = load(d_cosine + i), value = load(column + i);
                sum += d * value;
                store(d_column + i,
                      load(d_column + i) + d * (k - load(cosine + i) * value * load(memory.inverse_norms + i)));
            });
            d_key[m] += inverse * sum_of<T>(sum) - own * key[m];
        }
    }

    // Slots -h..n-1+h in a row, where h is half the range of shifts.
    void wrap(const T* values) {
        const int n = slots_.count(), half = shifts_ / 2;
        for (int i = 0; i < half; ++i) {
            wrapped_[i] = values[((i - half) % n + n) % n];
            wrapped_[n + half + i] = values[i % n];
        }
        std::copy(values, values + n, wrapped_.begin() + half);
    }

    // shifted_i = sum_j shift_j gated_{i - (j - half)}.
    void shift_backward(const HeadParameters<T>& head, const T* gated, const T* d_shifted, T* d_gated, T* d_shift) {
        T by_shift[64];
        wrap(gated);
        T mean = 0;
        for (int j = 0; j < shifts_; ++j) {
            Vector<T> sum{};
            slots_.each(
                [&](int i) { sum += load(d_shifted + i) * load(wrapped_.data() + i + shifts_ - 1 - j); });
            by_shift[j] = sum_of<T>(sum);
            mean += by_shift[j] * head.shift[j];
        }
        for (int j = 0; j < shifts_; ++j) {
            d_shift[j] += head.shift[j] * (by_shift[j] - mean);  // of softmax
        }
        wrap(d_shifted);
        slots_.each([&](int i) {
            Vector<T> sum{};
            for (int j = 0; j < shifts_; ++j) {
                sum += head.shift[j] * load(wrapped_.data() + i + j);
            }
            store(d_gated + i, sum);
        });
        slots_.clear_rest(d_gated);
    }

    Slots<T> slots_;
    int width_;
    int shifts_;
    std::vector<T> wrapped_;
};

}  // namespace kshot
