// y = x · Ŵᵀ where ŵ = (code − zero) · scale: 4-bit codes with a scale and a zero for each row and group of columns, or
// 8-bit codes with a scale for each row. Start from `int4_matmul` and `int8_matmul` near the end. What includes this file:
// compiled.cpp, which multiplies for Python, and compiled_step.cpp, which decodes a token.
//
// Four bits. The codes come in the order of PyTorch's CPU kernels. A block is B rows of the matrix (64 or 32), column after
// column, B/2 bytes for each: byte r holds row r in its low nibble and row r + B/2 in its high one, as code + 8.
// So a vector of neighbouring bytes is one column of many rows: every lane of an accumulator is one output, x[k] is
// broadcast, and nothing is summed across lanes.
//
// With one row of x the time is that of reading codes from memory; with many rows it is that of the multiplications.
// Codes are unpacked into registers and serve as many rows as there are accumulators. With AVX-512 that is all: looking
// codes up in a table costs so little that doing it again for the next rows hardly shows beside their multiplications.
// Elsewhere a panel of columns is unpacked once into the first-level cache for all rows, unless they are few. AVX2 looks
// bytes up: two of them, the upper half of a float, are all that a code of four bits needs.
//
// Eight bits. The codes come row after row, so a vector of neighbouring bytes is one row of many columns: it is widened
// and multiplied by as many numbers of x, and the lanes are summed once, at the end of the row. With many rows of x,
// where unpacking is not cheap, a panel of columns is turned on its side and serves them all, as for four bits.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__) && !defined(QUANTLIB_PORTABLE)
#define WIDENING
#include <immintrin.h>
#if !defined(__AVX512F__)
#define BYTE_TABLES
#endif
#endif
#if defined(__AVX512F__) && !defined(QUANTLIB_PORTABLE)
#define TABLES
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define BFLOAT16_DOT_PRODUCTS
#endif
#endif

namespace {

#if defined(TABLES)
constexpr int LANES = 16, ACCUMULATORS = 24;  // of 32 registers; the others hold weights and x
constexpr bool UNPACKING_IS_CHEAP = true;
#else
constexpr int LANES = 8, ACCUMULATORS = 8;  // of 16, with AVX2: unpacking needs the others
constexpr bool UNPACKING_IS_CHEAP = false;
#endif
constexpr int PANEL_V = 2, PANEL_R = 6;  // vectors of a panel and rows of x for each: 12 accumulators
constexpr int PANEL_BYTES = 16 * 1024;  // half of a first-level cache
constexpr int FEW_ROWS = 8;             // of x, for which a panel of 4-bit codes does not pay
constexpr int MANY_ROWS = 12;           // for which turning a panel of 8-bit codes on its side does
constexpr int TILE_ROWS = 128;          // rows of x that one thread takes at a time

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Integers __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

Floats load(const float* from) {
    Floats vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

// --- two ways to multiply: float32, on any CPU, and pairs of bfloat16, where the CPU sums their products in float32

#ifdef TABLES
struct Tables {  // nibble -> its code
    alignas(64) float float32[16] = {};
    alignas(64) uint16_t bfloat16[32] = {};  // twice, because a look-up reads the lowest five bits of its index
    constexpr Tables() {
        for (int n = 0; n < 16; n++) float32[n] = n - 8;
        for (int n = 0; n < 32; n++) bfloat16[n] = __builtin_bit_cast(uint32_t, float32[n % 16]) >> 16;
    }
};
constexpr Tables CODES;
#endif

#ifdef BYTE_TABLES
struct ByteTables {  // nibble -> the two bytes of its code in bfloat16; twice, because a look-up stays in its half
    alignas(32) uint8_t low[32] = {}, high[32] = {};
    constexpr ByteTables() {
        for (int n = 0; n < 32; n++) {
            uint32_t bits = __builtin_bit_cast(uint32_t, float(n % 16 - 8));
            low[n] = bits >> 16, high[n] = bits >> 24;
        }
    }
};
constexpr ByteTables BYTES;
#endif

struct Float32 {
    using Number = float;
    using Weights = Floats;  // codes of one column, a lane for each row
    static constexpr int COLUMNS = 1;

    template <int B>
    static void unpack(const uint8_t* bytes, Weights* w) {
        constexpr int HALF = B / 2 / LANES;
#ifdef BYTE_TABLES
        // 16 bytes twice: the low nibbles are looked up in one half of a vector and the high ones in the other, and
        // stay there while their bytes become floats: rows of both come out mixed, until `sort`
        const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(BYTES.low));
        const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(BYTES.high));
        const __m256i upper = _mm256_set1_epi32(0xffff0000);
        for (int v = 0; v < HALF; v += 2, bytes += 16) {
            const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
            const __m256i nibbles = _mm256_and_si256(
                _mm256_srlv_epi32(both, _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0)), _mm256_set1_epi8(15));
            const __m256i lows = _mm256_shuffle_epi8(low, nibbles), highs = _mm256_shuffle_epi8(high, nibbles);
            const __m256i first = _mm256_unpacklo_epi8(lows, highs), second = _mm256_unpackhi_epi8(lows, highs);
            w[v] = (Floats)_mm256_slli_epi32(first, 16);  // rows 0, 2, 4 and 6 of each half, then 1, 3, 5 and 7
            w[v + HALF] = (Floats)_mm256_and_si256(first, upper);
            w[v + 1] = (Floats)_mm256_slli_epi32(second, 16);
            w[v + 1 + HALF] = (Floats)_mm256_and_si256(second, upper);
        }
#else
        for (int v = 0; v < HALF; v++, bytes += LANES) {
#ifdef TABLES
            __m512 codes = _mm512_load_ps(CODES.float32);  // a look-up reads the lowest four bits of its index
            __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
            w[v] = _mm512_permutexvar_ps(index, codes);
            w[v + HALF] = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), codes);
