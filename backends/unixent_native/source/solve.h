/* What a position says besides its loss (unixent/row_statistics.py has the formulas), by one pass over its logits.

   The pivot is the largest logit. Each chunk is summed relative to its own maximum m_i, the pivot left out:

       S_i = sum of e_c,   G_i = sum of e_c (m_i - x_c),   Q_i = sum of e_c^2,   e_c = exp(x_c - m_i)

   Where a later chunk has a larger logit, the pivot so far joins the rest as a chunk of its own. Where the classes that
   are not selected count as one, their sum comes first, and each class selected joins as a chunk of its own.

   Where the gradient needs of the logits no more than e_c, the e_c of a row are stored as they are summed, 0 at classes
   that were left out of their chunk: pivots so far, and the classes selected where the others count as one. */

typedef struct {
    const Call *call;
    const Statistics *asked;
    int64_t step, type;        /* of the classes of a row */
    int direct, direct_grad;   /* whole vectors are worked, and the gradient put, where they are */
    int has_terms, can_store;  /* G and Q are asked for; the gradient is made of stored e_c */
    int64_t taken;             /* classes in the list of the largest, in order */
    T *chunk, *grad, *softcap_grad, *coefs, *panel, *top_logits, *inside_logits;
    int64_t *top, pitch;
    double *shifts, *sums, *gaps, *squares;
    int64_t *inside, num_inside;                   /* the classes selected, each once, in order */
    double *inside_grads;                          /* what is asked of each */
    T *stored, *row;                               /* where this row's e_c go, or NULL; room for them elsewhere */
    double *chunk_shifts;                          /* m_i of each chunk */
    int64_t *former, num_former;                   /* the pivots so far that are no longer, */
    T *former_logits;
    double smoothing_total, smoothing_of_others;   /* sums of b_c; the heaviest class left out */
    int64_t heaviest;
} OF(Task);

/* A class that was the pivot and is no longer. */
static inline void OF(set_aside)(OF(Task) *w, int64_t c, T x) {
    w->former[w->num_former] = c, w->former_logits[w->num_former++] = x;
}

/* The classes selected and the others: their largest logits, their sums relative to these; what follows. */
typedef struct {
    double top_inside, sum_inside, top_outside, sum_outside;
    double nll, p_inside, p_outside; /* nll: of the others as one class */
} OF(Rest);

/* What a row comes to. */
typedef struct {
    OF(Stats) stats;
    int64_t pivot, rank;
    double gaps, squares, total; /* relative to m: sums of e_c (x_k - x_c), of e_c^2; the sum of x_c */
    double smoothing_gaps;       /* sum of b_c (x_k - x_c) */
    OF(Rest) rest;
} OF(Solved);

static void OF(transform)(const OF(Task) *w, T *x, T *softcap_grad, int64_t whole) {
    const Call *call = w->call;
    if (call->softcap) OF(softcap)(x, softcap_grad, whole, call->softcap);
    if (call->inverse_temperature != 1)
        for (int64_t i = 0; i < whole; i++) x[i] *= (T)call->inverse_temperature;
}

