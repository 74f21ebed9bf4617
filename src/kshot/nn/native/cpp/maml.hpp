// Gradient steps with learned rates: outer losses of T tasks and the gradient of their mean.
//
//     theta_{s+1} = theta_s - r_s * grad L_support(theta_s; n_s),   outer loss = sum_s v_s L_query(theta_{s+1}; n_s)
//
// with a rate for each parameter (r * g is element by element) and, if asked for, scales and shifts n_s of the
// normalisations for each step, which do not adapt. One number for all rates and v = (0, ..., 0, 1) is MAML (Finn,
// Abbeel, Levine 2017, arXiv:1703.03400), learned rates are Meta-SGD (arXiv:1707.09835), and rates of zero hold a layer
// still; rates for each tensor and step, n and v are MAML++ (arXiv:1810.09502).
//
// The outer gradient walks back through the inner steps, with H_s the Hessian of the support loss at theta_s:
//
//     g <- g + v_s grad L_query(theta_{s+1}; n_s),   dr_s = -g * grad L_support(theta_s; n_s),   g <- g - H_s (r_s * g)
//
// Tasks are independent, and each thread takes some.
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

// Scales and shifts of all normalisations.
constexpr long kNorms = layout::head - layout::scale(0);

template <class T>
struct InnerLoop {
    int steps;
    bool second_order;
    const T* rates;    // (steps, size)
    const T* norms;    // (steps, kNorms); null where normalisations are parameters like all others
    const T* weights;  // (steps), of the loss of the queries after each step
};

// Gradients by the start, by the rates and by the normalisations of the steps; the latter two may be null.
template <class T>
struct OuterGradient {
    T* theta;
    T* rates;
    T* norms;
};

// Loss and gradient at some parameters, and what the Hessian-vector product needs of them.
template <class T>
struct Step {
    std::vector<T> theta;
    Parameters<T> parameters;
    std::vector<T> grad;
    Pass<T> pass;
    HeadState<T> head;
    TapSums taps;
};

