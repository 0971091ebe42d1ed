/* Paged causal attention on a CPU, float32, reading keys and values where they lie in the cache.
 *
 *   query, output  [num_tokens, num_heads, head_dim]
 *   keys, values   the two halves of a layer's cache, one row of [num_kv_heads, head_dim] per slot
 *   group          num_heads / num_kv_heads query heads share one key/value head
 *
 * Decoding splits one query over chunks of keys, whose partial results are merged; prefill splits over tiles of queries.
 * A row's result depends neither on the rest of the batch nor on how its sequence is cut into spans, but the two differ
 * in their last bits: see cpu_backend.py for which rows take which.
 */
#include <stdlib.h>

#include "cpu_math.h"

#if defined(__AVX512F__)
enum { LANES = 16, STRIP = 4 };
#elif defined(__AVX__)
enum { LANES = 8, STRIP = 2 };
#else
enum { LANES = 4, STRIP = 2 };
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16)));

enum { CHUNK = 128, RUN = 2, AHEAD = 8, KEY_TILE = 64, ROW_TILE = 64, ROWS = 4, MAX_HEAD_DIM = 256, CACHE_LINE = 16 };

struct attention {
    const float *query, *keys, *values;
    float *output;
    /* Per span of a sequence: its first row, its rows, and the sequence's tokens up to its end. */
    const int32_t *first_rows, *query_lens, *seq_lens, *block_tables;
    int64_t num_seqs, table_width, block_size, num_heads, num_kv_heads, head_dim, max_query_len;
    int64_t window; /* 0: none */
    float scale, soft_cap; /* soft_cap 0: none */
};

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

/* Where the rows of keys first .. first + count - 1 start, in floats from the cache's start, for one key/value head. */
static inline void locate(
    const struct attention *a, int64_t seq, int64_t kv_head, int64_t first, int64_t count, int64_t *rows) {
    const int32_t *table = a->block_tables + seq * a->table_width;
    int64_t block = first / a->block_size, offset = first % a->block_size;
    for (int64_t i = 0; i < count; i++) {
        rows[i] = ((table[block] * a->block_size + offset) * a->num_kv_heads + kv_head) * a->head_dim;
        if (++offset == a->block_size) offset = 0, block++;
    }
}

static inline void cap_scores(float *scores, int64_t count, float cap) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const float twice = exp_f32(scores[i] * (2.0f / cap)); /* tanh(x) = 1 - 2 / (exp(2 x) + 1) */
        scores[i] = cap - 2.0f * cap / (twice + 1.0f);
    }
}

/* Turn scores into exp(score - max) in place; return their sum. A NaN among the scores makes it NaN. */
static inline float exponentiate(float *scores, int64_t count, float max) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        scores[i] = exp_f32(scores[i] - max);
        sum += scores[i];
    }
    return sum;
}

static inline float largest(const float *scores, int64_t count, float max) {
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < count; i++) max = scores[i] > max ? scores[i] : max;
    return max;
}

/* out[row] += sum over i < count of left[row][i] * right[offsets[i]], `rows` rows of `strip` vectors kept in registers:
 * both are constants at every call. */
static inline __attribute__((always_inline)) void multiply(
    const int rows, const int strip, float *out, int64_t out_stride, const float *left, int64_t left_stride,
    int64_t count, const float *right, const int64_t *offsets) {
    vec sums[ROWS][STRIP];
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int s = 0; s < strip; s++) sums[row][s] = *(const vec *)(out + row * out_stride + s * LANES);
    for (int64_t i = 0; i < count; i++) {
#pragma GCC unroll 4
        for (int s = 0; s < strip; s++) {
            const vec column = *(const vec *)(right + offsets[i] + s * LANES);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) sums[row][s] += left[row * left_stride + i] * column;
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int s = 0; s < strip; s++) *(vec *)(out + row * out_stride + s * LANES) = sums[row][s];
}

/* sums[row] += weights[row] x the values at `offsets`, all of head_dim. */
static inline __attribute__((always_inline)) void add_values(
    const struct attention *a, const int rows, float *sums, int64_t sums_stride, const float *weights,
    int64_t weights_stride, int64_t count, const float *values, const int64_t *offsets) {
    int64_t d = 0;
    for (; d + STRIP * LANES <= a->head_dim; d += STRIP * LANES)
        multiply(rows, STRIP, sums + d, sums_stride, weights, weights_stride, count, values + d, offsets);
    for (; d < a->head_dim; d += LANES)
        multiply(rows, 1, sums + d, sums_stride, weights, weights_stride, count, values + d, offsets);
}

/* ---- one query per sequence ---- */

