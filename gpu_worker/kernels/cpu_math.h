/* Exponential and logarithm that the compiler turns into vector code, good to about 1e-7 relative.
 *
 * Branches are written as selections and no flag of the -ffast-math family is needed, so a NaN that goes in comes out.
 */
#ifndef PAGEWIRE_CPU_MATH_H
#define PAGEWIRE_CPU_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float float_of(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* exp(x), x clamped to [-87, 88]: x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of exp(r). */
static inline float exp_f32(float x) {
    const float ln2_high = 0.693145751953125f, ln2_low = 1.428606765330187e-06f;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = floorf(x * 1.44269504088896f + 0.5f);
    const float r = (x - n * ln2_high) - n * ln2_low;
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * float_of(((int32_t)n + 127) << 23);
}

/* log(x) for normal x > 0: x = 2^e m with m in [1/sqrt 2, sqrt 2), then log m = 2 atanh(s), s = (m - 1) / (m + 1). */
static inline float log_f32(float x) {
    const int32_t half_root = 0x3f3504f3;
    const int32_t exponent = (bits_of(x) - half_root) >> 23;
    const float m = float_of(bits_of(x) - (int32_t)((uint32_t)exponent << 23));
    const float s = (m - 1.0f) / (m + 1.0f);
    const float z = s * s;
    float sum = 2.0f / 9;
    sum = sum * z + 2.0f / 7;
    sum = sum * z + 2.0f / 5;
    sum = sum * z + 2.0f / 3;
    sum = sum * z + 2.0f;
    return (float)exponent * 0.693147180559945f + s * sum;
}

#endif
