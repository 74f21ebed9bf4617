// The network alone, and with the loss of Prototypical Networks, for groups of images with statistics of their own.
#pragma once

#include "network.hpp"
#include "prototypes.hpp"

namespace kshot {

// What batch normalisation took of each group, (G, 4, C).
template <class T>
struct Statistics {
    T* means;
    T* variances;

    void append(const Pass<T>& pass) {
        for (const BlockState<T>& block : pass.block) {
            means = std::copy_n(block.norm.mean, kChannels, means);
            variances = std::copy_n(block.norm.variance, kChannels, variances);
        }
    }
};

template <class T>
class Trunk {
  public:
    // Features (G, N, D).
    void forward(const T* parameters, const T* images, int n_groups, int n_images, T* features,
                 Statistics<T> statistics, int threads) {
        start(parameters, n_groups, threads);
        for (int g = 0; g < n_groups; ++g) {
            Pass<T>& pass = passes_[g];
            kshot::forward(theta_, images + long(g) * n_images * kImageSize, n_images, pass, workers_);
            features = tell_features(pass, features);
            statistics.append(pass);
        }
    }

    // Features (N, D) by given statistics (4, C), some images at a time: nothing is kept of them.
    void embed(const T* parameters, const T* images, int n_images, const T* means, const T* variances, T* features,
               int threads) {
        constexpr int most = 64;
        start(parameters, 1, threads);
        for (int i = 0; i < n_images; i += most) {
            Pass<T>& pass = passes_[0];
            forward_by(means, variances, theta_, images + long(i) * kImageSize, std::min(most, n_images - i), pass,
                       workers_);
            features = tell_features(pass, features);
        }
    }

    // The images that `forward` was given must still be there.
    void backward(const T* d_features, T* grad) {
        clear_gradient();
        for (int g = 0; g < n_groups_; ++g) {
            d_features_.resize(passes_[g].n_images * kFeatures);
            for (T* to = d_features_.data(); to < d_features_.data() + d_features_.size(); to += kFeatures) {
                for (long i = 0; i < kFeatures; ++i) {
                    to[i] = d_features[place_in_torch(i)];
                }
                d_features += kFeatures;
            }
            kshot::backward(theta_, passes_[g], d_features_.data(), grad_.data(), workers_);
        }
        finish_gradient(T(1), grad);
    }

    // Losses of n_tasks tasks and the gradient of their mean. The images of a task, (n_tasks, S + Q, pixels), are its
    // support and then its queries, normalised together.
    void protonet(const T* parameters, int ways, const T* images, const int* support_y, int n_support,
                  const int* query_y, int n_query, int n_tasks, T* losses, Statistics<T> statistics, T* grad,
                  int threads) {
        start(parameters, 1, threads);
        clear_gradient();
        const int n_images = n_support + n_query;
        d_features_.resize(n_images * kFeatures);
        Pass<T>& pass = passes_[0];
        for (int task = 0; task < n_tasks; ++task) {
            kshot::forward(theta_, images + long(task) * n_images * kImageSize, n_images, pass, workers_);
            const T* features = pass.last().out;
            const Embedded<T> support = {features, support_y + long(task) * n_support, n_support};
            const Embedded<T> query = {support.row(n_support), query_y + long(task) * n_query, n_query};
            losses[task] = head_.loss_and_gradient(support, query, ways, d_features_.data(),
                                                   d_features_.data() + n_support * kFeatures);
            kshot::backward(theta_, pass, d_features_.data(), grad_.data(), workers_);
            statistics.append(pass);
        }
        finish_gradient(T(1) / n_tasks, grad);
    }

  private:
    // In PyTorch's order; returns where the next ones go.
    static T* tell_features(const Pass<T>& pass, T* features) {
        const T* end = pass.last().out + pass.n_images * kFeatures;
        for (const T* from = pass.last().out; from < end; from += kFeatures, features += kFeatures) {
            for (long i = 0; i < kFeatures; ++i) {
                features[place_in_torch(i)] = from[i];
            }
        }
        return features;
    }

    void start(const T* parameters, int n_groups, int threads) {
        if (int(workers_.size()) != threads) {
            workers_ = Workers<T>(threads);
        }
        if (int(passes_.size()) < n_groups) {
            passes_.resize(n_groups);
        }
        n_groups_ = n_groups;
        flat_.resize(layout::head);
        from_torch(parameters, layout::head, flat_.data());
        theta_.set(flat_.data(), threads);
    }

    void clear_gradient() {
        grad_.assign(layout::head, T(0));
        parallel_for(int(workers_.size()), int(workers_.size()), [&](int w) { workers_[w].clear_filters(); });
    }

    void finish_gradient(T factor, T* grad) {
        collect_filters(workers_, grad_.data());
        for (T& g : grad_) {
            g *= factor;
        }
        to_torch(grad_.data(), layout::head, grad);
    }

    int n_groups_ = 0;
    std::vector<T> flat_;
    std::vector<T> grad_;
    std::vector<T> d_features_;
    Parameters<T> theta_;
    Workers<T> workers_;
    std::vector<Pass<T>> passes_;
    PrototypeHead<T> head_;
};

}  // namespace kshot
