// One step of a least recently used access memory for one sequence, and back (Santoro et al. 2016, arXiv:1605.06065,
// section 3.2; equations by their numbers there).
#pragma once

#include <cmath>

#include "lrua_record.hpp"

namespace kshot {

template <class T>
struct LruaMemory {
    LruaShape shape = {};
    LruaLayout<T> layout;
    T decay = 0;

    // What flows backward from one step to the one before, for each sequence.
    struct Flow {
        T* memory;
        T* reading;
        T* usage;
        T* writing;  // scratch, (heads, padded slots)
        T* column;   // scratch, (padded slots)
    };

    // Writes what was read, and all of the record that is not the controller's.
    void forward(const T* asked, const LruaRecord<T>& before, const LruaRecord<T>& kept, T* read) {
        const LruaShape& s = shape;
        const Slots<T> slots(s.slots);
        mark_least_used(before.usage, kept.places);
        std::fill_n(kept.stays, layout.padded, T(1));
        slots.clear_rest(kept.stays);
        for (int head = 0; head < s.heads; ++head) {
            kept.stays[kept.place(head)] = 0;
            ask(asked + head * (s.width + 2), head, kept);
            T* writing = layout.head(kept.writing, head);  // Eq. 7
            const T gate = kept.gate[head];
            const T* last = layout.head(before.reading, head);
            slots.each([&](int i) { store(writing + i, gate * load(last + i)); });
            writing[kept.place(head)] += 1 - gate;
        }
        write(before, kept);
        slots.each([&](int i) { store(kept.usage + i, decay * load(before.usage + i)); });
        for (int head = 0; head < s.heads; ++head) {
            const T* products = layout.head(kept.products, head);
            const T* writing = layout.head(kept.writing, head);
            T* reading = layout.head(kept.reading, head);  // Eq. 2, 3
            slots.each([&](int i) { store(reading + i, load(products + i) * load(kept.row_scale + i)); });
            slots.softmax(kept.strength[head], reading);
            for (int m = 0; m < s.width; ++m) {  // Eq. 4
                read[head * s.width + m] = slots.dot(reading, kept.memory + m * layout.padded);
            }
            slots.each([&](int i) {  // Eq. 5
                store(kept.usage + i, load(kept.usage + i) + (load(reading + i) + load(writing + i)));
            });
        }
    }

    // `flow` goes from the state after the step to that before; writes the gradient by what was asked.
    void backward(const LruaRecord<T>& before, const LruaRecord<T>& kept, const T* d_read, const Flow& flow,
                         T* d_asked) {
        const LruaShape& s = shape;
        const Slots<T> slots(s.slots);
        T* by_scale = flow.column;  // gradient by the inverse lengths of the rows
        std::fill_n(by_scale, layout.padded, T(0));
        for (int head = 0; head < s.heads; ++head) {
            through_reading(head, kept, d_read + head * s.width, flow, by_scale, d_asked + head * (s.width + 2));
        }
        slots.each([&](int i) {  // 1 / |M| falls by its cube
            const Vector<T> scale = load(kept.row_scale + i);
            store(by_scale + i, load(by_scale + i) * scale * scale * scale);
        });
        for (int m = 0; m < s.width; ++m) {
            const T* column = kept.memory + m * layout.padded;
            T* d_column = flow.memory + m * layout.padded;
            slots.each([&](int i) { store(d_column + i, load(d_column + i) - load(column + i) * load(by_scale + i)); });
            for (int head = 0; head < s.heads; ++head) {
                // From here on `reading` holds the gradient by the products.
                const int at = head * s.width + m;
                slots.add_multiple(d_read[at], layout.head(kept.reading, head), d_column);
                slots.add_multiple(kept.keys[at] * kept.key_scale[head], layout.head(flow.reading, head), d_column);
            }
        }
        for (int head = 0; head < s.heads; ++head) {
            through_writing(head, before, kept, flow, d_asked + head * (s.width + 2));
        }
        for (int m = 0; m < s.width; ++m) {
            T* d_column = flow.memory + m * layout.padded;
            slots.each([&](int i) { store(d_column + i, load(d_column + i) * load(kept.stays + i)); });
        }
        slots.each([&](int i) { store(flow.usage + i, decay * load(flow.usage + i)); });
    }

