// One row of x as integers of sixteen bits, for CPUs with AVX2 and no more: start from `Sixteen`, `multiply_block_of_4`
// and `multiply_row_of_8`. compiled_step.cpp includes this file and takes it where SIXTEEN is defined.
//
// In floats these CPUs are done with a code in half the time that it takes to make a float of it. Integers need no
// making: AVX2 multiplies bytes, 32 at once, and sums neighbours. So the columns of a group are written as multiples of
// one step, as integers of sixteen bits, and what this loses is below 2^-16 of the group's largest number: not the
// exactness of floats, and 256 times that of the eight bits to which others round x here.
//
//     Σ x·ŵ = scale · step · (Σ X (q + 8) − (8 + z) Σ X),    x ≈ step · X,  X = 256 high + low
//
// Four bits. The instruction sums pairs in sixteen bits, saturating. High and low are bytes, q + 8 is below 16, and
// eight pairs stay below 2^15: so 32 columns are summed before the digits are put together in 32 bits. Two columns are
// made neighbours by interleaving their bytes; of four columns, which are one line of memory, the first and third, and
// the second and fourth, because an interleaving stays in its half of a vector.
//
// Eight bits. Codes are widened to sixteen, and products of pairs summed in 32: 64 columns share a step.

#pragma once

#include "compiled_products.h"

#ifdef BYTE_TABLES
#define SIXTEEN

#include <cmath>
#include <limits>

namespace {

constexpr int QUAD = 4, AT_ONCE = 32;  // columns: of one interleaving; that are summed in sixteen bits
constexpr int AHEAD = 4096;             // bytes from which codes begin their way into the second-level cache
constexpr int STEP_OF_8 = 64;          // columns that share a step beside 8-bit codes
constexpr int MOST_OF_X = 127 * 256;   // so that its high digit is a byte

struct alignas(32) Quad {  // four columns of one digit: 0 and 2 for the lower half of a vector, 1 and 3 for the upper
    int8_t high[32], low[32];
};

// one row of x, `width` columns a step
struct Sixteen {
    std::vector<int16_t> number;  // [in, to a multiple of 64], zeros after the last
    std::vector<Quad> quads;      // [in / 4], for 4-bit codes
    std::vector<float> step;      // [blocks]
    std::vector<float> sum;       // [blocks]: of the numbers

    // false if a value is infinite or nan, which no integer is
    bool take(const float* x, int64_t in, int64_t width, bool as_digits) {
        const int64_t blocks = (in + width - 1) / width, padded = (in + 63) / 64 * 64;
        if (int64_t(number.size()) < padded) number.resize(padded);
        if (int64_t(step.size()) < blocks) step.resize(blocks), sum.resize(blocks);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t first = b * width, last = std::min(in, first + width);
            float largest = 0, total = 0;
            bool finite = true;
            for (int64_t k = first; k < last; k++) {
                const float magnitude = std::fabs(x[k]);
                largest = magnitude > largest ? magnitude : largest;
                finite &= magnitude < std::numeric_limits<float>::infinity();
            }
            if (!finite) return false;
            // a step too small to be divided by is none: its numbers are below what a sum of floats would keep
            const bool nothing = largest < 1e-30f;
            step[b] = nothing ? 0 : largest / MOST_OF_X;
            const float to_number = nothing ? 0 : MOST_OF_X / largest;
            for (int64_t k = first; k < last; k++) {
                const int rounded = _mm_cvtss_si32(_mm_set_ss(x[k] * to_number));
                number[k] = int16_t(rounded);
                total += float(rounded);
            }
            sum[b] = total;
        }
        std::fill(number.begin() + in, number.begin() + padded, 0);
        if (as_digits) {
            if (int64_t(quads.size()) < in / QUAD) quads.resize(in / QUAD);
            for (int64_t i = 0; i < in / QUAD; i++) spread(&number[QUAD * i], quads[i]);
        }
        return true;
    }

    static void spread(const int16_t* four, Quad& quad) {
        uint16_t high[QUAD], low[QUAD];
        for (int k = 0; k < QUAD; k++) {
            const int8_t rest = int8_t(four[k]);
            low[k] = uint8_t(rest), high[k] = uint8_t((four[k] - rest) >> 8);
        }
        auto halves = [](int first, int second) {
            return _mm256_set_m128i(_mm_set1_epi16(short(second)), _mm_set1_epi16(short(first)));
        };
        _mm256_store_si256(reinterpret_cast<__m256i*>(quad.high), halves(high[0] | high[2] << 8, high[1] | high[3] << 8));
        _mm256_store_si256(reinterpret_cast<__m256i*>(quad.low), halves(low[0] | low[2] << 8, low[1] | low[3] << 8));
    }
};