static inline int64_t OF(whole)(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Classes start .. start + n of a row as x', whole vectors of them, filled up with -inf. */
static const T *OF(chunk)(const OF(Task) *w, const char *row, int64_t start, int64_t n, T *softcap_grad) {
    int64_t whole = OF(whole)(n);
    row += start * w->step;
    if (w->direct && whole == n) return (const T *)row;
    OF(read)(w->chunk, 1, row, w->step, w->type, n);
    for (int64_t i = n; i < whole; i++) w->chunk[i] = -(T)INFINITY;
    OF(transform)(w, w->chunk, softcap_grad, whole);
    return w->chunk;
}

/* x' of one class, with the bits that it has in its chunk. */
static T OF(logit)(const OF(Task) *w, const char *row, int64_t c) {
    T x[VECTOR_BYTES / sizeof(T)] = {0};
    x[0] = OF(get)(row + c * w->step, w->type);
    OF(transform)(w, x, NULL, LANES);
    return x[0];
}

/* The first of n numbers that is value; 0 where none is. */
static int64_t OF(find)(const T *x, int64_t n, T value) {
    int64_t start = 0;
    for (; start + 64 <= n; start += 64) {
        int any = 0;
        for (int64_t i = 0; i < 64; i++) any |= x[start + i] == value;
        if (any) break;
    }
    for (int64_t i = start; i < n; i++)
        if (x[i] == value) return i;
    return 0;
}

/* S, G and Q of whole vectors. */
static void OF(sum_terms)(const T *x, int64_t n, T shift, const char *ahead, int64_t size, double *sums) {
    const VECTOR none = {0}, m = none + shift;
    OF(Sum) sum = {0, 0}, gaps = {0, 0}, squares = {0, 0};
    for (int64_t start = 0; start < n;) {
        int64_t stop = start + 16 * LANES < n ? start + 16 * LANES : n;
        VECTOR s = none, g = none, q = none;
        for (int64_t i = start; i < stop; i += LANES) {
            VECTOR z = OF(load)(x + i) - m, e = OF(exp)(z);
            __builtin_prefetch(ahead + i * size);
            s += e, q += e * e;
            g -= (VECTOR)((OF(Bits))(e * z) & (OF(Bits))(e != 0));
        }
        OF(add_lanes)(&sum, s), OF(add_lanes)(&gaps, g), OF(add_lanes)(&squares, q);
        start = stop;
    }
    sums[0] = OF(total)(sum), sums[1] = OF(total)(gaps), sums[2] = OF(total)(squares);
}

static double OF(sum_logits)(const T *x, int64_t n) {
    OF(Sum) sum = {0, 0};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        double lanes[8] = {0};
        for (int64_t j = 0; j < 64; j += 8)
            for (int64_t k = 0; k < 8; k++) lanes[k] += x[i + j + k];
        for (int64_t k = 0; k < 8; k++) OF(add)(&sum, lanes[k]);
    }
    for (; i < n; i++) OF(add)(&sum, x[i]);
    return OF(total)(sum);
}

/* How many of n classes come before one of logit own that stands at (which may be outside). */
static int64_t OF(count_before)(const T *x, int64_t n, T own, int64_t at) {
    int64_t count = 0, i = 0, ties = at < 0 ? 0 : at < n ? at : n;
    for (; i < ties; i++) count += x[i] >= own;
    for (; i < n; i++) count += x[i] > own;
    return count;
}

/* Puts those of n classes into the list of the k largest that belong there; equal ones stay in order. */
static void OF(take_largest)(OF(Task) *w, const T *x, int64_t start, int64_t n) {
    int64_t k = w->asked->k;
    for (int64_t i = 0; i < n;) {
        int64_t stop = i + 64 < n ? i + 64 : n;
        if (w->taken == k) {
            int any = 0;
            for (int64_t j = i; j < stop; j++) any |= x[j] > w->top_logits[k - 1];
            if (!any) { i = stop; continue; }
        }
        for (; i < stop; i++) {
            T value = x[i];
            if (w->taken == k && !(value > w->top_logits[k - 1])) continue;
            int64_t at = w->taken < k ? w->taken++ : k - 1;
            for (; at > 0 && w->top_logits[at - 1] < value; at--)
                w->top_logits[at] = w->top_logits[at - 1], w->top[at] = w->top[at - 1];
            w->top_logits[at] = value, w->top[at] = start + i;
        }
    }
}

static inline void OF(push)(OF(Task) *w, int64_t *parts, T shift, double sum, double gaps, double squares) {
    w->shifts[*parts] = shift, w->sums[*parts] = sum, w->gaps[*parts] = gaps, w->squares[(*parts)++] = squares;
}

/* The parts become sums relative to m, and these the scalars of the row. */
static void OF(join)(const OF(Task) *w, int64_t parts, OF(Solved) *r) {
    OF(Sum) sum = {0, 0}, gaps = {0, 0}, squares = {0, 0};
    double largest = -INFINITY;
    for (int64_t i = 0; i < parts; i++) largest = w->shifts[i] > largest ? w->shifts[i] : largest;
    for (int64_t i = 0; i < parts; i++) {
        double shift = w->shifts[i], scale = shift == largest ? 1 : exp(shift - largest), part = w->sums[i] * scale;
        if (w->sums[i] == 0) continue;
        OF(add)(&sum, part);
        OF(add)(&gaps, w->gaps[i] * scale + part * (r->stats.pivot_logit - shift));
        OF(add)(&squares, w->squares[i] * scale * scale);
    }
    r->stats.shift = largest, r->stats.sum_rest = OF(total)(sum);
    r->gaps = OF(total)(gaps), r->squares = OF(total)(squares);
}

