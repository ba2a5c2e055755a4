/* A post-layer-norm Transformer encoder (BERT) whose weights are sparse in 4x1 blocks.

   Layout, explained once
   - Tokens are processed in tiles of up to 64. A tile stores its features as rows of 64 tokens: x[feature][64].
     So one input feature of 64 tokens is 256 consecutive bytes (float32), and the weights need no gather.
   - A block of weights is 4 consecutive rows (output features) of one column (input feature). All blocks of the same
     4 rows form a block row. Its products are summed in registers: 4 rows x 64 tokens (AVX-512), 4 x 16 (AVX2, NEON).
   - The blocks of a block row are stored in groups of 16 bytes, so that one group is one step of the inner loop:
     float32: 1 column x 4 rows; bfloat16: [4 rows][2 columns]; int8: [4 rows][4 columns]. Which columns stand in a
     group is free: the instructions that multiply pairs (vdpbf16ps) or fours (vpdpbusd) take any two or four rows of x.
     A group that is not full has columns of weight zero.
   - bfloat16 and int8 rows of x are stored in the order in which `unpack` instructions give tokens back in order.

   Precision: float32 everywhere; or bfloat16 products with float32 sums, if the CPU has vdpbf16ps; or int8 products with
   int32 sums, if it has vpdpbusd: weights symmetric for each row, activations unsigned, asymmetric, for each token.
   Softmax, layer norm and residuals are float32 always. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16  /* floats in a register */
#define VECTORS 4 /* registers of tokens that are summed at once */
#elif defined(__AVX2__)
#define LANES 8
#define VECTORS 2
#else
#define LANES 4
#define VECTORS 4
#endif

#define TILE 64 /* tokens in a row of a tile */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

