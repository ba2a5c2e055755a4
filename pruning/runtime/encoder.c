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
   - A row of bfloat16 is 128 bytes, one of int8 64 bytes. Their tokens are stored in the order in which `unpack`
     instructions give them back in order.

   Precision: float32 everywhere; or bfloat16 products with float32 sums, if the CPU has vdpbf16ps; or int8 products
   with int32 sums, if it has vpdpbusd: weights symmetric for each row, activations unsigned and asymmetric for each
   token. Layer norm, residuals and the sums of softmax are float32 always. With bfloat16 or int8, attention multiplies
   bfloat16: queries, keys, values and the weights that softmax gives. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "vectors.h"

enum precision { FLOAT32, BFLOAT16, INT8 };

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
    const char *value;                /* [groups][16 bytes] */
    const float *bias;                /* [rows] */
    const float *scale;               /* int8: [rows] weight = scale * stored value */
    const float *sum;                 /* int8: [rows] sum of the row's weights */
};

struct layer {
    struct linear query, key, value, output, up, down;
    const float *attention_weight, *attention_bias; /* layer norm after attention */
    const float *ffn_weight, *ffn_bias;             /* layer norm after the feed-forward network */
    int32_t heads;
    const int32_t *score_start; /* [heads + 1] first feature of a head in query and key */
    const int32_t *value_start; /* [heads + 1] first feature of a head in value and output */
};

struct encoder {
    int32_t layers, hidden;
    int32_t query, value, up; /* most rows of these in any layer */
    int32_t activation;
    float epsilon, scale; /* of layer norms; of attention scores */
    const struct layer *layer;
};

struct batch {
    int32_t sequences, threads;
    const int32_t *tokens; /* [sequences] tokens to compute */
    const int32_t *keys;   /* [sequences] the first so many of them are attended to */
    const int32_t *source; /* [all tokens] row in `in` and `out` of each token, sequence by sequence */
    float *in, *out;       /* [rows][hidden] */
};

/* ---- tiles ---- */

/* The vectors of row k. `x` may begin at any vector of a tile. */
INLINE floats *row(const float *x, int64_t k) { return (floats *)(x + k * TILE); }

/* Copy rows[source[token]] into a tile, whose other tokens are zero, or out of it; 16 features at a time, because these
   stay in the L1 cache. */
INLINE void transpose(float *rows, const int32_t *source, int tokens, int features, float *x, const int out) {
    if (!out) memset(x, 0, sizeof(float) * TILE * features);
    for (int k = 0; k < features; k += 16)
        EACH(t, tokens) {
            float *token = rows + (int64_t)(source ? source[t] : t) * features;
            for (int i = k; i < k + 16 && i < features; i++)
                if (out)
                    token[i] = x[i * TILE + t];
                else
                    x[i * TILE + t] = token[i];
        }
}

/* How the tokens of a tile are stored as unsigned bytes: x = scale * byte + zero. */
struct quantized {
    floats scale[TILE / LANES], zero[TILE / LANES];
    floats low[TILE / LANES], high[TILE / LANES]; /* range of the rows that are quantized next */
};

/* Begin the range of the tokens. */
static void forget(struct quantized *q) {
    EACH(j, TILE / LANES) q->low[j] = all(INFINITY), q->high[j] = all(-INFINITY);
}

/* Widen a range. What is not finite makes `low` NaN for good. */
INLINE void widen(floats v, floats *low, floats *high) {
    *low = smaller(v, *low) + v * 0.f;
    *high = larger(v, *high);
}

/* Store float32 rows, whose range is known, as bytes. A NaN makes its token's scale NaN. */
static const void *quantize(const float *x, int rows, struct quantized *q, void *buffer) {
    floats zero[VECTORS], factor[VECTORS], v[VECTORS];
    EACH(j, VECTORS) {
        zero[j] = q->zero[j] = q->low[j];
        q->scale[j] = larger(all(1e-12f), (q->high[j] - zero[j]) * (1.f / 255)) + (zero[j] - zero[j]); /* 0, or NaN */
        factor[j] = 1.f / q->scale[j];
    }
    EACH(k, rows) {
        EACH(j, VECTORS) v[j] = (row(x, k)[j] - zero[j]) * factor[j];
        ((ints *)buffer)[k] = to_bytes(v);
    }
    return buffer;
}

