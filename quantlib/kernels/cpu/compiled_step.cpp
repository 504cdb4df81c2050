// One step of a decoder: for each row of a batch the hidden state of a new token in, the logits of the next one out.
// Start from `decode_step` at the end; quantlib/kernels/cpu/compiled_step.py describes the model to it.
//
// What a step costs beside its products is not arithmetic but calls: some twenty operators a layer, each of which takes
// a few microseconds whatever it does. So here a step is one call. All of it is one parallel region: the threads start
// once, share each product by blocks of outputs, and wait for each other six times a layer. What is too little to be
// shared (norms, sums of x) every thread computes for itself, which costs less than waiting.
//
// Products are those of compiled_products.h, in float32, or for a single row those of compiled_sixteen.h. Keys and values stay where Python allocated them; nothing is
// allocated in a step but each thread's working memory, in its first.

#include <cmath>
#include <limits>

#include "compiled_products.h"
#include "compiled_sixteen.h"

namespace {

struct Matrix {  // of 11 fields of 8 bytes each, which compiled_step.py writes one after another
    int64_t kind;          // 4 or 8: codes as compiled_products.h reads them; 32: float32 [out, in]
    const void* data;      // codes or floats
    const void* scale;     // [groups, out] of 4 bits, [out] of 8; float16 or float32
    const int8_t* zero;    // [groups, out], of 4 bits; may be null
    const float* bias;     // [out]; may be null
    const int32_t* order;  // [in]: column i of data is column order[i] of the matrix; may be null
    int64_t out, in, group_size, half_scale, block;
};

struct Layer {
    const float* attention_norm;  // [hidden]
    Matrix qkv;                   // [(heads + 2 kv_heads) · head_dim, hidden]
    Matrix out;                   // [hidden, heads · head_dim]
    const float* mlp_norm;        // [hidden]
    Matrix gate_up;               // [2 · intermediate, hidden]
    Matrix down;                  // [hidden, intermediate]
    float *keys, *values;         // [batch, kv_heads, context, head_dim]
};

struct Model {
    int64_t layers, hidden, intermediate, heads, kv_heads, head_dim, context;
    double epsilon;            // of the norms
    const float *cos, *sin;    // [context, head_dim], sin of the first half negative
    const Layer* layer;
    const float* norm;         // [hidden]
    Matrix head;               // [vocabulary, hidden]
    int64_t rows;              // of the batch
    const int64_t* positions;  // [rows]: of the new tokens
    float* x;                  // [rows, hidden]: their embeddings; overwritten
    float* logits;             // [rows, vocabulary]
    float* work;               // of all threads: [rows, widest] twice
    int64_t widest, threads;
};

constexpr int UNIT = 64;  // outputs that a thread takes at a time: a block of four bits, or two

// what one thread works with, kept from step to step
struct Own {
    std::vector<float> x, ordered, x_sum, scale, zero, part, scores;
#ifdef SIXTEEN
    Sixteen sixteen;
#endif

    static float* of(std::vector<float>& kept, int64_t size) {
        if (int64_t(kept.size()) < size) kept.resize(size);
        return kept.data();
    }
};
thread_local Own own;

void multiply_floats(const Matrix& m, const float* x, float* y, int64_t rows, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
        const float* w = static_cast<const float*>(m.data) + i * m.in;
        for (int64_t r = 0; r < rows; r++) {
            Floats sums[4] = {};
            int64_t k = 0;
            for (; k + 4 * LANES <= m.in; k += 4 * LANES)
                for (int j = 0; j < 4; j++) sums[j] += load(w + k + j * LANES) * load(x + r * m.in + k + j * LANES);
            float sum = 0;
            for (; k < m.in; k++) sum += w[k] * x[r * m.in + k];
            sums[0] += sums[1] + sums[2] + sums[3];
            for (int lane = 0; lane < LANES; lane++) sum += sums[0][lane];
            y[r * m.out + i] = sum;
        }
    }
}

// a thread's view of x before a product: in the order of the columns, with the sums that zero points are multiplied by
struct Input {
    const float *x, *x_sum;
    bool sixteen;  // own.sixteen holds it
};