enum precision { FLOAT32, BFLOAT16, INT8 };
enum activation { NONE, RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

/* How a linear layer stores its output, a tile. */
enum form {
    STORE,    /* float32 rows */
    MEASURE,  /* float32 rows, and each token's range */
    ADD,      /* float32 rows, added to what is there */
    NARROW,   /* bfloat16 rows, as the next linear layer reads them */
    PAIRS,    /* bfloat16, two features of a token in 32 bits: queries and keys */
    IN_ORDER, /* bfloat16 rows, tokens in order: values */
};

struct linear {
    int32_t precision, rows, columns; /* rows: a multiple of 4 */
    const int32_t *start;             /* [rows / 4 + 1] first group of a block row */
    const uint16_t *column;           /* [groups][1, 2 or 4], and 64 more that prefetching may read */
    const void *value;                /* [groups][16 bytes] */
    const float *bias;                /* [rows] */
    const float *scale;               /* int8: [rows] weight = scale * stored value */
    const float *sum;                 /* int8: [rows] sum of the row's weights */
};

struct layer {
    struct linear query, key, value, output, up, down;
    const float *attention_weight, *attention_bias; /* layer norm after attention */
    const float *ffn_weight, *ffn_bias;             /* layer norm after the feed-forward network */
};

struct encoder {
    int32_t layers, hidden, ffn, heads, head_size, activation; /* head_size: a multiple of 4 */
    float epsilon, scale;                                      /* of layer norms; of attention scores */
    const struct layer *layer;
};

struct batch {
    int32_t sequences, threads;
    const int32_t *tokens; /* [sequences] tokens to compute */
    const int32_t *keys;   /* [sequences] the first so many of them are attended to */
    const int32_t *source; /* [all tokens] row in `in` and `out` of each token, sequence by sequence */
    const float *in;
    float *out; /* [rows][hidden] */
};

/* ---- vectors ---- */

INLINE floats all(float x) { return x - (floats){}; }
INLINE floats load(const float *p) { return *(const floats *)p; }
INLINE void store(float *p, floats x) { *(floats *)p = x; }
INLINE ints bits(floats x) { return (ints)x; }

/* The larger or smaller of two; the second if either is NaN. */
#if defined(__AVX512F__)
INLINE floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE floats smaller(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE floats smaller(floats a, floats b) { return (floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE floats choose(ints mask, floats a, floats b) { return (floats)((mask & bits(a)) | (~mask & bits(b))); }
INLINE floats larger(floats a, floats b) { return choose(a > b, a, b); }
INLINE floats smaller(floats a, floats b) { return choose(a < b, a, b); }
#endif

INLINE floats magnitude(floats x) { return (floats)(bits(x) & 0x7fffffff); }

/* To the nearest integer, if |x| < 2^22. */
INLINE floats rounded(floats x) { return (x + 12582912.f) - 12582912.f; }

/* 2^k * x for an integral k that does not overflow. */
INLINE floats scaled(floats x, floats k) { return (floats)(bits(x) + (__builtin_convertvector(k, ints) << 23)); }

INLINE floats root(floats x) {
    for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
    return x;
}

/* e^x; relative error 1e-7. Below -87 it is e^-87. Coefficients: Cephes expf. */
INLINE floats exponential(floats x) {
    x = smaller(all(88.f), larger(all(-87.f), x));
    floats k = rounded(x * 1.44269504f);
    floats r = x - k * 0.693359375f + k * 2.12194440e-4f;
    floats p = 1.9875691e-4f * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665795e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    return scaled(p * (r * r) + (r + 1.f), k);
}

/* 1 / x for a finite x; relative error 2e-7. */
INLINE floats reciprocal(floats x) {
#if defined(__AVX512F__)
    floats r = (floats)_mm512_rcp14_ps((__m512)x);
    return r * (2.f - x * r); /* a step of Newton's method doubles the 14 bits */
#else
    return 1.f / x;
#endif
}

/* 2^x for a finite x < 128; relative error 4e-5, below the resolution of bfloat16.
   Below -126 AVX-512 gives 0 or a denormal number, the others 2^-126. */
INLINE floats power_of_2(floats x) {
#if defined(__AVX512F__)
    floats k = (floats)_mm512_roundscale_ps((__m512)x, 8), r = x - k;
#else
    x = larger(all(-126.f), x);
    floats k = rounded(x), r = x - k;
#endif
    floats p = 0.0096181f * r + 0.0555041f;
    p = p * r + 0.2402265f;
    p = p * r + 0.6931472f;
    p = p * r + 1.f;
#if defined(__AVX512F__)
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
    return scaled(p, k);
#endif
}

INLINE floats sigmoid_times(floats x, floats z) { return x / (1.f + exponential(-z)); }

/* x * Phi(x), with erfc after Abramowitz and Stegun 7.1.26; absolute error 2e-7. */
INLINE floats gelu(floats x) {
    floats z = magnitude(x) * 0.70710678f, t = reciprocal(z * 0.3275911f + 1.f);
    floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    floats tail = 0.5f * x * (p * t * exponential(-(z * z))); /* x / 2 * erfc(|x| / sqrt 2) */
    return larger(all(0.f), x) - magnitude(tail);
}

/* x * Phi(x) as x / (1 + 2^u(x)) with a fitted u; absolute error 3e-5, below the resolution of bfloat16 and int8. */
INLINE floats gelu_fast(floats x) {
    floats c = smaller(all(5.f), larger(all(-5.f), x)), q = c * c;
    floats u = 1.0279589e-3f * q - 0.10685993f;
    u = u * q - 2.3010292f;
    return x * reciprocal(1.f + power_of_2(u * c));
}

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

/* ---- tiles ---- */

/* Copy the rows in[source[token]] into a tile, 16 features at a time: these stay in the L1 cache.
   Other tokens are zero. */
static void tile_in(const float *in, const int32_t *source, int tokens, int features, float *x) {
    memset(x, 0, sizeof(float) * features * TILE);
    for (int k = 0; k < features; k += 16)
        for (int t = 0; t < tokens; t++) {
            const float *row = in + (int64_t)source[t] * features;
            for (int i = k; i < k + 16 && i < features; i++) x[i * TILE + t] = row[i];
        }
}

static void tile_out(const float *x, const int32_t *source, int tokens, int features, float *out) {
    for (int k = 0; k < features; k += 16)
        for (int t = 0; t < tokens; t++) {
            float *row = out + (int64_t)source[t] * features;
            for (int i = k; i < k + 16 && i < features; i++) row[i] = x[i * TILE + t];
        }
}

/* ---- bfloat16 and int8 ---- */

#if defined(__AVX512BF16__)
/* 32 tokens as bfloat16 in order. */
INLINE __m512i in_order(floats a, floats b) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }

/* 32 tokens as bfloat16: `unpacklo` gives the first 16 back, `unpackhi` the others. */
INLINE __m512i narrow(floats a, floats b) {
    return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), in_order(a, b));
}

/* a[i] and b[i] as bfloat16 in 32 bits: a in the lower half. */
INLINE __m512i pair(floats a, floats b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, in_order(a, b));
}

INLINE floats dot2(floats sum, __m512i x, int32_t w) {
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(w));
}
#endif

struct quantized {
    _Alignas(64) float scale[TILE], zero[TILE]; /* of each token: x = scale * stored + zero */
    float low[TILE], high[TILE];                /* of the rows that are quantized next */
};

/* Begin the range of the tokens. */
static void forget(struct quantized *q) {
    for (int t = 0; t < TILE; t++) q->low[t] = INFINITY, q->high[t] = -INFINITY;
}