/* Bring float32 rows into the form that the layer reads. */
static const void *prepare(const struct linear *w, const float *x, struct quantized *q, void *buffer) {
    int rows = w->columns;
    if (HAS_INT8 && w->precision == INT8) {
        struct quantized range; /* no store can change a copy, so it stays in registers */
        forget(&range);
        EACH(k, rows) EACH(j, TILE / LANES) widen(row(x, k)[j], &range.low[j], &range.high[j]);
        *q = range;
        return quantize(x, rows, q, buffer);
    }
    if (HAS_BFLOAT16 && w->precision == BFLOAT16) {
        EACH(k, rows) EACH(j, 2) ((ints *)buffer)[2 * k + j] = narrow(row(x, k)[2 * j], row(x, k)[2 * j + 1]);
        return buffer;
    }
    return x;
}

/* ---- sparse linear layer ---- */

typedef floats sums[4][VECTORS]; /* of 4 rows and n <= VECTORS vectors of tokens */

/* sum + x * w, for the 1, 2 or 4 features of each token that 32 bits hold. Sums of int8 products are integers. */
INLINE floats dot(floats sum, ints x, const void *w, const enum precision precision) {
    if (precision == INT8) return (floats)dot4((ints)sum, x, *(const int32_t *)w);
    if (precision == BFLOAT16) return dot2(sum, x, *(const int32_t *)w);
    return sum + *(const float *)w * (floats)x;
}

/* Add the products of a block row. `x` begins at the first of n vectors. */
INLINE void multiply(const struct linear *w, int block, const char *x, const enum precision precision, const int n,
                     sums s) {
    const int size = precision == INT8 ? 4 : precision == BFLOAT16 ? 2 : 1, bytes = 4 * TILE / size; /* of a row */
    const char *value = w->value + 16 * (int64_t)w->start[block];
    const uint16_t *column = w->column + size * w->start[block], *end = w->column + size * w->start[block + 1];
    for (; column < end; column += size, value += 16) {
        __builtin_prefetch(value + 256);
        EACH(i, size)
            for (int b = 0; b < 4 * LANES * n / size; b += 64) __builtin_prefetch(x + bytes * column[4 * size + i] + b);
        ints v[VECTORS];
        if (precision == INT8) unpack4(x, column, v);
        for (int j = 0; precision == BFLOAT16 && j < n; j += 2)
            unpack2(x + bytes * column[0] + 2 * LANES * j, x + bytes * column[1] + 2 * LANES * j, v + j);
        for (int j = 0; precision == FLOAT32 && j < n; j++) v[j] = ((const ints *)(x + bytes * column[0]))[j];
        EACH(j, n) EACH(r, 4) s[r][j] = dot(s[r][j], v[j], value + 4 * r, precision);
    }
}

/* Store 4 rows of sums. `y` begins at the first of the rows and of the vectors; `half` is the place of the rows in a
   tile of bfloat16. */
INLINE void put(sums s, enum form form, const int n, float *y, char *half) {
    if (form <= ADD)
        EACH(r, 4) EACH(j, n) row(y, r)[j] = form == ADD ? s[r][j] + row(y, r)[j] : s[r][j];
    else if (HAS_BFLOAT16 && form == PAIRS)
        for (int r = 0; r < 4; r += 2)
            EACH(j, n) ((ints *)(half + 2 * TILE * r))[j] = pair(s[r][j], s[r + 1][j]);
    else if (HAS_BFLOAT16)
        EACH(r, 4) EACH(j, (n + 1) / 2) {
            floats a = s[r][2 * j], b = 2 * j + 1 < n ? s[r][2 * j + 1] : all(0.f);
            ((ints *)(half + 2 * TILE * r))[j] = form == NARROW ? narrow(a, b) : in_order(a, b);
        }
}

