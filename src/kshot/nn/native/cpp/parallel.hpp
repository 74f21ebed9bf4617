// Loops over threads whose division of work, and so whose rounding, depends on the number of threads alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>

namespace kshot {

struct Range {
    int begin;
    int end;
};

// Piece number `part` of `parts` pieces of 0..count-1.
inline Range share(int count, int part, int parts) {
    return {int(long(count) * part / parts), int(long(count) * (part + 1) / parts)};
}

// Calls work(0), ..., work(count - 1), on so many threads. Out of memory in one of them is thrown after all ended.
template <class Work>
void parallel_for(int count, int threads, Work work) {
    if (threads == 1 || count == 1) {
        for (int i = 0; i < count; ++i) {
            work(i);
        }
        return;
    }
    std::atomic<bool> exhausted{false};
#pragma omp parallel for num_threads(std::min(count, threads)) schedule(static, 1)
    for (int i = 0; i < count; ++i) {
        try {
            work(i);
        } catch (const std::bad_alloc&) {
            exhausted = true;
        }
    }
    if (exhausted) {
        throw std::bad_alloc();
    }
}

}  // namespace kshot
