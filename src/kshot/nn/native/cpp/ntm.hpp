// A Neural Turing Machine along a batch of sequences of one length, and its gradient by back-propagation through time
// (Graves, Wayne, Danihelka 2014, arXiv:1410.5401). The input's product with its weights is done outside, for all steps
// at once; so are the gradients of all weights, from those by the controller's and the heads' sums.
#pragma once

#include <vector>

#include "memory.hpp"
#include "ntm_controller.hpp"
#include "ntm_heads.hpp"
#include "ntm_record.hpp"
#include "ntm_weights.hpp"
#include "parallel.hpp"
#include "product.hpp"

namespace kshot {

// A state of the machine as Python has it: (sequences, ...), memory (sequences, slots, width).
template <class T>
struct NtmState {
    T* hidden;   // (sequences, units), layer after layer
    T* cell;     // likewise
    T* reads;    // (sequences, reads * width)
    T* weights;  // (sequences, heads, slots)
    T* memory;
};

template <class T>
class Ntm {
  public:
    // features (steps, sequences, units + reads * width); `sums` is (steps, sequences, gates), of the first layer. With
    // `keep`, all that the gradient needs stays here.
    void forward(const NtmShape& shape, int steps, int sequences, const T* sums, const NtmGiven<T>& weights,
                 const NtmState<const T>& start, T* features, const NtmState<T>& end, bool keep, int threads) {
        shape_ = shape;
        steps_ = steps;
        sequences_ = sequences;
        kept_ = keep ? steps : std::min(steps, 2);
        threads_ = std::min(threads, sequences);
        layout_ = NtmLayout<T>(shape);
        arena_.lay_out([&](Cursor& cursor) {
            records_ = cursor.take<T>(size_t(kept_) * sequences * layout_.size);
            starts_ = cursor.take<T>(size_t(sequences) * layout_.start_size);
        });
        weights_.pack(shape, weights);
        parallel_for(threads_, threads_, [&](int part) {
            const Range mine = share(sequences_, part, threads_);
            forward_part(mine, sums, start, features, end);
        });
    }

    // d_end.weights, d_end.memory and d_end.cell are gradients by the state at the end. Writes the gradients by the sums
    // of all layers (steps, sequences, layers * gates) and of the heads (steps, sequences, emitted), and by the start.
    void backward(const T* d_features, const NtmState<const T>& d_end, T* d_sums, T* d_emitted,
                  const NtmState<T>& d_start) {
        parallel_for(threads_, threads_, [&](int part) {
            backward_part(share(sequences_, part, threads_), d_features, d_end, d_sums, d_emitted, d_start);
        });
    }

  private:
    T* record(int step, int sequence) {
        return records_ + (size_t(step % kept_) * sequences_ + sequence) * layout_.size;
    }
    T* start_of(int sequence) { return starts_ + size_t(sequence) * layout_.start_size; }
    const T* weights_before(int step, int sequence, int head) {
        return step == 0 ? start_of(sequence) + layout_.start_weights(head)
                         : layout_.place(record(step - 1, sequence), head).weights;
    }
    const T* cell_before(int step, int sequence) {
        return step == 0 ? start_of(sequence) + layout_.start_cell : record(step - 1, sequence) + layout_.cell;
    }

