// What Python calls, through ctypes. Compiled once for each type of number, which -DKSHOT_REAL=... names.
//
// Trunk and Maml objects keep their memory between calls; each is for one call at a time. Functions that compute return
// 0, or 1 when memory ran out.
#include <new>

#include "maml.hpp"
#include "trunk.hpp"

#define KSHOT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Real = KSHOT_REAL;
using Trunk = kshot::Trunk<Real>;
using Maml = kshot::Maml<Real>;

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

KSHOT_EXPORT Trunk* trunk_new() {
    return new (std::nothrow) Trunk;
}

KSHOT_EXPORT void trunk_delete(Trunk* trunk) {
    delete trunk;
}

KSHOT_EXPORT int trunk_forward(Trunk* trunk, const Real* parameters, const Real* images, int n_groups, int n_images,
                               Real* features, Real* means, Real* variances, int threads) {
    return guarded(
        [&] { trunk->forward(parameters, images, n_groups, n_images, features, {means, variances}, threads); });
}

KSHOT_EXPORT int trunk_backward(Trunk* trunk, const Real* d_features, Real* grad) {
    return guarded([&] { trunk->backward(d_features, grad); });
}

KSHOT_EXPORT int trunk_protonet(Trunk* trunk, const Real* parameters, int ways, const Real* images,
                                const int* support_y, int n_support, const int* query_y, int n_query, int n_tasks,
                                Real* losses, Real* means, Real* variances, Real* grad, int threads) {
    return guarded([&] {
        trunk->protonet(parameters, ways, images, support_y, n_support, query_y, n_query, n_tasks, losses,
                        {means, variances}, grad, threads);
    });
}

KSHOT_EXPORT Maml* maml_new() {
    return new (std::nothrow) Maml;
}

KSHOT_EXPORT void maml_delete(Maml* maml) {
    delete maml;
}

KSHOT_EXPORT int maml_run(Maml* maml, const Real* parameters, int ways, const Real* support_x, const int* support_y,
                          int n_support, const Real* query_x, const int* query_y, int n_query, int n_tasks, int steps,
                          double lr, int second_order, Real* losses, Real* grad, int threads) {
    return guarded([&] {
        maml->run(parameters, ways, {support_x, support_y, n_support}, {query_x, query_y, n_query}, n_tasks,
                  {steps, lr, second_order != 0}, losses, grad, threads);
    });
}
