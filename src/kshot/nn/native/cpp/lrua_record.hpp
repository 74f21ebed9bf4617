// The shape of a least recently used access memory, and what a step of it keeps for the gradient.
#pragma once

#include "functions.hpp"

namespace kshot {

struct LruaShape {
    int hidden;
    int heads;
    int slots;
    int width;

    int read_width() const { return heads * width; }
    int features() const { return hidden + read_width(); }
    int asked() const { return heads * (width + 2); }  // for each head key, gate, strength
};

// Vectors over slots are padded; of several heads they stand one after the other.
template <class T>
struct LruaRecord {
    T* memory;  // after the step, column by column
    T* row_scale;  // 1 / |M(i)|
    T* stays;  // 0 in rows that are emptied
    T* usage;
    T* reading;
    T* writing;
    T* products;  // of key / |key| with the rows
    T* keys;
    T* key_scale;
    T* gate;
    T* strength;
    T* slope;  // of the strength
    T* places;  // of the least used rows
    T* gates;  // of the controller: i, f, o, g
    T* cell;
    T* tanh_cell;

    int place(int head) const { return int(places[head]); }
};

template <class T>
struct LruaLayout {
    LruaLayout() = default;
    explicit LruaLayout(const LruaShape& s) : shape(s), padded(Slots<T>(s.slots).padded()) {
        LruaRecord<T> unused;
        size = lay_out(nullptr, unused);
    }

    LruaRecord<T> record(T* at) const {
        LruaRecord<T> found;
        lay_out(at, found);
        return found;
    }

    T* head(T* vectors, int index) const { return vectors + index * padded; }

    LruaShape shape = {};
    int padded = 0;
    int size = 0;

  private:
    // Each part on a boundary of vectors; returns how much there is.
    int lay_out(T* at, LruaRecord<T>& r) const {
        int used = 0;
        const auto take = [&](int count) {
            T* piece = at == nullptr ? nullptr : at + used;
            used += (count + 15) / 16 * 16;
            return piece;
        };
        const int of_heads = shape.heads * padded;
        r.memory = take(shape.width * padded);
        r.row_scale = take(padded);
        r.stays = take(padded);
        r.usage = take(padded);
        r.reading = take(of_heads);
        r.writing = take(of_heads);
        r.products = take(of_heads);
        r.keys = take(shape.read_width());
        r.key_scale = take(shape.heads);
        r.gate = take(shape.heads);
        r.strength = take(shape.heads);
        r.slope = take(shape.heads);
        r.places = take(shape.heads);
        r.gates = take(4 * shape.hidden);
        r.cell = take(shape.hidden);
        r.tanh_cell = take(shape.hidden);
        return used;
    }
};

}  // namespace kshot
