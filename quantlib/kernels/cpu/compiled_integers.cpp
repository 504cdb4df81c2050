// y = x · Wᵀ for codes of eight bits on both sides, summed exactly in int32 and rounded once, to float32. Start from
// `int8_integers` at the end; quantlib/kernels/cpu/compiled.py builds this file, compiled_integers.py beside it calls it.
//
// A CPU with AVX2 multiplies bytes fastest by an instruction that adds neighbouring products in 16 bits, where they
// saturate. So codes are widened to 16 bits first: the instruction for those multiplies neighbours and adds the two
// products in 32 bits, which hold them whatever they are, for twice as many numbers as float32 does at once.
//
// With few rows of x the time is that of reading codes from memory. They lie row after row: a vector of them is widened
// and multiplied by as many columns of x, and the lanes are summed once, at the end of the row. With more rows a panel
// of the matrix is turned on its side, once for many rows of x: every lane is then a row of the matrix with two
// neighbouring columns, two of x are broadcast, and nothing is summed across lanes.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__) && !defined(QUANTLIB_PORTABLE)
#define PAIRS_OF_16_BITS
#include <immintrin.h>
#if defined(__AVX512BW__)
#define WIDE
#endif
#endif

namespace {

#if defined(WIDE)
constexpr int LANES = 16, ROWS_OF_X = 8;  // 16 accumulators of 32 registers
#else
constexpr int LANES = 8, ROWS_OF_X = 6;  // 12 of 16
#endif
constexpr int V = 2, B = V * LANES;       // vectors of a panel's column, rows of the matrix in a panel
constexpr int STEP = 16;                  // columns that are turned at once
constexpr int PANEL_COLUMNS = 8192 / B;   // 16 KB, half of a first-level cache
constexpr int TILE_ROWS = 64;             // rows of x that share a panel: few enough for a second-level cache
constexpr int FEW_ROWS = 4;               // for which turning does not pay
constexpr int ROWS_OF_W = 4;              // at once for few rows of x: each is a stream from memory of its own

typedef int32_t Sums __attribute__((vector_size(4 * LANES)));
typedef int16_t Pairs __attribute__((vector_size(4 * LANES)));

template <class Vector, class Number>
Vector load(const Number* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

// sums + the two products of each lane
Sums multiply_add(Sums sums, Pairs w, Pairs x) {
#if defined(WIDE) && defined(__AVX512VNNI__)
    return (Sums)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#elif defined(WIDE)
    return sums + (Sums)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(PAIRS_OF_16_BITS)
    return sums + (Sums)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else  // the second number of a pair is the upper half of its lane
    return sums + ((Sums)w >> 16) * ((Sums)x >> 16) + ((Sums)w << 16 >> 16) * ((Sums)x << 16 >> 16);
#endif
}

Pairs widen(const int8_t* codes) {
#if defined(WIDE)
    return (Pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
#elif defined(PAIRS_OF_16_BITS)
    return (Pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
#else
    typedef int8_t Bytes __attribute__((vector_size(2 * LANES)));
    return __builtin_convertvector(load<Bytes>(codes), Pairs);
#endif
}

// x in 16 bits, zeros after the last column; rows never lie a multiple of 4096 bytes apart, for then equal columns of
// all of them would share a set of the cache
struct Widened {
    int64_t rows, padded;
    std::vector<int16_t> number;  // [rows, padded]

    Widened(int64_t rows, int64_t in) : rows(rows), padded((in + 63) / 64 * 64 + 32), number(rows * padded) {}
    const int16_t* row(int64_t r) const { return number.data() + r * padded; }
};

struct Product {  // 7 fields of 8 bytes, which compiled_integers.py writes one after another
    const int8_t* x;      // [rows, in]
    const int8_t* codes;  // [out, in]
    float* y;             // [rows, out]
    int64_t rows, in, out, threads;
};

// --- few rows of x

template <int W, int R>
void multiply_rows(const Product& p, const Widened& x, int64_t first, int64_t row) {
    Sums total[W][R] = {};
    auto add = [&](const int8_t* codes, int64_t stride, int64_t k) {
        Pairs w[W];
#pragma GCC unroll 8
        for (int i = 0; i < W; i++) w[i] = widen(codes + i * stride);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Pairs columns = load<Pairs>(x.row(row + r) + k);
#pragma GCC unroll 8
            for (int i = 0; i < W; i++) total[i][r] = multiply_add(total[i][r], w[i], columns);
        }
    };
    const int8_t* codes = p.codes + first * p.in;
    int64_t k = 0;
    for (; k + 2 * LANES <= p.in; k += 2 * LANES) {
        // some rows on, into the second-level cache: the hardware's own prefetching ends with the page
        if (k % 64 == 0)
            for (int i = 0; i < W; i++) __builtin_prefetch(codes + (i + 2 * W) * p.in + k, 0, 2);
        add(codes + k, p.in, k);
    }
    if (k < p.in) {  // nothing beyond a row is read
        int8_t last[W][2 * LANES] = {};
        for (int i = 0; i < W; i++) std::copy(codes + i * p.in + k, codes + (i + 1) * p.in, last[i]);
        add(last[0], 2 * LANES, k);
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < W; i++) {
            int32_t sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += total[i][r][lane];
            p.y[(row + r) * p.out + first + i] = float(sum);
        }
}

template <int W>
void multiply_few(const Product& p, const Widened& x, int64_t first) {
    int64_t row = 0;
    for (; row + 2 <= p.rows; row += 2) multiply_rows<W, 2>(p, x, first, row);
    if (row < p.rows) multiply_rows<W, 1>(p, x, first, row);
}

// --- many

// STEP columns of eight rows of the matrix to pairs of columns, B pairs apart
void turn(const int8_t* const* rows, int16_t* panel) {
#ifdef PAIRS_OF_16_BITS
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i]));
    for (int i = 0; i < 4; i++) {  // rows 2i and 2i + 1: columns 0 to 7, then 8 to 15
        b[i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[i + 4] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {  // four rows: columns 4i to 4i + 3
        const __m128i* from = b + i / 2 * 4;
        a[i] = i % 2 ? _mm_unpackhi_epi32(from[0], from[1]) : _mm_unpacklo_epi32(from[0], from[1]);
        a[i + 4] = i % 2 ? _mm_unpackhi_epi32(from[2], from[3]) : _mm_unpacklo_epi32(from[2], from[3]);
    }
    for (int i = 0; i < 8; i++) {  // all eight: columns 2i and 2i + 1
        const __m128i upper = a[i / 2], lower = a[i / 2 + 4];
        const __m128i pairs = i % 2 ? _mm_unpackhi_epi64(upper, lower) : _mm_unpacklo_epi64(upper, lower);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + i * 2 * B), _mm256_cvtepi8_epi16(pairs));
    }
#else
    for (int k = 0; k < STEP; k++)
        for (int i = 0; i < 8; i++) panel[k / 2 * 2 * B + 2 * i + k % 2] = rows[i][k];
#endif
}