/* The chunks of all sequences in one row: those of sequence s are starts[s] .. starts[s + 1] - 1, and owners
 * says for each whose it is. A chunk's partial result is, for every query head, its unnormalised output [head_dim], then
 * its maximum and its sum. */
struct chunks {
    int64_t *starts, *owners;
    float *partials;
};

static inline int64_t first_chunk(const struct attention *a, int64_t seq) {
    return a->window > 0 ? max_of(0, a->seq_lens[seq] - a->window) / CHUNK : 0;
}

static inline float *partial_of(const struct attention *a, const struct chunks *chunks, int64_t index, int64_t head) {
    return chunks->partials + (index * a->num_heads + head) * (a->head_dim + 2);
}

static int list_chunks(const struct attention *a, struct chunks *chunks) {
    chunks->starts = malloc((size_t)(a->num_seqs + 1) * sizeof(int64_t));
    if (!chunks->starts) return -1;
    chunks->starts[0] = 0;
    for (int64_t s = 0; s < a->num_seqs; s++) {
        const int64_t end = (a->seq_lens[s] + CHUNK - 1) / CHUNK;
        chunks->starts[s + 1] = chunks->starts[s] + end - first_chunk(a, s);
    }
    const int64_t total = chunks->starts[a->num_seqs];
    chunks->owners = malloc((size_t)total * sizeof(int64_t));
    chunks->partials = malloc((size_t)(total * a->num_heads * (a->head_dim + 2)) * sizeof(float));
    if (!chunks->owners || !chunks->partials) return -1;
    for (int64_t s = 0; s < a->num_seqs; s++)
        for (int64_t i = chunks->starts[s]; i < chunks->starts[s + 1]; i++) chunks->owners[i] = s;
    return 0;
}