    void forward_part(Range mine, const T* sums, const NtmState<const T>& start, T* features,
                      const NtmState<T>& end) {
        const NtmShape& s = shape_;
        const int rows = mine.end - mine.begin, units = s.units(), feature_width = units + s.read_width();
        Addressing<T> addressing(s.slots, s.width, s.shifts);
        std::vector<T> inputs(size_t(rows) * weights_.most_inputs), z(size_t(rows) * weights_.gates_padded);
        std::vector<T> hidden(size_t(rows) * units), emitted(size_t(rows) * weights_.emitted_padded);
        std::vector<T> memory(size_t(rows) * layout_.memory_size, T(0));
        for (int row = 0; row < rows; ++row) {
            enter(mine.begin + row, start, memory.data() + size_t(row) * layout_.memory_size);
        }
        for (int step = 0; step < steps_; ++step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int layer = 0; layer < s.layers; ++layer) {
                layer_forward(layer, step, mine, sums, start, features, inputs.data(), z.data(), hidden.data());
            }
            for (int row = 0; row < rows; ++row) {
                std::copy(weights_.b_heads.begin(), weights_.b_heads.end(),
                          emitted.data() + size_t(row) * weights_.emitted_padded);
            }
            product_add(rows, hidden.data(), units, units, weights_.heads_transposed.data(), weights_.emitted_padded,
                        emitted.data(), weights_.emitted_padded);
            for (int row = 0; row < rows; ++row) {
                T* out = features + (first + row) * feature_width;
                std::copy_n(hidden.data() + size_t(row) * units, units, out);
                memory_forward(addressing, step, mine.begin + row,
                               emitted.data() + size_t(row) * weights_.emitted_padded,
                               memory.data() + size_t(row) * layout_.memory_size, out + units);
            }
        }
        for (int row = 0; row < rows; ++row) {
            leave(mine.begin + row, memory.data() + size_t(row) * layout_.memory_size, end);
        }
    }

    // One layer of the controller for all rows; `hidden` (rows, units) holds the layers below of this step.
    void layer_forward(int layer, int step, Range mine, const T* sums, const NtmState<const T>& start,
                       const T* features, T* inputs, T* z, T* hidden) {
        const NtmShape& s = shape_;
        const typename NtmWeights<T>::Layer& w = weights_.layers[layer];
        const int rows = mine.end - mine.begin, gates = s.gates(), units = s.units(), below = s.below(layer),
                  feature_width = units + s.read_width(), at = layer * s.hidden;
        for (int row = 0; row < rows; ++row) {
            const size_t own = mine.begin + row, now = size_t(step) * sequences_ + own;
            T* input = inputs + size_t(row) * w.inputs;
            const T* last = step == 0 ? nullptr : features + (now - sequences_) * feature_width;
            const T* read = last ? last + units : start.reads + own * s.read_width();
            std::copy_n(layer == 0 ? read : hidden + size_t(row) * units + at - s.hidden, below, input);
            if (s.lstm) {
                std::copy_n((last ? last : start.hidden + own * units) + at, s.hidden, input + below);
            }
            std::copy_n(layer == 0 ? sums + now * gates : weights_.b_upper.data() + size_t(layer - 1) * gates, gates,
                        z + size_t(row) * weights_.gates_padded);
        }
        product_add(rows, inputs, w.inputs, w.inputs, w.transposed.data(), weights_.gates_padded, z,
                    weights_.gates_padded);
        for (int row = 0; row < rows; ++row) {
            const int own = mine.begin + row;
            controller_forward(s, z + size_t(row) * weights_.gates_padded, cell_before(step, own) + at,
                               layout_.layer(record(step, own), layer), hidden + size_t(row) * units + at);
        }
    }

    void enter(int sequence, const NtmState<const T>& start, T* memory) {
        const NtmShape& s = shape_;
        T* kept = start_of(sequence);
        std::fill_n(kept, layout_.start_size, T(0));
        for (int head = 0; head < s.heads(); ++head) {
            std::copy_n(start.weights + (size_t(sequence) * s.heads() + head) * s.slots, s.slots,
                        kept + layout_.start_weights(head));
        }
        if (s.lstm) {
            std::copy_n(start.cell + size_t(sequence) * s.units(), s.units(), kept + layout_.start_cell);
        }
        const T* rows = start.memory + size_t(sequence) * s.slots * s.width;
        for (int i = 0; i < s.slots; ++i) {
            for (int m = 0; m < s.width; ++m) {
                memory[size_t(m) * layout_.slots_padded + i] = rows[size_t(i) * s.width + m];
            }
        }
    }

