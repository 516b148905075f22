/* One thread's share of a call for statistics of positions: rows solved, their outputs and their gradient written. */

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