/* Lists the classes that position p selects; none where they are all there are. */
static void OF(list_inside)(OF(Task) *w, int64_t p) {
    const Statistics *asked = w->asked;
    int64_t first = p * asked->num_selected, n = 0, count = 0;
    for (int64_t i = first; i < first + asked->num_selected; i++)
        if (!asked->selected_weight || ((const T *)asked->selected_weight)[i] != 0) w->inside[n++] = asked->selected[i];
    qsort(w->inside, (size_t)n, sizeof *w->inside, compare_classes);
    for (int64_t i = 0; i < n; i++)
        if (i == 0 || w->inside[i] != w->inside[i - 1]) w->inside[count++] = w->inside[i];
    w->num_inside = count < w->call->num_classes ? count : 0;
}

/* b_c of n classes, whole vectors of them, filled up with 0. */
static const T *OF(smoothing)(const OF(Task) *w, int64_t start, int64_t n) {
    const T *coefs = (const T *)w->asked->smoothing + start;
    if (OF(whole)(n) == n) return coefs;
    copy(w->coefs, coefs, (size_t)n * sizeof(T));
    for (int64_t i = n; i < OF(whole)(n); i++) w->coefs[i] = 0;
    return w->coefs;
}

/* Adds sum b_c (level - x_c) of a chunk to the same of those before it, the level being the largest logit so far. */
static void OF(add_smoothing)(const OF(Task) *w, const T *x, int64_t start, int64_t n, T largest, T *level, OF(Sum) *gaps,
                              OF(Sum) *total) {
    if (largest > *level) {
        if (*level != -(T)INFINITY) OF(add)(gaps, OF(total)(*total) * ((double)largest - *level));
        *level = largest;
    }
    OF(sum_gaps)(x, OF(smoothing)(w, start, n), OF(whole)(n), *level == -(T)INFINITY ? 0 : *level, gaps, total);
}

/* Takes the classes selected out of n classes. */
static const T *OF(without_inside)(OF(Task) *w, const T *x, int64_t start, int64_t n, int64_t *next) {
    for (; *next < w->num_inside && w->inside[*next] < start + n; ++*next) {
        if (x != w->chunk) copy(w->chunk, x, (size_t)OF(whole)(n) * sizeof(T)), x = w->chunk;
        T *place = w->chunk + (w->inside[*next] - start);
        w->inside_logits[*next] = *place, *place = -(T)INFINITY;
    }
    return x;
}

static void OF(rest_stats)(OF(Rest) *r) {
    double dropped, gap = OF(two_sum)(r->top_inside, -r->top_outside, &dropped), ratio = r->sum_inside / r->sum_outside;
    double odds = ratio * exp(gap);
    if (odds < INFINITY && odds > 0) odds += odds * dropped;
    r->nll = odds < INFINITY ? log1p(odds) : gap + log(ratio);
    r->p_inside = odds > 1 ? 1 / (1 + 1 / odds) : odds / (1 + odds);
    r->p_outside = odds < INFINITY ? 1 / (1 + odds) : exp(-r->nll);
}

