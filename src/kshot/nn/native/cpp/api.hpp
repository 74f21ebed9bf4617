// What the functions that Python calls share. Compiled once for each type of number, which -DKSHOT_REAL=... names.
//
// Objects keep their memory between calls; each is for one call at a time. Functions that compute return 0, or 1 when
// memory ran out.
#pragma once

#include <new>

#define KSHOT_EXPORT extern "C" __attribute__((visibility("default")))

namespace kshot {

using Real = KSHOT_REAL;

template <class Work>
int guarded(Work work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace kshot
