/* Vectors of tokens: what differs between instruction sets, and functions of a vector. */

#include <math.h>
#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16  /* floats in a register */
#define VECTORS 4 /* registers of tokens that are summed at once; even */
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define VECTORS 2
#else
#define LANES 4
#define VECTORS 4
#endif

#define TILE 64 /* tokens in a row of a tile */
#define EACH(i, count) for (int i = 0; i < (count); i++)
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

enum activation { NONE, RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

/* ---- instruction sets ---- */

INLINE floats all(float x) { return x - (floats){}; }

/* larger, smaller: the second if either is NaN. reciprocal: of a finite x, relative error 2e-7.
   rounded: to the nearest integer, if |x| < 2^22. scaled: 2^k * x for an integral k < 128; below -126 it may be
   2^-126 * x. */
#if defined(__AVX512F__)
INLINE floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE floats smaller(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE floats rounded(floats x) { return (floats)_mm512_roundscale_ps((__m512)x, 8); }
INLINE floats scaled(floats x, floats k) { return (floats)_mm512_scalef_ps((__m512)x, (__m512)k); }
INLINE floats reciprocal(floats x) {
    floats r = (floats)_mm512_rcp14_ps((__m512)x);
    return r * (2.f - x * r); /* a step of Newton's method doubles the 14 bits */
}
#else
#if defined(__AVX2__)
INLINE floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE floats smaller(floats a, floats b) { return (floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE floats larger(floats a, floats b) { return (floats)(((a > b) & (ints)a) | (~(a > b) & (ints)b)); }
INLINE floats smaller(floats a, floats b) { return (floats)(((a < b) & (ints)a) | (~(a < b) & (ints)b)); }
#endif
INLINE floats rounded(floats x) { return (x + 12582912.f) - 12582912.f; }
INLINE floats scaled(floats x, floats k) {
    return (floats)((ints)x + (__builtin_convertvector(larger(all(-126.f), k), ints) << 23));
}
INLINE floats reciprocal(floats x) { return 1.f / x; }
#endif

/* bfloat16. in_order: 2 vectors of tokens as one row. narrow: in the order in which `unpack2` gives them back.
   pair: a[i] in the lower half of 32 bits, b[i] in the upper. unpack2: pairs of two rows, 2 vectors.
   dot2: adds the products of pairs. */
#if defined(__AVX512BF16__)
#define HAS_BFLOAT16 1
INLINE ints in_order(floats a, floats b) { return (ints)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }
INLINE ints narrow(floats a, floats b) {
    return (ints)_mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), (__m512i)in_order(a, b));
}
INLINE ints pair(floats a, floats b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (ints)_mm512_permutexvar_epi16(order, (__m512i)in_order(a, b));
}
INLINE void unpack2(const char *a, const char *b, ints *v) {
    __m512i x = _mm512_load_si512(a), y = _mm512_load_si512(b);
    v[0] = (ints)_mm512_unpacklo_epi16(x, y);
    v[1] = (ints)_mm512_unpackhi_epi16(x, y);
}
INLINE floats dot2(floats sum, ints x, int32_t w) {
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(w));
}
#else /* never executed */
#define HAS_BFLOAT16 0
#define in_order(a, b) ((ints)((a) + (b)))
#define narrow(a, b) ((ints)((a) + (b)))
#define pair(a, b) ((ints)((a) + (b)))
#define unpack2(a, b, v) (*(v) = *(const ints *)(a))
#define dot2(sum, x, w) (sum)
#endif

/* int8. to_bytes: 4 vectors of tokens as one row. unpack4: fours of four rows, 4 vectors.
   dot4: adds the products of fours, x unsigned. */
#if defined(__AVX512VNNI__)
#define HAS_INT8 1
INLINE ints to_bytes(const floats *x) {
    __m512i v[4];
    EACH(j, 4) v[j] = _mm512_cvtps_epi32((__m512)x[j]);
    return (ints)_mm512_packus_epi16(_mm512_packus_epi32(v[0], v[1]), _mm512_packus_epi32(v[2], v[3]));
}
INLINE void unpack4(const char *x, const uint16_t *column, ints *v) {
    __m512i a = _mm512_load_si512(x + TILE * column[0]), b = _mm512_load_si512(x + TILE * column[1]);
    __m512i c = _mm512_load_si512(x + TILE * column[2]), d = _mm512_load_si512(x + TILE * column[3]);
    __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    v[0] = (ints)_mm512_unpacklo_epi16(ab, cd), v[1] = (ints)_mm512_unpackhi_epi16(ab, cd);
    v[2] = (ints)_mm512_unpacklo_epi16(AB, CD), v[3] = (ints)_mm512_unpackhi_epi16(AB, CD);
}
INLINE ints dot4(ints sum, ints x, int32_t w) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, _mm512_set1_epi32(w));
}
#else /* never executed */
#define HAS_INT8 0
#define to_bytes(x) ((ints)*(x))
#define unpack4(x, column, v) (*(v) = *(const ints *)((x) + *(column)))
#define dot4(sum, x, w) (sum)
#endif

