/* Linear layers on a CPU: float32 activations times weights in float32 or float16, with float32 sums.
 *
 * A weight [out_features, in_features] lies in panels of PANEL output features, the last one filled up with zeros:
 *
 *   weight   [num_panels, in_features, PANEL]
 *
 * so that a product streams through it once, in the order of memory. Every output is one running sum over in_features in
 * order, whatever the number of rows: a row's result does not depend on its batch.
 */
#include <stdlib.h>

#include "cpu_math.h"
#ifdef __F16C__
#include <immintrin.h>
#endif

/* TILE rows x PANEL columns of sums fill the registers. */
#if defined(__AVX512F__)
enum { LANES = 16, TILE = 8 };
#elif defined(__AVX__)
enum { LANES = 8, TILE = 6 };
#else
enum { LANES = 4, TILE = 6 };
#endif
enum { PANEL = 2 * LANES, BLOCK_ROWS = 256, WIDEN_FROM = 64, PREFETCH_BYTES = 2048, PARALLEL_FROM = 65536 };
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

struct linear {
    const float *x, *bias; /* [rows, in_features]; [out_features] or NULL */
    const void *weight;
    float *out; /* [rows, out_features] */
    int64_t rows, in_features, out_features, is_half;
};

/* PANEL, for who lays out weights. */
int64_t pagewire_linear_panel(void) { return PANEL; }

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

static inline vec widen(const uint16_t *half) {
#if defined(__F16C__) && defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)half));
#elif defined(__F16C__) && defined(__AVX__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const void *)half));
#else
    float wide[LANES];
    for (int i = 0; i < LANES; i++) {
        const float size = float_of((half[i] & 0x7fff) << 13) * 0x1p112f;
        wide[i] = half[i] & 0x8000 ? -size : size;
    }
    vec result;
    memcpy(&result, wide, sizeof result);
    return result;
#endif
}

static inline __attribute__((always_inline)) vec load_weight(const int is_half, const void *panel, int64_t index) {
    return is_half ? widen((const uint16_t *)panel + index) : *(const vec *)((const float *)panel + index);
}

/* `rows` rows of x times one panel; rows and is_half are constants at every call. */
static inline __attribute__((always_inline)) void multiply_tile(
    const int rows, const int is_half, const struct linear *a, const float *x, const void *panel, int64_t column,
    float *out) {
    const int64_t step_bytes = PANEL * (is_half ? 2 : 4), in_features = a->in_features;
    float filled[PANEL] = {0};
    const float *start = filled;
    const int64_t columns = min_of(PANEL, a->out_features - column);
    if (a->bias && columns == PANEL) start = a->bias + column;
    else if (a->bias) memcpy(filled, a->bias + column, (size_t)columns * sizeof(float));
    vec sums[TILE][2];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) sums[row][half] = *(const vec *)(start + half * LANES);
    for (int64_t k = 0; k < in_features; k++) {
        /* Steps of two cache lines are fast enough without. */
        if (step_bytes <= 64) __builtin_prefetch((const char *)panel + k * step_bytes + PREFETCH_BYTES);
        const vec left = load_weight(is_half, panel, k * PANEL), right = load_weight(is_half, panel, k * PANEL + LANES);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            sums[row][0] += x[row * in_features + k] * left;
            sums[row][1] += x[row * in_features + k] * right;
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) memcpy(out + row * a->out_features, sums[row], (size_t)columns * sizeof(float));
}

#define TILE_CASE(rows) \
    case rows: multiply_tile(rows, is_half, a, x, panel, column, out); break;

/* Rows first .. first + rows - 1 times one panel, in tiles of about the same height. */
static inline __attribute__((always_inline)) void multiply_panel(
    const int is_half, const struct linear *a, const void *panel, int64_t column, int64_t first, int64_t rows) {
    for (int64_t tiles = (rows + TILE - 1) / TILE; tiles > 0; tiles--) {
        const int64_t height = (rows + tiles - 1) / tiles;
        const float *x = a->x + first * a->in_features;
        float *out = a->out + first * a->out_features + column;
        switch (height) {
            TILE_CASE(1)
            TILE_CASE(2)
            TILE_CASE(3)
            TILE_CASE(4)
            TILE_CASE(5)
            TILE_CASE(6)
            TILE_CASE(7)
            TILE_CASE(8)
        }
        first += height;
        rows -= height;
    }
}

/* out = x weight^T + bias. Many rows go in blocks that stay in the cache; for them a panel is widened once. */
void pagewire_linear(const struct linear *a) {
    const int64_t num_panels = (a->out_features + PANEL - 1) / PANEL, size = a->in_features * PANEL;
#pragma omp parallel if (a->rows * a->in_features * a->out_features >= PARALLEL_FROM)
    {
        float *wide = a->is_half && a->rows >= WIDEN_FROM ? malloc((size_t)size * sizeof(float)) : NULL;
        for (int64_t first = 0; first < a->rows; first += BLOCK_ROWS) {
            const int64_t rows = min_of(BLOCK_ROWS, a->rows - first);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < num_panels; p++) {
                const float *panel = (const float *)a->weight + p * size;
                const uint16_t *half = (const uint16_t *)a->weight + p * size;
                if (wide) {
                    for (int64_t i = 0; i < size; i += LANES) *(vec *)(wide + i) = widen(half + i);
                    multiply_panel(0, a, wide, p * PANEL, first, rows);
                } else if (a->is_half) {
                    multiply_panel(1, a, half, p * PANEL, first, rows);
                } else {
                    multiply_panel(0, a, panel, p * PANEL, first, rows);
                }
            }
        }
        free(wide);
    }
}