#else
            Integers nibbles;
            for (int lane = 0; lane < LANES; lane++) nibbles[lane] = bytes[lane];  // one instruction, once compiled
            w[v] = __builtin_convertvector((nibbles & 15) - 8, Floats);
            w[v + HALF] = __builtin_convertvector((nibbles >> 4) - 8, Floats);
#endif
        }
#endif
    }

    // what `unpack` mixed, or sums of it, in the order of the rows
    template <int V>
    static void sort([[maybe_unused]] Floats* sums) {
#ifdef BYTE_TABLES
        for (int v = 0; v < V / 2; v++) {
            const __m256 even = (__m256)sums[v], odd = (__m256)sums[v + V / 2];
            const __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
            sums[v] = (Floats)_mm256_permute2f128_ps(a, b, 0x20);
            sums[v + V / 2] = (Floats)_mm256_permute2f128_ps(a, b, 0x31);
        }
#endif
    }

    static Floats multiply_add(Floats sum, Weights w, const Number* x) { return sum + w * *x; }
    static float widen(Number x) { return x; }
    static void round(Floats y, Number* to) { store(to, y); }

    static constexpr int NEIGHBOURS = LANES;  // 8-bit codes of one row that are multiplied at once
    using Codes = Floats;
    static Codes widen_codes(const int8_t* from) {
#if defined(TABLES)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(WIDENING)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else  // the same, but written out element by element by some compilers
        Bytes codes;
        std::memcpy(&codes, from, sizeof codes);
        return __builtin_convertvector(codes, Floats);
#endif
    }
    static Floats multiply_add_all(Floats sum, Codes w, const Number* x) { return sum + w * load(x); }
};

#ifdef BFLOAT16_DOT_PRODUCTS
struct BFloat16 {
    using Number = uint16_t;
    using Weights = __m512i;  // codes of two neighbouring columns, side by side in the 32 bits of a row
    static constexpr int COLUMNS = 2;

