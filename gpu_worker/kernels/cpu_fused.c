/* The fused operations of interface.py on a CPU, over contiguous float32. Each stands beside its torch reference in
 * reference.py; the wrappers in cpu.py check shapes and types.
 *
 * Work is shared out by OpenMP, on the pool that torch uses; an operation over few elements stays on one thread, since
 * waking the others would cost more.
 */
#include "cpu_math.h"

enum { PARALLEL_FROM = 16384, TOKENS_PER_ITEM = 4096, COUNTERS = 64 };

static inline float inverse_rms(const float *x, int64_t size, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

static inline void norm_row(const float *x, const float *weight, float *out, int64_t size, float eps) {
    const float scale = inverse_rms(x, size, eps);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

/* x, out: [rows, size]; weight: [size]. */
void pagewire_rms_norm(const float *x, const float *weight, float *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for if (rows * size >= PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) norm_row(x + row * size, weight, out + row * size, size, eps);
}

/* residual += x, out = norm of it. x, residual, out: [rows, size]; weight: [size]. */
void pagewire_add_rms_norm(
    const float *x, float *residual, const float *weight, float *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for if (rows * size >= PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        const float *x_row = x + row * size;
        float *residual_row = residual + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) residual_row[i] += x_row[i];
        norm_row(residual_row, weight, out + row * size, size, eps);
    }
}

/* gate_up: [rows, 2 * size], the gates in the first half of a row; out: [rows, size]. */
void pagewire_silu_mul(const float *gate_up, float *out, int64_t rows, int64_t size) {
#pragma omp parallel for if (rows * size >= PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        const float *gate = gate_up + 2 * row * size, *up = gate + size;
        float *out_row = out + row * size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) out_row[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
    }
}

struct rope_sizes {
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim;
};

/* One head: norm it where `norm` is given, rotate its first rotary_dim elements as two halves, copy the rest. */
static inline void rotate_head(
    const float *head, const float *cos_sin, const float *norm, float *out, const struct rope_sizes *sizes, float eps) {
    const int64_t half = sizes->rotary_dim / 2;
    const float scale = norm ? inverse_rms(head, sizes->head_dim, eps) : 1.0f;
    for (int64_t i = 0; i < sizes->head_dim; i++) out[i] = norm ? head[i] * scale * norm[i] : head[i];
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float first = out[i], second = out[half + i];
        out[i] = first * cos_sin[i] - second * cos_sin[half + i];
        out[half + i] = second * cos_sin[i] + first * cos_sin[half + i];
    }
}

/* qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; query: [num_tokens, num_heads, head_dim];
 * keys, values: the halves of a layer's cache, one row of [num_kv_heads, head_dim] per slot. */
void pagewire_rope_and_cache(
    const float *qkv, const int64_t *positions, const float *cos_sin, float *keys, float *values, const int64_t *slots,
    const float *q_norm, const float *k_norm, float *query, const struct rope_sizes *sizes, float eps) {
    const int64_t dim = sizes->head_dim, num_heads = sizes->num_heads, num_kv_heads = sizes->num_kv_heads;
    const int64_t row_size = (num_heads + 2 * num_kv_heads) * dim;
#pragma omp parallel for if (sizes->num_tokens * row_size >= PARALLEL_FROM)
    for (int64_t token = 0; token < sizes->num_tokens; token++) {
        const float *row = qkv + token * row_size, *angles = cos_sin + positions[token] * sizes->rotary_dim;
        for (int64_t head = 0; head < num_heads; head++)
            rotate_head(row + head * dim, angles, q_norm, query + (token * num_heads + head) * dim, sizes, eps);
        if (slots[token] < 0) continue;
        const float *key = row + num_heads * dim, *value = key + num_kv_heads * dim;
        const int64_t to = slots[token] * num_kv_heads * dim;
        for (int64_t head = 0; head < num_kv_heads; head++)
            rotate_head(key + head * dim, angles, k_norm, keys + to + head * dim, sizes, eps);
        memcpy(values + to, value, (size_t)(num_kv_heads * dim) * sizeof(float));
    }
}

/* Philox4x32-10 over COUNTERS consecutive counters: words[4 * i + j] is word j of counter first + i.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11), section 5.2. */
static inline void philox(uint64_t seed, uint64_t position, uint32_t first, uint32_t *restrict words) {
#pragma omp simd
    for (uint32_t i = 0; i < COUNTERS; i++) {
        uint32_t c0 = first + i, c1 = (uint32_t)position, c2 = (uint32_t)(position >> 32), c3 = 0;
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
            c1 = (uint32_t)product1;
            c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
            c3 = (uint32_t)product0;
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        words[4 * i] = c0;
        words[4 * i + 1] = c1;
        words[4 * i + 2] = c2;
        words[4 * i + 3] = c3;
    }
}

/* logits, out: [rows, vocab]; seeds, positions: [rows]. first_token: the token id of a row's first logit. */
void pagewire_add_gumbel_noise(
    const float *logits, const int64_t *seeds, const int64_t *positions, float *out, int64_t rows, int64_t vocab,
    int64_t first_token) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t first = 0; first < vocab; first += TOKENS_PER_ITEM) {
            const int64_t end = first + TOKENS_PER_ITEM < vocab ? first + TOKENS_PER_ITEM : vocab;
            for (int64_t token = first; token < end; token += 4 * COUNTERS) {
                uint32_t words[4 * COUNTERS];
                philox((uint64_t)seeds[row], (uint64_t)positions[row], (uint32_t)((first_token + token) / 4), words);
                const float *from = logits + row * vocab + token;
                float *to = out + row * vocab + token;
                const int64_t count = end - token < 4 * COUNTERS ? end - token : 4 * COUNTERS;
#pragma omp simd
                for (int64_t i = 0; i < count; i++) {
                    const float uniform = ((float)(int32_t)(words[i] >> 9) + 0.5f) * 0x1p-23f;
                    to[i] = from[i] - log_f32(-log_f32(uniform));
                }
            }
        }
    }
}