static inline float sum_of(vec lanes) {
    quarter parts[LANES / 4];
    memcpy(parts, &lanes, sizeof lanes);
#pragma GCC unroll 4
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

/* scores[head][i] = scale * query[head] . key i, for `heads` query heads that share a key head. */
static inline __attribute__((always_inline)) void dot_keys(
    const struct attention *a, const int heads, const float *query, const float *keys, const int64_t *offsets,
    int64_t count, float *scores) {
    for (int64_t i = 0; i < count; i++) {
        vec sums[ROWS] = {0};
        for (int64_t d = 0; d < a->head_dim; d += LANES) {
            const vec key = *(const vec *)(keys + offsets[i] + d);
#pragma GCC unroll 4
            for (int head = 0; head < heads; head++) sums[head] += *(const vec *)(query + head * a->head_dim + d) * key;
        }
#pragma GCC unroll 4
        for (int head = 0; head < heads; head++) scores[head * CHUNK + i] = sum_of(sums[head]) * a->scale;
    }
}

/* Run `call` with `heads` a constant of 1 to ROWS, for the compiler to keep that many rows in registers. */
#define WITH_HEADS(number, call)                             \
    switch (number) {                                        \
        case 1: { enum { heads = 1 }; call; break; }         \
        case 2: { enum { heads = 2 }; call; break; }         \
        case 3: { enum { heads = 3 }; call; break; }         \
        default: { enum { heads = ROWS }; call; }            \
    }

/* Ask for the rows from first on of a run of tokens, all key/value heads of each, in the order of memory. A plain
 * sequence of addresses is what gets memory's full speed; the order of computation, head by head, gets half of it. */
static inline void prefetch(const float *base, const int64_t *offsets, int64_t first, int64_t count, int64_t size) {
    for (int64_t i = first; i < min_of(first + RUN, count); i++)
        for (int64_t d = 0; d < size; d += CACHE_LINE) __builtin_prefetch(base + offsets[i] + d, 0, 1);
}

/* A chunk of one sequence's keys for all query heads, RUN keys at a time while those AHEAD are being fetched. */
static void decode_chunk(const struct attention *a, int64_t seq, int64_t chunk, float *partial) {
    const int64_t seq_len = a->seq_lens[seq], dim = a->head_dim, group = a->num_heads / a->num_kv_heads;
    const int64_t start = a->window > 0 ? max_of(0, seq_len - a->window) : 0, row_size = a->num_kv_heads * dim;
    const int64_t first = max_of(chunk * CHUNK, start), count = min_of((chunk + 1) * CHUNK, seq_len) - first;
    const float *query = a->query + a->first_rows[seq] * a->num_heads * dim;
    float scores[a->num_heads * CHUNK];
    int64_t offsets[CHUNK];
    locate(a, seq, 0, first, count, offsets);
    for (int64_t i = 0; i < count; i += RUN) {
        const int64_t run = min_of(RUN, count - i), ahead = i + AHEAD;
        if (ahead < count) prefetch(a->keys, offsets, ahead, count, row_size);
        else prefetch(a->values, offsets, ahead - count, count, row_size);
        for (int64_t head = 0, step; head < a->num_heads; head += step) {
            step = min_of(ROWS, group - head % group);
            WITH_HEADS(step, dot_keys(a, heads, query + head * dim, a->keys + head / group * dim, offsets + i, run,
                                      scores + head * CHUNK + i));
        }
    }
    for (int64_t head = 0; head < a->num_heads; head++) {
        float *head_scores = scores + head * CHUNK, *result = partial + head * (dim + 2);
        if (a->soft_cap > 0) cap_scores(head_scores, count, a->soft_cap);
        memset(result, 0, (size_t)dim * sizeof(float));
        result[dim] = largest(head_scores, count, -INFINITY);
        result[dim + 1] = exponentiate(head_scores, count, result[dim]);
    }
    for (int64_t i = 0; i < count; i += RUN) {
        const int64_t run = min_of(RUN, count - i);
        prefetch(a->values, offsets, i + AHEAD, count, row_size);
        for (int64_t head = 0, step; head < a->num_heads; head += step) {
            step = min_of(ROWS, group - head % group);
            WITH_HEADS(step, add_values(a, heads, partial + head * (dim + 2), dim + 2, scores + head * CHUNK + i, CHUNK,
                                        run, a->values + head / group * dim, offsets + i));
        }
    }
}

static void merge_chunks(const struct attention *a, const struct chunks *chunks, int64_t s, int64_t head) {
    const int64_t begin = chunks->starts[s], end = chunks->starts[s + 1], dim = a->head_dim;
    float max = -INFINITY, total = 0, sum[MAX_HEAD_DIM] = {0};
    for (int64_t i = begin; i < end; i++) max = fmaxf(max, partial_of(a, chunks, i, head)[dim]);
    for (int64_t i = begin; i < end; i++) {
        const float *partial = partial_of(a, chunks, i, head);
        const float weight = exp_f32(partial[dim] - max);
        total += weight * partial[dim + 1];
        for (int64_t d = 0; d < dim; d++) sum[d] += weight * partial[d];
    }
    float *out = a->output + (a->first_rows[s] * a->num_heads + head) * dim;
    for (int64_t d = 0; d < dim; d++) out[d] = sum[d] / total;
}

/* All sequences, each computing one token. Returns -1 if there is no memory. */
int pagewire_attention_decode(const struct attention *a) {
    struct chunks chunks = {0};
    const int status = list_chunks(a, &chunks);
    if (status == 0) {
#pragma omp parallel
        {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < chunks.starts[a->num_seqs]; i++) {
                const int64_t s = chunks.owners[i];
                decode_chunk(a, s, first_chunk(a, s) + i - chunks.starts[s], partial_of(a, &chunks, i, 0));
            }
#pragma omp for collapse(2) schedule(static)
            for (int64_t s = 0; s < a->num_seqs; s++)
                for (int64_t head = 0; head < a->num_heads; head++) merge_chunks(a, &chunks, s, head);
        }
    }
    free(chunks.starts);
    free(chunks.owners);
    free(chunks.partials);
    return status;
}

/* ---- several queries per sequence ----
 *
 * The rows of a tile are the (query, head of the group) pairs of one key/value head, so that a tile of keys, transposed
 * once, serves them all. Source: Dao, "FlashAttention-2" (2023), algorithm 1. */

struct tile {
    float query[ROW_TILE][MAX_HEAD_DIM], sum[ROW_TILE][MAX_HEAD_DIM];
    float keys[MAX_HEAD_DIM][KEY_TILE], scores[ROW_TILE][KEY_TILE];
    float max[ROW_TILE], total[ROW_TILE];
    int64_t positions[ROW_TILE], key_rows[KEY_TILE], key_columns[MAX_HEAD_DIM];
};

static void score_tile(const struct attention *a, struct tile *t, int64_t num_rows, int64_t num_keys) {
    for (int64_t i = 0; i < num_keys; i++)
        for (int64_t d = 0; d < a->head_dim; d++) t->keys[d][i] = a->keys[t->key_rows[i] + d];
    memset(t->scores, 0, (size_t)num_rows * sizeof t->scores[0]);
    for (int64_t row = 0; row < num_rows; row += ROWS)
        for (int64_t i = 0; i < KEY_TILE; i += STRIP * LANES)
            multiply(ROWS, STRIP, &t->scores[row][i], KEY_TILE, t->query[row], MAX_HEAD_DIM, a->head_dim,
                     &t->keys[0][i], t->key_columns);
}

