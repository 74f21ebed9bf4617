// The least recently used access memory of MANN along a batch of sequences of one length, and its gradient by
// back-propagation through time (Santoro et al. 2016, arXiv:1605.06065, section 3.2; equations by their numbers there).
// The input's product with its weights is done outside, for all steps at once; so are the gradients of all weights.
#pragma once

#include <vector>

#include "lrua_memory.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "product.hpp"

namespace kshot {

// Weights as Python has them: (outputs, inputs).
template <class T>
struct LruaGiven {
    const T* recurs;  // of what was put out before, (4 hidden, features)
    const T* asks;    // of keys, gate and strength, head after head, (asked, hidden)
    const T* b_asks;
};

// A state as Python has it; `read` (sequences, heads * width), `memory` (sequences, slots, width).
template <class T>
struct LruaState {
    T* h;
    T* c;
    T* memory;
    T* reading;  // (sequences, heads, slots)
    T* usage;    // (sequences, slots)
    T* read;
};

template <class T>
class Lrua {
  public:
    // features (steps, sequences, hidden + heads * width), sums (steps, sequences, 4 hidden). Of the state at the end h
    // and read are the last features, and not written. With `keep`, all that the gradient needs stays here.
    void forward(const LruaShape& shape, int steps, int sequences, T decay, const T* sums, const LruaGiven<T>& given,
                 const LruaState<const T>& start, T* features, const LruaState<T>& end, bool keep, int threads) {
        shape_ = shape;
        steps_ = steps;
        sequences_ = sequences;
        kept_ = keep ? steps : std::min(steps, 2);
        threads_ = std::min(threads, sequences);
        layout_ = LruaLayout<T>(shape);
        memory_ = {shape, layout_, decay};
        arena_.lay_out([&](Cursor& cursor) {
            records_ = cursor.take<T>(size_t(kept_) * sequences * layout_.size);
            starts_ = cursor.take<T>(size_t(sequences) * layout_.size);
        });
        pack(given);
        parallel_for(threads_, threads_, [&](int part) {
            forward_part(share(sequences_, part, threads_), sums, start, features, end);
        });
    }

    // Of the gradients by the state at the end, those by h and read are in d_features. Writes the gradients by the
    // sums, by what was asked (steps, sequences, asked), and by the start.
    void backward(const T* d_features, const LruaState<const T>& d_end, T* d_sums, T* d_asked,
                  const LruaState<T>& d_start) {
        parallel_for(threads_, threads_, [&](int part) {
            backward_part(share(sequences_, part, threads_), d_features, d_end, d_sums, d_asked, d_start);
        });
    }

  private:
    // What a step left behind; that of step -1 holds the start.
    LruaRecord<T> record(int step, int sequence) {
        T* at = step < 0 ? starts_ + size_t(sequence) * layout_.size
                         : records_ + (size_t(step % kept_) * sequences_ + sequence) * layout_.size;
        return layout_.record(at);
    }

    void pack(const LruaGiven<T>& given) {
        const LruaShape& s = shape_;
        gates_padded_ = padded<T>(4 * s.hidden);
        asked_padded_ = padded<T>(s.asked());
        hidden_padded_ = padded<T>(s.hidden);
        features_padded_ = padded<T>(s.features());
        copy_rows(given.recurs, 4 * s.hidden, s.features(), features_padded_, recurs_);
        transpose_rows(given.recurs, 4 * s.hidden, s.features(), gates_padded_, recurs_transposed_);
        copy_rows(given.asks, s.asked(), s.hidden, hidden_padded_, asks_);
        transpose_rows(given.asks, s.asked(), s.hidden, asked_padded_, asks_transposed_);
        b_asks_.assign(given.b_asks, given.b_asks + s.asked());
    }

    void forward_part(Range mine, const T* sums, const LruaState<const T>& start, T* features,
                      const LruaState<T>& end) {
        const LruaShape& s = shape_;
        const int rows = mine.end - mine.begin, width = s.features();
        std::vector<T> before(size_t(rows) * width), z(size_t(rows) * gates_padded_);
        std::vector<T> hidden(size_t(rows) * s.hidden), asked(size_t(rows) * asked_padded_);
        for (int row = 0; row < rows; ++row) {
            enter(mine.begin + row, start, before.data() + size_t(row) * width);
        }
        for (int step = 0; step < steps_; ++step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int row = 0; row < rows; ++row) {
                std::copy_n(sums + (first + row) * 4 * s.hidden, 4 * s.hidden, z.data() + size_t(row) * gates_padded_);
                std::copy_n(b_asks_.data(), s.asked(), asked.data() + size_t(row) * asked_padded_);
            }
            product_add(rows, step == 0 ? before.data() : features + (first - sequences_) * width, width, width,
                        recurs_transposed_.data(), gates_padded_, z.data(), gates_padded_);
            for (int row = 0; row < rows; ++row) {
                const int own = mine.begin + row;
                controller_forward(z.data() + size_t(row) * gates_padded_, record(step - 1, own).cell,
                                   record(step, own), hidden.data() + size_t(row) * s.hidden);
            }
            product_add(rows, hidden.data(), s.hidden, s.hidden, asks_transposed_.data(), asked_padded_, asked.data(),
                        asked_padded_);
            for (int row = 0; row < rows; ++row) {
                const int own = mine.begin + row;
                T* out = features + (first + row) * width;
                std::copy_n(hidden.data() + size_t(row) * s.hidden, s.hidden, out);
                memory_.forward(asked.data() + size_t(row) * asked_padded_, record(step - 1, own), record(step, own),
                               out + s.hidden);
            }
        }
        for (int row = 0; row < rows; ++row) {
            leave(mine.begin + row, end);
        }
    }

