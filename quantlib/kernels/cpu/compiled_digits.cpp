// y = x · Ŵᵀ for x in bfloat16, multiplied as integers: what compiled.cpp does in floats, for CPUs that multiply bytes
// many times as fast (AVX-512 with VNNI). Start from `int4_digits` and `int8_digits` at the end;
// quantlib/kernels/cpu/compiled.py builds this file with that one, quantlib/kernels/cpu/compiled_digits.py calls it.
//
// A bfloat16 has eight significant bits. Some neighbouring ones, written as multiples of one power of two, are integers
// of 22 bits: exactly, if they are at least 2^-14 of the largest; smaller ones lose what is below 2^-22 of it. Three
// signed bytes are the digits of such an integer to the base 256, and one instruction multiplies 64 bytes by 64 codes
// and sums the products in int32, exactly. So a product is three integer products, put together at the end of a group:
//
//     Σ x·ŵ = scale · step · (65536 Σ d₁(q − z) + 256 Σ d₂(q − z) + Σ d₃(q − z)),    x = step · (65536 d₁ + 256 d₂ + d₃)
//
// The instruction wants one side unsigned, and that is the codes: code + 8, or code + 128. What this adds is a multiple
// of Σ d and known beforehand: sums over four bits begin at its negative, where a zero point rides along; from those over
// eight bits, whose lanes are parts of one sum, it is taken off in the end, in doubles.

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && !defined(QUANTLIB_PORTABLE)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int DIGITS = 3, BITS = 22;     // of the integers that x becomes; the sign is a bit more
constexpr int TILE_ROWS = 32;            // rows of x at a time: their digits stay in the second-level cache
constexpr int B = 64, V = B / 16;        // rows of the matrix in a block of 4-bit codes; vectors of sums for them
constexpr int MOST_GROUP = 256;          // columns of a group of 4-bit codes: PyTorch's order has no more
constexpr int COLUMNS_OF_STEP = 1024;    // of x that share a step beside 8-bit codes: few enough for two digits in an int32
constexpr int ROWS_OF_W = 4;             // of 8-bit codes at once, each a stream from memory of its own
constexpr int AHEAD = 8192;              // bytes from which codes begin their way into the second-level cache

typedef int Ints __attribute__((vector_size(64)));  // unlike __m512i, GCC keeps arrays of these in registers

// --- x as digits

struct alignas(64) Line {
    int8_t byte[64];
};

struct Integers {
    const uint16_t* x;  // bfloat16 [rows, in]
    int64_t rows, in, width, blocks, padded;
    std::vector<Line> digit;   // int8 [rows, DIGITS, padded], zeros after the last column
    std::vector<int32_t> sum;  // of each digit over each block of columns, [rows, blocks, DIGITS]
    std::vector<float> step;   // [rows, blocks]

    // padded is never a multiple of 4096 where `in` is: equal places of all digits and rows would share a set of the cache
    Integers(const uint16_t* x, int64_t rows, int64_t in, int64_t width)
        : x(x), rows(rows), in(in), width(width), blocks((in + width - 1) / width), padded((in + 63) / 64 * 64 + 64),
          digit(rows * DIGITS * padded / 64), sum(rows * blocks * DIGITS), step(rows * blocks) {}

    const int8_t* row(int64_t r) const { return digit[r * DIGITS * padded / 64].byte; }
    const int32_t* sums(int64_t r, int64_t b) const { return &sum[(r * blocks + b) * DIGITS]; }

    // one block of one row; false if a value is infinite or nan, which no integer is
    bool split(int64_t r, int64_t b) {
        const int64_t first = b * width, last = std::min(in, first + width);
        const uint16_t* from = x + r * in;
        int largest = 0;  // as bits: in the order of the magnitudes
        for (int64_t k = first; k < last; k++) largest = std::max(largest, from[k] & 0x7fff);
        const int bound = (largest >> 7) - 126;               // all are below 2^bound
        const int exponent = std::max(bound, BITS - 126);     // so that 2^(BITS − exponent) is a float
        const float to_integer = std::ldexp(1.0f, BITS - exponent);
        int8_t* to = digit[r * DIGITS * padded / 64].byte;
        int32_t d1 = 0, d2 = 0, d3 = 0;
        for (int64_t k = first; k < last; k++) {
            float value = __builtin_bit_cast(float, uint32_t(from[k]) << 16);
            int32_t integer = int32_t(std::nearbyint(value * to_integer));
            int8_t low = int8_t(integer);
            int8_t middle = int8_t((integer = (integer - low) >> 8));
            int8_t high = int8_t((integer - middle) >> 8);
            to[k] = high, to[padded + k] = middle, to[2 * padded + k] = low;
            d1 += high, d2 += middle, d3 += low;
        }
        int32_t* sums = &sum[(r * blocks + b) * DIGITS];
        sums[0] = d1, sums[1] = d2, sums[2] = d3;
        step[r * blocks + b] = std::ldexp(1.0f, exponent - BITS);
        return bound <= 128;
    }
};

