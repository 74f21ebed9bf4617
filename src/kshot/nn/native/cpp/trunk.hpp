// The network alone, for G groups of images with statistics of their own.
#pragma once

#include "network.hpp"

namespace kshot {

template <class T>
class Trunk {
  public:
    // features (G, N, 64); means and variances (G, 4, 64) of the convolutions.
    void forward(const T* parameters, const T* images, int n_groups, int n_images, T* features, T* means, T* variances,
                 int threads) {
        if (int(workers_.size()) != threads) {
            workers_ = Workers<T>(threads);
        }
        flat_.resize(layout::head);
        from_torch(parameters, layout::head, flat_.data());
        theta_.set(flat_.data());
        if (int(passes_.size()) < n_groups) {
            passes_.resize(n_groups);
        }
        n_groups_ = n_groups;
        for (int g = 0; g < n_groups; ++g) {
            Pass<T>& pass = passes_[g];
            kshot::forward(theta_, images + long(g) * n_images * kImageSize, n_images, pass, workers_);
            std::copy_n(pass.last().out, long(n_images) * kChannels, features + long(g) * n_images * kChannels);
            for (const BlockState<T>& block : pass.block) {
                means = std::copy_n(block.norm.mean, kChannels, means);
                variances = std::copy_n(block.norm.variance, kChannels, variances);
            }
        }
    }

    // The images that `forward` was given must still be there.
    void backward(const T* d_features, T* grad) {
        grad_.assign(layout::head, T(0));
        for (Worker<T>& worker : workers_) {
            worker.clear_filters();
        }
        for (int g = 0; g < n_groups_; ++g) {
            kshot::backward(theta_, passes_[g], d_features, grad_.data(), workers_);
            d_features += passes_[g].n_images * image_size(kBlocks);
        }
        collect_filters(workers_, grad_.data());
        to_torch(grad_.data(), layout::head, grad);
    }

  private:
    int n_groups_ = 0;
    std::vector<T> flat_;
    std::vector<T> grad_;
    Parameters<T> theta_;
    Workers<T> workers_;
    std::vector<Pass<T>> passes_;
};

}  // namespace kshot