    template <int B>
    static void unpack(const uint8_t* bytes, Weights* w) {
        const __m512i codes = _mm512_load_si512(CODES.bfloat16);
        const __m512i row = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        __m512i both = B == 64 ? _mm512_loadu_si512(bytes)
                               : _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
        for (int v = 0; v < B / 32; v++) {
            // the byte of the first column to bits 0–7 of each row's lane, that of the second to bits 16–23
            __m512i first = _mm512_add_epi32(row, _mm512_set1_epi32(16 * v));
            __m512i second = _mm512_slli_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(B / 2)), 16);
            __m512i pairs = _mm512_permutexvar_epi8(_mm512_or_si512(first, second), both);
            w[v] = _mm512_permutexvar_epi16(pairs, codes);
            w[v + B / 32] = _mm512_permutexvar_epi16(_mm512_srli_epi16(pairs, 4), codes);
        }
    }

    template <int V, class Vector>
    static void sort(Vector*) {}

    static Floats multiply_add(Floats sum, Weights w, const Number* x) {
        int pair;
        std::memcpy(&pair, x, sizeof pair);
        return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
    }
    static float widen(Number x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
    static void round(Floats y, Number* to) {
        __m256bh rounded = _mm512_cvtneps_pbh(y);
        std::memcpy(to, &rounded, sizeof rounded);
    }

    static constexpr int NEIGHBOURS = 32;
    using Codes = __m512bh;
    static Codes widen_codes(const int8_t* from) {  // an integer of eight bits is exact in bfloat16
        const __m128i* at = reinterpret_cast<const __m128i*>(from);
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1)));
        return _mm512_cvtne2ps_pbh(high, low);
    }
    static Floats multiply_add_all(Floats sum, Codes w, const Number* x) {
        return _mm512_dpbf16_ps(sum, w, (__m512bh)_mm512_loadu_si512(x));
    }
};
#endif

// --- the product of R rows of x with some columns of a block

template <class Path, int B>
struct Packed {  // weights that are unpacked when they are read
    const uint8_t* bytes;
    template <int V>
    void read(int column, typename Path::Weights* w) const {
        static_assert(V * LANES == B);
        const uint8_t* at = bytes + column * (B / 2);
        // into the second-level cache, two pages on; once a line, for each request takes a place among those in flight
        if (column * (B / 2) % 64 == 0) __builtin_prefetch(at + 8192, 0, 2);
        Path::template unpack<B>(at, w);
    }
    template <int V>
    static void sort(Floats* sums) {
        Path::template sort<V>(sums);
    }
};

template <class Path>
struct Panel {  // weights that were unpacked before, in the order of the rows; of all the vectors of a column some
    const typename Path::Weights* weights;
    int vectors;
    template <int V>
    void read(int column, typename Path::Weights* w) const {
        for (int v = 0; v < V; v++) w[v] = weights[column / Path::COLUMNS * vectors + v];
    }
    template <int V>
    static void sort(Floats*) {}
};

template <class Path>
struct Piece {  // some rows of x, some columns of one group, some rows of the matrix
    const typename Path::Number* x;  // [rows, columns], rows x_stride apart
    int64_t x_stride;
    int columns;
    const float *scale, *zero;  // of each row of the matrix
    const float* x_sum;         // Σ x over the group, rows x_sum_stride apart; null where no zero is to be subtracted
    int64_t x_sum_stride;
    float* sums;  // [rows, rows of the matrix], rows sums_stride apart
    int64_t sums_stride;
};