/* The layer for n vectors of tokens, the first of which is number `first` of the tile. */
INLINE void linear_vectors(const struct linear *layer, const char *x, struct quantized *q, int first, const int n,
                           enum activation activation, enum form form, float *y) {
    const struct linear copy = *layer, *w = &copy; /* a copy that no store can change stays in registers */
    EACH(block, w->rows / 4) {
        sums s = {};
        if (HAS_INT8 && w->precision == INT8)
            multiply(w, block, x, INT8, n, s);
        else if (HAS_BFLOAT16 && w->precision == BFLOAT16)
            multiply(w, block, x, BFLOAT16, n, s);
        else
            multiply(w, block, x + 4 * LANES * first, FLOAT32, n, s);
        EACH(r, 4) EACH(j, n) {
            floats v = s[r][j];
            int i = 4 * block + r;
            if (HAS_INT8 && w->precision == INT8)
                v = __builtin_convertvector((ints)v, floats) * w->scale[i] * q->scale[j] + q->zero[j] * w->sum[i];
            s[r][j] = activate(v + w->bias[i], activation, w->precision == FLOAT32);
        }
        if (HAS_INT8 && form == MEASURE)
            EACH(r, 4) EACH(j, n) widen(s[r][j], &q->low[j], &q->high[j]);
        put(s, form, n, y + 4 * block * TILE + LANES * first, (char *)y + 8 * block * TILE);
    }
}

/* y = activation(W x + bias) for the first `tokens` of a tile. */
static void linear(const struct linear *w, const void *x, struct quantized *q, int tokens, enum activation activation,
                   enum form form, void *y) {
#define VECTORS_OF(n) linear_vectors(w, x, q, first, n < VECTORS ? n : VECTORS, activation, form, y)
    if (form == MEASURE) forget(q);
    for (int first = 0; LANES * first < tokens; first += VECTORS)
        switch ((tokens - 1) / LANES - first) {
        case 0: VECTORS_OF(1); break;
        case 1: VECTORS_OF(2); break;
        case 2: VECTORS_OF(3); break;
        default: VECTORS_OF(VECTORS);
        }
}

/* ---- layer norm and attention ---- */

/* Normalise the rows of each token of a tile, in place. */
static void layer_norm(float *x, int rows, const float *weight, const float *bias, float epsilon, int tokens) {
    for (float *end = x + tokens; x < end; x += LANES * VECTORS) {
        floats mean[VECTORS] = {}, scale[VECTORS] = {};
        EACH(k, rows) EACH(j, VECTORS) mean[j] += row(x, k)[j];
        EACH(j, VECTORS) mean[j] /= (float)rows;
        EACH(k, rows) EACH(j, VECTORS) {
            floats v = row(x, k)[j] - mean[j];
            scale[j] += v * v;
        }
        EACH(j, VECTORS) scale[j] = 1.f / root(scale[j] / (float)rows + epsilon);
        EACH(k, rows) EACH(j, VECTORS)
            row(x, k)[j] = (row(x, k)[j] - mean[j]) * scale[j] * weight[k] + bias[k];
    }
}

/* The tokens of one text, in tiles of `width` tokens. */
struct sequence {
    float *x;              /* [tiles][hidden, rounded up to a multiple of 4][64] */
    size_t tile;           /* floats that a tile takes */
    const int32_t *source; /* [tokens] rows of the batch */
    int tokens, keys, width, tiles;
};

/* Queries, keys and values of a sequence. All heads of a tile are consecutive. */
struct heads {
    float *query, *key, *value;
    size_t tile; /* floats of memory that a tile takes */
    int pack;    /* in 32 bits: 1 float32, form STORE; or 2 bfloat16: features (PAIRS) of queries and keys, tokens
                    (IN_ORDER) of values */
};

/* Of so many tokens of a sequence, those in a tile. */
INLINE int part(const struct sequence *q, int tokens, int tile) {
    int left = tokens - tile * q->width;
    return left < 0 ? 0 : left < q->width ? left : q->width;
}

/* s += w x over so many steps: rows x[step][64] by weights w[row * by_row + step * by_step], `pack` in 32 bits. */
INLINE void outer(const float *x, const float *w, int by_row, int by_step, int steps, const int pack, const int n,
                  sums s) {
    for (int i = 0; i < steps; i++, w += by_step)
        EACH(j, n) EACH(r, 4)
            s[r][j] = dot(s[r][j], (ints)row(x, i)[j], w + r * by_row, pack == 2 ? BFLOAT16 : FLOAT32);
}

