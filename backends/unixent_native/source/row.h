/* The arithmetic of rows whose classes lie next to each other as numbers of the accumulation dtype T (float, double).

   A row is worked a chunk at a time while the chunk is in the first cache. Its pivot k (unixent/pivot.py says what
   for) is left out, and each chunk has a shift of its own, its maximum m_i:

       e_c = exp(x_c - m_i),   S_i = sum of e_c,   m = max m_i,   R = sum of S_i exp(m_i - m)

   so that one pass over the logits' memory is enough. The scalars of a row are in double. */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OF(name) JOIN(name, T)
#define VECTOR OF(Vector)
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(T)))

typedef struct {
    T *row;         /* classes of one row, or of each row of a tile; becomes the exponentials */
    T *coefs;       /* t_c but for the target's own part: of a row, or of all rows where they are the same */
    T *gaps;        /* level - x_c, where the gradient of probabilities is asked for */
    T *softcap_grad;
    T *chunk;       /* one chunk, padded */
    double *shifts, *sums; /* m_i, S_i */
    int64_t pitch;  /* numbers from one row of a tile to the next */
} OF(Scratch);

/* What a row comes to. */
typedef struct {
    T pivot_logit, level;
    double shift, sum_rest;                   /* m, R */
    double weighted_gaps, rest_coef;          /* sums over c != k of t_c (level - x_c) and of t_c */
    double nll, logsumexp, p, one_minus_p, exp_scale;
} OF(Stats);

/* a + b and what its rounding dropped. */
static inline double OF(two_sum)(double a, double b, double *dropped) {
    double sum = a + b, back = sum - a;
    *dropped = (a - (sum - back)) + (b - back);
    return sum;
}

/* A sum in double; of doubles it carries what rounding drops. */
typedef struct { double high, low; } OF(Sum);

static inline void OF(add)(OF(Sum) *sum, double value) {
    if (sizeof(T) == 4) { sum->high += value; return; }
    double dropped;
    sum->high = OF(two_sum)(sum->high, value, &dropped);
    sum->low += dropped;
}

static inline double OF(total)(OF(Sum) sum) { /* what was dropped from an infinite sum is NaN */
    return isfinite(sum.high) ? sum.high + sum.low : sum.high;
}

static inline void OF(add_lanes)(OF(Sum) *sum, VECTOR v) {
    T lanes[VECTOR_BYTES / sizeof(T)];
    OF(store)(lanes, v);
    for (int64_t i = 0; i < LANES; i++) OF(add)(sum, lanes[i]);
}

static inline T OF(largest)(const T *x, int64_t n) {
    const VECTOR none = {0};
    VECTOR m0 = none - (T)INFINITY, m1 = m0, m2 = m0, m3 = m0;
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        m0 = OF(max)(OF(load)(x + i), m0);
        m1 = OF(max)(OF(load)(x + i + LANES), m1);
        m2 = OF(max)(OF(load)(x + i + 2 * LANES), m2);
        m3 = OF(max)(OF(load)(x + i + 3 * LANES), m3);
    }
    for (; i < n; i += LANES) m0 = OF(max)(OF(load)(x + i), m0);
    m0 = OF(max)(OF(max)(m0, m1), OF(max)(m2, m3));
    T lanes[VECTOR_BYTES / sizeof(T)], m = -(T)INFINITY;
    OF(store)(lanes, m0);
    for (int64_t k = 0; k < LANES; k++) m = lanes[k] > m ? lanes[k] : m;
    return m;
}

/* Sum of exp(x_c - shift) over whole vectors, which are stored in e unless that is NULL. In each lane few numbers are
   added up before they join the sum in double, so that the error does not grow with n. */