    // Gates in the order i, f, o, g.
    void controller_forward(const T* z, const T* c_before, const LruaRecord<T>& kept, T* h) {
        const int n = shape_.hidden;
        const T* g = kept.gates;
        map(3 * n, z, kept.gates, sigmoid<T>);
        map(n, z + 3 * n, kept.gates + 3 * n, hyperbolic_tangent<T>);
        for (int i = 0; i < n; ++i) {
            kept.cell[i] = g[n + i] * c_before[i] + g[i] * g[3 * n + i];
        }
        map(n, kept.cell, kept.tanh_cell, hyperbolic_tangent<T>);
        for (int i = 0; i < n; ++i) {
            h[i] = g[2 * n + i] * kept.tanh_cell[i];
        }
    }

    void enter(int sequence, const LruaState<const T>& start, T* before) {
        const LruaShape& s = shape_;
        const LruaRecord<T> kept = record(-1, sequence);
        std::copy_n(start.h + size_t(sequence) * s.hidden, s.hidden, before);
        std::copy_n(start.read + size_t(sequence) * s.read_width(), s.read_width(), before + s.hidden);
        std::copy_n(start.c + size_t(sequence) * s.hidden, s.hidden, kept.cell);
        spread(start.usage + size_t(sequence) * s.slots, 1, kept.usage);
        spread(start.reading + size_t(sequence) * s.heads * s.slots, s.heads, kept.reading);
        columns(start.memory + size_t(sequence) * s.slots * s.width, kept.memory);
    }

    void leave(int sequence, const LruaState<T>& end) {
        const LruaShape& s = shape_;
        const LruaRecord<T> kept = record(steps_ - 1, sequence);
        std::copy_n(kept.cell, s.hidden, end.c + size_t(sequence) * s.hidden);
        gather(kept.usage, 1, end.usage + size_t(sequence) * s.slots);
        gather(kept.reading, s.heads, end.reading + size_t(sequence) * s.heads * s.slots);
        rows(kept.memory, end.memory + size_t(sequence) * s.slots * s.width);
    }

    // Vectors over slots, from Python and to it.
    void spread(const T* from, int count, T* to) const {
        std::fill_n(to, count * layout_.padded, T(0));
        for (int k = 0; k < count; ++k) {
            std::copy_n(from + k * shape_.slots, shape_.slots, to + k * layout_.padded);
        }
    }
    void gather(const T* from, int count, T* to) const {
        for (int k = 0; k < count; ++k) {
            std::copy_n(from + k * layout_.padded, shape_.slots, to + k * shape_.slots);
        }
    }
    // A memory, which lies column by column here.
    void columns(const T* from, T* to) const {
        std::fill_n(to, shape_.width * layout_.padded, T(0));
        for (int i = 0; i < shape_.slots; ++i) {
            for (int m = 0; m < shape_.width; ++m) {
                to[m * layout_.padded + i] = from[i * shape_.width + m];
            }
        }
    }
    void rows(const T* from, T* to) const {
        for (int i = 0; i < shape_.slots; ++i) {
            for (int m = 0; m < shape_.width; ++m) {
                to[i * shape_.width + m] = from[m * layout_.padded + i];
            }
        }
    }