Input prepare(const Matrix& m, const float* x, int64_t rows) {
    if (m.order) {
        float* ordered = Own::of(own.ordered, rows * m.in);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < m.in; k++) ordered[r * m.in + k] = x[r * m.in + m.order[k]];
        x = ordered;
    }
#ifdef SIXTEEN
    if (rows == 1 && (m.kind == 8 || (m.kind == 4 && m.block == 32 && m.group_size % AT_ONCE == 0)))
        if (own.sixteen.take(x, m.in, m.kind == 4 ? m.group_size : STEP_OF_8, m.kind == 4)) return {x, nullptr, true};
#endif
    if (!m.zero) return {x, nullptr, false};
    const int64_t groups = m.in / m.group_size;
    float* x_sum = Own::of(own.x_sum, rows * groups);
    for (int64_t i = 0; i < rows * groups; i++) x_sum[i] = sum_of<Float32>(x + i * m.group_size, m.group_size);
    return {x, x_sum, false};
}

template <int B>
void multiply_blocks(const Matrix& m, Input in, float* y, int64_t rows, int64_t first, int64_t last) {
    const Product<Float32> p{in.x, static_cast<const uint8_t*>(m.data), m.scale, m.zero, y, rows, m.in, m.out,
                             m.group_size, m.half_scale, 1, B, 1};
#ifdef SIXTEEN
    if (in.sixteen) {
        for (int64_t block = first / B; block < last / B; block++) multiply_block_of_4(p, own.sixteen, block);
        return;
    }
#endif
    const int64_t groups = m.in / m.group_size;
    float *scale = Own::of(own.scale, groups * B), *zero = Own::of(own.zero, groups * B);
    for (int64_t block = first / B; block < last / B; block++)
        multiply_block<Float32, B>(p, block, 0, int(rows), in.x_sum, scale, zero);
}

// outputs first to last of y = x · Ŵᵀ + bias; first is a multiple of UNIT
void multiply_part(const Matrix& m, Input in, float* y, int64_t rows, int64_t first, int64_t last) {
    if (m.kind == 4) {
        m.block == 64 ? multiply_blocks<64>(m, in, y, rows, first, last)
                      : multiply_blocks<32>(m, in, y, rows, first, last);
    } else if (m.kind == 8) {
        const RowsProduct<Float32> p{in.x, static_cast<const int8_t*>(m.data), m.scale, y, rows, m.in, m.out,
                                     m.half_scale, 1};
        int64_t i = first;
#ifdef SIXTEEN
        if (in.sixteen)
            for (; i < last; i++) multiply_row_of_8(p, own.sixteen, i);
#endif
        for (; i + ROWS_OF_W <= last; i += ROWS_OF_W) multiply_some<Float32, ROWS_OF_W>(p, i);
        for (; i < last; i++) multiply_some<Float32, 1>(p, i);
    } else {
        multiply_floats(m, in.x, y, rows, first, last);
    }
    if (m.bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = first; i < last; i++) y[r * m.out + i] += m.bias[i];
}

// y = x · Ŵᵀ + bias, shared by the threads, which then wait; with add, y gains it instead
void multiply_shared(const Matrix& m, const float* x, float* y, int64_t rows, bool add = false) {
    const Input in = prepare(m, x, rows);
    float* to = add ? Own::of(own.part, rows * m.out) : y;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < m.out; first += UNIT) {
        const int64_t last = std::min(m.out, first + UNIT);
        multiply_part(m, in, to, rows, first, last);
        if (add)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = first; i < last; i++) y[r * m.out + i] += to[r * m.out + i];
    }
}