    void leave(int sequence, const T* memory, const NtmState<T>& end) {
        const NtmShape& s = shape_;
        for (int head = 0; head < s.heads(); ++head) {
            std::copy_n(weights_before(steps_, sequence, head), s.slots,
                        end.weights + (size_t(sequence) * s.heads() + head) * s.slots);
        }
        if (s.lstm) {
            std::copy_n(cell_before(steps_, sequence), s.units(), end.cell + size_t(sequence) * s.units());
        }
        write_memory(memory, end.memory + size_t(sequence) * s.slots * s.width);
    }

    void write_memory(const T* memory, T* rows) const {
        for (int i = 0; i < shape_.slots; ++i) {
            for (int m = 0; m < shape_.width; ++m) {
                rows[size_t(i) * shape_.width + m] = memory[size_t(m) * layout_.slots_padded + i];
            }
        }
    }

    // Every head finds its place in the memory as it was before the step. Reads (Eq. 2) come before Eq. 3 and 4, or
    // after.
    void memory_forward(Addressing<T>& addressing, int step, int sequence, const T* emitted, T* memory, T* reads) {
        const NtmShape& s = shape_;
        const Slots<T>& slots = addressing.slots();
        T* kept = record(step, sequence);
        T* parameters = kept + layout_.emitted;
        std::copy_n(emitted, s.emitted(), parameters);
        std::copy_n(memory, layout_.memory_size, kept + layout_.memory);
        const MemoryView<T> view{kept + layout_.memory, kept + layout_.inverse_norms};
        addressing.inverse_norms(view.values, kept + layout_.inverse_norms);
        for (int head = 0; head < s.heads(); ++head) {
            const HeadParameters<T> mine = s.head(parameters, head);
            squash(s, mine, head >= s.reads);
            addressing.forward(view, mine, weights_before(step, sequence, head), layout_.place(kept, head));
        }
        const T* seen = s.late ? memory : view.values;
        for (int m = 0; m < s.width; ++m) {
            write_forward(s, layout_, slots, kept, m, memory + size_t(m) * layout_.slots_padded);
        }
        for (int head = 0; head < s.reads; ++head) {
            const T* w = layout_.place(kept, head).weights;
            for (int m = 0; m < s.width; ++m) {
                reads[size_t(head) * s.width + m] = slots.dot(w, seen + size_t(m) * layout_.slots_padded);
            }
        }
    }

    // What flows backward from one step to the one before, for each sequence.
    struct Flow {
        std::vector<T> reads;    // by what was read before the step
        std::vector<T> hidden;   // by the hidden units before the step
        std::vector<T> cell;
        std::vector<T> weights;  // (heads, padded slots)
        std::vector<T> memory;   // (width, padded slots)
    };