// sums += scale · (Σ x·code − zero · Σ x), for R rows
template <class Path, int V, int R, class Source>
void add_products(Source source, Piece<Path> p) {
    Floats total[R][V] = {};
    for (int k = 0; k < p.columns; k += Path::COLUMNS) {
        typename Path::Weights w[V];
        source.template read<V>(k, w);
#pragma GCC unroll 24
        for (int r = 0; r < R; r++)
#pragma GCC unroll 24
            for (int v = 0; v < V; v++) total[r][v] = Path::multiply_add(total[r][v], w[v], p.x + r * p.x_stride + k);
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; r++) {
        Source::template sort<V>(total[r]);
#pragma GCC unroll 24
        for (int v = 0; v < V; v++) {
            Floats t = total[r][v];
            if (p.x_sum) t -= load(p.zero + v * LANES) * p.x_sum[r * p.x_sum_stride];
            float* to = p.sums + r * p.sums_stride + v * LANES;
            store(to, load(to) + load(p.scale + v * LANES) * t);
        }
    }
}

// the same for any number of rows: R at a time, then the rest
template <class Path, int V, int R, class Source>
void add_all_products(Source source, Piece<Path> p, int rows) {
    for (; rows >= R; rows -= R) {
        add_products<Path, V, R>(source, p);
        p.x += R * p.x_stride;
        p.sums += R * p.sums_stride;
        if (p.x_sum) p.x_sum += R * p.x_sum_stride;
    }
    if constexpr (R > 1)
        if (rows) add_all_products<Path, V, R - 1>(source, p, rows);
}

// --- the whole product

// float16 to float32: its fields go to their places, and 2^112 makes up for the exponents' different biases
float from_half(uint16_t half) {
    uint32_t magnitude = (half & 0x7fffu) << 13;
    float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
    uint32_t bits = __builtin_bit_cast(uint32_t, value) | (half & 0x8000u) << 16;
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinities and nan
    return __builtin_bit_cast(float, bits);
}

template <class Path>
struct Product {  // 13 fields of 8 bytes, which compiled.py writes one after another
    const typename Path::Number* x;  // [rows, in]
    const uint8_t* data;             // [out/B, in, B/2]
    const void* scale;               // [groups, out], float16 or float32
    const void* zero;                // [groups, out], int8 or float32; may be null
    typename Path::Number* y;        // [rows, out]
    int64_t rows, in, out, group_size;
    int64_t half_scale, int8_zero;  // whether scale is float16 and zero is int8
    int64_t block, threads;         // B, and how many threads to use
};

template <class Path, int B>
void multiply_block(const Product<Path>& p, int64_t block, int64_t first_row, int rows, const float* x_sum,
                    float* scale, float* zero) {
    constexpr int V = B / LANES, R = std::clamp(ACCUMULATORS / V, 1, 8);
    constexpr int PANEL_COLUMNS = PANEL_BYTES / (V * sizeof(typename Path::Weights)) * Path::COLUMNS;
    const int64_t groups = p.in / p.group_size;

    for (int64_t g = 0; g < groups; g++) {  // all at once: they lie far apart, and the waiting for them overlaps
        int64_t at = g * p.out + block * B;
        __builtin_prefetch(static_cast<const char*>(p.scale) + (at + B) * (p.half_scale ? 2 : 4), 0, 2);  // the next
        for (int r = 0; r < B; r++)
            scale[g * B + r] = p.half_scale ? from_half(static_cast<const uint16_t*>(p.scale)[at + r])
                                            : static_cast<const float*>(p.scale)[at + r];
        if (p.zero)
            for (int r = 0; r < B; r++)
                zero[g * B + r] = p.int8_zero ? float(static_cast<const int8_t*>(p.zero)[at + r])
                                              : static_cast<const float*>(p.zero)[at + r];
    }

    alignas(64) float sums[TILE_ROWS * B];
    alignas(64) typename Path::Weights panel[PANEL_COLUMNS / Path::COLUMNS * V];
    std::fill_n(sums, rows * B, 0.0f);
    for (int64_t k = 0, columns; k < p.in; k += columns) {
        int64_t g = k / p.group_size, in_group = k - g * p.group_size;
        columns = std::min<int64_t>(p.group_size - in_group, PANEL_COLUMNS);
        bool subtract_zero = p.zero && in_group == 0;  // once for the whole group
        Piece<Path> piece{p.x + first_row * p.in + k, p.in, int(columns), scale + g * B, zero + g * B,
                          subtract_zero ? x_sum + first_row * groups + g : nullptr, groups, sums, B};
        const Packed<Path, B> packed{p.data + (block * p.in + k) * (B / 2)};
        if (UNPACKING_IS_CHEAP || rows <= FEW_ROWS) {
            add_all_products<Path, V, R>(packed, piece, rows);
            continue;
        }
        for (int c = 0; c < columns; c += Path::COLUMNS) {
            packed.template read<V>(c, panel + c / Path::COLUMNS * V);
            Path::template sort<V>(panel + c / Path::COLUMNS * V);
        }
        for (int v = 0; v < V; v += PANEL_V) {
            add_all_products<Path, PANEL_V, PANEL_R>(Panel<Path>{panel + v, V}, piece, rows);
            piece.scale += PANEL_V * LANES, piece.zero += PANEL_V * LANES, piece.sums += PANEL_V * LANES;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < V; v++)
            Path::round(load(sums + r * B + v * LANES), p.y + (first_row + r) * p.out + block * B + v * LANES);
}

template <class Path>
float sum_of(const typename Path::Number* x, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < size; k++) sum += Path::widen(x[k]);
    return sum;
}

