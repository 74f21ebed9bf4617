// The shape of a Neural Turing Machine, and where a step of it is kept for the gradient.
#pragma once

#include "addressing.hpp"

namespace kshot {

struct NtmShape {
    int hidden;  // units of a layer of the controller
    int layers;
    int lstm;  // 0: a feed-forward controller
    int reads;
    int writes;
    int slots;
    int width;
    int shifts;
    int late;  // 1: reads see what the step wrote

    int heads() const { return reads + writes; }
    int units() const { return layers * hidden; }
    int gates() const { return lstm ? 4 * hidden : hidden; }  // of a layer
    int sums() const { return layers * gates(); }
    int read_width() const { return reads * width; }
    // What a layer reads beside the input of the machine: what heads read or the layer below, and itself before.
    int below(int layer) const { return layer == 0 ? read_width() : hidden; }
    int inputs(int layer) const { return below(layer) + (lstm ? hidden : 0); }
    // Numbers that the controller emits: for each head key, strength, gate, shifts, sharpness; writers erase, add.
    int address_size() const { return width + 3 + shifts; }
    int emitted() const { return heads() * address_size() + writes * 2 * width; }

    template <class T>
    HeadParameters<T> head(T* emitted, int index) const {
        const int own = address_size() + 2 * width;
        T* at = emitted + (index < reads ? index * address_size() : reads * address_size() + (index - reads) * own);
        T* after = at + width;
        return {at, after, after + 1, after + 2, after + 2 + shifts, after + 3 + shifts, after + 3 + shifts + width};
    }
};

// What is kept of one layer of the controller.
template <class T>
struct KeptLayer {
    T* gates;
    T* cell;
    T* tanh_cell;
};

// Offsets within the record of one step of one sequence, each on a boundary of vectors.
template <class T>
struct NtmLayout {
    NtmLayout() = default;
    explicit NtmLayout(const NtmShape& s) {
        slots_padded = Slots<T>(s.slots).padded();
        memory_size = s.width * slots_padded;
        heads_ = s.heads();
        int used = 0;
        const auto take = [&](int count) {
            const int at = used;
            used += (count + 15) / 16 * 16;
            return at;
        };
        memory = take(memory_size);
        inverse_norms = take(slots_padded);
        places_ = take(heads_ * 5 * slots_padded);
        emitted = take(s.emitted());
        gates_ = take(s.sums());
        cell = take(s.units());
        tanh_cell_ = take(s.units());
        layer_gates_ = s.gates();
        layer_units_ = s.hidden;
        size = used;
        start_cell = heads_ * slots_padded;
        start_size = start_cell + s.units();
    }

    Place<T> place(T* record, int head) const {
        T* at = record + places_ + head * 5 * slots_padded;
        const int n = slots_padded;
        return {at, at + n, at + 2 * n, at + 3 * n, at + 4 * n};
    }
    KeptLayer<T> layer(T* record, int index) const {
        const int units = index * layer_units_;
        return {record + gates_ + index * layer_gates_, record + cell + units, record + tanh_cell_ + units};
    }
    int start_weights(int head) const { return head * slots_padded; }

    int slots_padded = 0;
    int memory_size = 0;
    int memory = 0;
    int inverse_norms = 0;
    int emitted = 0;
    int cell = 0;
    int size = 0;
    int start_cell = 0;
    int start_size = 0;

  private:
    int places_ = 0;
    int heads_ = 0;
    int gates_ = 0;
    int tanh_cell_ = 0;
    int layer_gates_ = 0;
    int layer_units_ = 0;
};

}  // namespace kshot