/* A thread and its memory. */
struct worker {
    struct call *call;
    const struct encoder *encoder;
    pthread_t thread;
    int number;
    struct heads own, *heads; /* heads: own, or those that all threads share */
    float *context, *ffn, *probabilities; /* a tile of features each; [keys + 3][64] */
    void *packed;                         /* a tile in the form of `prepare` */
    struct quantized q;
};

/* Attention of one head: n vectors of queries, from token `first` of a tile on, to all keys. Keys are taken in fours;
   one after the last has the score -1e30, so its value, which is finite, does not count. */
INLINE void attend(struct worker *w, const struct layer *l, const struct sequence *sequence, int tile, int head,
                   int first, const int pack, const int n) {
    const struct encoder *e = w->encoder;
    const struct heads *h = w->heads;
    const struct sequence own = *sequence, *q = &own; /* no store can change a copy, so it stays in registers */
    const int score = l->score_start[head], value_at = l->value_start[head]; /* its first features */
    const int size = l->score_start[head + 1] - score, value_size = l->value_start[head + 1] - value_at;
    const size_t stride = h->tile, at = (size_t)score * TILE / pack;
    const float *query = h->query + tile * stride + at + first, *key = h->key + at;
    const float *value = h->value + (size_t)value_at * TILE / pack;
    const float scale = e->scale * (pack == 2 ? 1.44269504f /* log2 e */ : 1.f);
    float *p = w->probabilities, *out = w->context + value_at * TILE + first;
    floats highest[VECTORS], total[VECTORS];
    EACH(j, n) highest[j] = all(-1e30f), total[j] = all(0.f);
    EACH(t, q->tiles)
        for (int i = 0, count = part(q, q->keys, t); i < count; i += 4) {
            sums s = {};
            outer(query, key + t * stride + i, 1, TILE, size / pack, pack, n, s);
            EACH(r, 4) EACH(j, n) {
                floats v = i + r < count ? s[r][j] : all(-1e30f);
                highest[j] = larger(v, highest[j]);
                row(p, t * q->width + i + r)[j] = v;
            }
        }
    EACH(j, n) highest[j] *= scale; /* scale > 0, so it is the highest scaled score */
    for (int k = 0; k < ((q->keys + 3) & ~3); k += pack) EACH(j, n) {
        floats a = row(p, k)[j] * scale - highest[j];
        if (pack == 2) {
            floats b = power_of_2(row(p, k + 1)[j] * scale - highest[j]);
            a = power_of_2(a);
            row(p, k / 2)[j] = (floats)pair(a, b);
            total[j] += a + b;
        } else
            total[j] += row(p, k)[j] = exponential(a);
    }
    EACH(j, n) total[j] = 1.f / larger(all(1e-30f), total[j]); /* without keys: 0 */
    for (int d = 0; d < value_size; d += 4) {
        sums s = {};
        EACH(t, q->tiles)
            outer(p + t * q->width / pack * TILE, value + t * stride + d * TILE / pack, TILE / pack, 1,
                  ((part(q, q->keys, t) + 3) & ~3) / pack, pack, n, s);
        EACH(r, 4) EACH(j, n) row(out, d + r)[j] = s[r][j] * total[j];
    }
}

/* Attention of all heads of one tile. */
static void attention(struct worker *w, const struct layer *l, const struct sequence *q, int tile) {
#define ATTEND(pack, n) attend(w, l, q, tile, head, first, pack, n)
    int tokens = part(q, q->tokens, tile);
    EACH(head, l->heads)
        for (int first = 0; first < tokens; first += LANES * VECTORS) {
            int few = tokens - first <= LANES * VECTORS / 2;
            if (HAS_BFLOAT16 && w->heads->pack == 2)
                few ? ATTEND(2, VECTORS / 2) : ATTEND(2, VECTORS);
            else
                few ? ATTEND(1, VECTORS / 2) : ATTEND(1, VECTORS);
        }
}

/* ---- encoder ---- */

/* Queries, keys and values of one tile. */
static void project(struct worker *w, const struct layer *l, const struct sequence *q, int tile) {
    const struct heads *h = w->heads;
    int tokens = part(q, q->tokens, tile);
    size_t at = tile * h->tile;
    const void *x = prepare(&l->query, q->x + tile * q->tile, &w->q, w->packed);
    linear(&l->query, x, &w->q, tokens, NONE, h->pack == 2 ? PAIRS : STORE, h->query + at);
    linear(&l->key, x, &w->q, tokens, NONE, h->pack == 2 ? PAIRS : STORE, h->key + at);
    linear(&l->value, x, &w->q, tokens, NONE, h->pack == 2 ? IN_ORDER : STORE, h->value + at);
}

