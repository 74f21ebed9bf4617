// Cells with a memory: what Python calls, through ctypes.
#include "api.hpp"
#include "lrua.hpp"
#include "ntm.hpp"

using kshot::guarded;
using kshot::Real;
using Ntm = kshot::Ntm<Real>;
using Lrua = kshot::Lrua<Real>;

KSHOT_EXPORT Ntm* ntm_new() {
    return new (std::nothrow) Ntm;
}

KSHOT_EXPORT void ntm_delete(Ntm* ntm) {
    delete ntm;
}

KSHOT_EXPORT int ntm_forward(Ntm* ntm, int hidden, int layers, int lstm, int reads, int writes, int slots, int width,
                             int shifts, int late, int steps, int sequences, const Real* sums,
                             const Real* w_controller, const Real* w_upper, const Real* b_upper, const Real* w_heads,
                             const Real* b_heads, const Real* h, const Real* c, const Real* r, const Real* w,
                             const Real* memory, Real* features, Real* end_c, Real* end_w, Real* end_memory, int keep,
                             int threads) {
    return guarded([&] {
        ntm->forward({hidden, layers, lstm, reads, writes, slots, width, shifts, late}, steps, sequences, sums,
                     {w_controller, w_upper, b_upper, w_heads, b_heads}, {h, c, r, w, memory}, features,
                     {nullptr, end_c, nullptr, end_w, end_memory}, keep != 0, threads);
    });
}

KSHOT_EXPORT int ntm_backward(Ntm* ntm, const Real* d_features, const Real* d_end_c, const Real* d_end_w,
                              const Real* d_end_memory, Real* d_sums, Real* d_emitted, Real* d_h, Real* d_c, Real* d_r,
                              Real* d_w, Real* d_memory) {
    return guarded([&] {
        ntm->backward(d_features, {nullptr, d_end_c, nullptr, d_end_w, d_end_memory}, d_sums, d_emitted,
                      {d_h, d_c, d_r, d_w, d_memory});
    });
}

KSHOT_EXPORT Lrua* lrua_new() {
    return new (std::nothrow) Lrua;
}

KSHOT_EXPORT void lrua_delete(Lrua* lrua) {
    delete lrua;
}

KSHOT_EXPORT int lrua_forward(Lrua* lrua, int hidden, int heads, int slots, int width, int steps, int sequences,
                              double decay, const Real* sums, const Real* recurs, const Real* asks, const Real* b_asks,
                              const Real* h, const Real* c, const Real* memory, const Real* reading, const Real* usage,
                              const Real* read, Real* features, Real* end_c, Real* end_memory, Real* end_reading,
                              Real* end_usage, int keep, int threads) {
    return guarded([&] {
        lrua->forward({hidden, heads, slots, width}, steps, sequences, Real(decay), sums, {recurs, asks, b_asks},
                      {h, c, memory, reading, usage, read}, features,
                      {nullptr, end_c, end_memory, end_reading, end_usage, nullptr}, keep != 0, threads);
    });
}

KSHOT_EXPORT int lrua_backward(Lrua* lrua, const Real* d_features, const Real* d_end_c, const Real* d_end_memory,
                               const Real* d_end_reading, const Real* d_end_usage, Real* d_sums, Real* d_asked,
                               Real* d_h, Real* d_c, Real* d_memory, Real* d_reading, Real* d_usage, Real* d_read) {
    return guarded([&] {
        lrua->backward(d_features, {nullptr, d_end_c, d_end_memory, d_end_reading, d_end_usage, nullptr}, d_sums,
                       d_asked, {d_h, d_c, d_memory, d_reading, d_usage, d_read});
    });
}
