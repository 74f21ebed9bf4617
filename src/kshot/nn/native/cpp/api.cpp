// What Python calls, through ctypes: plain functions for float (suffix f) and double (suffix d). They return 0, or 1
// when memory ran out.
#include <new>

#include "maml.hpp"
#include "trunk.hpp"

namespace {

template <class Work>
int guarded(Work work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

// The functions of one type of number. Trunk and Maml objects keep their memory between calls; each is for one call at
// a time.
#define KSHOT_API(T, SUFFIX)                                                                                          \
    extern "C" void* trunk_new_##SUFFIX() { return new (std::nothrow) kshot::Trunk<T>; }                              \
    extern "C" void trunk_delete_##SUFFIX(void* trunk) { delete static_cast<kshot::Trunk<T>*>(trunk); }               \
    extern "C" int trunk_forward_##SUFFIX(void* trunk, const T* parameters, const T* images, int n_groups,            \
                                          int n_images, T* features, T* means, T* variances, int threads) {           \
        return guarded([&] {                                                                                          \
            static_cast<kshot::Trunk<T>*>(trunk)->forward(parameters, images, n_groups, n_images, features, means,    \
                                                          variances, threads);                                        \
        });                                                                                                           \
    }                                                                                                                 \
    extern "C" int trunk_backward_##SUFFIX(void* trunk, const T* d_features, T* grad) {                               \
        return guarded([&] { static_cast<kshot::Trunk<T>*>(trunk)->backward(d_features, grad); });                    \
    }                                                                                                                 \
    extern "C" void* maml_new_##SUFFIX() { return new (std::nothrow) kshot::Maml<T>; }                                \
    extern "C" void maml_delete_##SUFFIX(void* maml) { delete static_cast<kshot::Maml<T>*>(maml); }                   \
    extern "C" int maml_run_##SUFFIX(void* maml, const T* parameters, int ways, const T* support_x,                   \
                                     const int* support_y, int n_support, const T* query_x, const int* query_y,       \
                                     int n_query, int n_tasks, int steps, double lr, int second_order, T* losses,     \
                                     T* grad, int threads) {                                                          \
        return guarded([&] {                                                                                          \
            static_cast<kshot::Maml<T>*>(maml)->run(parameters, ways, {support_x, support_y, n_support},              \
                                                    {query_x, query_y, n_query}, n_tasks,                             \
                                                    {steps, lr, second_order != 0}, losses, grad, threads);           \
        });                                                                                                           \
    }

KSHOT_API(float, f)
KSHOT_API(double, d)
