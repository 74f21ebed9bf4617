// The network alone, for G groups of images with statistics of their own.
#pragma once

#include "network.hpp"

namespace kshot {

template <class T>
class Trunk {
  public:
    // features (G, N, 64); means and variances (G, 4, 64) of the convolutions' outputs.
    void forward(const T* parameters, const T* images, int n_groups, int n_images, T* features, T* means, T* variances,
                 int threads) {
        if (int(workers_.size()) != threads) {
            workers_ = Workers<T>(threads);
        }
        flat_.resize(Layout::head());
        from_torch(parameters, Layout::head(), flat_.data());
        theta_.set(flat_.data());
        while (int(passes_.size()) < n_groups) {
            passes_.emplace_back();
        }
        n_groups_ = n_groups;
        for (int g = 0; g < n_groups; ++g) {
            Pass<T>& pass = passes_[g];
            kshot::forward(theta_, images + long(g) * n_images * kImageSize, n_images, pass, workers_);
            const long size = long(n_images) * kChannels;
            std::copy(pass.features(), pass.features() + size, features + g * size);
            for (int b = 0; b < kBlocks; ++b) {
                for (int c = 0; c < kChannels; ++c) {
                    means[(g * kBlocks + b) * kChannels + c] = T(pass.block[b].norm.mean[c]);
                    variances[(g * kBlocks + b) * kChannels + c] = T(pass.block[b].norm.variance[c]);
                }
            }
        }
    }

    // The images given to `forward` must still be there.
    void backward(const T* d_features, T* grad) {
        grad_.assign(Layout::head(), T(0));
        for (Worker<T>& worker : workers_) {
            worker.clear_gradient();
        }
        for (int g = 0; g < n_groups_; ++g) {
            const long size = long(passes_[g].n_images) * kChannels;
            kshot::backward(theta_, passes_[g], d_features + g * size, grad_.data(), workers_);
        }
        collect_filters(workers_, grad_.data());
        to_torch(grad_.data(), Layout::head(), grad);
    }

  private:
    int n_groups_ = 0;
    Parameters<T> theta_;
    Workers<T> workers_;
    std::vector<Pass<T>> passes_;
    std::vector<T> flat_;
    std::vector<T> grad_;
};

}  // namespace kshot