/* Mask the scores of keys first_key ..., and fold them into each row's running maximum and sum. */
static void soften_tile(
    const struct attention *a, struct tile *t, int64_t num_rows, int64_t first_key, int64_t num_keys) {
    for (int64_t row = 0; row < num_rows; row++) {
        float *scores = t->scores[row];
        const int64_t end = min_of(num_keys, t->positions[row] + 1 - first_key);
        const int64_t start = a->window > 0 ? max_of(0, t->positions[row] + 1 - a->window - first_key) : 0;
        const int64_t count = max_of(0, end - start);
        if (a->soft_cap > 0) cap_scores(scores + start, count, a->soft_cap);
        const float max = largest(scores + start, count, t->max[row]);
        const float shrink = t->max[row] == max ? 1.0f : exp_f32(t->max[row] - max);
        const float total = exponentiate(scores + start, count, max);
        for (int64_t i = 0; i < KEY_TILE; i++)
            if (i < start || i >= end) scores[i] = 0;
        t->total[row] = t->total[row] * shrink + total;
        t->max[row] = max;
        for (int64_t d = 0; shrink != 1.0f && d < a->head_dim; d++) t->sum[row][d] *= shrink;
    }
}

/* Rows first_row .. of one sequence and key/value head; row r is query r / group, head r % group of the group. */
static void prefill_tile(const struct attention *a, int64_t seq, int64_t kv_head, int64_t first_row, struct tile *t) {
    const int64_t group = a->num_heads / a->num_kv_heads, dim = a->head_dim;
    const int64_t start = a->first_rows[seq], num_queries = a->query_lens[seq];
    const int64_t num_rows = min_of(ROW_TILE, num_queries * group - first_row);
    const int64_t padded_rows = (num_rows + ROWS - 1) / ROWS * ROWS;
    if (num_rows <= 0) return;
    for (int64_t row = 0; row < padded_rows; row++) {
        const int64_t source = min_of(first_row + row, num_queries * group - 1);
        const float *query = a->query + ((start + source / group) * a->num_heads + kv_head * group + source % group) * dim;
        for (int64_t d = 0; d < dim; d++) t->query[row][d] = query[d] * a->scale;
        memset(t->sum[row], 0, (size_t)dim * sizeof(float));
        t->positions[row] = a->seq_lens[seq] - num_queries + source / group;
        t->max[row] = -INFINITY;
        t->total[row] = 0;
    }
    const int64_t end = t->positions[num_rows - 1] + 1;
    /* Tiles of keys begin at the same places for every row, whatever tile of queries it is in. */
    int64_t first_key = a->window > 0 ? max_of(0, t->positions[0] + 1 - a->window) / KEY_TILE * KEY_TILE : 0;
    for (; first_key < end; first_key += KEY_TILE) {
        const int64_t num_keys = min_of(KEY_TILE, end - first_key);
        locate(a, seq, kv_head, first_key, num_keys, t->key_rows);
        score_tile(a, t, padded_rows, num_keys);
        soften_tile(a, t, padded_rows, first_key, num_keys);
        for (int64_t row = 0; row < padded_rows; row += ROWS)
            add_values(a, ROWS, t->sum[row], MAX_HEAD_DIM, t->scores[row], KEY_TILE, num_keys, a->values, t->key_rows);
    }
    for (int64_t row = 0; row < num_rows; row++) {
        const int64_t source = first_row + row;
        float *out = a->output + ((start + source / group) * a->num_heads + kv_head * group + source % group) * dim;
        for (int64_t d = 0; d < dim; d++) out[d] = t->sum[row][d] / t->total[row];
    }
}

/* All sequences, each computing any number of tokens. The last tiles, which see most
 * keys, start first. head_dim must be a multiple of 16 and at most MAX_HEAD_DIM. */
void pagewire_attention_prefill(const struct attention *a) {
    const int64_t most_rows = a->max_query_len * (a->num_heads / a->num_kv_heads);
    const int64_t num_tiles = (most_rows + ROW_TILE - 1) / ROW_TILE;
#pragma omp parallel
    {
        struct tile tile;
        for (int64_t d = 0; d < MAX_HEAD_DIM; d++) tile.key_columns[d] = d * KEY_TILE;
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t seq = 0; seq < a->num_seqs; seq++)
            for (int64_t i = num_tiles - 1; i >= 0; i--)
                for (int64_t kv_head = 0; kv_head < a->num_kv_heads; kv_head++)
                    prefill_tile(a, seq, kv_head, i * ROW_TILE, &tile);
    }
}