/* Widen the range of one vector of tokens by 4 rows, `step` vectors apart. A NaN in `low` stays: `smaller` returns it. */
INLINE void widen(struct quantized *q, int token, const floats *v, int step) {
    floats low = load(q->low + token), high = load(q->high + token), nan = all(0.f);
    for (int r = 0; r < 4; r++, v += step) low = smaller(*v, low), high = larger(*v, high), nan += *v * 0.f;
    store(q->low + token, low + nan), store(q->high + token, high);
}

#if defined(__AVX512VNNI__)
/* Store rows of a tile as unsigned bytes; a NaN makes its token's scale NaN. `measured`: their range is known. */
static void quantize(const float *x, int rows, int measured, struct quantized *q, uint8_t *out) {
    floats zero[4], factor[4];
    for (int j = 0; j < 4; j++) {
        floats low = load(q->low + 16 * j), high = load(q->high + 16 * j), nan = all(0.f);
        if (!measured) {
            low = all(INFINITY), high = all(-INFINITY);
            for (int k = 0; k < rows; k++) {
                floats v = load(x + k * TILE + 16 * j);
                low = smaller(v, low), high = larger(v, high), nan += v * 0.f;
            }
        }
        zero[j] = low + nan;
        floats scale = larger(all(1e-12f), (high - low) * (1.f / 255)) + (zero[j] - zero[j]);
        store(q->scale + 16 * j, scale), store(q->zero + 16 * j, zero[j]);
        factor[j] = 1.f / scale;
    }
    for (int k = 0; k < rows; k++) {
        __m512i v[4];
        for (int j = 0; j < 4; j++)
            v[j] = _mm512_cvtps_epi32((__m512)((load(x + k * TILE + 16 * j) - zero[j]) * factor[j]));
        __m512i low = _mm512_packus_epi32(v[0], v[1]), high = _mm512_packus_epi32(v[2], v[3]);
        _mm512_store_si512(out + k * TILE, _mm512_packus_epi16(low, high));
    }
}
#endif

/* Bring rows of a float32 tile into the form that a linear layer of this precision reads. */
static const void *prepare(enum precision precision, const float *x, int rows, int measured, struct quantized *q,
                           void *buffer) {
    (void)precision, (void)rows, (void)measured, (void)q, (void)buffer;
#if defined(__AVX512BF16__)
    if (precision == BFLOAT16) {
        __m512i *out = buffer;
        for (int k = 0; k < rows; k++, x += TILE, out += 2)
            for (int j = 0; j < 2; j++) out[j] = narrow(load(x + 32 * j), load(x + 32 * j + 16));
        return buffer;
    }
#endif
#if defined(__AVX512VNNI__)
    if (precision == INT8) {
        quantize(x, rows, measured, q, buffer);
        return buffer;
    }
#endif
    return x;
}

/* ---- sparse linear layer ---- */

struct sums {
    floats v[4][VECTORS]; /* of 4 rows and n <= VECTORS vectors of tokens */
};

INLINE void fetch(const void *p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i);
}

INLINE void multiply_float32(const struct linear *w, int block, const float *x, const int n, struct sums *s) {
    const float *value = (const float *)w->value + 4 * (int64_t)w->start[block];
    const uint16_t *column = w->column + w->start[block], *end = w->column + w->start[block + 1];
    for (; column < end; column++, value += 4) {
        const float *row = x + TILE * column[0];
        fetch(x + TILE * column[4], 4 * LANES * n);
        fetch(value + 64, 1);
        for (int j = 0; j < n; j++) {
            floats v = load(row + LANES * j);
            for (int r = 0; r < 4; r++) s->v[r][j] += value[r] * v;
        }
    }
}

#if defined(__AVX512BF16__)
INLINE void multiply_bfloat16(const struct linear *w, int block, const char *x, const int n, struct sums *s) {
    const int32_t *value = (const int32_t *)w->value + 4 * (int64_t)w->start[block];
    const uint16_t *column = w->column + 2 * w->start[block], *end = w->column + 2 * w->start[block + 1];
    for (; column < end; column += 2, value += 4) {
        fetch(value + 64, 1);
        fetch(x + 2 * TILE * column[8], 32 * n);
        fetch(x + 2 * TILE * column[9], 32 * n);
        for (int j = 0; j < n; j += 2) {
            __m512i a = _mm512_load_si512(x + 2 * TILE * column[0] + 32 * j);
            __m512i b = _mm512_load_si512(x + 2 * TILE * column[1] + 32 * j);
            __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
            for (int r = 0; r < 4; r++) s->v[r][j] = dot2(s->v[r][j], low, value[r]);
            if (j + 1 < n)
                for (int r = 0; r < 4; r++) s->v[r][j + 1] = dot2(s->v[r][j + 1], high, value[r]);
        }
    }
}
#endif