    void backward_part(Range mine, const T* d_features, const LruaState<const T>& d_end, T* d_sums, T* d_asked,
                       const LruaState<T>& d_start) {
        const LruaShape& s = shape_;
        const int count = mine.end - mine.begin, width = s.features(), gates = 4 * s.hidden;
        const size_t flow_size = size_t(layout_.padded) * (s.width + 2 * s.heads + 2);
        std::vector<T> flows(count * flow_size, T(0)), d_cell(size_t(count) * s.hidden);
        // By what was put out before the step; and of the step itself, by hidden units.
        std::vector<T> d_before(size_t(count) * features_padded_, T(0)), d_hidden(size_t(count) * hidden_padded_);
        std::vector<T> d_read(s.read_width());
        const auto flow_of = [&](int row) {
            T* at = flows.data() + row * flow_size;
            T* reading = at + s.width * layout_.padded;
            T* usage = reading + s.heads * layout_.padded;
            T* writing = usage + layout_.padded;
            return typename LruaMemory<T>::Flow{at, reading, usage, writing, writing + s.heads * layout_.padded};
        };
        for (int row = 0; row < count; ++row) {
            const size_t own = mine.begin + row;
            columns(d_end.memory + own * s.slots * s.width, flow_of(row).memory);
            spread(d_end.reading + own * s.heads * s.slots, s.heads, flow_of(row).reading);
            spread(d_end.usage + own * s.slots, 1, flow_of(row).usage);
            std::copy_n(d_end.c + own * s.hidden, s.hidden, d_cell.data() + size_t(row) * s.hidden);
        }
        for (int step = steps_ - 1; step >= 0; --step) {
            const size_t first = size_t(step) * sequences_ + mine.begin;
            for (int row = 0; row < count; ++row) {
                const T* d_out = d_features + (first + row) * width;
                const T* later = d_before.data() + size_t(row) * features_padded_;
                T* d_h = d_hidden.data() + size_t(row) * hidden_padded_;
                std::fill_n(d_h, hidden_padded_, T(0));
                for (int i = 0; i < s.hidden; ++i) {
                    d_h[i] = d_out[i] + later[i];
                }
                for (int i = 0; i < s.read_width(); ++i) {
                    d_read[i] = d_out[s.hidden + i] + later[s.hidden + i];
                }
                const int own = mine.begin + row;
                memory_.backward(record(step - 1, own), record(step, own), d_read.data(), flow_of(row),
                                d_asked + (first + row) * s.asked());
            }
            product_add(count, d_asked + first * s.asked(), s.asked(), s.asked(), asks_.data(), hidden_padded_,
                        d_hidden.data(), hidden_padded_);
            for (int row = 0; row < count; ++row) {
                const int own = mine.begin + row;
                controller_backward(record(step - 1, own).cell, record(step, own),
                                    d_hidden.data() + size_t(row) * hidden_padded_,
                                    d_cell.data() + size_t(row) * s.hidden, d_sums + (first + row) * gates);
            }
            std::fill(d_before.begin(), d_before.end(), T(0));
            product_add(count, d_sums + first * gates, gates, gates, recurs_.data(), features_padded_, d_before.data(),
                        features_padded_);
        }
        for (int row = 0; row < count; ++row) {
            const size_t own = mine.begin + row;
            const T* before = d_before.data() + size_t(row) * features_padded_;
            std::copy_n(before, s.hidden, d_start.h + own * s.hidden);
            std::copy_n(before + s.hidden, s.read_width(), d_start.read + own * s.read_width());
            std::copy_n(d_cell.data() + size_t(row) * s.hidden, s.hidden, d_start.c + own * s.hidden);
            rows(flow_of(row).memory, d_start.memory + own * s.slots * s.width);
            gather(flow_of(row).reading, s.heads, d_start.reading + own * s.heads * s.slots);
            gather(flow_of(row).usage, 1, d_start.usage + own * s.slots);
        }
    }

    void controller_backward(const T* c_before, const LruaRecord<T>& kept, const T* d_h, T* d_c, T* d_z) {
        const int n = shape_.hidden;
        const T *g = kept.gates, *tanh_c = kept.tanh_cell;
        for (int i = 0; i < n; ++i) {
            const T in = g[i], forget = g[n + i], out = g[2 * n + i], value = g[3 * n + i];
            const T d = d_c[i] + d_h[i] * out * (1 - tanh_c[i] * tanh_c[i]);
            d_z[i] = d * value * in * (1 - in);
            d_z[n + i] = d * c_before[i] * forget * (1 - forget);
            d_z[2 * n + i] = d_h[i] * tanh_c[i] * out * (1 - out);
            d_z[3 * n + i] = d * in * (1 - value * value);
            d_c[i] = d * forget;
        }
    }

    LruaShape shape_ = {};
    LruaLayout<T> layout_;
    LruaMemory<T> memory_;
    int steps_ = 0, sequences_ = 0, kept_ = 0, threads_ = 1;
    int gates_padded_ = 0, asked_padded_ = 0, hidden_padded_ = 0, features_padded_ = 0;
    std::vector<T> recurs_, recurs_transposed_, asks_, asks_transposed_, b_asks_;
    T* records_ = nullptr;
    T* starts_ = nullptr;
    Arena arena_;
};

}  // namespace kshot