template <class Path, int B>
void multiply(const Product<Path>& p) {
    const int64_t groups = p.in / p.group_size, blocks = p.out / B, tiles = (p.rows + TILE_ROWS - 1) / TILE_ROWS;
    std::vector<float> x_sum(p.zero ? p.rows * groups : 0);  // [rows, groups]
#pragma omp parallel num_threads(p.threads)
    {
        if (p.zero) {
#pragma omp for
            for (int64_t i = 0; i < p.rows * groups; i++) {
                x_sum[i] = sum_of<Path>(p.x + i * p.group_size, p.group_size);
            }
        }
        std::vector<float> scale(groups * B), zero(p.zero ? groups * B : 0);  // of one block, as float32
#pragma omp for collapse(2)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t tile = 0; tile < tiles; tile++) {
                int64_t first_row = tile * TILE_ROWS;
                int rows = std::min<int64_t>(TILE_ROWS, p.rows - first_row);
                multiply_block<Path, B>(p, block, first_row, rows, x_sum.data(), scale.data(), zero.data());
            }
    }
}

template <class Path>
void int4_matmul(const Product<Path>& p) {
    p.block == 64 ? multiply<Path, 64>(p) : multiply<Path, 32>(p);
}

// --- eight bits

template <class Path>
struct RowsProduct {  // 9 fields of 8 bytes, which compiled.py writes one after another
    const typename Path::Number* x;  // [rows, in]
    const int8_t* codes;             // [out, in]
    const void* scale;               // [out], float16 or float32
    typename Path::Number* y;        // [rows, out]
    int64_t rows, in, out;
    int64_t half_scale;  // whether scale is float16
    int64_t threads;
};

template <class Path>
float scale_of(const RowsProduct<Path>& p, int64_t row) {
    return p.half_scale ? from_half(static_cast<const uint16_t*>(p.scale)[row])
                        : static_cast<const float*>(p.scale)[row];
}

constexpr int ROWS_OF_W = 4;  // at once: each is a stream from memory of its own, and a number of x serves them all

