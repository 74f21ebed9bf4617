// MAML (Finn, Abbeel, Levine 2017, arXiv:1703.03400): outer losses of T tasks and the gradient of their mean.
//
//     theta_{s+1} = theta_s - lr * grad L_support(theta_s),   outer loss = L_query(theta_S)
//
// The outer gradient walks back through the inner steps:  g <- g - lr * H_s g,  with H_s the Hessian of the support
// loss at theta_s. Tasks are independent, and each thread takes some.
#pragma once

#include <vector>

#include "head.hpp"
#include "tangent.hpp"

namespace kshot {

template <class T>
struct Examples {
    const T* images;
    const int* labels;
    int count;  // of one task

    Examples task(int index) const {
        return {images + long(index) * count * kImageSize, labels + long(index) * count, count};
    }
};

struct InnerLoop {
    int steps;
    double lr;
    bool second_order;
};

// Loss and gradient at some parameters, and what the Hessian-vector product needs of them.
template <class T>
struct Step {
    std::vector<T> theta;
    Parameters<T> parameters;
    Pass<T> pass;
    HeadState<T> head;
    TapSums taps;
};

template <class T>
T loss_and_gradient(const Parameters<T>& theta, const Examples<T>& examples, int ways, Step<T>& step,
                    Workers<T>& workers, std::vector<T>& grad) {
    std::fill(grad.begin(), grad.end(), T(0));
    forward(theta, examples.images, examples.count, step.pass, workers);
    const T* features = step.pass.last().out;
    const Head<T> head = {theta.head(), ways};
    const T loss = head_forward(head, features, examples.labels, examples.count, step.head);
    head_backward(features, examples.count, ways, step.head, grad.data() + layout::head);
    workers[0].clear_filters();
    backward(theta, step.pass, step.head.d_features.data(), grad.data(), workers);
    collect_filters(workers, grad.data());
    step.taps = workers[0].taps;
    return loss;
}

// hv = H v, at the parameters of the step.
template <class T>
void hessian_vector_product(const Parameters<T>& theta, const Parameters<T>& v, int ways, const Step<T>& step,
                            Worker<T>& worker, PassTangent<T>& tangent, std::vector<T>& hv) {
    const Pass<T>& pass = step.pass;
    forward_tangent(theta, v, pass, worker, tangent);
    const BlockTangent<T>& last = tangent.block[kBlocks - 1];
    std::fill(hv.begin(), hv.end(), T(0));
    head_tangent<T>({theta.head(), ways}, {v.head(), ways}, pass.last().out, last.out, pass.n_images, step.head,
                    hv.data() + layout::head, last.delta);
    backward_tangent(theta, v, pass, step.taps, worker, tangent, hv.data());
}

template <class T>
void add_scaled(T factor, const std::vector<T>& from, std::vector<T>& to) {
    for (size_t i = 0; i < to.size(); ++i) {
        to[i] += factor * from[i];
    }
}

// The tasks of one thread, one after the other, in memory that is used again.
template <class T>
class MamlWorker {
  public:
    // Adds the outer gradient of one task to `total` and returns its outer loss.
    T add_task(const Parameters<T>& theta, int ways, const InnerLoop& inner, const Examples<T>& support,
               const Examples<T>& query, std::vector<T>& total) {
        const size_t size = total.size();
        grad_.resize(size);
        hv_.resize(size);
        if (int(steps_.size()) < inner.steps + 1) {
            steps_.resize(inner.steps + 1);
        }
        const auto at_step = [&](int s) -> const Parameters<T>& { return s == 0 ? theta : steps_[s].parameters; };
        for (int s = 0; s < inner.steps; ++s) {
            loss_and_gradient(at_step(s), support, ways, steps_[s], workers_, grad_);
            std::vector<T>& next = steps_[s + 1].theta;
            next.assign(at_step(s).flat(), at_step(s).flat() + size);
            add_scaled(T(-inner.lr), grad_, next);
            steps_[s + 1].parameters.set(next.data());
        }
        const T loss = loss_and_gradient(at_step(inner.steps), query, ways, query_, workers_, grad_);
        for (int s = inner.steps - 1; inner.second_order && s >= 0; --s) {
            direction_.set(grad_.data());
            hessian_vector_product(at_step(s), direction_, ways, steps_[s], workers_[0], tangent_, hv_);
            add_scaled(T(-inner.lr), hv_, grad_);
        }
        add_scaled(T(1), grad_, total);
        return loss;
    }

  private:
    Workers<T> workers_ = Workers<T>(1);
    std::vector<Step<T>> steps_;
    Step<T> query_;
    Parameters<T> direction_;
    PassTangent<T> tangent_;
    std::vector<T> grad_;
    std::vector<T> hv_;
};

template <class T>
class Maml {
  public:
    // Outer losses (n_tasks) and the gradient of their mean.
    void run(const T* parameters, int ways, const Examples<T>& support, const Examples<T>& query, int n_tasks,
             const InnerLoop& inner, T* losses, T* grad, int threads) {
        const long size = layout::size(ways);
        flat_.resize(size);
        from_torch(parameters, size, flat_.data());
        theta_.set(flat_.data());
        if (int(workers_.size()) != threads) {
            workers_ = std::vector<MamlWorker<T>>(threads);
            totals_ = std::vector<std::vector<T>>(threads);
        }
        parallel_for(threads, threads, [&](int part) {
            totals_[part].assign(size, T(0));
            const Range mine = share(n_tasks, part, threads);
            for (int task = mine.begin; task < mine.end; ++task) {
                losses[task] =
                    workers_[part].add_task(theta_, ways, inner, support.task(task), query.task(task), totals_[part]);
            }
        });
        for (long i = 0; i < size; ++i) {
            T sum = 0;
            for (const std::vector<T>& total : totals_) {
                sum += total[i];
            }
            flat_[i] = sum / n_tasks;
        }
        to_torch(flat_.data(), size, grad);
    }

  private:
    std::vector<T> flat_;
    Parameters<T> theta_;
    std::vector<MamlWorker<T>> workers_;
    std::vector<std::vector<T>> totals_;
};

}  // namespace kshot