// some columns of B rows of the matrix as a panel [columns/2, B] of pairs; zeros where there is no row or column
void unpack(const Product& p, int64_t first, int64_t k, int columns, int16_t* panel) {
    static constexpr int8_t nothing[STEP] = {};
    for (int i = 0; i < B; i += 8)
        for (int c = 0; c < columns; c += STEP) {
            int8_t last[8][STEP] = {};
            const int8_t* rows[8];
            for (int j = 0; j < 8; j++) {
                const int8_t* codes = p.codes + (first + i + j) * p.in + k + c;
                rows[j] = codes;
                if (first + i + j >= p.out) {
                    rows[j] = nothing;
                } else if (columns - c < STEP) {
                    rows[j] = std::copy(codes, codes + columns - c, last[j]) - (columns - c);
                } else if (c % 64 == 0) {
                    __builtin_prefetch(codes + B * p.in, 0, 2);  // of the panel after this one
                }
            }
            turn(rows, panel + c * B + 2 * i);
        }
}

// sums [R, B] += R rows of x by a panel
template <int R>
void add_products(const int16_t* panel, int columns, const Widened& x, int64_t row, int64_t k, int32_t* sums) {
    Sums total[R][V];
    std::memcpy(total, sums, sizeof total);
    const int16_t* numbers = x.row(row) + k;
    for (int c = 0; c < columns; c += 2) {
        Pairs w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) w[v] = load<Pairs>(panel + c * B + v * 2 * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Pairs both = (Pairs)(Sums{} + load<int32_t>(numbers + r * x.padded + c));
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) total[r][v] = multiply_add(total[r][v], w[v], both);
        }
    }
    std::memcpy(sums, total, sizeof total);
}

// the same for any number of rows: R at a time, then the rest
template <int R>
void add_all(const int16_t* panel, int columns, const Widened& x, int64_t row, int rows, int64_t k, int32_t* sums) {
    for (; rows >= R; rows -= R, row += R, sums += R * B) add_products<R>(panel, columns, x, row, k, sums);
    if constexpr (R > 1)
        if (rows) add_all<R - 1>(panel, columns, x, row, rows, k, sums);
}

void multiply_panel(const Product& p, const Widened& x, int64_t first, int64_t row) {
    const int rows = std::min<int64_t>(TILE_ROWS, p.rows - row), width = std::min<int64_t>(B, p.out - first);
    alignas(64) int16_t panel[PANEL_COLUMNS * B];
    alignas(64) int32_t sums[TILE_ROWS * B];
    std::fill_n(sums, rows * B, 0);
    for (int64_t k = 0; k < p.in; k += PANEL_COLUMNS) {
        const int columns = std::min<int64_t>(PANEL_COLUMNS, p.in - k);
        unpack(p, first, k, columns, panel);
        add_all<ROWS_OF_X>(panel, columns, x, row, rows, k, sums);
    }
    for (int r = 0; r < rows; r++) std::copy_n(sums + r * B, width, p.y + (row + r) * p.out + first);
}

}  // namespace

// --- what Python calls: in < 2^17, so that int32 holds every sum

extern "C" void int8_integers(const Product* given) {
    const Product& p = *given;
    Widened x(p.rows, p.in);
#pragma omp parallel num_threads(p.threads)
    {
#pragma omp for
        for (int64_t r = 0; r < p.rows; r++)
            std::copy_n(p.x + r * p.in, p.in, x.number.data() + r * x.padded);
        if (p.rows <= FEW_ROWS) {
            const int64_t whole = p.out / ROWS_OF_W * ROWS_OF_W;
#pragma omp for nowait
            for (int64_t first = 0; first < whole; first += ROWS_OF_W) multiply_few<ROWS_OF_W>(p, x, first);
#pragma omp for nowait
            for (int64_t first = whole; first < p.out; first++) multiply_few<1>(p, x, first);
        } else {
#pragma omp for collapse(2)
            for (int64_t first = 0; first < p.out; first += B)
                for (int64_t row = 0; row < p.rows; row += TILE_ROWS) multiply_panel(p, x, first, row);
        }
    }
}
