// A Neural Turing Machine along a batch of sequences of one length, and its gradient by back-propagation through time
// (Graves, Wayne, Danihelka 2014, arXiv:1410.5401). The input's product with its weights is done outside, for all steps
// at once; so are the gradients of all weights, from those by the controller's and the heads' sums.
#pragma once

#include <vector>

#include "memory.hpp"
#include "ntm_controller.hpp"
#include "ntm_record.hpp"
#include "ntm_weights.hpp"
#include "parallel.hpp"
#include "product.hpp"

namespace kshot {

// A state of the machine as Python has it: (sequences, ...), memory (sequences, slots, width).
template <class T>
struct NtmState {
    T* hidden;
    T* cell;
    T* reads;    // (sequences, reads * width)
    T* weights;  // (sequences, heads, slots)
    T* memory;
};

template <class T>
class Ntm {
  public:
    // features (steps, sequences, hidden + reads * width); `sums` is (steps, sequences, gates). With `keep`, all that
    // the gradient needs stays here.
    void forward(const NtmShape& shape, int steps, int sequences, const T* sums, const T* w_controller,
                 const T* w_heads, const T* b_heads, const NtmState<const T>& start, T* features,
                 const NtmState<T>& end, bool keep, int threads) {
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
        weights_.pack(shape, w_controller, w_heads, b_heads);
        parallel_for(threads_, threads_, [&](int part) {
            const Range mine = share(sequences_, part, threads_);
            forward_part(mine, sums, start, features, end);
        });
    }

