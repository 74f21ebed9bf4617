// The four blocks one after the other: forward and backward for one group of images, which share their statistics.
#pragma once

#include <vector>

#include "first_block.hpp"
#include "parameters.hpp"

namespace kshot {

// What each thread has of its own.
template <class T>
struct Worker {
    TileMemory<T> tiles;
    T* squares;
    T* d_filter[kBlocks];  // gradient by the filters, in the frequency domain
    PatchSums patches;
    ConvSums conv;
    DeltaSums delta;
    TapSums taps;

    Worker() {
        arena_.lay_out([&](Cursor& cursor) {
            constexpr long most = std::max({tiling_size<kSides[1]>(), tiling_size<kSides[2]>(), tiling_size<kSides[3]>()});
            tiles = {cursor.take<T>(most), cursor.take<T>(most), cursor.take<T>(most)};
            squares = cursor.take<T>(kWindows * kSquare);
            for (int block = 1; block < kBlocks; ++block) {
                d_filter[block] = cursor.take<T>(frequency_size(block));
            }
        });
    }

    void clear_filters() {
        for (int block = 1; block < kBlocks; ++block) {
            std::fill_n(d_filter[block], frequency_size(block), T(0));
        }
    }

  private:
    Arena arena_;
};

template <class T>
using Workers = std::vector<Worker<T>>;

// One group of images on its way through the network.
template <class T>
struct Pass {
    const T* images;
    int n_images;
    PatchMoments moments;
    BlockState<T> block[kBlocks];

    void start(const T* new_images, int count) {
        images = new_images;
        n_images = count;
        arena_.lay_out([&](Cursor& cursor) {
            for (int b = 0; b < kBlocks; ++b) {
                block[b].take(cursor, b, count);
            }
        });
    }

    const BlockState<T>& last() const { return block[kBlocks - 1]; }