/* What follows the projections of all tiles, for one tile. */
static void finish(struct worker *w, const struct layer *l, const struct sequence *q, int tile) {
    const struct encoder *e = w->encoder;
    static const enum form forms[] = {[FLOAT32] = STORE, [BFLOAT16] = NARROW, [INT8] = MEASURE};
    int tokens = part(q, q->tokens, tile), next = l->down.precision;
    float *hidden = q->x + tile * q->tile;
    attention(w, l, q, tile);
    const void *x = prepare(&l->output, w->context, &w->q, w->packed);
    linear(&l->output, x, &w->q, tokens, NONE, ADD, hidden);
    layer_norm(hidden, e->hidden, l->attention_weight, l->attention_bias, e->epsilon, tokens);
    x = prepare(&l->up, hidden, &w->q, w->packed);
    linear(&l->up, x, &w->q, tokens, e->activation, forms[next], w->ffn);
    x = HAS_INT8 && next == INT8 ? quantize(w->ffn, l->up.rows, &w->q, w->packed) : w->ffn;
    linear(&l->down, x, &w->q, tokens, NONE, ADD, hidden);
    layer_norm(hidden, e->hidden, l->ffn_weight, l->ffn_bias, e->epsilon, tokens);
}

/* ---- threads ---- */

/* What the threads of one call share. The first `batch->sequences % team` sequences are computed by all together, tile
   by tile; of the rest each is computed by one thread, which reuses a layer's weights for all of its sequences. */
struct call {
    const struct encoder *encoder;
    const struct batch *batch;
    struct sequence *sequence;
    struct worker *worker;
    atomic_int team, arrived, phase; /* team: threads that take part; 0 until all are started */
};

static void barrier(struct call *c, int team) {
    int phase = atomic_load(&c->phase);
    if (team == 1) return;
    if (atomic_fetch_add(&c->arrived, 1) == team - 1) {
        atomic_store(&c->arrived, 0);
        atomic_fetch_add(&c->phase, 1);
    } else
        for (int i = 0; atomic_load(&c->phase) == phase; i++)
            if (i > 2000) sched_yield();
}

/* Compute every `step`-th sequence before `end`. Threads that share them, `team` of them, take a tile each in turn. */
static void compute(struct worker *w, struct sequence *first, int step, struct sequence *end, int team) {
    const struct encoder *e = w->encoder;
    const struct batch *b = w->call->batch;
    w->heads = team == 1 ? &w->own : &w->call->worker[0].own;
    int start = team == 1 ? 0 : w->number;
    for (struct sequence *q = first; q < end; q += step)
        for (int t = start; t < q->tiles; t += team)
            transpose(b->in, q->source + t * q->width, part(q, q->tokens, t), e->hidden, q->x + t * q->tile, 0);
    EACH(l, e->layers)
        for (struct sequence *q = first; q < end; q += step) {
            for (int t = start; t < q->tiles; t += team) project(w, &e->layer[l], q, t);
            barrier(w->call, team);
            for (int t = start; t < q->tiles; t += team) finish(w, &e->layer[l], q, t);
            barrier(w->call, team);
        }
    for (struct sequence *q = first; q < end; q += step)
        for (int t = start; t < q->tiles; t += team)
            transpose(b->out, q->source + t * q->width, part(q, q->tokens, t), e->hidden, q->x + t * q->tile, 1);
}

static void *work(void *argument) {
    struct worker *w = argument;
    struct sequence *q = w->call->sequence, *end = q + w->call->batch->sequences;
    int team;
    while ((team = atomic_load(&w->call->team)) == 0) sched_yield();
    for (; team > 1 && (end - q) % team; q++) compute(w, q, 1, q + 1, team);
    compute(w, q + w->number, team, end, 1);
    return NULL;
}

/* ---- what Python calls ---- */

/* A part of the arena, at a page of its own. Without an arena this only counts. */
static void *take(char *arena, size_t *used, size_t bytes) {
    void *place = arena ? arena + *used : NULL;
    *used += (bytes + 4095) & ~(size_t)4095;
    return place;
}