    // d_end.weights, d_end.memory and d_end.cell are gradients by the state at the end. Writes the gradients by the sums
    // of the controller (steps, sequences, gates) and of the heads (steps, sequences, emitted), and by the start.
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
        const int rows = mine.end - mine.begin, gates = s.gates(), read_width = s.read_width(),
                  feature_width = s.hidden + read_width;
        Addressing<T> addressing(s.slots, s.width, s.shifts);
        std::vector<T> inputs(size_t(rows) * s.inputs()), z(size_t(rows) * weights_.gates_padded);
        std::vector<T> hidden(size_t(rows) * s.hidden), emitted(size_t(rows) * weights_.emitted_padded);
        std::vector<T> memory(size_t(rows) * layout_.memory_size, T(0));
        for (int row = 0; row < rows; ++row) {
            enter(mine.begin + row, start, memory.data() + size_t(row) * layout_.memory_size);
        }
        for (int step = 0; step < steps_; ++step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int row = 0; row < rows; ++row) {
                T* input = inputs.data() + size_t(row) * s.inputs();
                const size_t own = mine.begin + row;
                const T* last = features + ((first + row) - (step == 0 ? own : size_t(sequences_))) * feature_width;
                std::copy_n(step == 0 ? start.reads + own * read_width : last + s.hidden, read_width, input);
                if (s.lstm) {
                    std::copy_n(step == 0 ? start.hidden + own * s.hidden : last, s.hidden, input + read_width);
                }
                std::copy(sums + (first + row) * gates, sums + (first + row + 1) * gates,
                          z.data() + size_t(row) * weights_.gates_padded);
                std::copy(weights_.b_heads.begin(), weights_.b_heads.end(),
                          emitted.data() + size_t(row) * weights_.emitted_padded);
            }
            product_add(rows, inputs.data(), s.inputs(), s.inputs(), weights_.controller_transposed.data(),
                        weights_.gates_padded, z.data(), weights_.gates_padded);
            for (int row = 0; row < rows; ++row) {
                const int own = mine.begin + row;
                controller_forward(s, layout_, z.data() + size_t(row) * weights_.gates_padded, cell_before(step, own),
                                   record(step, own), hidden.data() + size_t(row) * s.hidden);
            }
            product_add(rows, hidden.data(), s.hidden, s.hidden, weights_.heads_transposed.data(),
                        weights_.emitted_padded, emitted.data(), weights_.emitted_padded);
            for (int row = 0; row < rows; ++row) {
                T* out = features + (first + row) * feature_width;
                std::copy_n(hidden.data() + size_t(row) * s.hidden, s.hidden, out);
                memory_forward(addressing, step, mine.begin + row,
                               emitted.data() + size_t(row) * weights_.emitted_padded,
                               memory.data() + size_t(row) * layout_.memory_size, out + s.hidden);
            }
        }
        for (int row = 0; row < rows; ++row) {
            leave(mine.begin + row, memory.data() + size_t(row) * layout_.memory_size, end);
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
            std::copy_n(start.cell + size_t(sequence) * s.hidden, s.hidden, kept + layout_.start_cell);
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
            std::copy_n(cell_before(steps_, sequence), s.hidden, end.cell + size_t(sequence) * s.hidden);
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

    // Every head looks at the memory as it was before the step; reads come first, then Eq. 3 and 4.
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
            squash(mine, head >= s.reads);
            addressing.forward(view, mine, weights_before(step, sequence, head), layout_.place(kept, head));
        }
        for (int head = 0; head < s.reads; ++head) {
            const T* w = layout_.place(kept, head).weights;
            for (int m = 0; m < s.width; ++m) {  // Eq. 2
                reads[size_t(head) * s.width + m] = slots.dot(w, view.values + size_t(m) * layout_.slots_padded);
            }
        }
        for (int m = 0; m < s.width; ++m) {
            T* column = memory + size_t(m) * layout_.slots_padded;
            slots.each([&](int i) {
                Vector<T> stays = broadcast(T(1)), comes{};
                for (int head = s.reads; head < s.heads(); ++head) {
                    const HeadParameters<T> mine = s.head(parameters, head);
                    const Vector<T> w = load(layout_.place(kept, head).weights + i);
                    stays *= T(1) - mine.erase[m] * w;
                    comes += mine.add[m] * w;
                }
                store(column + i, load(column + i) * stays + comes);
            });
        }
    }

    void squash(const HeadParameters<T>& head, bool writes) const {
        *head.strength = softplus(*head.strength);
        *head.gate = 1 / (1 + std::exp(-*head.gate));
        *head.sharpness = 1 + softplus(*head.sharpness);
        const T highest = *std::max_element(head.shift, head.shift + shape_.shifts);
        T sum = 0;
        for (int j = 0; j < shape_.shifts; ++j) {
            head.shift[j] = std::exp(head.shift[j] - highest);
            sum += head.shift[j];
        }
        for (int j = 0; j < shape_.shifts; ++j) {
            head.shift[j] /= sum;
        }
        if (writes) {
            map(shape_.width, head.erase, head.erase, sigmoid<T>);
        }
    }

    // What flows backward from one step to the one before, for each sequence.
    struct Flow {
        std::vector<T> inputs;   // by reads and hidden units before the step (inputs, padded)
        std::vector<T> cell;
        std::vector<T> weights;  // (heads, padded slots)
        std::vector<T> memory;   // (width, padded slots)
    };

    void backward_part(Range mine, const T* d_features, const NtmState<const T>& d_end, T* d_sums, T* d_emitted,
                       const NtmState<T>& d_start) {
        const NtmShape& s = shape_;
        const int rows = mine.end - mine.begin, gates = s.gates(), read_width = s.read_width(),
                  feature_width = s.hidden + read_width, heads_size = s.heads() * layout_.slots_padded;
        Addressing<T> addressing(s.slots, s.width, s.shifts);
        Flow flow;
        flow.inputs.assign(size_t(rows) * weights_.inputs_padded, T(0));
        flow.cell.assign(size_t(rows) * s.hidden, T(0));
        flow.weights.assign(size_t(rows) * heads_size, T(0));
        flow.memory.assign(size_t(rows) * layout_.memory_size, T(0));
        std::vector<T> d_hidden(size_t(rows) * weights_.hidden_padded), d_reads(read_width);
        std::vector<T> scratch(2 * layout_.slots_padded);
        for (int row = 0; row < rows; ++row) {
            enter_backward(mine.begin + row, d_end, flow.cell.data() + size_t(row) * s.hidden,
                           flow.weights.data() + size_t(row) * heads_size,
                           flow.memory.data() + size_t(row) * layout_.memory_size);
        }
        for (int step = steps_ - 1; step >= 0; --step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int row = 0; row < rows; ++row) {
                const T* d_out = d_features + (first + row) * feature_width;
                const T* d_input = flow.inputs.data() + size_t(row) * weights_.inputs_padded;
                T* d_h = d_hidden.data() + size_t(row) * weights_.hidden_padded;
                std::copy_n(d_out, s.hidden, d_h);
                for (int i = 0; s.lstm && i < s.hidden; ++i) {
                    d_h[i] += d_input[read_width + i];
                }
                for (int i = 0; i < read_width; ++i) {
                    d_reads[i] = d_out[s.hidden + i] + d_input[i];
                }
                memory_backward(addressing, step, mine.begin + row, d_reads.data(),
                                flow.weights.data() + size_t(row) * heads_size,
                                flow.memory.data() + size_t(row) * layout_.memory_size,
                                d_emitted + (first + row) * s.emitted(), scratch.data());
            }
            product_add(rows, d_emitted + first * s.emitted(), s.emitted(), s.emitted(), weights_.heads.data(),
                        weights_.hidden_padded, d_hidden.data(), weights_.hidden_padded);
            for (int row = 0; row < rows; ++row) {
                const int own = mine.begin + row;
                controller_backward(s, layout_, record(step, own), cell_before(step, own),
                                    d_hidden.data() + size_t(row) * weights_.hidden_padded,
                                    flow.cell.data() + size_t(row) * s.hidden, d_sums + (first + row) * gates);
            }
            std::fill(flow.inputs.begin(), flow.inputs.end(), T(0));
            product_add(rows, d_sums + first * gates, gates, gates, weights_.controller.data(), weights_.inputs_padded,
                        flow.inputs.data(), weights_.inputs_padded);
        }
        for (int row = 0; row < rows; ++row) {
            leave_backward(mine.begin + row, flow.inputs.data() + size_t(row) * weights_.inputs_padded,
                           flow.cell.data() + size_t(row) * s.hidden, flow.weights.data() + size_t(row) * heads_size,
                           flow.memory.data() + size_t(row) * layout_.memory_size, d_start);
        }
    }

    void enter_backward(int sequence, const NtmState<const T>& d_end, T* d_cell, T* d_weights, T* d_memory) const {
        const NtmShape& s = shape_;
        if (s.lstm) {
            std::copy_n(d_end.cell + size_t(sequence) * s.hidden, s.hidden, d_cell);
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

    void leave_backward(int sequence, const T* d_input, const T* d_cell, const T* d_weights, const T* d_memory,
                        const NtmState<T>& d_start) const {
        const NtmShape& s = shape_;
        std::copy_n(d_input, s.read_width(), d_start.reads + size_t(sequence) * s.read_width());
        if (s.lstm) {
            std::copy_n(d_input + s.read_width(), s.hidden, d_start.hidden + size_t(sequence) * s.hidden);
            std::copy_n(d_cell, s.hidden, d_start.cell + size_t(sequence) * s.hidden);
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
            write_backward(slots, kept, m, memory + size_t(m) * n, d_memory + size_t(m) * n, d_weights, d_emitted);
        }
        for (int head = 0; head < s.reads; ++head) {
            const T* w = layout_.place(kept, head).weights;
            for (int m = 0; m < s.width; ++m) {
                const T d = d_reads[size_t(head) * s.width + m];
                slots.add_multiple(d, memory + size_t(m) * n, d_weights + size_t(head) * n);
                slots.add_multiple(d, w, d_memory + size_t(m) * n);
            }
        }
        const MemoryView<T> view{memory, kept + layout_.inverse_norms};
        for (int head = 0; head < s.heads(); ++head) {
            addressing.backward(view, s.head(parameters, head), weights_before(step, sequence, head),
                                layout_.place(kept, head), d_weights + size_t(head) * n, d_memory,
                                s.head(d_emitted, head), scratch);
        }
    }

    // M' = M prod_h (1 - w_h e_h) + sum_h w_h a_h, for one column of the memory.
    void write_backward(const Slots<T>& slots, T* kept, int m, const T* column, T* d_column, T* d_weights,
                        T* d_emitted) const {
        const NtmShape& s = shape_;
        T* parameters = kept + layout_.emitted;
        for (int head = s.reads; head < s.heads(); ++head) {
            const HeadParameters<T> mine = s.head(parameters, head), d_mine = s.head(d_emitted, head);
            const T* w = layout_.place(kept, head).weights;
            T* d_w = d_weights + size_t(head) * layout_.slots_padded;
            const T erase = mine.erase[m], add = mine.add[m];
            Vector<T> by_add{}, by_erase{};
            slots.each([&](int i) {
                Vector<T> others = load(column + i);
                for (int other = s.reads; other < s.heads(); ++other) {
                    if (other != head) {
                        others *= T(1) - s.head(parameters, other).erase[m] * load(layout_.place(kept, other).weights + i);
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
                stays *= T(1) - s.head(parameters, head).erase[m] * load(layout_.place(kept, head).weights + i);
            }
            store(d_column + i, load(d_column + i) * stays);
        });
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