__m512i bits(Ints vector) { return (__m512i)vector; }

__m512 together(Ints high, Ints middle, Ints low) {
    __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(bits(middle)), _mm512_set1_ps(0x1p8f), _mm512_cvtepi32_ps(bits(low)));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(bits(high)), _mm512_set1_ps(0x1p16f), sum);
}

// the same where lanes are parts of one sum: exact, in doubles. The lower two digits fit together into an integer
__m512d lanes_together(const Ints (&digit)[DIGITS]) {
    const __m512i high = bits(digit[0]), low = bits(digit[1] * 256 + digit[2]);
    const __m512d to_high = _mm512_set1_pd(0x1p16);
    auto first = [](__m512i all) { return _mm512_cvtepi32_pd(_mm512_castsi512_si256(all)); };
    auto second = [](__m512i all) { return _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(all, 1)); };
    return _mm512_add_pd(_mm512_fmadd_pd(first(high), to_high, first(low)),
                         _mm512_fmadd_pd(second(high), to_high, second(low)));
}

double all_digits(const int32_t* sums) { return 0x1p16 * sums[0] + 0x1p8 * sums[1] + sums[2]; }

float scale_at(const void* scale, bool half, int64_t i) {
    return half ? _cvtsh_ss(static_cast<const uint16_t*>(scale)[i]) : static_cast<const float*>(scale)[i];
}

uint16_t to_bfloat16(float y) {
    uint32_t bits = __builtin_bit_cast(uint32_t, y);
    return y != y ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
}

// --- four bits

struct Product4 {  // 11 fields of 8 bytes, which compiled_digits.py writes one after another
    const uint16_t* x;    // bfloat16 [rows, in]
    const uint8_t* data;  // [out/64, in, 32]: byte r of a column has code + 8 of row r low, of row r + 32 high
    const void* scale;    // [groups, out], float16 or float32
    const uint8_t* zero;  // [groups, ceil(out/2)], zero point + 8 of row j low, of row j + ceil(out/2) high; may be null
    uint16_t* y;          // bfloat16 [rows, out]
    int64_t rows, in, out, group_size, half_scale, threads;
};

struct Order {
    alignas(64) uint8_t from[64];
    constexpr Order() : from{} {  // bytes of two columns, 32 rows each, so that a row's are neighbours
        for (int lane = 0; lane < 4; lane++)
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < 4; i++)
                    for (int column = 0; column < 2; column++)
                        from[16 * lane + 8 * half + 2 * i + column] = 32 * column + 16 * half + 4 * lane + i;
    }
};
constexpr Order PAIRS;

// four columns of a block, code + 8 in a byte: those of a row side by side in the 32 bits of its lane
void unpack(const uint8_t* bytes, __m512i* w) {
    const __m512i order = _mm512_load_si512(PAIRS.from), nibble = _mm512_set1_epi8(15);
    __m512i first = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(bytes));
    __m512i second = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(bytes + 64));
    __m512i upper = _mm512_unpacklo_epi16(first, second), lower = _mm512_unpackhi_epi16(first, second);
    w[0] = _mm512_and_si512(upper, nibble);
    w[1] = _mm512_and_si512(lower, nibble);
    w[2] = _mm512_and_si512(_mm512_srli_epi16(upper, 4), nibble);
    w[3] = _mm512_and_si512(_mm512_srli_epi16(lower, 4), nibble);
}