// y of the 32 rows of a block; group_size a multiple of 32
void multiply_block_of_4(const Product<Float32>& p, const Sixteen& x, int64_t block) {
    constexpr int B = 32;
    const int64_t groups = p.in / p.group_size;
    const __m256i nibble = _mm256_set1_epi8(15), together = _mm256_set1_epi32(1 | 256 << 16);
    alignas(32) float y[B] = {};
    const uint8_t* bytes = p.data + block * p.in * (B / 2);
    for (int64_t g = 0; g < groups; g++) {
        Integers total[8] = {};  // rows 0–3 and 4–7, 8–15, 16–23, 24–31; half of the columns in each half of a vector
        for (int64_t k = g * p.group_size; k < (g + 1) * p.group_size; k += AT_ONCE) {
            typedef short Shorts __attribute__((vector_size(32)));
            Shorts high[4] = {}, low[4] = {};  // rows 0–7, 8–15, 16–23, 24–31
            const uint8_t* at = bytes + k * (B / 2);
            const Quad* quad = &x.quads[k / QUAD];
#pragma GCC unroll 1  // unrolled, the sums no longer fit into registers
            for (int i = 0; i < AT_ONCE / QUAD; i++, at += QUAD * B / 2, quad++) {
                __builtin_prefetch(at + AHEAD, 0, 2);
                const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
                const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
                const __m256i even = _mm256_unpacklo_epi8(first, second), odd = _mm256_unpackhi_epi8(first, second);
                const __m256i w[4] = {_mm256_and_si256(even, nibble), _mm256_and_si256(odd, nibble),
                                      _mm256_and_si256(_mm256_srli_epi16(even, 4), nibble),
                                      _mm256_and_si256(_mm256_srli_epi16(odd, 4), nibble)};
                const __m256i x_high = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->high));
                const __m256i x_low = _mm256_load_si256(reinterpret_cast<const __m256i*>(quad->low));
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) {
                    high[v] += (Shorts)_mm256_maddubs_epi16(w[v], x_high);
                    low[v] += (Shorts)_mm256_maddubs_epi16(w[v], x_low);
                }
            }
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const __m256i first = _mm256_unpacklo_epi16((__m256i)low[v], (__m256i)high[v]);
                const __m256i second = _mm256_unpackhi_epi16((__m256i)low[v], (__m256i)high[v]);
                total[2 * v] += (Integers)_mm256_madd_epi16(first, together);
                total[2 * v + 1] += (Integers)_mm256_madd_epi16(second, together);
            }
        }
        const int64_t from = g * p.out + block * B;
        const float step = x.step[g], sum = x.sum[g];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const __m256i first = (__m256i)total[2 * v], second = (__m256i)total[2 * v + 1];
            const __m256i rows = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                                  _mm256_permute2x128_si256(first, second, 0x31));
            Floats shift = Floats{} + 8.0f, scale;
            if (p.zero) {
                int8_t zero[8];
                std::memcpy(zero, static_cast<const int8_t*>(p.zero) + from + 8 * v, sizeof zero);
                shift += Float32::widen_codes(zero);
            }
            if (p.half_scale)
                for (int i = 0; i < 8; i++) scale[i] = from_half(static_cast<const uint16_t*>(p.scale)[from + 8 * v + i]);
            else
                scale = load(static_cast<const float*>(p.scale) + from + 8 * v);
            const Floats products = (Floats)_mm256_cvtepi32_ps(rows) - shift * sum;
            store(y + 8 * v, load(y + 8 * v) + scale * step * products);
        }
    }
    std::copy_n(y, B, p.y + block * B);
}

// y of one row. A row at a time: its codes come as one stream, half as fast again here as four streams side by side
void multiply_row_of_8(const RowsProduct<Float32>& p, const Sixteen& x, int64_t row) {
    __m256 y = _mm256_setzero_ps();
    const int8_t* codes = p.codes + row * p.in;
    auto add = [&](const int8_t* from, int64_t k) {
        Integers sum = {};
#pragma GCC unroll 4
        for (int j = 0; j < STEP_OF_8; j += 16) {
            const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j));
            const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&x.number[k + j]));
            sum += (Integers)_mm256_madd_epi16(_mm256_cvtepi8_epi16(narrow), numbers);
        }
        y = _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)sum), _mm256_broadcast_ss(&x.step[k / STEP_OF_8]), y);
    };
    int64_t k = 0;
    for (; k + STEP_OF_8 <= p.in; k += STEP_OF_8) {
        __builtin_prefetch(codes + k + AHEAD, 0, 2);
        add(codes + k, k);
    }
    if (k < p.in) {  // the last columns, with zeros after them: nothing beyond a row is read
        int8_t last[STEP_OF_8] = {};
        std::copy(codes + k, codes + p.in, last);
        add(last, k);
    }
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    p.y[row] = (_mm_cvtss_f32(sum) + _mm_cvtss_f32(_mm_movehdup_ps(sum))) * scale_of(p, row);
}

}  // namespace

#endif