// some rows of x by W rows of the matrix: R at a time, then the rest
template <class Path, int W, int R>
void multiply_rows(const RowsProduct<Path>& p, int64_t first, int64_t row, int64_t rows, const float* scale) {
    using Number = typename Path::Number;
    constexpr int N = Path::NEIGHBOURS;
    for (; rows >= R; rows -= R, row += R) {
        const Number* x = p.x + row * p.in;
        const int8_t* codes = p.codes + first * p.in;
        Floats total[W][R] = {};
        auto add = [&](const int8_t* codes, int64_t codes_stride, const Number* x, int64_t x_stride) {
            typename Path::Codes w[W];
#pragma GCC unroll 8
            for (int i = 0; i < W; i++) w[i] = Path::widen_codes(codes + i * codes_stride);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int i = 0; i < W; i++)
                    total[i][r] = Path::multiply_add_all(total[i][r], w[i], x + r * x_stride);
        };
        int64_t k = 0;
        for (; k + N <= p.in; k += N) {
            // the same place some rows on, into the second-level cache: the hardware's own prefetching ends with the page,
            // and so with a row of 4096 codes
            if (k % 64 == 0)
                for (int i = 0; i < W; i++) __builtin_prefetch(codes + (i + 2 * W) * p.in + k, 0, 2);
            add(codes + k, p.in, x + k, p.in);
        }
        if (k < p.in) {  // the last columns, with zeros after them: nothing beyond a row is read
            int8_t last_codes[W * N] = {};
            Number last_x[R * N] = {};
            for (int i = 0; i < W; i++) std::copy(codes + i * p.in + k, codes + (i + 1) * p.in, last_codes + i * N);
            for (int r = 0; r < R; r++) std::copy(x + r * p.in + k, x + (r + 1) * p.in, last_x + r * N);
            add(last_codes, N, last_x, N);
        }
        for (int r = 0; r < R; r++) {
            Floats sums = {};
            for (int i = 0; i < W; i++)
                for (int lane = 0; lane < LANES; lane++) sums[i] += total[i][r][lane];
            for (int i = 0; i < W; i++) sums[i] *= scale[i];
            Number rounded[LANES];
            Path::round(sums, rounded);
            std::copy_n(rounded, W, p.y + (row + r) * p.out + first);
        }
    }
    if constexpr (R > 1)
        if (rows) multiply_rows<Path, W, R - 1>(p, first, row, rows, scale);
}

// --- eight bits, many rows of x, where unpacking is not cheap

constexpr int COLUMNS = 8;  // that are turned at once

// so many columns of eight rows to floats: of a column side by side, columns `stride` floats apart
void turn(const int8_t* const* rows, float* panel, int stride) {
#ifdef BYTE_TABLES
    __m128i a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[i]));
    for (int i = 0; i < 4; i++) b[i] = _mm_unpacklo_epi8(a[i], a[i + 4]);  // rows i and i + 4
    for (int i = 0; i < 2; i++) {                                          // i, i + 2, i + 4, i + 6
        a[i] = _mm_unpacklo_epi8(b[i], b[i + 2]);
        a[i + 2] = _mm_unpackhi_epi8(b[i], b[i + 2]);
    }
    for (int i = 0; i < 4; i++) {  // all eight, two columns
        const __m128i even = a[i / 2 * 2], odd = a[i / 2 * 2 + 1];
        const __m128i both = i % 2 ? _mm_unpackhi_epi8(even, odd) : _mm_unpacklo_epi8(even, odd);
        const __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(both, 8)));
        store(panel + 2 * i * stride, (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(both)));
        store(panel + (2 * i + 1) * stride, (Floats)second);
    }
#else
    for (int k = 0; k < COLUMNS; k++)
        for (int i = 0; i < 8; i++) panel[k * stride + i] = rows[i][k];
#endif
}