#if defined(__AVX512VNNI__)
INLINE void multiply_int8(const struct linear *w, int block, const char *x, const int n, struct sums *s) {
    __m512i sum[4][4];
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < n; j++) sum[r][j] = _mm512_setzero_si512();
    const int32_t *value = (const int32_t *)w->value + 4 * (int64_t)w->start[block];
    const uint16_t *column = w->column + 4 * w->start[block], *end = w->column + 4 * w->start[block + 1];
    for (; column < end; column += 4, value += 4) {
        fetch(value + 64, 1);
        for (int i = 0; i < 4; i++) fetch(x + TILE * column[16 + i], 1);
        __m512i a = _mm512_load_si512(x + TILE * column[0]), b = _mm512_load_si512(x + TILE * column[1]);
        __m512i c = _mm512_load_si512(x + TILE * column[2]), d = _mm512_load_si512(x + TILE * column[3]);
        __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
        __m512i AB = _mm512_unpackhi_epi8(a, b), CD = _mm512_unpackhi_epi8(c, d);
        __m512i four[4] = {_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd),
                           _mm512_unpacklo_epi16(AB, CD), _mm512_unpackhi_epi16(AB, CD)};
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < n; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], four[j], _mm512_set1_epi32(value[r]));
    }
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < n; j++) s->v[r][j] = (floats)_mm512_cvtepi32_ps(sum[r][j]);
}
#endif

INLINE void multiply(const struct linear *w, int block, const void *x, int strip, const int n, struct sums *s) {
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < n; j++) s->v[r][j] = all(0.f);
#if defined(__AVX512BF16__)
    if (w->precision == BFLOAT16) return multiply_bfloat16(w, block, x, n, s);
#endif
#if defined(__AVX512VNNI__)
    if (w->precision == INT8) return multiply_int8(w, block, x, n, s);
#endif
    multiply_float32(w, block, (const float *)x + strip, n, s);
}

/* Store 4 rows of sums. `y` is the whole output tile. */
INLINE void put(struct sums *s, enum form form, int block, int strip, const int n, void *y) {
    float *row = (float *)y + 4 * block * TILE + strip;
    if (form == STORE || form == MEASURE || form == ADD)
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < n; j++) {
                float *place = row + r * TILE + LANES * j;
                store(place, form == ADD ? s->v[r][j] + load(place) : s->v[r][j]);
            }
#if defined(__AVX512BF16__)
    if (form == PAIRS)
        for (int r = 0; r < 4; r += 2)
            for (int j = 0; j < n; j++)
                _mm512_store_si512((uint32_t *)y + (2 * block + r / 2) * TILE + 16 * j, pair(s->v[r][j], s->v[r + 1][j]));
    if (form == NARROW || form == IN_ORDER)
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < n; j += 2) {
                floats a = s->v[r][j], b = j + 1 < n ? s->v[r][j + 1] : all(0.f);
                __m512i both = form == NARROW ? narrow(a, b) : in_order(a, b);
                _mm512_store_si512((uint16_t *)y + (4 * block + r) * TILE + 16 * j, both);
            }
#endif
}

INLINE void linear_vectors(const struct linear *layer, const void *x, struct quantized *q, int strip,
                           const int n, enum activation activation, enum form form, void *y) {
    const struct linear copy = *layer, *w = &copy; /* a copy that no store can change stays in registers */
    for (int block = 0; block < w->rows / 4; block++) {
        struct sums s;
        multiply(w, block, x, strip, n, &s);
        for (int r = 0; r < 4; r++) {
            int row = 4 * block + r;
            for (int j = 0; j < n; j++) {
                floats v = s.v[r][j];
                if (w->precision == INT8) {
                    floats scale = load(q->scale + strip + LANES * j), zero = load(q->zero + strip + LANES * j);
                    v = v * w->scale[row] * scale + zero * w->sum[row];
                }
                s.v[r][j] = activate(v + w->bias[row], activation, w->precision == FLOAT32);
            }
        }
        if (form == MEASURE)
            for (int j = 0; j < n; j++) widen(q, strip + LANES * j, &s.v[0][j], VECTORS);
        put(&s, form, block, strip, n, y);
    }
}

/* y = activation(W x + bias) for the first `tokens` of a tile. */
static void linear(const struct linear *w, const void *x, struct quantized *q, int tokens,
                   enum activation activation, enum form form, void *y) {
    if (form == MEASURE) forget(q);
    for (int strip = 0; strip < tokens; strip += LANES * VECTORS)
        switch ((tokens - strip + LANES - 1) / LANES) {
        case 1: linear_vectors(w, x, q, strip, 1, activation, form, y); break;
#if VECTORS == 4
        case 2: linear_vectors(w, x, q, strip, 2, activation, form, y); break;
        case 3: linear_vectors(w, x, q, strip, 3, activation, form, y); break;
#endif
        default: linear_vectors(w, x, q, strip, VECTORS, activation, form, y);
        }
}