static inline __attribute__((always_inline)) double OF(sum_exp)(const T *x, T *e, int64_t n, T shift, const char *ahead,
                                                               int64_t size) {
    const VECTOR none = {0}, m = none + shift;
    OF(Sum) sum = {0, 0};
    for (int64_t start = 0; start < n;) {
        int64_t stop = start + 32 * LANES < n ? start + 32 * LANES : n, i = start;
        VECTOR s0 = none, s1 = none;
        for (; i + 2 * LANES <= stop; i += 2 * LANES) {
            VECTOR e0 = OF(exp)(OF(load)(x + i) - m), e1 = OF(exp)(OF(load)(x + i + LANES) - m);
            __builtin_prefetch(ahead + i * size);
            if (e) OF(store)(e + i, e0), OF(store)(e + i + LANES, e1);
            s0 += e0, s1 += e1;
        }
        for (; i < stop; i += LANES) {
            VECTOR e0 = OF(exp)(OF(load)(x + i) - m);
            if (e) OF(store)(e + i, e0);
            s0 += e0;
        }
        OF(add_lanes)(&sum, s0 + s1);
        start = stop;
    }
    return OF(total)(sum);
}

/* Adds sum t_c (level - x_c), where t_c = 0 adds nothing, and sum t_c. Whole vectors. */
static inline void OF(sum_gaps)(const T *x, const T *coefs, int64_t n, T level, OF(Sum) *gaps, OF(Sum) *total) {
    const VECTOR none = {0};
    for (int64_t start = 0; start < n;) {
        int64_t stop = start + 16 * LANES < n ? start + 16 * LANES : n;
        VECTOR s = none, t = none;
        for (int64_t i = start; i < stop; i += LANES) {
            VECTOR coef = OF(load)(coefs + i), product = coef * (level - OF(load)(x + i));
            s += (VECTOR)((OF(Bits))product & (OF(Bits))(coef != 0));
            t += coef;
        }
        OF(add_lanes)(gaps, s), OF(add_lanes)(total, t);
        start = stop;
    }
}

/* x becomes a tanh(x / a), infinities as they are; derivative, where given, sech^2(x / a), free of cancellation. */
static void OF(softcap)(T *x, T *derivative, int64_t n, double softcap) {
    const VECTOR none = {0};
    T cap = (T)softcap;
    for (int64_t i = 0; i < n; i += LANES) {
        VECTOR v = OF(load)(x + i), y = v / cap;
        VECTOR size = (VECTOR)((OF(Bits))y & ~(OF(Bits))-none);
        VECTOR w = OF(exp)(size * -2);
        if (derivative) OF(store)(derivative + i, 4 * w / ((1 + w) * (1 + w)));
        /* 1 - w cancels for small y: there a rational function (Cephes, tanh.c). */
        VECTOR large = (1 - w) / (1 + w), z = y * y;
        VECTOR p = (z * (T)-9.64399179425052238628e-1 - (T)9.92877231001918586564e1) * z - (T)1.61468768441708447952e3;
        VECTOR q = ((z + (T)1.12811678491632931402e2) * z + (T)2.23548839060100448583e3) * z + (T)4.84406305325125486048e3;
        VECTOR small = y + y * (z * (p / q));
        OF(Bits) sign = (OF(Bits))y ^ (OF(Bits))size;
        OF(Bits) is_small = size < (T)0.625, is_infinite = size == (T)INFINITY;
        VECTOR tanh = (VECTOR)(((OF(Bits))small & is_small) | (((OF(Bits))large | sign) & ~is_small));
        is_infinite &= (OF(Bits))v == (OF(Bits))y; /* and not only x / a */
        OF(store)(x + i, (VECTOR)(((OF(Bits))v & is_infinite) | ((OF(Bits))(tanh * cap) & ~is_infinite)));
    }
}

/* row_stats of a row by itself. */
static inline void OF(row_stats)(OF(Stats) *s) {
    const Vector_double none = {0};
    RowStats rows = {.pivot_logit = none + s->pivot_logit, .shift = none + s->shift, .sum_rest = none + s->sum_rest};
    row_stats(&rows);
    s->shift = rows.shift[0], s->nll = rows.nll[0], s->logsumexp = rows.logsumexp[0];
    s->p = rows.p[0], s->one_minus_p = rows.one_minus_p[0], s->exp_scale = rows.exp_scale[0];
}