template <class Path>
void multiply_turned(const RowsProduct<Path>& p, int64_t first, int64_t row) {
    constexpr int B = PANEL_V * LANES, PANEL_COLUMNS = PANEL_BYTES / (4 * B);
    static constexpr int8_t nothing[COLUMNS] = {};
    const int rows = std::min<int64_t>(TILE_ROWS, p.rows - row), width = std::min<int64_t>(B, p.out - first);
    float scale[B] = {};
    for (int i = 0; i < width; i++) scale[i] = scale_of(p, first + i);
    alignas(64) float sums[TILE_ROWS * B];
    alignas(64) Floats panel[PANEL_COLUMNS * PANEL_V];
    std::fill_n(sums, rows * B, 0.0f);
    for (int64_t k = 0; k < p.in; k += PANEL_COLUMNS) {
        const int columns = std::min<int64_t>(PANEL_COLUMNS, p.in - k);
        for (int i = 0; i < B; i += 8)
            for (int c = 0; c < columns; c += COLUMNS) {
                int8_t last[8][COLUMNS] = {};
                const int8_t* from[8];
                for (int j = 0; j < 8; j++) {
                    const int8_t* codes = p.codes + (first + i + j) * p.in + k + c;
                    from[j] = codes;
                    if (i + j >= width) {
                        from[j] = nothing;
                    } else if (columns - c < COLUMNS) {
                        from[j] = std::copy(codes, codes + columns - c, last[j]) - (columns - c);
                    } else if (c % 64 == 0) {
                        __builtin_prefetch(codes + B * p.in, 0, 2);  // of the panel after this one
                    }
                }
                turn(from, reinterpret_cast<float*>(panel) + c * B + i, B);
            }
        Piece<Path> piece{p.x + row * p.in + k, p.in, columns, scale, nullptr, nullptr, 0, sums, B};
        add_all_products<Path, PANEL_V, PANEL_R>(Panel<Path>{panel, PANEL_V}, piece, rows);
    }
    for (int r = 0; r < rows; r++) std::copy_n(sums + r * B, width, p.y + (row + r) * p.out + first);
}

template <class Path, int W>
void multiply_some(const RowsProduct<Path>& p, int64_t first) {
    constexpr int R = UNPACKING_IS_CHEAP ? 5 : 3;
    float scale[W];
    for (int i = 0; i < W; i++) scale[i] = scale_of(p, first + i);
    multiply_rows<Path, W, R>(p, first, 0, p.rows, scale);
}

template <class Path>
void int8_matmul(const RowsProduct<Path>& p) {
    if constexpr (!UNPACKING_IS_CHEAP) {
        if (p.rows >= MANY_ROWS) {
            constexpr int B = PANEL_V * LANES;
#pragma omp parallel for collapse(2) num_threads(p.threads)
            for (int64_t first = 0; first < p.out; first += B)
                for (int64_t row = 0; row < p.rows; row += TILE_ROWS) multiply_turned(p, first, row);
            return;
        }
    }
    const int64_t full = p.out / ROWS_OF_W;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t i = 0; i < full; i++) multiply_some<Path, ROWS_OF_W>(p, i * ROWS_OF_W);
    for (int64_t first = full * ROWS_OF_W; first < p.out; first++) multiply_some<Path, 1>(p, first);
}

// --- x and y in bfloat16 where the CPU does not multiply it: through float32

[[maybe_unused]] float from_bfloat16(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }

[[maybe_unused]] uint16_t to_bfloat16(float y) {
    uint32_t bits = __builtin_bit_cast(uint32_t, y);
    return y != y ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
}

// p is a product in float32 but for the numbers that its x and y point to
template <class P>
void in_float32(P p, void (*multiply)(const P&)) {
    const uint16_t* given = reinterpret_cast<const uint16_t*>(p.x);
    uint16_t* wanted = reinterpret_cast<uint16_t*>(p.y);
    std::vector<float> x(p.rows * p.in), y(p.rows * p.out);
    p.x = x.data(), p.y = y.data();
#pragma omp parallel for num_threads(p.threads) if (p.rows > 1)
    for (int64_t r = 0; r < p.rows; r++)
        std::transform(given + r * p.in, given + (r + 1) * p.in, x.data() + r * p.in, from_bfloat16);
    multiply(p);
#pragma omp parallel for num_threads(p.threads) if (p.rows > 1)
    for (int64_t r = 0; r < p.rows; r++)
        std::transform(y.data() + r * p.out, y.data() + (r + 1) * p.out, wanted + r * p.out, to_bfloat16);
}

}  // namespace
