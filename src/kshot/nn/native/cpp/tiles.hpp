// Images to tiles of Winograd frequencies and back, and filters likewise.
#pragma once

#include "shape.hpp"
#include "winograd.hpp"

namespace kshot {

// The tiles of images of one side: their number, and where they lie in memory, as [frequency][tile][channel].
template <class Tile, int SIDE>
struct Tiling {
    static constexpr int per_side = (SIDE + Tile::out - 1) / Tile::out;
    static constexpr int per_image = per_side * per_side;
    static constexpr int frequencies = Tile::in * Tile::in;
    // Enough tiles for an efficient product, few enough for the cache.
    static constexpr int images_at_once = per_image >= 32 ? 1 : 32 / per_image;
    // One row more than there are tiles: a stride of a power of two would put all frequencies in the same cache lines.
    static constexpr long stride = (long(per_image) * images_at_once + 1) * kChannels;
    static constexpr long size = frequencies * stride;
};

// A row of tiles of one image, for one vector of channels.
struct TileRow {
    int row;       // number of the row of tiles
    int channel;   // first of the vector
    long pixels;   // offset of the image, at this channel
    long windows;  // the same of the pooled image
    long tiles;    // the same of the first tile
};

template <class T, class Tile, int SIDE, class Use>
KSHOT_INLINE void for_tile_rows(int n_images, Use use) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int pooled = SIDE / window_of(SIDE);
    for (long image = 0; image < n_images; ++image) {
        for (int channel = 0; channel < kChannels; channel += Simd<T>::lanes) {
            for (int row = 0; row < Tiles::per_side; ++row) {
                const long first = image * Tiles::per_image + row * Tiles::per_side;
                use(TileRow{row, channel, image * SIDE * SIDE * kChannels + channel,
                            image * pooled * pooled * kChannels + channel, first * kChannels + channel});
            }
        }
    }
}

// Calls use(index in the tile, row, column) for the output pixels of a tile that are inside the image.
template <class Tile, int SIDE, class Use>
KSHOT_INLINE void for_pixels(int tile_row, int tile_column, Use use) {
#pragma GCC unroll 16
    for (int p = 0; p < Tile::out * Tile::out; ++p) {
        const int row = tile_row * Tile::out + p / Tile::out;
        const int column = tile_column * Tile::out + p % Tile::out;
        if (SIDE % Tile::out == 0 || (row < SIDE && column < SIDE)) {
            use(p, row, column);
        }
    }
}

// Calls use(index of the first pixel in the tile, row, column) for the pooling windows of a tile that are whole.
template <class Tile, int SIDE, class Use>
KSHOT_INLINE void for_windows(int tile_row, int tile_column, Use use) {
    constexpr int window = window_of(SIDE);
    constexpr int per_side = Tile::out / window;
#pragma GCC unroll 16
    for (int w = 0; w < per_side * per_side; ++w) {
        const int row = tile_row * per_side + w / per_side;
        const int column = tile_column * per_side + w % per_side;
        if (SIDE % Tile::out == 0 || (row < SIDE / window && column < SIDE / window)) {
            use(window * (w / per_side * Tile::out + w % per_side), row, column);
        }
    }
}

template <int SIDE>
constexpr int window_pixels = window_of(SIDE) * window_of(SIDE);

// Index in the tile of one of the pixels of a window.
template <class Tile>
constexpr int window_pixel(int first, int pixel) {
    return first + (pixel / 2) * Tile::out + pixel % 2;
}

// Of the first pixel of a row of windows, at one channel, from the start of the pooled image.
template <int SIDE>
constexpr long window_offset(int row, int column) {
    return (long(row) * (SIDE / window_of(SIDE)) + column) * kChannels;
}

// B^T d B of a row of tiles. Each column of pixels is transformed once and shared by the tiles that overlap in it.
template <class T, class Tile, int SIDE>
KSHOT_INLINE void transform_input_row(const T* image, int tile_row, T* to) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int in = Tile::in;
    constexpr int overlap = Tile::in - Tile::out;
    alignas(64) static const T zeros[SIDE * kChannels] = {};
    const T* lines[in];
    for (int a = 0; a < in; ++a) {
        const int row = tile_row * Tile::out - 1 + a;
        lines[a] = unsigned(row) < unsigned(SIDE) ? image + row * SIDE * kChannels : zeros;
    }
    const auto load_column = [&](int column, Vector<T>* result) {
        Vector<T> x[in];
        for (int a = 0; a < in; ++a) {
            x[a] = unsigned(column) < unsigned(SIDE) ? load(lines[a] + column * kChannels) : Vector<T>{};
        }
        apply<T, typename Tile::Input>(x, 1, result, 1);
    };
    Vector<T> window[in * in];  // [column][frequency row]
    for (int e = 0; e < overlap; ++e) {
        load_column(e - 1, window + (e + Tile::out) * in);
    }
    for (int j = 0; j < Tiles::per_side; ++j, to += kChannels) {
        for (int e = 0; e < overlap * in; ++e) {
            window[e] = window[e + Tile::out * in];
        }
        for (int e = overlap; e < in; ++e) {
            load_column(j * Tile::out - 1 + e, window + e * in);
        }
        for (int a = 0; a < in; ++a) {
            Vector<T> y[in];
            apply<T, typename Tile::Input>(window + a, in, y, 1);
            for (int b = 0; b < in; ++b) {
                store(to + (a * in + b) * Tiles::stride, y[b]);
            }
        }
    }
}

