// Convolutional networks, of the shape that shape.hpp is told: what Python calls, through ctypes.
#include "api.hpp"
#include "maml.hpp"
#include "trunk.hpp"

using kshot::guarded;
using kshot::Real;
using Trunk = kshot::Trunk<Real>;
using Maml = kshot::Maml<Real>;

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

KSHOT_EXPORT int trunk_embed(Trunk* trunk, const Real* parameters, const Real* images, int n_images, const Real* means,
                             const Real* variances, Real* features, int threads) {
    return guarded([&] { trunk->embed(parameters, images, n_images, means, variances, features, threads); });
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
                          int second_order, const Real* rates, const Real* norms, const Real* weights, Real* losses,
                          Real* grad, Real* grad_rates, Real* grad_norms, int threads) {
    return guarded([&] {
        maml->run(parameters, ways, {support_x, support_y, n_support}, {query_x, query_y, n_query}, n_tasks,
                  {steps, second_order != 0, rates, norms, weights}, losses, {grad, grad_rates, grad_norms}, threads);
    });
}