  private:
    // Eq. 8; leaves the lengths of the rows, and their products with the keys.
    void write(const LruaRecord<T>& before, const LruaRecord<T>& kept) {
        const LruaShape& s = shape;
        const Slots<T> slots(s.slots);
        std::fill_n(kept.row_scale, layout.padded, T(0));
        std::fill_n(kept.products, s.heads * layout.padded, T(0));
        for (int m = 0; m < s.width; ++m) {
            const T* old = before.memory + m * layout.padded;
            T* column = kept.memory + m * layout.padded;
            slots.each([&](int i) { store(column + i, load(old + i) * load(kept.stays + i)); });
            for (int head = 0; head < s.heads; ++head) {
                slots.add_multiple(kept.keys[head * s.width + m], layout.head(kept.writing, head), column);
            }
            slots.each([&](int i) {
                const Vector<T> value = load(column + i);
                store(kept.row_scale + i, load(kept.row_scale + i) + value * value);
            });
            for (int head = 0; head < s.heads; ++head) {
                slots.add_multiple(kept.keys[head * s.width + m] * kept.key_scale[head], column,
                                   layout.head(kept.products, head));
            }
        }
        for (int i = 0; i < s.slots; ++i) {
            kept.row_scale[i] = T(1) / std::sqrt(kept.row_scale[i] + T(kSquareFloor));
        }
    }

    // Eq. 6, one row for each head; of equal ones the first.
    void mark_least_used(const T* usage, T* places) {
        for (int head = 0; head < shape.heads; ++head) {
            int least = -1;
            for (int i = 0; i < shape.slots; ++i) {
                bool taken = false;
                for (int other = 0; other < head; ++other) {
                    taken = taken || int(places[other]) == i;
                }
                if (!taken && (least < 0 || usage[i] < usage[least])) {
                    least = i;
                }
            }
            places[head] = T(least);
        }
    }

    void ask(const T* asked, int head, const LruaRecord<T>& kept) {
        const int width = shape.width;
        T* key = kept.keys + head * width;
        map(width, asked, key, hyperbolic_tangent<T>);
        T square = 0;
        for (int m = 0; m < width; ++m) {
            square += key[m] * key[m];
        }
        kept.key_scale[head] = T(1) / std::sqrt(square + T(kSquareFloor));
        kept.gate[head] = T(1) / (T(1) + std::exp(-asked[width]));
        const T raw = asked[width + 1];
        kept.strength[head] = T(1) + std::max(raw, T(0)) + std::log1p(std::exp(-std::abs(raw)));
        kept.slope[head] = T(1) / (T(1) + std::exp(-raw));
    }

    // Eq. 2 to 4 of one head: leaves the gradients by the products in the place of those by the read weights, and those
    // by the key (not yet squashed) and by the strength in `d_asked`.
    void through_reading(int head, const LruaRecord<T>& kept, const T* d_read, const Flow& flow, T* by_scale,
                         T* d_asked) {
        const LruaShape& s = shape;
        const Slots<T> slots(s.slots);
        const T *reading = layout.head(kept.reading, head), *products = layout.head(kept.products, head);
        T* d = layout.head(flow.reading, head);
        slots.each([&](int i) { store(d + i, load(d + i) + load(flow.usage + i)); });
        for (int m = 0; m < s.width; ++m) {
            slots.add_multiple(d_read[m], kept.memory + m * layout.padded, d);
        }
        slots.softmax_backward(reading, d);
        const T strength = kept.strength[head];
        Vector<T> by_strength{};
        slots.each([&](int i) {
            const Vector<T> scaled = load(d + i), scale = load(kept.row_scale + i), by = scaled * load(products + i);
            by_strength += by * scale;
            store(by_scale + i, load(by_scale + i) + by * strength);
            store(d + i, scaled * scale * strength);
        });
        d_asked[s.width + 1] = sum_of<T>(by_strength) * kept.slope[head];
        const T *key = kept.keys + head * s.width, scale = kept.key_scale[head];
        T along = 0;
        for (int m = 0; m < s.width; ++m) {
            d_asked[m] = slots.dot(d, kept.memory + m * layout.padded);
            along += d_asked[m] * key[m];
        }
        for (int m = 0; m < s.width; ++m) {
            d_asked[m] = scale * d_asked[m] - key[m] * (scale * scale * scale * along);
        }
    }

    // Eq. 7 and 8 of one head: what remains of `d_asked`, and the gradient by the read weights before the step.
    void through_writing(int head, const LruaRecord<T>& before, const LruaRecord<T>& kept, const Flow& flow,
                         T* d_asked) {
        const LruaShape& s = shape;
        const Slots<T> slots(s.slots);
        const T *key = kept.keys + head * s.width, *writing = layout.head(kept.writing, head);
        T* d = layout.head(flow.writing, head);
        std::copy_n(flow.usage, layout.padded, d);
        for (int m = 0; m < s.width; ++m) {
            const T* d_column = flow.memory + m * layout.padded;
            d_asked[m] = (d_asked[m] + slots.dot(writing, d_column)) * (1 - key[m] * key[m]);
            slots.add_multiple(key[m], d_column, d);
        }
        const T gate = kept.gate[head];
        const T d_gate = slots.dot(d, layout.head(before.reading, head)) - d[kept.place(head)];
        d_asked[s.width] = d_gate * gate * (1 - gate);
        T* d_reading = layout.head(flow.reading, head);
        slots.each([&](int i) { store(d_reading + i, gate * load(d + i)); });
    }
};

}  // namespace kshot
