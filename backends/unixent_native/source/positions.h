/* What a position says besides its loss (unixent/row_statistics.py has the formulas), by one pass over its logits.

   The pivot is the largest logit. Each chunk is summed relative to its own maximum m_i, the pivot left out:

       S_i = sum of e_c,   G_i = sum of e_c (m_i - x_c),   Q_i = sum of e_c^2,   e_c = exp(x_c - m_i)

   Where a later chunk has a larger logit, the pivot so far joins the rest as a chunk of its own. */

typedef struct {
    const Call *call;
    const Statistics *asked;
    int64_t step, type;        /* of the classes of a row */
    int direct, direct_grad;   /* whole vectors are worked, and the gradient put, where they are */
    int has_terms;             /* G and Q are asked for */
    int64_t taken;             /* classes in the list of the largest, in order */
    T *chunk, *grad, *softcap_grad, *panel, *top_logits;
    int64_t *top, pitch;
    double *shifts, *sums, *gaps, *squares;
} OF(Task);

/* What a row comes to. */
typedef struct {
    OF(Stats) stats;
    int64_t pivot, rank;
    double gaps, squares, total; /* relative to m: sums of e_c (x_k - x_c), of e_c^2; the sum of x_c */
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

static void OF(solve)(OF(Task) *w, const char *row, int64_t target, OF(Solved) *r) {
    const Call *call = w->call;
    const Statistics *asked = w->asked;
    int64_t parts = 0, size = w->step;
    T own = asked->rank ? OF(logit)(w, row, target) : 0;
    *r = (OF(Solved)){.stats.pivot_logit = -(T)INFINITY};
    w->taken = 0;
    for (int64_t start = 0; start < call->num_classes; start += CHUNK) {
        int64_t n = call->num_classes - start < CHUNK ? call->num_classes - start : CHUNK, whole = OF(whole)(n);
        const T *in = OF(chunk)(w, row, start, n, NULL);
        T shift = OF(largest)(in, whole);
        if (asked->rank) r->rank += OF(count_before)(in, n, own, target - start);
        if (asked->mean_logit) r->total += OF(sum_logits)(in, n);
        if (asked->k) OF(take_largest)(w, in, start, n);
        if (start == 0 || shift > r->stats.pivot_logit) {
            int64_t at = OF(find)(in, n, shift);
            if (r->stats.pivot_logit != -(T)INFINITY) OF(push)(w, &parts, r->stats.pivot_logit, 1, 0, 1);
            r->pivot = start + at, r->stats.pivot_logit = shift;
            if (in != w->chunk) copy(w->chunk, in, (size_t)n * sizeof(T)), in = w->chunk;
            w->chunk[at] = -(T)INFINITY;
            shift = OF(largest)(in, whole);
        }
        T level = shift == -(T)INFINITY ? 0 : shift;
        const char *ahead = row + (start + CHUNK) * size;
        double sums[3] = {0};
        if (w->has_terms) OF(sum_terms)(in, whole, level, ahead, size, sums);
        else sums[0] = OF(sum_exp)(in, NULL, whole, level, ahead, size);
        OF(push)(w, &parts, shift, sums[0], sums[1], sums[2]);
    }
    OF(join)(w, parts, r);
}

/* L of a class whose logit is x. */
static inline double OF(nll)(const OF(Solved) *r, int64_t c, T x) {
    return c == r->pivot ? r->stats.nll : ((double)r->stats.pivot_logit - x) + r->stats.nll;
}

/* Writes what is asked for of position p. active: 0 where it does not count; known: 0 where nothing can be known. */
static void OF(put)(const OF(Task) *w, const char *row, int64_t p, int active, int known, const OF(Solved) *r) {
    const Statistics *asked = w->asked;
    const OF(Stats) *s = &r->stats;
    int64_t target = asked->log_prob || asked->correct ? w->call->index[p] : 0;
    double ratio = s->exp_scale / s->p;
#define FLOATING(value) (T)(!active ? 0 : known ? (value) : NAN)
#define PUT(name, value) if (asked->name) ((T *)asked->name)[p] = FLOATING(value)
    PUT(log_prob, 0 - OF(nll)(r, target, OF(logit)(w, row, target)));
    PUT(entropy, s->nll + r->gaps * s->exp_scale);
    PUT(logsumexp, s->logsumexp);
    PUT(log_sum_sq, log1p(r->squares * ratio * ratio) - 2 * s->nll);
    PUT(max_prob, s->p);
    PUT(mean_logit, r->total / (double)w->call->num_classes);
#undef PUT
    known &= active;
    if (asked->prediction) asked->prediction[p] = known ? r->pivot : -1;
    if (asked->correct) asked->correct[p] = known && r->pivot == target;
    if (asked->rank) asked->rank[p] = known ? r->rank : -1;
    for (int64_t i = 0; i < asked->k; i++) {
        int64_t at = p * asked->k + i;
        if (asked->top_index) asked->top_index[at] = known ? w->top[i] : -1;
        if (asked->top_log_prob) ((T *)asked->top_log_prob)[at] = FLOATING(0 - OF(nll)(r, w->top[i], w->top_logits[i]));
    }
    for (int64_t i = 0; i < (asked->selected_log_prob ? asked->num_selected : 0); i++) {
        int64_t at = p * asked->num_selected + i, c = asked->selected[at];
        T weight = asked->selected_weight ? ((const T *)asked->selected_weight)[at] : 1;
        double value = weight == 0 ? 0 : known && weight == 1 ? 0 - OF(nll)(r, c, OF(logit)(w, row, c)) : NAN;
        ((T *)asked->selected_log_prob)[at] = active ? (T)value : 0;
    }
#undef FLOATING
}

static inline double OF(upstream)(const void *grads, int64_t at) { return grads ? ((const T *)grads)[at] : 0; }

/* The upstream gradient of the i-th class selected of position p. */
static inline double OF(selected_grad)(const Statistics *asked, int64_t p, int64_t i) {
    int64_t at = p * asked->num_selected + i;
    T weight = asked->selected_weight ? ((const T *)asked->selected_weight)[at] : 1;
    return weight == 0 ? 0 : weight * OF(upstream)(asked->selected_grad, at);
}

/* Stores the gradient of position p at out, a chunk at a time: at the classes c != k

       e_c exp_scale (A + g_H (x_k - x_c - D)) + what is asked of the class itself

   where A is the upstream gradient of lse less those of all log-probabilities; at k p A' + (1 - p) a, where a is what is
   asked of it, and A' leaves that out of A and has -g_H D. */
static void OF(put_gradient)(const OF(Task) *w, const char *row, char *out, int64_t step, int64_t type, int64_t p,
                             int active, int known, const OF(Solved) *r) {
    const VECTOR none = {0};
    const Call *call = w->call;
    const Statistics *asked = w->asked;
    const OF(Stats) *s = &r->stats;
    double entropy_grad = OF(upstream)(asked->entropy_grad, p), log_prob_grad = OF(upstream)(asked->log_prob_grad, p);
    double rest = OF(upstream)(asked->logsumexp_grad, p), of_pivot = 0, gap_mean = r->gaps * s->exp_scale;
    int64_t target = asked->log_prob_grad ? call->index[p] : -1, selected = asked->selected_grad ? asked->num_selected : 0;
    if (target == r->pivot) of_pivot = log_prob_grad; else rest -= log_prob_grad;
    for (int64_t i = 0; i < selected; i++) {
        double grad = OF(selected_grad)(asked, p, i);
        if (asked->selected[p * selected + i] == r->pivot) of_pivot += grad; else rest -= grad;
    }
    double chain = call->inverse_temperature, pivot_rest = rest;
    if (asked->entropy_grad) pivot_rest -= entropy_grad * gap_mean;
    double pivot_grad = s->p * pivot_rest + s->one_minus_p * of_pivot;
    known &= !isnan(pivot_rest) && !isnan(of_pivot);
    T a = (T)((pivot_rest - of_pivot) * s->exp_scale * chain), b = (T)(entropy_grad * s->exp_scale * chain);
    const VECTOR m = none + (T)s->shift, level = none + s->pivot_logit;
    const int64_t size = w->step;
    T *cap = call->softcap ? w->softcap_grad : NULL;
    for (int64_t start = 0; start < call->num_classes; start += CHUNK) {
        int64_t n = call->num_classes - start < CHUNK ? call->num_classes - start : CHUNK, whole = OF(whole)(n);
        int in_place = w->direct_grad && whole == n;
        T *grad = in_place ? (T *)(out + start * step) : w->grad;
        if (!active || !known) {
            for (int64_t i = 0; i < whole; i++) grad[i] = active ? (T)NAN : 0;
        } else {
            const T *x = OF(chunk)(w, row, start, n, cap);
            const char *ahead = row + (start + CHUNK) * size;
            for (int64_t i = 0; i < whole; i += LANES) {
                VECTOR v = OF(load)(x + i), e = OF(exp)(v - m), g = e * (a + b * (level - v));
                __builtin_prefetch(ahead + i * size);
                g = (VECTOR)((OF(Bits))g & (OF(Bits))(e != 0));
                OF(store)(grad + i, cap ? g * OF(load)(cap + i) : g);
            }
#define OWN(c, value) (T)((value) * chain * (cap ? cap[(c) - start] : 1))
            if (target >= start && target < start + n) grad[target - start] += OWN(target, log_prob_grad);
            for (int64_t i = 0; i < selected; i++) {
                int64_t c = asked->selected[p * selected + i];
                if (c >= start && c < start + n) grad[c - start] += OWN(c, OF(selected_grad)(asked, p, i));
            }
            if (r->pivot >= start && r->pivot < start + n) grad[r->pivot - start] = OWN(r->pivot, pivot_grad);
#undef OWN
        }
        if (!in_place) OF(write)(out + start * step, step, type, grad, 1, n);
    }
}

/* One position: its classes at row, its gradient at out, or NULL. */
static void OF(work_position)(OF(Task) *w, const char *row, char *out, int64_t step, int64_t type, int64_t p) {
    enum { KEPT = WEIGHTED_GAPS };
    const Call *call = w->call;
    T v = call->position_weight ? ((const T *)call->position_weight)[p] : 1;
    int active = v != 0, given = out && call->columns;
    double *kept = call->columns ? call->columns + p : NULL;
    OF(Solved) r = {0};
    if (active) {
        if (given) {
            r.pivot = (int64_t)kept[PIVOT * call->count], r.stats.pivot_logit = (T)kept[PIVOT_LOGIT * call->count];
            r.stats.shift = kept[SHIFT * call->count], r.stats.sum_rest = kept[SUM_REST * call->count];
            r.gaps = kept[KEPT * call->count];
        } else {
            OF(solve)(w, row, call->index ? call->index[p] : 0, &r);
        }
        if (kept && !given) {
            kept[PIVOT * call->count] = (double)r.pivot, kept[PIVOT_LOGIT * call->count] = r.stats.pivot_logit;
            kept[SHIFT * call->count] = r.stats.shift, kept[SUM_REST * call->count] = r.stats.sum_rest;
            kept[KEPT * call->count] = r.gaps;
        }
        OF(row_stats)(&r.stats);
    }
    int known = !isnan(r.stats.nll) && !isnan(v);
    if (!given) OF(put)(w, row, p, active, known, &r);
    if (out) OF(put_gradient)(w, row, out, step, type, p, active, known, &r);
}

/* Positions first .. first + n, adjacent along the last axis; n is 1 unless they are tiled. */
static void OF(work_tile)(OF(Task) *w, int64_t first, int64_t n, int tiled) {
    const Call *call = w->call;
    const Array *x = &call->x, *xg = &call->x_grad;
    int64_t last = call->num_axes - 1;
    char *in = x->data + OF(offset)(x, call, first), *out = xg->data ? xg->data + OF(offset)(xg, call, first) : NULL;
    if (!tiled) {
        OF(work_position)(w, in, out, xg->class_stride, xg->type, first);
        return;
    }
    for (int64_t c = 0; c < call->num_classes; c++)
        OF(read)(w->panel + c, w->pitch, in + c * x->class_stride, x->strides[last], x->type, n);
    for (int64_t i = 0; i < n; i++) {
        char *row = (char *)(w->panel + i * w->pitch);
        OF(work_position)(w, row, out ? row : NULL, sizeof(T), w->type, first + i);
    }
    for (int64_t c = 0; out && c < call->num_classes; c++)
        OF(write)(out + c * xg->class_stride, xg->strides[last], xg->type, w->panel + c, w->pitch, n);
}

static int OF(statistics_work)(const Call *call, Queue *queue) {
    const Statistics *asked = &((const StatisticsCall *)call)->asked;
    int tiled = is_tiled(call);
    int64_t tile = tiled ? tile_size(call) : 1, parts = 2 * (call->num_classes / CHUNK + 1);
    OF(Task) w = {.call = call, .asked = asked, .step = tiled ? (int64_t)sizeof(T) : call->x.class_stride};
    w.type = tiled ? call->acc_type : call->x.type, w.pitch = OF(whole)(call->num_classes);
    w.direct = !call->softcap && call->inverse_temperature == 1 && (tiled || OF(is_direct)(&call->x));
    w.direct_grad = tiled || (call->x_grad.data && OF(is_direct)(&call->x_grad));
    w.has_terms = asked->entropy || asked->entropy_grad || asked->log_sum_sq;
    size_t numbers = (size_t)(3 * CHUNK + (tiled ? tile * w.pitch : 0) + OF(whole)(asked->k));
    char *memory = malloc(sizeof(double) * (size_t)(4 * parts + asked->k) + sizeof(T) * numbers + 64);
    if (!memory) return -1;
    w.chunk = (T *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    w.grad = w.chunk + CHUNK, w.softcap_grad = w.grad + CHUNK, w.panel = w.softcap_grad + CHUNK;
    w.top_logits = w.panel + (tiled ? tile * w.pitch : 0);
    w.shifts = (double *)(w.top_logits + OF(whole)(asked->k)), w.sums = w.shifts + parts, w.gaps = w.sums + parts;
    w.squares = w.gaps + parts, w.top = (int64_t *)(w.squares + parts);
    for (int64_t first = 0, end = 0, n; (n = next_tile(call, queue, tile, &first, &end)); first += n)
        OF(work_tile)(&w, first, n, tiled);
    free(memory);
    return 0;
}