// sums [R, B] += scale · Σ x (q − z) over one group, for R rows of x; shift: 8 + z
template <int R, class Read>
void add_group(Read read, const Integers& x, int64_t row, int64_t group, const Ints* shift, const __m512* scale,
               float* sums) {
    Ints total[R][V][DIGITS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++)
#pragma GCC unroll 8
            for (int d = 0; d < DIGITS; d++) total[r][v][d] = shift[v] * -x.sums(row + r, group)[d];
    const int8_t* digit = x.row(row) + group * x.width;
    for (int k = 0; k < x.width; k += 4) {
        __m512i w[V];
        read(k, w);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int d = 0; d < DIGITS; d++) {
                int32_t four;
                std::memcpy(&four, digit + (r * DIGITS + d) * x.padded + k, sizeof four);
                const __m512i digits = _mm512_set1_epi32(four);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++)
                    total[r][v][d] = (Ints)_mm512_dpbusd_epi32(bits(total[r][v][d]), w[v], digits);
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            float* to = sums + r * B + 16 * v;
            __m512 scaled = scale[v] * x.step[(row + r) * x.blocks + group];
            __m512 product = together(total[r][v][0], total[r][v][1], total[r][v][2]);
            _mm512_storeu_ps(to, _mm512_fmadd_ps(product, scaled, _mm512_loadu_ps(to)));
        }
}

__m256i load(const uint16_t* sixteen) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sixteen)); }

// 8 + z of the rows of a block
void read_zeros(const Product4& p, int64_t group, int64_t block, Ints* shift) {
    const int64_t half = (p.out + 1) / 2;
    const uint8_t* zero = p.zero + group * half;
    alignas(64) int32_t values[B];
    for (int r = 0; r < B; r++) {
        int64_t row = block * B + r;
        values[r] = row < half ? zero[row] & 15 : zero[row - half] >> 4;
    }
    std::memcpy(shift, values, sizeof values);
}

// some rows of x by the B rows of a block
void multiply_block(const Product4& p, const Integers& x, int64_t block, int64_t first, int rows) {
    alignas(64) float sums[TILE_ROWS * B] = {};
    __m512i panel[MOST_GROUP / 4][V];
    __m512 scale[V];
    Ints shift[V];
    std::fill_n(shift, V, Ints{} + 8);
    for (int64_t g = 0; g < x.blocks; g++) {
        const int64_t at = g * p.out + block * B;
        for (int v = 0; v < V; v++)
            scale[v] = p.half_scale ? _mm512_cvtph_ps(load(static_cast<const uint16_t*>(p.scale) + at + 16 * v))
                                    : _mm512_loadu_ps(static_cast<const float*>(p.scale) + at + 16 * v);
        if (p.zero) read_zeros(p, g, block, shift);
        const uint8_t* bytes = p.data + (block * p.in + g * x.width) * (B / 2);
        auto packed = [=](int k, __m512i* w) {
            const uint8_t* from = bytes + k * (B / 2);
            __builtin_prefetch(from + AHEAD, 0, 2);
            __builtin_prefetch(from + AHEAD + 64, 0, 2);
            unpack(from, w);
        };
        if (rows == 1) {
            add_group<1>(packed, x, first, g, shift, scale, sums);
        } else if (rows == 2) {
            add_group<2>(packed, x, first, g, shift, scale, sums);
        } else {  // unpacked once for all rows
            for (int k = 0; k < x.width; k += 4) packed(k, panel[k / 4]);
            auto unpacked = [&](int k, __m512i* w) { std::copy_n(panel[k / 4], V, w); };
            int r = 0;
            for (; r + 2 <= rows; r += 2) add_group<2>(unpacked, x, first + r, g, shift, scale, sums + r * B);
            if (r < rows) add_group<1>(unpacked, x, first + r, g, shift, scale, sums + r * B);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < B; i++) p.y[(first + r) * p.out + block * B + i] = to_bfloat16(sums[r * B + i]);
}

// --- eight bits

struct Product8 {  // 10 fields of 8 bytes, which compiled_digits.py writes one after another
    const uint16_t* x;    // bfloat16 [rows, in]
    const int8_t* codes;  // [out, in]
    const void* scale;    // [out] or [1], float16 or float32
    uint16_t* y;          // bfloat16 [rows, out]
    int64_t rows, in, out, half_scale, one_scale, threads;
};

// R rows of x by W rows of the matrix
template <int W, int R>
void multiply_rows(const Product8& p, const Integers& x, int64_t first, int64_t row) {
    __m512d y[W][R] = {};
    double shift[R] = {};  // what the 128 added to each code adds to the sum: taken off in doubles, it leaves no trace
    for (int64_t b = 0; b < x.blocks; b++) {
        Ints total[W][R][DIGITS] = {};
        const int64_t last = std::min(x.in, (b + 1) * x.width);
        for (int64_t k = b * x.width; k < last; k += 64) {
            const __mmask64 inside = last - k >= 64 ? ~0ull : (1ull << (last - k)) - 1;
            __m512i w[W];
#pragma GCC unroll 8
            for (int i = 0; i < W; i++) {
                const int8_t* from = p.codes + (first + i) * p.in + k;
                __builtin_prefetch(from + 2 * W * p.in, 0, 2);  // some rows on: the hardware's own ends with the page
                w[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, from), _mm512_set1_epi8(-128));
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int d = 0; d < DIGITS; d++) {
                    const __m512i digits = _mm512_loadu_si512(x.row(row + r) + d * x.padded + k);
#pragma GCC unroll 8
                    for (int i = 0; i < W; i++)
                        total[i][r][d] = (Ints)_mm512_dpbusd_epi32(bits(total[i][r][d]), w[i], digits);
                }
        }
#pragma GCC unroll 8
        for (int i = 0; i < W; i++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                y[i][r] += lanes_together(total[i][r]) * double(x.step[(row + r) * x.blocks + b]);
        for (int r = 0; r < R; r++) shift[r] += 128 * all_digits(x.sums(row + r, b)) * x.step[(row + r) * x.blocks + b];
    }
#pragma GCC unroll 8
    for (int i = 0; i < W; i++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            float scale = scale_at(p.scale, p.half_scale, p.one_scale ? 0 : first + i);
            p.y[(row + r) * p.out + first + i] = to_bfloat16(float(_mm512_reduce_add_pd(y[i][r]) - shift[r]) * scale);
        }
}

template <int W>
void multiply_tile(const Product8& p, const Integers& x, int64_t first, int64_t row, int64_t end) {
    for (; row + 2 <= end; row += 2) multiply_rows<W, 2>(p, x, first, row);
    if (row < end) multiply_rows<W, 1>(p, x, first, row);
}

}  // namespace