float dot(const float* a, const float* b, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

// RMSNorm of all rows, by each thread for itself
const float* normalised(const float* x, const float* weight, int64_t rows, int64_t hidden, double epsilon) {
    float* y = Own::of(own.x, rows * hidden);
    for (int64_t r = 0; r < rows; r++) {
        const float squares = dot(x + r * hidden, x + r * hidden, hidden);
        const float factor = 1 / std::sqrt(squares / hidden + float(epsilon));
        for (int64_t i = 0; i < hidden; i++) y[r * hidden + i] = x[r * hidden + i] * factor * weight[i];
    }
    return y;
}

// gate and up of the same outputs together, so that their product needs no waiting of its own
void multiply_mlp(const Matrix& m, const float* x, float* y, int64_t rows, int64_t intermediate) {
    const Input in = prepare(m, x, rows);
    float* part = Own::of(own.part, rows * m.out);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < intermediate; first += UNIT) {
        const int64_t last = std::min(intermediate, first + UNIT);
        multiply_part(m, in, part, rows, first, last);
        multiply_part(m, in, part, rows, intermediate + first, intermediate + last);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = first; i < last; i++) {
                const float gate = part[r * m.out + i], up = part[r * m.out + intermediate + i];
                y[r * intermediate + i] = gate / (1 + std::exp(-gate)) * up;
            }
    }
}

// one head of one row turned by its position: x · cos + (halves of x swapped) · sin
void rotate(float* x, const float* cos, const float* sin, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] + second * sin[i];
        x[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

// queries turned, keys turned and kept, values kept; then each head reads what is kept of its row
void attend(const Model& m, const Layer& layer, float* qkv, float* y) {
    const int64_t d = m.head_dim, all = m.heads + 2 * m.kv_heads, row_of_cache = m.context * d;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < m.rows * all; task++) {
        const int64_t r = task / all, head = task % all, at = m.positions[r];
        float* x = qkv + task * d;
        if (head < m.heads + m.kv_heads) rotate(x, m.cos + at * d, m.sin + at * d, d);
        if (head >= m.heads) {
            const bool is_key = head < m.heads + m.kv_heads;
            const int64_t of = r * m.kv_heads + head - m.heads - (is_key ? 0 : m.kv_heads);
            std::copy_n(x, d, (is_key ? layer.keys : layer.values) + of * row_of_cache + at * d);
        }
    }
    const int64_t group = m.heads / m.kv_heads;
    const float root = 1 / std::sqrt(float(d));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < m.rows * m.heads; task++) {
        const int64_t r = task / m.heads, head = task % m.heads, length = m.positions[r] + 1;
        const float* query = qkv + (r * all + head) * d;
        const int64_t of = (r * m.kv_heads + head / group) * row_of_cache;
        const float *keys = layer.keys + of, *values = layer.values + of;
        float *score = Own::of(own.scores, m.context), *to = y + task * d, largest = -std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < length; i++) {
            score[i] = dot(query, keys + i * d, d) * root;
            largest = std::max(largest, score[i]);
        }
        float sum = 0;
        for (int64_t i = 0; i < length; i++) sum += score[i] = std::exp(score[i] - largest);
        std::fill_n(to, d, 0.0f);
        for (int64_t i = 0; i < length; i++)
            for (int64_t k = 0; k < d; k++) to[k] += score[i] * values[i * d + k];
        for (int64_t k = 0; k < d; k++) to[k] /= sum;
    }
}

}  // namespace

extern "C" {

extern const int64_t step_sizes[3] = {sizeof(Matrix), sizeof(Layer), sizeof(Model)};  // compiled_step.py compares

void decode_step(const Model* given) {
    const Model& m = *given;
    float *first = m.work, *second = m.work + m.rows * m.widest;
#pragma omp parallel num_threads(m.threads)
    {
        for (int64_t i = 0; i < m.layers; i++) {
            const Layer& layer = m.layer[i];
            multiply_shared(layer.qkv, normalised(m.x, layer.attention_norm, m.rows, m.hidden, m.epsilon), first, m.rows);
            attend(m, layer, first, second);
            multiply_shared(layer.out, second, m.x, m.rows, true);
            multiply_mlp(layer.gate_up, normalised(m.x, layer.mlp_norm, m.rows, m.hidden, m.epsilon), first, m.rows,
                         m.intermediate);
            multiply_shared(layer.down, first, m.x, m.rows, true);
        }
        multiply_shared(m.head, normalised(m.x, m.norm, m.rows, m.hidden, m.epsilon), m.logits, m.rows);
    }
}
}
