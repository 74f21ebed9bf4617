// The loss of Prototypical Networks (Snell, Swersky, Zemel 2017, arXiv:1703.05175) for one task:
//
//     c_k = mean of the support features of class k,   z_ik = -|f_i - c_k|^2,   L = mean_i -log softmax(z_i)[label_i]
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "features.hpp"

namespace kshot {

// Features and class numbers of some examples of one task.
template <class T>
struct Embedded {
    const T* features;  // (count, D)
    const int* labels;
    int count;

    const T* row(int i) const { return features + long(i) * kFeatures; }
};

template <class T>
class PrototypeHead {
  public:
    // Returns L, and leaves its gradient by the features of the support and of the queries.
    T loss_and_gradient(const Embedded<T>& support, const Embedded<T>& query, int ways, T* d_support, T* d_query) {
        set_prototypes(support, ways);
        d_prototypes_.assign(prototypes_.size(), T(0));
        std::fill_n(d_query, long(query.count) * kFeatures, T(0));
        double loss = 0;
        for (int i = 0; i < query.count; ++i) {
            loss += add_query(query.row(i), query.labels[i], ways, T(1) / query.count, d_query + long(i) * kFeatures);
        }
        std::fill_n(d_support, long(support.count) * kFeatures, T(0));
        for (int i = 0; i < support.count; ++i) {
            const int k = support.labels[i];
            add_multiple(1 / sizes_[k], d_prototypes_.data() + long(k) * kFeatures, d_support + long(i) * kFeatures);
        }
        return T(loss / query.count);
    }

  private:
    void set_prototypes(const Embedded<T>& support, int ways) {
        prototypes_.assign(long(ways) * kFeatures, T(0));
        sizes_.assign(ways, T(0));
        for (int i = 0; i < support.count; ++i) {
            add_multiple(T(1), support.row(i), prototypes_.data() + long(support.labels[i]) * kFeatures);
            sizes_[support.labels[i]] += 1;
        }
        for (long i = 0; i < long(ways) * kFeatures; ++i) {
            prototypes_[i] /= sizes_[i / kFeatures];
        }
    }

    // -log softmax(z)[label] of one query; with p = softmax(z), dz_k = weight (p_k - [k = label]) and
    // d|f - c_k|^2 / df = 2 (f - c_k).
    T add_query(const T* f, int label, int ways, T weight, T* d_f) {
        differences_.resize(long(ways) * kFeatures);
        scores_.resize(ways);
        for (int k = 0; k < ways; ++k) {
            const long at = long(k) * kFeatures;
            scores_[k] = -squared_distance(f, prototypes_.data() + at, differences_.data() + at);
        }
        const T highest = *std::max_element(scores_.begin(), scores_.end());
        const T own = scores_[label];
        T sum = 0;
        for (T& score : scores_) {
            score = std::exp(score - highest);
            sum += score;
        }
        for (int k = 0; k < ways; ++k) {
            const T d_score = weight * (scores_[k] / sum - T(k == label));
            const T* difference = differences_.data() + long(k) * kFeatures;
            add_multiple(-2 * d_score, difference, d_f);
            add_multiple(2 * d_score, difference, d_prototypes_.data() + long(k) * kFeatures);
        }
        return std::log(sum) + highest - own;
    }

    std::vector<T> prototypes_;
    std::vector<T> d_prototypes_;
    std::vector<T> sizes_;
    std::vector<T> differences_;
    std::vector<T> scores_;
};

}  // namespace kshot