  private:
    Arena arena_;
};

// The workers' sums of one kind, which are structures of doubles, added in the order of the workers.
template <class Sum, class T>
Sum total(const Workers<T>& workers, Sum Worker<T>::* member) {
    Sum sum = workers[0].*member;
    double* to = reinterpret_cast<double*>(&sum);
    for (size_t w = 1; w < workers.size(); ++w) {
        const double* from = reinterpret_cast<const double*>(&(workers[w].*member));
        for (size_t i = 0; i < sizeof(Sum) / sizeof(double); ++i) {
            to[i] += from[i];
        }
    }
    return sum;
}

// Calls use(first image, number of images, side) for a worker's images, so many at once as their tiles have room for.
template <class Use>
void for_images(int block, Range images, Use use) {
    with_side(block, [&](auto side) {
        constexpr int step = Tiling<TileFor<side.value>, side.value>::images_at_once;
        for (int i = images.begin; i < images.end; i += step) {
            use(i, std::min(step, images.end - i), side);
        }
    });
}

// Moments of the patches, and with them the statistics of the first block.
template <class T>
void forward_moments(const Parameters<T>& theta, Pass<T>& pass, Workers<T>& workers) {
    const int parts = int(workers.size());
    parallel_for(parts, parts, [&](int part) {
        const Range mine = share(pass.n_images, part, parts);
        workers[part].patches = PatchSums();
        add_patch_sums(pass.images + long(mine.begin) * kImageSize, mine.end - mine.begin, workers[part].patches);
    });
    const double count = double(pass.n_images) * kPlane;
    pass.moments = patch_moments(total(workers, &Worker<T>::patches), count);
    normalise_first(pass.moments, theta.conv(0), count, pass.block[0].norm);
}

// Output of the block below, then the convolution of block b, for a worker's images.
template <class T>
void forward_block(const Parameters<T>& theta, Pass<T>& pass, int b, Range images, Worker<T>& worker) {
    BlockState<T>& below = pass.block[b - 1];
    BlockState<T>& here = pass.block[b];
    const Affine<T> affine(below.norm, theta.scale(b - 1), theta.shift(b - 1));
    worker.conv = ConvSums();
    for_images(b, images, [&](int i, int n, auto side) {
        const long in = i * image_size(b);
        const long out = i * image_size(b + 1);
        if (b == 1) {
            first_forward(pass.images + long(i) * kImageSize, n, theta.conv(0), affine, worker.squares, below.out + in,
                          below.where + in);
        } else {
            normalise_peaks(below.peak + in, n * image_size(b), affine, below.out + in);
        }
        conv_forward<T, TileFor<side.value>, side.value>(below.out + in, n, theta.forward_filter(b), theta.scale(b),
                                                         here.conv + in, here.peak + out, here.where + out,
                                                         worker.tiles, worker.conv);
    });
}

template <class T>
void end_forward(const Parameters<T>& theta, Pass<T>& pass) {
    const BlockState<T>& last = pass.last();
    const Affine<T> affine(last.norm, theta.scale(kBlocks - 1), theta.shift(kBlocks - 1));
    normalise_peaks(last.peak, pass.n_images * image_size(kBlocks), affine, last.out);
}

// Leaves features in pass.last().out, normalised by given statistics (4, C); there is no way back from here.
template <class T>
void forward_by(const T* means, const T* variances, const Parameters<T>& theta, const T* images, int n_images,
                Pass<T>& pass, Workers<T>& workers) {
    const int parts = int(workers.size());
    pass.start(images, n_images);
    for (int i = 0; i < kBlocks * kChannels; ++i) {
        pass.block[i / kChannels].norm.set(i % kChannels, means[i], variances[i]);
    }
    for (int b = 1; b < kBlocks; ++b) {
        parallel_for(parts, parts,
                     [&](int part) { forward_block(theta, pass, b, share(n_images, part, parts), workers[part]); });
    }
    end_forward(theta, pass);
}

// Leaves features in pass.last().out; one worker for each thread.
template <class T>
void forward(const Parameters<T>& theta, const T* images, int n_images, Pass<T>& pass, Workers<T>& workers) {
    const int parts = int(workers.size());
    pass.start(images, n_images);
    forward_moments(theta, pass, workers);
    for (int b = 1; b < kBlocks; ++b) {
        parallel_for(parts, parts,
                     [&](int part) { forward_block(theta, pass, b, share(n_images, part, parts), workers[part]); });
        const double count = double(n_images) * kSides[b] * kSides[b];
        finish_conv(total(workers, &Worker<T>::conv), count, pass.block[b].norm);
    }
    end_forward(theta, pass);
}

// Gradient by the filters of block b and by its input, then delta of the block below, for a worker's images.
template <class T>
void backward_block(const Parameters<T>& theta, Pass<T>& pass, int b, Range images, Worker<T>& worker) {
    BlockState<T>& here = pass.block[b];
    BlockState<T>& below = pass.block[b - 1];
    const Gradient<T> gradient = gradient_by_conv(here.norm, theta.scale(b));
    worker.delta = DeltaSums();
    worker.taps = TapSums();
    for_images(b, images, [&](int i, int n, auto side) {
        const long in = i * image_size(b);
        const long out = i * image_size(b + 1);
        const Stored<T> stored = {here.conv + in, here.delta + out, here.where + out, nullptr, nullptr};
        conv_backward<T, TileFor<side.value>, side.value>(below.out + in, stored, n, gradient, theta.backward_filter(b),
                                                          worker.tiles, worker.d_filter[b], below.delta + in);
        if (b == 1) {
            add_tap_sums(pass.images + long(i) * kImageSize, n, below.out + in, below.delta + in, below.where + in,
                         worker.squares, worker.taps);
        } else {
            mask_and_sum(below.out + in, below.peak + in, n, image_size(b), below.norm, below.delta + in, worker.delta);
        }
    });
}

// Adds the gradient by everything but the filters to `grad`, and that by the filters to the workers' d_filter.
template <class T>
void backward(const Parameters<T>& theta, Pass<T>& pass, const T* d_features, T* grad, Workers<T>& workers) {
    const int parts = int(workers.size());
    BlockState<T>& last = pass.block[kBlocks - 1];
    std::copy_n(d_features, pass.n_images * image_size(kBlocks), last.delta);
    DeltaSums sums;
    mask_and_sum(last.out, last.peak, pass.n_images, image_size(kBlocks), last.norm, last.delta, sums);
    for (int b = kBlocks - 1; b > 0; --b) {
        finish_delta(sums, pass.block[b].norm, grad + layout::scale(b), grad + layout::shift(b));
        parallel_for(parts, parts, [&](int part) {
            backward_block(theta, pass, b, share(pass.n_images, part, parts), workers[part]);
        });
        sums = total(workers, &Worker<T>::delta);
    }
    first_backward(pass.moments, total(workers, &Worker<T>::taps), theta.conv(0), theta.scale(0), pass.block[0].norm,
                   grad + layout::conv(0), grad + layout::scale(0), grad + layout::shift(0));
}

// Sums the workers' gradients by the filters, and takes them out of the frequency domain.
template <class T>
void collect_filters(Workers<T>& workers, T* grad) {
    const int threads = int(workers.size());
    parallel_for(kBlocks - 1, threads, [&](int index) {
        const int b = index + 1;
        T* sum = workers[0].d_filter[b];
        for (int w = 1; w < threads; ++w) {
            const T* more = workers[w].d_filter[b];
            for (long i = 0; i < frequency_size(b); ++i) {
                sum[i] += more[i];
            }
        }
        with_side(b, [&](auto side) { transform_filter_adjoint<T, TileFor<side.value>>(sum, grad + layout::conv(b)); });
    });
}

}  // namespace kshot