template <class T>
T loss_and_gradient(const Parameters<T>& theta, const Examples<T>& examples, int ways, Step<T>& step,
                    Workers<T>& workers) {
    std::vector<T>& grad = step.grad;
    grad.assign(layout::size(ways), T(0));
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

// The tasks of one thread, one after the other, in memory that is used again.
template <class T>
class MamlWorker {
  public:
    // Adds the outer gradient of one task to `total` and returns its outer loss.
    T add_task(const Parameters<T>& theta, int ways, const InnerLoop<T>& inner, const Examples<T>& support,
               const Examples<T>& query, const OuterGradient<T>& total) {
        ways_ = ways;
        size_ = layout::size(ways);
        descend(theta, inner, support);
        return climb(theta, inner, query, total);
    }

  private:
    // The inner steps.
    void descend(const Parameters<T>& theta, const InnerLoop<T>& inner, const Examples<T>& support) {
        if (int(steps_.size()) < inner.steps + 1) {
            steps_.resize(inner.steps + 1);
        }
        for (int s = 0; s < inner.steps; ++s) {
            const Parameters<T>& here = at(theta, inner, s, s);
            loss_and_gradient(here, support, ways_, steps_[s], workers_);
            const T* rates = inner.rates + s * size_;
            const T* grad = steps_[s].grad.data();
            Step<T>& next = steps_[s + 1];
            next.theta.resize(size_);
            for (long i = 0; i < size_; ++i) {
                next.theta[i] = here.flat()[i] - rates[i] * grad[i];
            }
            next.parameters.set(next.theta.data());
        }
    }

    // The way back.
    T climb(const Parameters<T>& theta, const InnerLoop<T>& inner, const Examples<T>& query,
            const OuterGradient<T>& total) {
        T loss = 0;
        outer_.assign(size_, T(0));
        moved_.resize(size_);
        hv_.resize(size_);
        for (int s = inner.steps - 1; s >= 0; --s) {
            const T weight = inner.weights[s];
            if (weight != T(0)) {
                loss += weight * loss_and_gradient(at(theta, inner, s + 1, s), query, ways_, query_, workers_);
                add_outer(weight, query_.grad.data(), s, total);
            }
            if (total.rates != nullptr) {
                for (long i = 0; i < size_; ++i) {
                    total.rates[s * size_ + i] -= outer_[i] * steps_[s].grad[i];
                }
            }
            if (inner.second_order) {
                for (long i = 0; i < size_; ++i) {
                    moved_[i] = inner.rates[s * size_ + i] * outer_[i];
                }
                direction_.set(moved_.data());
                const Parameters<T>& here = at(theta, inner, s, s);
                hessian_vector_product(here, direction_, ways_, steps_[s], workers_[0], tangent_, hv_);
                add_outer(T(-1), hv_.data(), s, total);
            }
        }
        for (long i = 0; i < size_; ++i) {
            total.theta[i] += outer_[i];
        }
        return loss;
    }

    // Parameters after so many steps, under the normalisation of a step.
    const Parameters<T>& at(const Parameters<T>& theta, const InnerLoop<T>& inner, int done, int step) {
        if (done == 0) {  // shared by all threads, and only ever seen under the normalisation of the first step
            return theta;
        }
        if (inner.norms != nullptr) {
            steps_[done].parameters.use_norms(inner.norms + step * kNorms);
        }
        return steps_[done].parameters;
    }

    // What belongs to the normalisation of the step stays there: it is no part of theta.
    void add_outer(T factor, const T* from, int step, const OuterGradient<T>& total) {
        const long norms = layout::scale(0);
        for (long i = 0; i < size_; ++i) {
            const bool own = total.norms == nullptr || i < norms || i >= norms + kNorms;
            outer_[i] += own ? factor * from[i] : T(0);
        }
        for (long i = 0; total.norms != nullptr && i < kNorms; ++i) {
            total.norms[step * kNorms + i] += factor * from[norms + i];
        }
    }

    int ways_ = 0;
    long size_ = 0;
    Workers<T> workers_ = Workers<T>(1);
    std::vector<Step<T>> steps_;
    Step<T> query_;
    Parameters<T> direction_;
    PassTangent<T> tangent_;
    std::vector<T> outer_;
    std::vector<T> moved_;
    std::vector<T> hv_;
};

template <class T>
class Maml {
  public:
    // Outer losses (n_tasks) and the gradient of their mean, all laid out as PyTorch has them.
    void run(const T* parameters, int ways, const Examples<T>& support, const Examples<T>& query, int n_tasks,
             InnerLoop<T> inner, T* losses, const OuterGradient<T>& grad, int threads) {
        const long size = layout::size(ways);
        flat_.resize(size);
        from_torch(parameters, size, flat_.data());
        theta_.set(flat_.data());
        if (inner.norms != nullptr) {
            theta_.use_norms(inner.norms);
        }
        rates_.resize(size * inner.steps);
        for (int s = 0; s < inner.steps; ++s) {
            from_torch(inner.rates + s * size, size, rates_.data() + s * size);
        }
        inner.rates = rates_.data();
        if (int(workers_.size()) != threads) {
            workers_ = std::vector<MamlWorker<T>>(threads);
            totals_ = std::vector<std::vector<T>>(threads);
        }
        // Of each thread: by the start, by the rates, by the normalisations.
        const long of_rates = grad.rates != nullptr ? size * inner.steps : 0;
        const long of_norms = grad.norms != nullptr ? kNorms * inner.steps : 0;
        parallel_for(threads, threads, [&](int part) {
            totals_[part].assign(size + of_rates + of_norms, T(0));
            T* sum = totals_[part].data();
            const OuterGradient<T> total = {sum, of_rates > 0 ? sum + size : nullptr,
                                            of_norms > 0 ? sum + size + of_rates : nullptr};
            const Range mine = share(n_tasks, part, threads);
            for (int task = mine.begin; task < mine.end; ++task) {
                losses[task] =
                    workers_[part].add_task(theta_, ways, inner, support.task(task), query.task(task), total);
            }
        });
        std::vector<T>& mean = totals_[0];
        for (long i = 0; i < long(mean.size()); ++i) {
            for (int part = 1; part < threads; ++part) {
                mean[i] += totals_[part][i];
            }
            mean[i] /= n_tasks;
        }
        to_torch(mean.data(), size, grad.theta);
        for (long s = 0; s * size < of_rates; ++s) {
            to_torch(mean.data() + (s + 1) * size, size, grad.rates + s * size);
        }
        std::copy_n(mean.data() + size + of_rates, of_norms, grad.norms);
    }

  private:
    std::vector<T> flat_;
    Parameters<T> theta_;
    std::vector<T> rates_;
    std::vector<MamlWorker<T>> workers_;
    std::vector<std::vector<T>> totals_;
};

}  // namespace kshot