/* ---- layer norm and attention ---- */

/* Normalise the rows of each token of a tile, in place. */
static void layer_norm(float *x, int rows, const float *weight, const float *bias, float epsilon, int tokens) {
    for (float *end = x + tokens; x < end; x += LANES * VECTORS) {
        floats mean[VECTORS], scale[VECTORS];
        for (int j = 0; j < VECTORS; j++) mean[j] = scale[j] = all(0.f);
        for (int k = 0; k < rows; k++)
            for (int j = 0; j < VECTORS; j++) mean[j] += load(x + k * TILE + LANES * j);
        for (int j = 0; j < VECTORS; j++) mean[j] /= (float)rows;
        for (int k = 0; k < rows; k++)
            for (int j = 0; j < VECTORS; j++) {
                floats v = load(x + k * TILE + LANES * j) - mean[j];
                scale[j] += v * v;
            }
        for (int j = 0; j < VECTORS; j++) scale[j] = 1.f / root(scale[j] / (float)rows + epsilon);
        for (int k = 0; k < rows; k++)
            for (int j = 0; j < VECTORS; j++) {
                float *place = x + k * TILE + LANES * j;
                store(place, (load(place) - mean[j]) * scale[j] * weight[k] + bias[k]);
            }
    }
}

/* The tokens of one text, in tiles of `width` tokens. */
struct sequence {
    float *x; /* [tiles][hidden, rounded up to a multiple of 4][64] */
    int tokens, keys, width, tiles;
    const int32_t *source; /* [tokens] rows of the batch */
};

/* Queries, keys and values of a sequence; tiles as the form PAIRS (queries, keys) and IN_ORDER (values) store them if
   narrow, else as STORE does. All heads of a tile are consecutive. */
struct heads {
    float *query, *key, *value;
    size_t tile; /* floats of memory that a tile takes */
    int narrow;
};

/* s += w x over so many steps: rows x[step][64] by weights w[row * by_row + step * by_step]. If narrow, an element
   is a pair of bfloat16. */
INLINE void outer(const float *x, const float *w, int by_row, int by_step, int steps, int narrow, const int n,
                  struct sums *s) {
    for (int i = 0; i < steps; i++, x += TILE, w += by_step)
        for (int j = 0; j < n; j++) {
            floats v = load(x + LANES * j);
            for (int r = 0; r < 4; r++)
#if defined(__AVX512BF16__)
                if (narrow) {
                    int32_t both;
                    memcpy(&both, w + r * by_row, 4);
                    s->v[r][j] = dot2(s->v[r][j], (__m512i)v, both);
                } else
#endif
                    s->v[r][j] += w[r * by_row] * v;
        }
    (void)narrow;
}

INLINE void clear(struct sums *s) {
    for (int r = 0; r < 4; r++)
        for (int j = 0; j < VECTORS; j++) s->v[r][j] = all(0.f);
}

INLINE int keys_in(const struct sequence *q, int tile) {
    int left = q->keys - tile * q->width;
    return left < 0 ? 0 : left < q->width ? left : q->width;
}

/* Attention of one head: n vectors of queries to all keys. `query`, `key`, `value` begin at the head, `query` and `out`
   at the tile and the vectors too. `p` [keys + 3][64] is for probabilities. */
