// Winograd's minimal filtering for 3x3 convolutions (Lavin and Gray 2016, arXiv:1509.09308, section 4):
//
//     Y = A^T [ (G g G^T) * (B^T d B) ] A
//
// for a tile d of the image, a filter g, and * by elements. Summed over input channels, the product is one matrix
// multiplication for each element of the transformed tile (a "frequency"). The adjoint of X -> M X M^T is
// Y -> M^T Y M, so that the backward passes need no matrices of their own.
#pragma once

#include <utility>

#include "simd.hpp"

namespace kshot {

// F(2x2, 3x3): tiles of 2x2 outputs from 4x4 inputs, 16 products where a direct convolution takes 36.
struct Tile2 {
    static constexpr int out = 2;
    static constexpr int in = 4;
    struct Input {
        static constexpr int rows = 4;
        static constexpr int columns = 4;
        static constexpr double at[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
    };
    struct Filter {
        static constexpr int rows = 4;
        static constexpr int columns = 3;
        static constexpr double at[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
    };
    struct Output {
        static constexpr int rows = 2;
        static constexpr int columns = 4;
        static constexpr double at[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
    };
};

template <class Matrix>
struct Transposed {
    static constexpr int rows = Matrix::columns;
    static constexpr int columns = Matrix::rows;
};

template <class Matrix>
struct Entry {
    static constexpr double at(int row, int column) { return Matrix::at[row][column]; }
};

template <class Matrix>
struct Entry<Transposed<Matrix>> {
    static constexpr double at(int row, int column) { return Matrix::at[column][row]; }
};

// True if all entries of the row before this column are zero.
template <class Matrix>
constexpr bool is_first(int row, int column) {
    for (int c = 0; c < column; ++c) {
        if (Entry<Matrix>::at(row, c) != 0) {
            return false;
        }
    }
    return true;
}

// sum += M[ROW][COLUMN] * x, with the multiplications by 0, 1 and -1 left out.
template <class T, class Matrix, int ROW, int COLUMN>
KSHOT_INLINE void add_term(Vector<T> x, Vector<T>& sum) {
    constexpr double entry = Entry<Matrix>::at(ROW, COLUMN);
    constexpr bool first = is_first<Matrix>(ROW, COLUMN);
    if constexpr (entry == 0) {
        return;
    } else if constexpr (first) {
        sum = entry == 1 ? x : (entry == -1 ? -x : x * T(entry));
    } else if constexpr (entry == 1) {
        sum += x;
    } else if constexpr (entry == -1) {
        sum -= x;
    } else {
        sum += x * T(entry);
    }
}

template <class T, class Matrix, int ROW, int... COLUMNS>
KSHOT_INLINE Vector<T> row_times(const Vector<T>* x, int step, std::integer_sequence<int, COLUMNS...>) {
    Vector<T> sum{};
    (add_term<T, Matrix, ROW, COLUMNS>(x[COLUMNS * step], sum), ...);
    return sum;
}

template <class T, class Matrix, int... ROWS>
KSHOT_INLINE void rows_times(const Vector<T>* x, int step, Vector<T>* y, int y_step,
                             std::integer_sequence<int, ROWS...>) {
    using Columns = std::make_integer_sequence<int, Matrix::columns>;
    ((y[ROWS * y_step] = row_times<T, Matrix, ROWS>(x, step, Columns())), ...);
}

// y = M x for vectors x and y whose elements lie so many steps apart.
template <class T, class Matrix>
KSHOT_INLINE void apply(const Vector<T>* x, int step, Vector<T>* y, int y_step) {
    rows_times<T, Matrix>(x, step, y, y_step, std::make_integer_sequence<int, Matrix::rows>());
}

// y = M x M^T; x is (columns, columns) and y is (rows, rows).
template <class T, class Matrix>
KSHOT_INLINE void sandwich(const Vector<T>* x, Vector<T>* y) {
    constexpr int rows = Matrix::rows;
    constexpr int columns = Matrix::columns;
    Vector<T> half[rows * columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
        apply<T, Matrix>(x + c, columns, half + c, columns);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        apply<T, Matrix>(half + r * columns, 1, y + r * rows, 1);
    }
}

// The tiles of n images of one side: their number, and the distance between two frequencies in memory.
template <class Tile, int SIDE>
struct Tiling {
    static constexpr int per_side = (SIDE + Tile::out - 1) / Tile::out;
    static constexpr int per_image = per_side * per_side;
    static constexpr int frequencies = Tile::in * Tile::in;
    // Enough tiles for an efficient product, few enough for the cache.
    static constexpr int images_at_once = per_image >= 48 ? 1 : 48 / per_image;
    // One row more than there are tiles: a stride of a power of two would put all frequencies in the same cache lines.
    static constexpr long stride = (long(per_image) * images_at_once + 1) * kChannels;
    static constexpr long size = frequencies * stride;
};

// frequencies = B^T d B of all tiles; each image column is transformed once and shared by neighbouring tiles.
template <class T, class Tile, int SIDE>
void transform_input(const T* images, int n_images, T* frequencies) {
    using Tiles = Tiling<Tile, SIDE>;
    constexpr int in = Tile::in;
    constexpr int overlap = Tile::in - Tile::out;
    alignas(64) static const T zeros[SIDE * kChannels] = {};
    for (int image = 0; image < n_images; ++image) {
        for (int v = 0; v < Simd<T>::per_pixel; ++v) {
            const T* pixels = images + long(image) * SIDE * SIDE * kChannels + v * Simd<T>::lanes;
            for (int i = 0; i < Tiles::per_side; ++i) {
                const T* lines[in];
                for (int a = 0; a < in; ++a) {
                    const int row = i * Tile::out - 1 + a;
                    lines[a] = unsigned(row) < unsigned(SIDE) ? pixels + row * SIDE * kChannels : zeros;
                }
                Vector<T> window[in * in];  // [column][frequency row]
                const auto load_column = [&](int column, Vector<T>* to) {
                    Vector<T> x[in];
                    for (int a = 0; a < in; ++a) {
                        const bool inside = unsigned(column) < unsigned(SIDE);
                        x[a] = inside ? load(lines[a] + column * kChannels) : Vector<T>{};
                    }
                    apply<T, typename Tile::Input>(x, 1, to, 1);
                };
                for (int e = 0; e < overlap; ++e) {
                    load_column(e - 1, window + (e + Tile::out) * in);
                }
                const long tile_row = long(image) * Tiles::per_image + i * Tiles::per_side;
                T* to = frequencies + tile_row * kChannels + v * Simd<T>::lanes;
#pragma GCC unroll 8
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
        }
    }
}

// images = adjoint of transform_input: B F B^T of each tile, added where tiles overlap.
template <class T, class Tile, int SIDE>
void transform_input_adjoint(const T* frequencies, int n_images, T* images) {
    using Tiles = Tiling<Tile, SIDE>;
    using Adjoint = Transposed<typename Tile::Input>;
    constexpr int in = Tile::in;
    constexpr int overlap = Tile::in - Tile::out;
    for (int image = 0; image < n_images; ++image) {
        for (int v = 0; v < Simd<T>::per_pixel; ++v) {
            T* pixels = images + long(image) * SIDE * SIDE * kChannels + v * Simd<T>::lanes;
            for (int i = 0; i < Tiles::per_side; ++i) {
                Vector<T> window[in * in] = {};  // [column][frequency row]
                const auto finish_column = [&](int column, const Vector<T>* from) {
                    if (unsigned(column) >= unsigned(SIDE)) {
                        return;
                    }
                    Vector<T> x[in];
                    apply<T, Adjoint>(from, 1, x, 1);
                    for (int a = 0; a < in; ++a) {
                        const int row = i * Tile::out - 1 + a;
                        T* to = pixels + (row * SIDE + column) * kChannels;
                        if (unsigned(row) < unsigned(SIDE)) {
                            // The tile above left its share in the rows that both cover.
                            store(to, i > 0 && a < overlap ? load(to) + x[a] : x[a]);
                        }
                    }
                };
                const long tile_row = long(image) * Tiles::per_image + i * Tiles::per_side;
                const T* from = frequencies + tile_row * kChannels + v * Simd<T>::lanes;
#pragma GCC unroll 8
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
        }
    }
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

// Adjoint of transform_output: frequencies = A Y A^T of one tile.
template <class T, class Tile>
KSHOT_INLINE void transform_output_adjoint(const Vector<T>* outputs, T* frequencies, long stride) {
    Vector<T> x[Tile::in * Tile::in];
    sandwich<T, Transposed<typename Tile::Output>>(outputs, x);
#pragma GCC unroll 64
    for (int f = 0; f < Tile::in * Tile::in; ++f) {
        store(frequencies + f * stride, x[f]);
    }
}

constexpr int kFilterSize = kChannels * kChannels;

// frequencies [f][...] = G g G^T of filters [3 * 3][...].
template <class T, class Tile>
void transform_filter(const T* filter, T* frequencies) {
    constexpr int n_frequencies = Tile::in * Tile::in;
    for (int k = 0; k < kFilterSize; k += Simd<T>::lanes) {
        Vector<T> x[9];
        Vector<T> y[n_frequencies];
        for (int tap = 0; tap < 9; ++tap) {
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
        Vector<T> y[9];
        for (int f = 0; f < n_frequencies; ++f) {
            x[f] = load(frequencies + f * kFilterSize + k);
        }
        sandwich<T, Transposed<typename Tile::Filter>>(x, y);
        for (int tap = 0; tap < 9; ++tap) {
            store(filter + tap * kFilterSize + k, y[tap]);
        }
    }
}

}  // namespace kshot