    void backward_part(Range mine, const T* d_features, const NtmState<const T>& d_end, T* d_sums, T* d_emitted,
                       const NtmState<T>& d_start) {
        const NtmShape& s = shape_;
        const int rows = mine.end - mine.begin, units = s.units(), read_width = s.read_width(),
                  feature_width = units + read_width, heads_size = s.heads() * layout_.slots_padded;
        Addressing<T> addressing(s.slots, s.width, s.shifts);
        Flow flow;
        flow.reads.assign(size_t(rows) * read_width, T(0));
        flow.hidden.assign(size_t(rows) * units, T(0));
        flow.cell.assign(size_t(rows) * units, T(0));
        flow.weights.assign(size_t(rows) * heads_size, T(0));
        flow.memory.assign(size_t(rows) * layout_.memory_size, T(0));
        std::vector<T> d_hidden(size_t(rows) * weights_.units_padded), d_reads(read_width);
        std::vector<T> d_inputs(size_t(rows) * weights_.most_inputs);
        std::vector<T> scratch(2 * layout_.slots_padded);
        for (int row = 0; row < rows; ++row) {
            enter_backward(mine.begin + row, d_end, flow.cell.data() + size_t(row) * units,
                           flow.weights.data() + size_t(row) * heads_size,
                           flow.memory.data() + size_t(row) * layout_.memory_size);
        }
        for (int step = steps_ - 1; step >= 0; --step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int row = 0; row < rows; ++row) {
                const T* d_out = d_features + (first + row) * feature_width;
                T* d_h = d_hidden.data() + size_t(row) * weights_.units_padded;
                for (int i = 0; i < units; ++i) {
                    d_h[i] = d_out[i] + flow.hidden[size_t(row) * units + i];
                }
                for (int i = 0; i < read_width; ++i) {
                    d_reads[i] = d_out[units + i] + flow.reads[size_t(row) * read_width + i];
                }
                memory_backward(addressing, step, mine.begin + row, d_reads.data(),
                                flow.weights.data() + size_t(row) * heads_size,
                                flow.memory.data() + size_t(row) * layout_.memory_size,
                                d_emitted + (first + row) * s.emitted(), scratch.data());
            }
            product_add(rows, d_emitted + first * s.emitted(), s.emitted(), s.emitted(), weights_.heads.data(),
                        weights_.units_padded, d_hidden.data(), weights_.units_padded);
            for (int layer = s.layers - 1; layer >= 0; --layer) {
                layer_backward(layer, step, mine, d_hidden.data(), d_sums, d_inputs.data(), flow);
            }
        }
        for (int row = 0; row < rows; ++row) {
            std::copy_n(flow.reads.data() + size_t(row) * read_width, read_width,
                        d_start.reads + size_t(mine.begin + row) * read_width);
            leave_backward(mine.begin + row, flow.hidden.data() + size_t(row) * units,
                           flow.cell.data() + size_t(row) * units, flow.weights.data() + size_t(row) * heads_size,
                           flow.memory.data() + size_t(row) * layout_.memory_size, d_start);
        }
    }

    // Adds to `d_hidden` (rows, units) of the layer below, and leaves in `flow` what goes to the step before.
    void layer_backward(int layer, int step, Range mine, T* d_hidden, T* d_sums, T* d_inputs, Flow& flow) {
        const NtmShape& s = shape_;
        const typename NtmWeights<T>::Layer& w = weights_.layers[layer];
        const int rows = mine.end - mine.begin, gates = s.gates(), units = s.units(), below = s.below(layer),
                  at = layer * s.hidden;
        T* d_own = d_sums + (size_t(step) * sequences_ + mine.begin) * s.sums() + layer * gates;
        for (int row = 0; row < rows; ++row) {
            const int own = mine.begin + row;
            controller_backward(s, layout_.layer(record(step, own), layer), cell_before(step, own) + at,
                                d_hidden + size_t(row) * weights_.units_padded + at,
                                flow.cell.data() + size_t(row) * units + at, d_own + size_t(row) * s.sums());
        }
        std::fill_n(d_inputs, size_t(rows) * w.inputs_padded, T(0));
        product_add(rows, d_own, s.sums(), gates, w.plain.data(), w.inputs_padded, d_inputs, w.inputs_padded);
        for (int row = 0; row < rows; ++row) {
            const T* d_input = d_inputs + size_t(row) * w.inputs_padded;
            if (layer == 0) {
                std::copy_n(d_input, below, flow.reads.data() + size_t(row) * below);
            }
            for (int i = 0; layer > 0 && i < below; ++i) {
                d_hidden[size_t(row) * weights_.units_padded + at - below + i] += d_input[i];
            }
            if (s.lstm) {
                std::copy_n(d_input + below, s.hidden, flow.hidden.data() + size_t(row) * units + at);
            }
        }
    }

    void enter_backward(int sequence, const NtmState<const T>& d_end, T* d_cell, T* d_weights, T* d_memory) const {
        const NtmShape& s = shape_;
        if (s.lstm) {
            std::copy_n(d_end.cell + size_t(sequence) * s.units(), s.units(), d_cell);
        }
        for (int head = 0; head < s.heads(); ++head) {
            std::copy_n(d_end.weights + (size_t(sequence) * s.heads() + head) * s.slots, s.slots,
                        d_weights + size_t(head) * layout_.slots_padded);
        }
        const T* rows = d_end.memory + size_t(sequence) * s.slots * s.width;
        for (int i = 0; i < s.slots; ++i) {
            for (int m = 0; m < s.width; ++m) {
                d_memory[size_t(m) * layout_.slots_padded + i] = rows[size_t(i) * s.width + m];
            }
        }
    }

    void leave_backward(int sequence, const T* d_hidden, const T* d_cell, const T* d_weights, const T* d_memory,
                        const NtmState<T>& d_start) const {
        const NtmShape& s = shape_;
        if (s.lstm) {
            std::copy_n(d_hidden, s.units(), d_start.hidden + size_t(sequence) * s.units());
            std::copy_n(d_cell, s.units(), d_start.cell + size_t(sequence) * s.units());
        }
        for (int head = 0; head < s.heads(); ++head) {
            std::copy_n(d_weights + size_t(head) * layout_.slots_padded, s.slots,
                        d_start.weights + (size_t(sequence) * s.heads() + head) * s.slots);
        }
        write_memory(d_memory, d_start.memory + size_t(sequence) * s.slots * s.width);
    }

    // d_weights and d_memory come by what is after the step and leave by what was before it.
    void memory_backward(Addressing<T>& addressing, int step, int sequence, const T* d_reads, T* d_weights,
                         T* d_memory, T* d_emitted, T* scratch) {
        const NtmShape& s = shape_;
        const Slots<T>& slots = addressing.slots();
        const int n = layout_.slots_padded;
        T* kept = record(step, sequence);
        T* parameters = kept + layout_.emitted;
        const T* memory = kept + layout_.memory;
        std::fill_n(d_emitted, s.emitted(), T(0));
        for (int m = 0; m < s.width; ++m) {
            const T* before = memory + size_t(m) * n;
            T* d_column = d_memory + size_t(m) * n;
            if (s.late) {
                std::copy_n(before, n, scratch);
                write_forward(s, layout_, slots, kept, m, scratch);
                read_backward(slots, kept, m, d_reads, scratch, d_weights, d_column);
            }
            write_backward(s, layout_, slots, kept, m, before, d_column, d_weights, d_emitted);
            if (!s.late) {
                read_backward(slots, kept, m, d_reads, before, d_weights, d_column);
            }
        }
        const MemoryView<T> view{memory, kept + layout_.inverse_norms};
        for (int head = 0; head < s.heads(); ++head) {
            addressing.backward(view, s.head(parameters, head), weights_before(step, sequence, head),
                                layout_.place(kept, head), d_weights + size_t(head) * n, d_memory,
                                s.head(d_emitted, head), scratch);
        }
    }

    // Of Eq. 2 for one column of the memory, as the reads saw it.
    void read_backward(const Slots<T>& slots, T* kept, int m, const T* d_reads, const T* column, T* d_weights,
                       T* d_column) const {
        for (int head = 0; head < shape_.reads; ++head) {
            const T d = d_reads[size_t(head) * shape_.width + m];
            slots.add_multiple(d, column, d_weights + size_t(head) * layout_.slots_padded);
            slots.add_multiple(d, layout_.place(kept, head).weights, d_column);
        }
    }

    NtmShape shape_{};
    int steps_ = 0;
    int sequences_ = 0;
    int kept_ = 1;
    int threads_ = 1;
    NtmLayout<T> layout_{};
    NtmWeights<T> weights_;
    Arena arena_;
    T* records_ = nullptr;
    T* starts_ = nullptr;
};

}  // namespace kshot