/* ---- functions of a vector ---- */

/* A polynomial of n coefficients, that of the highest power first. */
INLINE floats polynomial(floats x, const float *c, const int n) {
    floats p = all(c[0]);
    for (int i = 1; i < n; i++) p = p * x + c[i];
    return p;
}

INLINE floats magnitude(floats x) { return (floats)((ints)x & 0x7fffffff); }

INLINE floats root(floats x) {
    EACH(i, LANES) x[i] = sqrtf(x[i]);
    return x;
}

/* e^x; relative error 1e-7. Below -87 it is e^-87. Coefficients: Cephes expf. */
INLINE floats exponential(floats x) {
    x = smaller(all(88.f), larger(all(-87.f), x));
    floats k = rounded(x * 1.44269504f);
    floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    const float c[] = {1.9875691e-4f, 1.3981999e-3f, 8.3334519e-3f, 4.1665795e-2f, 1.6666665e-1f, 0.5f};
    floats p = polynomial(r, c, 6);
    return scaled(p * (r * r) + (r + 1.f), k);
}

/* 2^x for a finite x < 128; relative error 4e-5, below the resolution of bfloat16. Below -126 it is at most 2^-126. */
INLINE floats power_of_2(floats x) {
    floats k = rounded(x), r = x - k;
    const float c[] = {0.0096181f, 0.0555041f, 0.2402265f, 0.6931472f, 1.f};
    return scaled(polynomial(r, c, 5), k);
}

/* x * Phi(x), with erfc after Abramowitz and Stegun 7.1.26; absolute error 2e-7. */
INLINE floats gelu(floats x) {
    floats z = magnitude(x) * 0.70710678f, t = reciprocal(z * 0.3275911f + 1.f);
    const float c[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    floats tail = 0.5f * x * (polynomial(t, c, 5) * t * exponential(-(z * z))); /* x / 2 * erfc(|x| / sqrt 2) */
    return larger(all(0.f), x) - magnitude(tail);
}

/* x * Phi(x) as x / (1 + 2^u(x)) with a fitted u; absolute error 3e-5 for x > -100, below the resolution of bfloat16
   and int8. */
INLINE floats gelu_fast(floats x) {
    floats c = smaller(all(5.f), larger(all(-5.f), x)), q = c * c;
    const float u[] = {1.0279589e-3f, -0.10685993f, -2.3010292f};
    return x * reciprocal(1.f + power_of_2(polynomial(q, u, 3) * c));
}

INLINE floats sigmoid_times(floats x, floats z) { return x / (1.f + exponential(-z)); }

INLINE floats activate(floats x, enum activation kind, int exact) {
    switch (kind) {
    case RELU: return larger(all(0.f), x);
    case GELU: return exact ? gelu(x) : gelu_fast(x);
    case GELU_TANH: return sigmoid_times(x, x * (x * x * 0.0713548163f + 1.5957691216f));
    case QUICK_GELU: return sigmoid_times(x, x * 1.702f);
    case SILU: return sigmoid_times(x, x);
    default: return x;
    }
}