// --- what Python calls: 1, or 0 where x has a value that is infinite or nan and y was not written

extern "C" {

int int4_digits(const Product4* given) {
    const Product4& p = *given;
    Integers x(p.x, p.rows, p.in, p.group_size);
    const int64_t blocks = p.out / B, tiles = (p.rows + TILE_ROWS - 1) / TILE_ROWS;
    bool finite = true;
#pragma omp parallel num_threads(p.threads)
    {
#pragma omp for collapse(2) reduction(&& : finite)
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t b = 0; b < x.blocks; b++) finite = x.split(r, b) && finite;
        if (finite) {
#pragma omp for collapse(2)
            for (int64_t block = 0; block < blocks; block++)
                for (int64_t tile = 0; tile < tiles; tile++) {
                    int64_t first = tile * TILE_ROWS;
                    multiply_block(p, x, block, first, int(std::min<int64_t>(TILE_ROWS, p.rows - first)));
                }
        }
    }
    return finite;
}

int int8_digits(const Product8* given) {
    const Product8& p = *given;
    Integers x(p.x, p.rows, p.in, COLUMNS_OF_STEP);
    const int64_t whole = p.out / ROWS_OF_W;
    bool finite = true;
#pragma omp parallel num_threads(p.threads)
    {
#pragma omp for collapse(2) reduction(&& : finite)
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t b = 0; b < x.blocks; b++) finite = x.split(r, b) && finite;
        if (finite)
            for (int64_t row = 0; row < p.rows; row += TILE_ROWS) {
                const int64_t end = std::min(p.rows, row + TILE_ROWS);
#pragma omp for nowait
                for (int64_t i = 0; i < whole; i++) multiply_tile<ROWS_OF_W>(p, x, i * ROWS_OF_W, row, end);
#pragma omp for nowait
                for (int64_t i = whole * ROWS_OF_W; i < p.out; i++) multiply_tile<1>(p, x, i, row, end);
            }
    }
    return finite;
}

}  // extern "C"

#endif
