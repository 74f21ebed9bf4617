// Memory that is kept between calls.
#pragma once

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace kshot {

// Hands out pieces of one block, in order. With no block it only counts how much would be needed.
class Cursor {
  public:
    explicit Cursor(char* block) : block_(block) {}

    template <class T>
    T* take(size_t count) {
        T* piece = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

    size_t used() const { return used_; }

  private:
    char* block_;
    size_t used_ = 0;
};

// One block for many arrays: it may lie in huge pages, which saves a few percent of all time.
class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    Arena(Arena&& other) noexcept : block_(other.block_), size_(other.size_) {
        other.block_ = nullptr;
        other.size_ = 0;
    }
    ~Arena() { std::free(block_); }

    // Calls assign(cursor) twice, to count and to hand out. Contents are lost if the block has to grow.
    template <class Assign>
    void lay_out(Assign assign) {
        Cursor count(nullptr);
        assign(count);
        if (count.used() > size_) {
            grow(count.used());
        }
        Cursor cursor(block_);
        assign(cursor);
    }

  private:
    static constexpr size_t kHugePage = size_t(1) << 21;

    void grow(size_t size) {
        std::free(block_);
        size_ = 0;
        size = (size + kHugePage - 1) / kHugePage * kHugePage;
        block_ = static_cast<char*>(std::aligned_alloc(kHugePage, size));
        if (block_ == nullptr) {
            throw std::bad_alloc();
        }
        size_ = size;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(block_, size, MADV_HUGEPAGE);
#endif
    }

    char* block_ = nullptr;
    size_t size_ = 0;
};

}  // namespace kshot