// frequencies = B^T d B of all tiles.
template <class T, class Tile, int SIDE>
void transform_input(const T* images, int n_images, T* frequencies) {
    for_tile_rows<T, Tile, SIDE>(n_images, [&](const TileRow& at) {
        transform_input_row<T, Tile, SIDE>(images + at.pixels, at.row, frequencies + at.tiles);
    });
}

// Adds B F B^T of a row of tiles to the image rows that the tiles above wrote, and writes the others.
template <class T, class Tile, int SIDE>
KSHOT_INLINE void transform_input_adjoint_row(const T* from, int tile_row, T* image) {
    using Tiles = Tiling<Tile, SIDE>;
    using Adjoint = Transposed<typename Tile::Input>;
    constexpr int in = Tile::in;
    constexpr int overlap = Tile::in - Tile::out;
    const auto finish_column = [&](int column, const Vector<T>* sums) {
        Vector<T> x[in];
        apply<T, Adjoint>(sums, 1, x, 1);
        for (int a = 0; a < in; ++a) {
            const int row = tile_row * Tile::out - 1 + a;
            T* to = image + (row * SIDE + column) * kChannels;
            if (unsigned(row) < unsigned(SIDE) && unsigned(column) < unsigned(SIDE)) {
                store(to, tile_row > 0 && a < overlap ? load(to) + x[a] : x[a]);
            }
        }
    };
    Vector<T> window[in * in] = {};  // [column][frequency row]
    for (int j = 0; j < Tiles::per_side; ++j, from += kChannels) {
        for (int a = 0; a < in; ++a) {
            Vector<T> x[in];
            Vector<T> y[in];
            for (int b = 0; b < in; ++b) {
                x[b] = load(from + (a * in + b) * Tiles::stride);
            }
            apply<T, Adjoint>(x, 1, y, 1);
            for (int e = 0; e < in; ++e) {
                window[e * in + a] += y[e];
            }
        }
        for (int e = 0; e < Tile::out; ++e) {
            finish_column(j * Tile::out - 1 + e, window + e * in);
        }
        for (int e = 0; e < in * in; ++e) {
            window[e] = e < overlap * in ? window[e + Tile::out * in] : Vector<T>{};
        }
    }
    for (int e = 0; e < overlap; ++e) {
        finish_column(Tiles::per_side * Tile::out - 1 + e, window + e * in);
    }
}

// images = the adjoint of transform_input.
template <class T, class Tile, int SIDE>
void transform_input_adjoint(const T* frequencies, int n_images, T* images) {
    for_tile_rows<T, Tile, SIDE>(n_images, [&](const TileRow& at) {
        transform_input_adjoint_row<T, Tile, SIDE>(frequencies + at.tiles, at.row, images + at.pixels);
    });
}

// outputs (out, out) = A^T F A of one tile.
template <class T, class Tile>
KSHOT_INLINE void transform_output(const T* frequencies, long stride, Vector<T>* outputs) {
    Vector<T> x[Tile::in * Tile::in];
#pragma GCC unroll 64
    for (int f = 0; f < Tile::in * Tile::in; ++f) {
        x[f] = load(frequencies + f * stride);
    }
    sandwich<T, typename Tile::Output>(x, outputs);
}

// The adjoint of transform_output: frequencies = A Y A^T of one tile.
template <class T, class Tile>
KSHOT_INLINE void transform_output_adjoint(const Vector<T>* outputs, T* frequencies, long stride) {
    Vector<T> x[Tile::in * Tile::in];
    sandwich<T, Transposed<typename Tile::Output>>(outputs, x);
#pragma GCC unroll 64
    for (int f = 0; f < Tile::in * Tile::in; ++f) {
        store(frequencies + f * stride, x[f]);
    }
}

constexpr int kTaps = 9;
constexpr int kFilterSize = kChannels * kChannels;

// frequencies [f][...] = G g G^T of filters [tap][...].
template <class T, class Tile>
void transform_filter(const T* filter, T* frequencies) {
    constexpr int n_frequencies = Tile::in * Tile::in;
    for (int k = 0; k < kFilterSize; k += Simd<T>::lanes) {
        Vector<T> x[kTaps];
        Vector<T> y[n_frequencies];
        for (int tap = 0; tap < kTaps; ++tap) {
            x[tap] = load(filter + tap * kFilterSize + k);
        }
        sandwich<T, typename Tile::Filter>(x, y);
        for (int f = 0; f < n_frequencies; ++f) {
            store(frequencies + f * kFilterSize + k, y[f]);
        }
    }
}

// filters = G^T F G, the adjoint of transform_filter.
template <class T, class Tile>
void transform_filter_adjoint(const T* frequencies, T* filter) {
    constexpr int n_frequencies = Tile::in * Tile::in;
    for (int k = 0; k < kFilterSize; k += Simd<T>::lanes) {
        Vector<T> x[n_frequencies];
        Vector<T> y[kTaps];
        for (int f = 0; f < n_frequencies; ++f) {
            x[f] = load(frequencies + f * kFilterSize + k);
        }
        sandwich<T, Transposed<typename Tile::Filter>>(x, y);
        for (int tap = 0; tap < kTaps; ++tap) {
            store(filter + tap * kFilterSize + k, y[tap]);
        }
    }
}

}  // namespace kshot