INLINE void attend(const struct sequence *sequence, const struct heads *heads, const float *query, const float *key,
                   const float *value, int size, float scale, const int narrow, const int n, float *p, float *out) {
    const struct sequence own = *sequence, *q = &own; /* copies that no store can change stay in registers */
    const struct heads copy = *heads, *h = &copy;
    const int steps = narrow ? 2 : 1; /* features or keys that one step takes */
    floats highest[VECTORS], total[VECTORS];
    for (int j = 0; j < n; j++) highest[j] = all(-1e30f), total[j] = all(0.f);
    for (int tile = 0; tile < q->tiles; tile++)
        for (int i = 0, count = keys_in(q, tile); i < count; i += 4) {
            struct sums s;
            clear(&s);
            outer(query, key + tile * h->tile + i, 1, TILE, size / steps, narrow, n, &s);
            for (int r = 0; r < 4; r++)
                for (int j = 0; j < n; j++) {
                    floats v = i + r < count ? s.v[r][j] : all(-1e30f);
                    highest[j] = larger(v, highest[j]);
                    store(p + (tile * q->width + i + r) * TILE + LANES * j, v);
                }
        }
    for (int j = 0; j < n; j++) highest[j] *= scale; /* scale > 0, so it is the highest scaled score */
    int rows = (q->keys + 3) & ~3;
    for (int k = 0; k < rows; k += steps)
        for (int j = 0; j < n; j++) {
            float *place = p + k * TILE + LANES * j;
            floats a = load(place) * scale - highest[j];
#if defined(__AVX512BF16__)
            if (narrow) {
                a = power_of_2(a);
                floats b = power_of_2(load(place + TILE) * scale - highest[j]);
                total[j] += a + b;
                _mm512_store_si512(p + k / 2 * TILE + 16 * j, pair(a, b));
                continue;
            }
#endif
            a = exponential(a);
            total[j] += a;
            store(place, a);
        }
    for (int j = 0; j < n; j++) total[j] = 1.f / total[j];
    for (int d = 0; d < size; d += 4) {
        struct sums s;
        clear(&s);
        for (int tile = 0; tile < q->tiles; tile++)
            outer(p + tile * q->width / steps * TILE, value + tile * h->tile + d * TILE / steps, TILE / steps, 1,
                  ((keys_in(q, tile) + 3) & ~3) / steps, narrow, n, &s);
        for (int r = 0; r < 4; r++)
            for (int j = 0; j < n; j++) store(out + (d + r) * TILE + LANES * j, s.v[r][j] * total[j]);
    }
}

/* ---- encoder ---- */

struct scratch {
    float *context, *ffn, *probabilities; /* a tile of features each; [keys + 3][64] */
    void *packed;                         /* a tile in the form of `prepare` */
    struct quantized q;
};

/* Hidden states of a tile. */
static float *tile_of(const struct encoder *e, const struct sequence *q, int tile) {
    return q->x + (size_t)tile * ((e->hidden + 3) & ~3) * TILE;
}

static int tokens_in(const struct sequence *q, int tile) {
    int left = q->tokens - tile * q->width;
    return left < q->width ? left : q->width;
}

/* Queries, keys and values of one tile. */
static void project(const struct encoder *e, const struct layer *l, const struct sequence *q, const struct heads *h,
                    struct scratch *s, int tile) {
    int tokens = tokens_in(q, tile);
    size_t at = tile * h->tile;
    const float *hidden = tile_of(e, q, tile);
    const void *x = prepare(l->query.precision, hidden, e->hidden, 0, &s->q, s->packed);
    linear(&l->query, x, &s->q, tokens, NONE, h->narrow ? PAIRS : STORE, h->query + at);
    linear(&l->key, x, &s->q, tokens, NONE, h->narrow ? PAIRS : STORE, h->key + at);
    linear(&l->value, x, &s->q, tokens, NONE, h->narrow ? IN_ORDER : STORE, h->value + at);
}

/* `narrow` as a constant, so that each case has its own loops. */
#if defined(__AVX512BF16__)
#define ATTEND(n) \
    if (h->narrow) \
        attend(q, h, query, key, value, size, e->scale * 1.44269504f /* log2 e */, 1, n, s->probabilities, out); \
    else \
        attend(q, h, query, key, value, size, e->scale, 0, n, s->probabilities, out)
#else
#define ATTEND(n) attend(q, h, query, key, value, size, e->scale, 0, n, s->probabilities, out)
#endif

static void attention(const struct encoder *e, const struct sequence *q, const struct heads *h, struct scratch *s,
                      int tile) {
    int tokens = tokens_in(q, tile), size = e->head_size;
    if (q->keys == 0) {
        memset(s->context, 0, sizeof(float) * TILE * e->heads * size);
        return;
    }
    for (int head = 0; head < e->heads; head++) {
        size_t at = (size_t)head * size * TILE / (h->narrow ? 2 : 1);
        const float *key = h->key + at, *value = h->value + at;
        for (int strip = 0; strip < tokens; strip += LANES * VECTORS) {
            const float *query = h->query + tile * h->tile + at + strip;
            float *out = s->context + head * size * TILE + strip;
            const int half = VECTORS / 2;
            if (tokens - strip > LANES * half) {
                ATTEND(VECTORS);
            } else {
                ATTEND(half);
            }
        }
    }
}
#undef ATTEND