/* From the rows of the classes not selected: these as one class, and what all of them come to. */
static void OF(join_inside)(OF(Task) *w, int64_t parts, OF(Solved) *r) {
    double largest = -INFINITY, sum = 0;
    r->rest.top_outside = r->stats.pivot_logit, r->rest.sum_outside = 1;
    if (r->stats.shift > -INFINITY) r->rest.sum_outside += r->stats.sum_rest * exp(r->stats.shift - r->rest.top_outside);
    int64_t outside = r->pivot;
    for (int64_t i = 0; i < w->num_inside; i++) largest = w->inside_logits[i] > largest ? w->inside_logits[i] : largest;
    for (int64_t i = 0; i < w->num_inside; i++) {
        T x = w->inside_logits[i];
        if (x == -(T)INFINITY) continue;
        sum += x == largest ? 1 : exp(x - largest);
        if (x > r->stats.pivot_logit || (x == r->stats.pivot_logit && w->inside[i] < r->pivot)) {
            if (r->stats.pivot_logit != -(T)INFINITY) {
                OF(push)(w, &parts, r->stats.pivot_logit, 1, 0, 1);
                if (r->pivot == outside) OF(set_aside)(w, outside, r->stats.pivot_logit);
            }
            r->pivot = w->inside[i], r->stats.pivot_logit = x;
        } else {
            OF(push)(w, &parts, x, 1, 0, 1);
        }
    }
    r->rest.top_inside = largest, r->rest.sum_inside = sum;
    OF(join)(w, parts, r);
}

static void OF(solve)(OF(Task) *w, const char *row, int64_t target, OF(Solved) *r) {
    const Call *call = w->call;
    const Statistics *asked = w->asked;
    int64_t parts = 0, size = w->step, next = 0;
    T level_of_gaps = -(T)INFINITY;
    OF(Sum) smoothing_gaps = {0, 0}, smoothing_total = {0, 0};
    T own = asked->rank ? OF(logit)(w, row, target) : 0;
    *r = (OF(Solved)){.stats.pivot_logit = -(T)INFINITY};
    w->taken = w->num_former = 0;
    for (int64_t start = 0; start < call->num_classes; start += CHUNK) {
        int64_t n = call->num_classes - start < CHUNK ? call->num_classes - start : CHUNK, whole = OF(whole)(n);
        const T *in = OF(chunk)(w, row, start, n, NULL);
        if (asked->rank) r->rank += OF(count_before)(in, n, own, target - start);
        if (asked->mean_logit) r->total += OF(sum_logits)(in, n);
        if (asked->k) OF(take_largest)(w, in, start, n);
        if (asked->regularizer && asked->smoothing)
            OF(add_smoothing)(w, in, start, n, OF(largest)(in, whole), &level_of_gaps, &smoothing_gaps, &smoothing_total);
        in = OF(without_inside)(w, in, start, n, &next);
        T shift = OF(largest)(in, whole);
        if (start == 0 || shift > r->stats.pivot_logit) {
            int64_t at = OF(find)(in, n, shift);
            if (r->stats.pivot_logit != -(T)INFINITY) {
                OF(push)(w, &parts, r->stats.pivot_logit, 1, 0, 1);
                OF(set_aside)(w, r->pivot, r->stats.pivot_logit);
            }
            r->pivot = start + at, r->stats.pivot_logit = shift;
            if (in != w->chunk) copy(w->chunk, in, (size_t)n * sizeof(T)), in = w->chunk;
            w->chunk[at] = -(T)INFINITY;
            shift = OF(largest)(in, whole);
        }
        T level = shift == -(T)INFINITY ? 0 : shift;
        const char *ahead = row + (start + CHUNK) * size;
        double sums[3] = {0};
        T *e = w->stored ? w->stored + start : NULL, *into = whole == n ? e : w->grad; /* no room for the last vector */
        w->chunk_shifts[start / CHUNK] = level;
        if (w->has_terms) OF(sum_terms)(in, whole, level, ahead, size, sums);
        else if (e) sums[0] = OF(sum_exp)(in, into, whole, level, ahead, size);
        else sums[0] = OF(sum_exp)(in, NULL, whole, level, ahead, size);
        if (e && into != e) copy(e, into, (size_t)n * sizeof(T));
        OF(push)(w, &parts, shift, sums[0], sums[1], sums[2]);
    }
    OF(join)(w, parts, r);
    r->smoothing_gaps = OF(total)(smoothing_gaps);
    if (asked->rest_log_prob || asked->rest_grad) OF(join_inside)(w, parts, r);
}

/* L of a class whose logit is x. */
static inline double OF(nll)(const OF(Solved) *r, int64_t c, T x) {
    return c == r->pivot ? r->stats.nll : ((double)r->stats.pivot_logit - x) + r->stats.nll;
}
