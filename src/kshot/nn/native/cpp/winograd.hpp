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

// G and A evaluate polynomials at 0, at pairs of points +p and -p, and at infinity. So the two rows of a pair (of G and
// B^T; of A^T the two columns) are equal but for the sign of every other entry, and share their products.

// F(2x2, 3x3), points 0, +-1: tiles of 2x2 outputs from 4x4 inputs; 4 products an output where a direct sum takes 9.
struct Tile2 {
    static constexpr int out = 2;
    static constexpr int in = 4;
    struct Input {
        static constexpr bool paired_rows = true;
        static constexpr int rows = 4;
        static constexpr int columns = 4;
        static constexpr double at(int r, int c) {
            constexpr double entries[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
            return entries[r][c];
        }
    };
    struct Filter {
        static constexpr bool paired_rows = true;
        static constexpr int rows = 4;
        static constexpr int columns = 3;
        static constexpr double at(int r, int c) {
            constexpr double entries[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
            return entries[r][c];
        }
    };
    struct Output {
        static constexpr bool paired_rows = false;
        static constexpr int rows = 2;
        static constexpr int columns = 4;
        static constexpr double at(int r, int c) {
            constexpr double entries[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
            return entries[r][c];
        }
    };
};

// F(4x4, 3x3): tiles of 4x4 outputs from 6x6 inputs; 2.25 products an output. The points 0, +-sqrt(1/2), +-sqrt(2)
// round half as much as the usual 0, +-1, +-2: in float32 the error is 4 times that of a direct sum.
struct Tile4 {
    static constexpr int out = 4;
    static constexpr int in = 6;
    static constexpr double p = 0.70710678118654752440;
    static constexpr double q = 2 * p;
    struct Input {
        static constexpr bool paired_rows = true;
        static constexpr int rows = 6;
        static constexpr int columns = 6;
        static constexpr double at(int r, int c) {
            constexpr double entries[6][6] = {{1, 0, -2.5, 0, 1, 0}, {0, -q, -2, p, 1, 0},  {0, q, -2, -p, 1, 0},
                                              {0, -p, -.5, q, 1, 0}, {0, p, -.5, -q, 1, 0}, {0, 1, 0, -2.5, 0, 1}};
            return entries[r][c];
        }
    };
    struct Filter {
        static constexpr bool paired_rows = true;
        static constexpr int rows = 6;
        static constexpr int columns = 3;
        static constexpr double at(int r, int c) {
            constexpr double entries[6][3] = {{1, 0, 0},
                                              {-2. / 3, -2. / 3 * p, -1. / 3},
                                              {-2. / 3, 2. / 3 * p, -1. / 3},
                                              {1. / 6, q / 6, 1. / 3},
                                              {1. / 6, -q / 6, 1. / 3},
                                              {0, 0, 1}};
            return entries[r][c];
        }
    };
    struct Output {
        static constexpr bool paired_rows = false;
        static constexpr int rows = 4;
        static constexpr int columns = 6;
        static constexpr double at(int r, int c) {
            constexpr double entries[4][6] = {
                {1, 1, 1, 1, 1, 0}, {0, p, -p, q, -q, 0}, {0, .5, .5, 2, 2, 0}, {0, p / 2, -p / 2, 2 * q, -2 * q, 1}};
            return entries[r][c];
        }
    };
};

template <class Matrix>
struct Transposed {
    static constexpr bool paired_rows = !Matrix::paired_rows;
    static constexpr int rows = Matrix::columns;
    static constexpr int columns = Matrix::rows;
    static constexpr double at(int r, int c) { return Matrix::at(c, r); }
};

// Which columns of a row to sum over.
enum class Columns { kAll, kEven, kOdd };

constexpr bool is_among(Columns columns, int c) {
    return columns == Columns::kAll || (c % 2 == 0) == (columns == Columns::kEven);
}

// True if all entries of the row before column c are zero or left out.
template <class Matrix>
constexpr bool is_first(int row, Columns columns, int c) {
    for (int before = 0; before < c; ++before) {
        if (is_among(columns, before) && Matrix::at(row, before) != 0) {
            return false;
        }
    }
    return true;
}

// sum += M[ROW][C] * x, with the multiplications by 0, 1 and -1 left out.
template <class T, class Matrix, int ROW, Columns COLUMNS, int C>
KSHOT_INLINE void add_term(Vector<T> x, Vector<T>& sum) {
    constexpr double entry = Matrix::at(ROW, C);
    if constexpr (entry == 0 || !is_among(COLUMNS, C)) {
        return;
    } else if constexpr (is_first<Matrix>(ROW, COLUMNS, C)) {
        sum = entry == 1 ? x : (entry == -1 ? -x : x * T(entry));
    } else if constexpr (entry == 1) {
        sum += x;
    } else if constexpr (entry == -1) {
        sum -= x;
    } else {
        sum += x * T(entry);
    }
}

template <class T, class Matrix, int ROW, Columns COLUMNS, int... C>
KSHOT_INLINE Vector<T> row_times(const Vector<T>* x, int step, std::integer_sequence<int, C...>) {
    Vector<T> sum{};
    (add_term<T, Matrix, ROW, COLUMNS, C>(x[C * step], sum), ...);
    return sum;
}

// Row 0, the last row, or the first row of a pair together with the second.
template <class T, class Matrix, int ROW>
KSHOT_INLINE void paired_row_times(const Vector<T>* x, int step, Vector<T>* y, int y_step) {
    constexpr auto all = std::make_integer_sequence<int, Matrix::columns>();
    if constexpr (ROW == 0 || ROW == Matrix::rows - 1) {
        y[ROW * y_step] = row_times<T, Matrix, ROW, Columns::kAll>(x, step, all);
    } else if constexpr (ROW % 2 == 1) {
        const Vector<T> even = row_times<T, Matrix, ROW, Columns::kEven>(x, step, all);
        const Vector<T> odd = row_times<T, Matrix, ROW, Columns::kOdd>(x, step, all);
        y[ROW * y_step] = even + odd;
        y[(ROW + 1) * y_step] = even - odd;
    }
}

// One row of a matrix with paired columns, given sums and differences of the pairs: x[c] + x[c + 1] and x[c] - x[c +
// 1].
template <class T, class Matrix, int ROW, int... C>
KSHOT_INLINE Vector<T> row_times_paired(const Vector<T>* x, std::integer_sequence<int, C...>) {
    constexpr int last = Matrix::columns - 1;
    // Even rows need the sums, which lie at odd places; odd rows the differences, which follow them.
    constexpr Columns needed = ROW % 2 == 0 ? Columns::kOdd : Columns::kEven;
    struct Needed {
        static constexpr double at(int, int c) {
            const bool single = c == 0 || c == last;
            const int source = !single && c % 2 == 0 ? c - 1 : c;
            return single || is_among(needed, c) ? Matrix::at(ROW, source) : 0;
        }
    };
    Vector<T> sum{};
    (add_term<T, Needed, ROW, Columns::kAll, C>(x[C], sum), ...);
    return sum;
}

template <class T, class Matrix, int... ROWS>
KSHOT_INLINE void rows_times(const Vector<T>* x, int step, Vector<T>* y, int y_step,
                             std::integer_sequence<int, ROWS...>) {
    if constexpr (Matrix::paired_rows) {
        (paired_row_times<T, Matrix, ROWS>(x, step, y, y_step), ...);
    } else {
        constexpr int last = Matrix::columns - 1;
        Vector<T> mixed[last + 1];
        mixed[0] = x[0];
        mixed[last] = x[last * step];
        for (int c = 1; c < last; c += 2) {
            mixed[c] = x[c * step] + x[(c + 1) * step];
            mixed[c + 1] = x[c * step] - x[(c + 1) * step];
        }
        constexpr auto all = std::make_integer_sequence<int, Matrix::columns>();
        ((y[ROWS * y_step] = row_times_paired<T, Matrix, ROWS>(mixed, all)), ...);
    }
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

}  // namespace kshot