/* What follows the projections of all tiles, for one tile. */
static void finish(const struct encoder *e, const struct layer *l, const struct sequence *q, const struct heads *h,
                   struct scratch *s, int tile) {
    int tokens = tokens_in(q, tile);
    float *hidden = tile_of(e, q, tile);
    attention(e, q, h, s, tile);
    const void *x = prepare(l->output.precision, s->context, e->heads * e->head_size, 0, &s->q, s->packed);
    linear(&l->output, x, &s->q, tokens, NONE, ADD, hidden);
    layer_norm(hidden, e->hidden, l->attention_weight, l->attention_bias, e->epsilon, tokens);
    x = prepare(l->up.precision, hidden, e->hidden, 0, &s->q, s->packed);
    enum precision next = l->down.precision;
    enum form form = next == BFLOAT16 ? NARROW : next == INT8 ? MEASURE : STORE;
    linear(&l->up, x, &s->q, tokens, e->activation, form, s->ffn);
    x = next == BFLOAT16 ? s->ffn : prepare(next, s->ffn, e->ffn, 1, &s->q, s->packed);
    linear(&l->down, x, &s->q, tokens, NONE, ADD, hidden);
    layer_norm(hidden, e->hidden, l->ffn_weight, l->ffn_bias, e->epsilon, tokens);
}

static void gather(const struct encoder *e, const struct batch *b, const struct sequence *q, int tile) {
    tile_in(b->in, q->source + tile * q->width, tokens_in(q, tile), e->hidden, tile_of(e, q, tile));
}

static void scatter(const struct encoder *e, const struct batch *b, const struct sequence *q, int tile) {
    tile_out(tile_of(e, q, tile), q->source + tile * q->width, tokens_in(q, tile), e->hidden, b->out);
}

/* ---- threads ---- */

/* What the threads of one call share. The first `batch->sequences % team` sequences are computed by all together, tile
   by tile; of the rest each is computed by one thread, which reuses a layer's weights for all of its sequences. */
struct call {
    const struct encoder *encoder;
    const struct batch *batch;
    struct sequence *sequence;
    atomic_int team, arrived, phase; /* team: threads that take part; 0 until all are started */
};

struct worker {
    struct call *call;
    int number;
    struct heads own, *shared;
    struct scratch scratch;
    pthread_t thread;
};

static void barrier(struct call *c, int team) {
    int phase = atomic_load(&c->phase);
    if (atomic_fetch_add(&c->arrived, 1) == team - 1) {
        atomic_store(&c->arrived, 0);
        atomic_fetch_add(&c->phase, 1);
    } else
        for (int i = 0; atomic_load(&c->phase) == phase; i++)
            if (i > 2000) sched_yield();
}

static void compute_together(struct worker *w, int team, int number) {
    struct call *c = w->call;
    const struct encoder *e = c->encoder;
    const struct sequence *q = &c->sequence[number];
    int first = w->number;
    for (int t = first; t < q->tiles; t += team) gather(e, c->batch, q, t);
    for (int l = 0; l < e->layers; l++) {
        for (int t = first; t < q->tiles; t += team) project(e, &e->layer[l], q, w->shared, &w->scratch, t);
        barrier(c, team);
        for (int t = first; t < q->tiles; t += team) finish(e, &e->layer[l], q, w->shared, &w->scratch, t);
        barrier(c, team);
    }
    for (int t = first; t < q->tiles; t += team) scatter(e, c->batch, q, t);
}

static void compute_alone(struct worker *w, int team, int first) {
    struct call *c = w->call;
    const struct encoder *e = c->encoder;
    int end = c->batch->sequences;
    for (int i = first + w->number; i < end; i += team)
        for (int t = 0; t < c->sequence[i].tiles; t++) gather(e, c->batch, &c->sequence[i], t);
    for (int l = 0; l < e->layers; l++)
        for (int i = first + w->number; i < end; i += team) {
            struct sequence *q = &c->sequence[i];
            for (int t = 0; t < q->tiles; t++) project(e, &e->layer[l], q, &w->own, &w->scratch, t);
            for (int t = 0; t < q->tiles; t++) finish(e, &e->layer[l], q, &w->own, &w->scratch, t);
        }
    for (int i = first + w->number; i < end; i += team)
        for (int t = 0; t < c->sequence[i].tiles; t++) scatter(e, c->batch, &c->sequence[i], t);
}

static void *work(void *argument) {
    struct worker *w = argument;
    int team;
    while ((team = atomic_load(&w->call->team)) == 0) sched_yield();
    int together = team > 1 ? w->call->batch->sequences % team : 0;
    for (int i = 0; i < together; i++) compute_together(w, team, i);
    compute_alone(w, team, together);
    return NULL;
}

/* ---- what Python calls ---- */

/* A part of the arena, at a page of its own. Without an arena this only counts. */
static void *take(char *arena, size_t *used, size_t bytes) {
    void *place = arena ? arena + *used : NULL;
    *used += (bytes + 4095) & ~(size_t)4095;
    return place;
}