/* Divide the tokens of a sequence into tiles: a multiple of `threads`, if that is possible. */
static void divide(struct sequence *q, int threads) {
    int tiles = (q->tokens + TILE - 1) / TILE;
    tiles = (tiles + threads - 1) / threads * threads;
    q->width = tiles ? ((q->tokens + tiles - 1) / tiles + 15) & ~15 : TILE;
    q->tiles = (q->tokens + q->width - 1) / q->width;
}

/* Everything that a call needs, at its place in the arena. Returns the bytes that it takes. */
static size_t place(struct call *c, char *arena) {
    const struct encoder *e = c->encoder;
    const struct batch *b = c->batch;
    int together = b->threads > 1 ? b->sequences % b->threads : 0, tiles = 0, keys = 0;
    size_t used = 0, bytes = sizeof(float) * TILE; /* of a row */
    c->sequence = take(arena, &used, b->sequences * sizeof(struct sequence));
    for (int i = 0, first = 0; i < b->sequences; first += b->tokens[i++]) {
        struct sequence q = {NULL, ((e->hidden + 3) & ~3) * TILE, b->source + first, b->tokens[i], b->keys[i], 0, 0};
        divide(&q, i < together ? b->threads : 1);
        q.x = take(arena, &used, sizeof(float) * q.tile * q.tiles);
        tiles = q.tiles > tiles ? q.tiles : tiles;
        keys = q.keys > keys ? q.keys : keys;
        if (arena) c->sequence[i] = q;
    }
    c->worker = take(arena, &used, b->threads * sizeof(struct worker));
    EACH(i, b->threads) {
        struct worker w = {.call = c, .encoder = e, .number = i};
        struct heads *h = &w.own;
        int widest = e->up > e->hidden ? e->up : e->hidden, features = e->query > e->value ? e->query : e->value;
        h->pack = HAS_BFLOAT16 && e->layers && e->layer[0].query.precision != FLOAT32 ? 2 : 1;
        h->tile = (size_t)features * TILE / h->pack;
        h->query = take(arena, &used, sizeof(float) * h->tile * tiles);
        h->key = take(arena, &used, sizeof(float) * h->tile * tiles);
        h->value = take(arena, &used, sizeof(float) * h->tile * tiles);
        w.context = take(arena, &used, bytes * e->value);
        w.ffn = take(arena, &used, bytes * e->up);
        w.probabilities = take(arena, &used, bytes * (keys + 3));
        w.packed = take(arena, &used, bytes / 2 * /* bfloat16, the larger form */
                                          (widest > features ? widest : features));
        if (arena) c->worker[i] = w;
    }
    return used;
}

/* Run the encoder. Returns the bytes of memory that it needs; if they are more than `bytes`, nothing else was done.
   `arena` begins at a multiple of 64. */
int64_t encode(const struct encoder *e, const struct batch *b, char *arena, int64_t bytes) {
    struct call call = {e, b, NULL, NULL, 0, 0, 0};
    int64_t needed = (int64_t)place(&call, NULL);
    if (needed > bytes) return needed;
    place(&call, arena);
    int team = 1;
    while (team < b->threads && !pthread_create(&call.worker[team].thread, NULL, work, &call.worker[team])) team++;
    atomic_store(&call.team, team); /* fewer than asked for, if the system has no more */
    work(&call.worker[0]);
    for (int i = 1; i < team; i++) pthread_join(call.worker[i].thread, NULL);
    return needed;
}

/* out[tokens][rows] = activation(W in[tokens][columns] + bias). `x`, `buffer`: tiles of the columns; `y`: of the rows. */
void linear_rows(const struct linear *w, int tokens, int activation, float *in, float *out, float *x, void *buffer,
                 float *y) {
    struct quantized q;
    for (int64_t t = 0; t < tokens; t += TILE) {
        int taken = tokens - t < TILE ? (int)(tokens - t) : TILE;
        transpose(in + t * w->columns, NULL, taken, w->columns, x, 0);
        linear(w, prepare(w, x, &q, buffer), &q, taken, activation, STORE, y);
        transpose(out + t * w->rows, NULL, taken, w->rows, y, 1);
    }
}
