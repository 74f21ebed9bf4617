// What the heads of a Neural Turing Machine do beside addressing: their parameters, and writing, column by column.
#pragma once

#include "ntm_record.hpp"

namespace kshot {

// From what the controller emitted to what the equations use.
template <class T>
void squash(const NtmShape& shape, const HeadParameters<T>& head, bool writes) {
    *head.strength = softplus(*head.strength);
    *head.gate = 1 / (1 + std::exp(-*head.gate));
    *head.sharpness = 1 + softplus(*head.sharpness);
    const T highest = *std::max_element(head.shift, head.shift + shape.shifts);
    T sum = 0;
    for (int j = 0; j < shape.shifts; ++j) {
        head.shift[j] = std::exp(head.shift[j] - highest);
        sum += head.shift[j];
    }
    for (int j = 0; j < shape.shifts; ++j) {
        head.shift[j] /= sum;
    }
    if (writes) {
        map(shape.width, head.erase, head.erase, sigmoid<T>);
    }
}

// M' = M prod_h (1 - w_h e_h) + sum_h w_h a_h (Eq. 3 and 4), for column m of the memory.
template <class T>
KSHOT_INLINE void write_forward(const NtmShape& s, const NtmLayout<T>& layout, const Slots<T>& slots, T* kept, int m,
                                T* column) {
    T* parameters = kept + layout.emitted;
    slots.each([&](int i) {
        Vector<T> stays = broadcast(T(1)), comes{};
        for (int head = s.reads; head < s.heads(); ++head) {
            const HeadParameters<T> mine = s.head(parameters, head);
            const Vector<T> w = load(layout.place(kept, head).weights + i);
            stays *= T(1) - mine.erase[m] * w;
            comes += mine.add[m] * w;
        }
        store(column + i, load(column + i) * stays + comes);
    });
}

// d_column comes by the column after the step and leaves by what it was before.
template <class T>
KSHOT_INLINE void write_backward(const NtmShape& s, const NtmLayout<T>& layout, const Slots<T>& slots, T* kept, int m,
                                 const T* column, T* d_column, T* d_weights, T* d_emitted) {
    T* parameters = kept + layout.emitted;
    for (int head = s.reads; head < s.heads(); ++head) {
        const HeadParameters<T> mine = s.head(parameters, head), d_mine = s.head(d_emitted, head);
        const T* w = layout.place(kept, head).weights;
        T* d_w = d_weights + size_t(head) * layout.slots_padded;
        const T erase = mine.erase[m], add = mine.add[m];
        Vector<T> by_add{}, by_erase{};
        slots.each([&](int i) {
            Vector<T> others = load(column + i);
            for (int other = s.reads; other < s.heads(); ++other) {
                if (other != head) {
                    others *= T(1) - s.head(parameters, other).erase[m] * load(layout.place(kept, other).weights + i);
                }
            }
            const Vector<T> d = load(d_column + i), weight = load(w + i);
            by_add += d * weight;
            by_erase -= d * others * weight;
            store(d_w + i, load(d_w + i) + d * (add - erase * others));
        });
        d_mine.add[m] += sum_of<T>(by_add);
        d_mine.erase[m] += sum_of<T>(by_erase) * erase * (1 - erase);  // of the sigmoid
    }
    slots.each([&](int i) {
        Vector<T> stays = broadcast(T(1));
        for (int head = s.reads; head < s.heads(); ++head) {
            stays *= T(1) - s.head(parameters, head).erase[m] * load(layout.place(kept, head).weights + i);
        }
        store(d_column + i, load(d_column + i) * stays);
    });
}

}  // namespace kshot