static void place_heads(struct heads *h, const struct encoder *e, int tiles, char *arena, size_t *used) {
#if defined(__AVX512BF16__)
    h->narrow = e->layer[0].query.precision != FLOAT32;
#else
    h->narrow = 0;
#endif
    h->tile = (size_t)e->heads * e->head_size * TILE / (h->narrow ? 2 : 1);
    h->query = take(arena, used, sizeof(float) * h->tile * tiles);
    h->key = take(arena, used, sizeof(float) * h->tile * tiles);
    h->value = take(arena, used, sizeof(float) * h->tile * tiles);
}

static void place_scratch(struct scratch *s, const struct encoder *e, int keys, char *arena, size_t *used) {
    int context = e->heads * e->head_size, widest = e->ffn > e->hidden ? e->ffn : e->hidden;
    s->context = take(arena, used, sizeof(float) * TILE * context);
    s->ffn = take(arena, used, sizeof(float) * TILE * e->ffn);
    s->probabilities = take(arena, used, sizeof(float) * TILE * (keys + 3));
    s->packed = take(arena, used, 2 * TILE * (size_t)(widest > context ? widest : context));
}

/* Divide the tokens of a sequence into tiles: a multiple of `threads`, if that is possible. */
static void divide(struct sequence *q, int threads) {
    int tiles = (q->tokens + TILE - 1) / TILE;
    tiles = (tiles + threads - 1) / threads * threads;
    q->width = tiles ? ((q->tokens + tiles - 1) / tiles + 15) & ~15 : TILE;
    q->tiles = (q->tokens + q->width - 1) / q->width;
}

/* Everything that a call needs, at its place in the arena. Returns the bytes that it takes. */
static size_t place_call(struct call *c, struct worker **workers, struct heads *shared, char *arena) {
    const struct encoder *e = c->encoder;
    const struct batch *b = c->batch;
    int together = b->threads > 1 ? b->sequences % b->threads : 0, tiles = 0, keys = 0;
    size_t used = 0;
    c->sequence = take(arena, &used, b->sequences * sizeof(struct sequence));
    for (int i = 0, first = 0; i < b->sequences; first += b->tokens[i++]) {
        struct sequence q = {NULL, b->tokens[i], b->keys[i], 0, 0, b->source + first};
        divide(&q, i < together ? b->threads : 1);
        q.x = take(arena, &used, sizeof(float) * TILE * ((e->hidden + 3) & ~3) * q.tiles);
        tiles = q.tiles > tiles ? q.tiles : tiles;
        keys = q.keys > keys ? q.keys : keys;
        if (arena) c->sequence[i] = q;
    }
    place_heads(shared, e, tiles, arena, &used);
    *workers = take(arena, &used, b->threads * sizeof(struct worker));
    for (int i = 0; i < b->threads; i++) {
        struct worker w = {.call = c, .number = i, .shared = shared};
        place_scratch(&w.scratch, e, keys, arena, &used);
        place_heads(&w.own, e, tiles, arena, &used);
        if (arena) (*workers)[i] = w;
    }
    return used;
}

/* Run the encoder. Returns the bytes of memory that it needs; if they are more than `bytes`, nothing else was done.
   `arena` begins at a multiple of 64. */
int64_t encode(const struct encoder *e, const struct batch *b, char *arena, int64_t bytes) {
    struct call call = {e, b, NULL, 0, 0, 0};
    struct worker *worker;
    struct heads shared;
    int64_t needed = (int64_t)place_call(&call, &worker, &shared, NULL);
    if (needed > bytes) return needed;
    place_call(&call, &worker, &shared, arena);
    int team = 1;
    while (team < b->threads && !pthread_create(&worker[team].thread, NULL, work, &worker[team])) team++;
    atomic_store(&call.team, team); /* fewer than asked for, if the system has no more */
    work(&worker[0]);
    for (int i = 1; i < team; i++) pthread_join(worker[i].thread, NULL);
    return needed;
}

/* out[tokens][rows] = activation(W in[tokens][columns] + bias) */
int linear_rows(const struct linear *w, const float *in, float *out, int tokens, int activation) {
    int widest = w->rows > w->columns ? w->rows : w->columns; /* of rows, a multiple of 4 */
    char *arena = aligned_alloc(4096, ((size_t)10 * TILE * widest + 8191) & ~(size_t)4095);
    if (!arena) return -1;
    float *x = (float *)arena, *y = x + (size_t)TILE * widest;
    struct quantized q;
    int32_t source[TILE];
    for (int first = 0; first < tokens; first += TILE) {
        int count = tokens - first < TILE ? tokens - first : TILE;
        for (int t = 0; t < count; t++) source[t] = first + t;
        tile_in(in, source, count, w->columns, x);
        const void *ready = prepare(w->precision, x, w->columns, 0, &q, y + (size_t)TILE * widest);
        linear(w, ready, &q, count, activation, STORE, y);
        tile_out(y, source, count, w->rows, out);
    }
    free(arena);
    return 0;
}
