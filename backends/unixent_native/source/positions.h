/* One thread's share of a call for statistics of positions: rows solved, their outputs and their gradient written. */

/* D of `put_gradient`. A gap beyond every number is of a class of probability 0. */
static inline double OF(gap_mean)(const OF(Solved) *r) {
    return r->stats.exp_scale == 0 ? 0 : r->gaps * r->stats.exp_scale;
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
    PUT(entropy, s->nll + OF(gap_mean)(r));
    PUT(logsumexp, s->logsumexp);
    PUT(log_sum_sq, log1p(r->squares * ratio * ratio) - 2 * s->nll);
    PUT(max_prob, s->p);
    PUT(mean_logit, r->total / (double)w->call->num_classes);
    PUT(rest_log_prob, 0 - r->rest.nll);
    PUT(regularizer, w->smoothing_total * s->nll + r->smoothing_gaps + w->call->z_loss * s->logsumexp * s->logsumexp);
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

/* What is asked of each class in the list of those selected, repeated ones together, in double: at a student near its
   teacher it cancels with what is asked of all classes. */
static void OF(sum_inside_grads)(const OF(Task) *w, int64_t p) {
    const Statistics *asked = w->asked;
    for (int64_t i = 0; i < w->num_inside; i++) w->inside_grads[i] = 0;
    for (int64_t i = 0; i < (asked->selected_grad ? asked->num_selected : 0); i++) {
        const int64_t *c = &asked->selected[p * asked->num_selected + i];
        const int64_t *at = bsearch(c, w->inside, (size_t)w->num_inside, sizeof *c, compare_classes);
        if (at) w->inside_grads[at - w->inside] += OF(selected_grad)(asked, p, i);
    }
}

/* The n e_c of a chunk become e_c exp(m_i - shift) factor, and pivots that are no longer get theirs. */
static void OF(scale_stored)(const OF(Task) *w, T *restrict e, int64_t start, int64_t n, double factor, double shift) {
    double level = w->chunk_shifts[start / CHUNK];
    T f = (T)(level == shift ? factor : factor * exp(level - shift));
    for (int64_t i = 0; i < n; i++) e[i] = e[i] == 0 ? 0 : e[i] * f;
    for (int64_t i = 0; i < w->num_former; i++) {
        int64_t c = w->former[i];
        if (c >= start && c < start + n) e[c - start] = (T)(factor * exp(w->former_logits[i] - shift));
    }
}

/* Stores the gradient of position p at out, a chunk at a time: at the classes c != k

       e_c exp_scale (A + g_H (x_k - x_c - D)) + what is asked of the class itself

   where A is the upstream gradient of lse less those of all log-probabilities; at k p A' + (1 - p) a, where a is what is
   asked of it, and A' leaves that out of A and has -g_H D. Of smoothing -b_c is asked of a class, and A has all b_c.

   Where the classes not selected count as one, with the upstream gradient g of its log-probability, r_c = its share of
   them, and P the probability of those selected, the classes selected have A - g, and the others r_c ((1 - P) A + P g). */
static void OF(put_gradient)(OF(Task) *w, const char *row, char *out, int64_t step, int64_t type, int64_t p,
                             int active, int known, const OF(Solved) *r) {
    const VECTOR none = {0};
    const Call *call = w->call;
    const Statistics *asked = w->asked;
    const OF(Stats) *s = &r->stats;
    double entropy_grad = OF(upstream)(asked->entropy_grad, p), log_prob_grad = OF(upstream)(asked->log_prob_grad, p);
    double regularizer_grad = OF(upstream)(asked->regularizer_grad, p), rest_grad = OF(upstream)(asked->rest_grad, p);
    double lse_grad = OF(upstream)(asked->logsumexp_grad, p), of_pivot = 0, gap_mean = OF(gap_mean)(r);
    int64_t target = asked->log_prob_grad ? call->index[p] : -1, selected = asked->selected_grad ? asked->num_selected : 0;
    const T *smoothing = asked->regularizer_grad ? asked->smoothing : NULL;
    if (target == r->pivot) of_pivot = log_prob_grad; else lse_grad -= log_prob_grad;
    for (int64_t i = 0; i < selected; i++) {
        double grad = OF(selected_grad)(asked, p, i);
        if (asked->selected[p * selected + i] == r->pivot) of_pivot += grad; else lse_grad -= grad;
    }
    if (call->z_loss && asked->regularizer_grad) lse_grad += 2 * call->z_loss * s->logsumexp * regularizer_grad;
    double chain = call->inverse_temperature, pivot_lse_grad = lse_grad;
    if (asked->entropy_grad) pivot_lse_grad -= entropy_grad * gap_mean;
    if (smoothing) {
        double own = smoothing[r->pivot];
        pivot_lse_grad += regularizer_grad * (r->pivot == w->heaviest ? w->smoothing_of_others : w->smoothing_total - own);
        of_pivot -= regularizer_grad * own;
    }
    double all = pivot_lse_grad - of_pivot, factor = all * s->exp_scale, shift = s->shift, inside = all - rest_grad;
    double pivot_grad = s->p * pivot_lse_grad + s->one_minus_p * of_pivot;
    const int has_list = asked->rest_grad && w->num_inside;
    if (has_list) OF(sum_inside_grads)(w, p);
    if (asked->rest_grad) {
        int is_inside = 0;
        for (int64_t i = 0; i < w->num_inside; i++) is_inside |= w->inside[i] == r->pivot;
        const OF(Rest) *rest = &r->rest;
        shift = rest->top_outside == -INFINITY ? 0 : rest->top_outside;
        factor = (all * rest->p_outside + rest_grad * rest->p_inside) / rest->sum_outside;
        pivot_grad += is_inside ? -rest_grad * s->p : rest_grad * rest->p_inside / rest->sum_outside;
    }
    known &= !isnan(pivot_lse_grad) && !isnan(of_pivot) && !isnan(rest_grad);
    T a = (T)(factor * chain), b = (T)(entropy_grad * s->exp_scale * chain), of_smoothing = (T)(regularizer_grad * chain);
    const VECTOR m = none + (T)shift, level = none + s->pivot_logit;
    const int64_t size = w->step;
    T *cap = call->softcap ? w->softcap_grad : NULL;
    const int on_row = w->stored == w->row, has_gaps = b != 0; /* a gap may be infinite */
    for (int64_t start = 0, next = 0; start < call->num_classes; start += CHUNK) {
        int64_t n = call->num_classes - start < CHUNK ? call->num_classes - start : CHUNK, whole = OF(whole)(n);
        int is_stored = w->stored && active && known, in_place = w->direct_grad && (is_stored ? !on_row : whole == n);
        T *grad = in_place ? (T *)(out + start * step) : is_stored ? w->stored + start : w->grad;
        int64_t first = next;
        for (; next < w->num_inside && w->inside[next] < start + n;) next++;
        if (!active || !known) {
            for (int64_t i = 0; i < whole; i++) grad[i] = active ? (T)NAN : 0;
        } else if (is_stored) {
            OF(scale_stored)(w, grad, start, n, factor * chain, shift);
            for (int64_t i = 0; smoothing && i < n; i++) grad[i] -= of_smoothing * smoothing[start + i];
        } else {
            const T *x = OF(chunk)(w, row, start, n, cap), *coefs = smoothing ? OF(smoothing)(w, start, n) : NULL;
            const char *ahead = row + (start + CHUNK) * size;
            for (int64_t i = first; i < next; i++) w->inside_logits[i] = x[w->inside[i] - start];
            for (int64_t i = 0; i < whole; i += LANES) {
                VECTOR v = OF(load)(x + i), e = OF(exp)(v - m), g = e * (has_gaps ? a + b * (level - v) : none + a);
                __builtin_prefetch(ahead + i * size);
                g = (VECTOR)((OF(Bits))g & (OF(Bits))(e != 0));
                if (coefs) g -= of_smoothing * OF(load)(coefs + i);
                OF(store)(grad + i, cap ? g * OF(load)(cap + i) : g);
            }
        }
        if (active && known) {
#define OWN(c, value) (T)((value) * chain * (cap ? cap[(c) - start] : 1))
            for (int64_t i = first; i < (has_list ? next : first); i++) {
                int64_t c = w->inside[i];
                double p_inside = exp(w->inside_logits[i] - s->shift) * s->exp_scale, value = w->inside_grads[i];
                if (p_inside) value += p_inside * inside;
                grad[c - start] = OWN(c, value - (smoothing ? regularizer_grad * smoothing[c] : 0));
            }
            if (target >= start && target < start + n) grad[target - start] += OWN(target, log_prob_grad);
            for (int64_t i = 0; i < (has_list ? 0 : selected); i++) {
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
    const Statistics *asked = w->asked;
    T v = call->position_weight ? ((const T *)call->position_weight)[p] : 1;
    int active = v != 0, given = out && call->columns, has_rest = asked->rest_log_prob || asked->rest_grad;
    double *kept = call->columns ? call->columns + p : NULL;
    OF(Solved) r = {0};
    w->stored = !w->can_store ? NULL : w->direct_grad && !w->row ? (T *)out : w->row;
    if (active) {
        if (has_rest) OF(list_inside)(w, p);
        if (given) {
            r.pivot = (int64_t)kept[PIVOT * call->count], r.stats.pivot_logit = (T)kept[PIVOT_LOGIT * call->count];
            r.stats.shift = kept[SHIFT * call->count], r.stats.sum_rest = kept[SUM_REST * call->count];
            r.gaps = kept[KEPT * call->count];
            r.rest.top_inside = kept[TOP_INSIDE * call->count], r.rest.sum_inside = kept[SUM_INSIDE * call->count];
            r.rest.top_outside = kept[TOP_OUTSIDE * call->count], r.rest.sum_outside = kept[SUM_OUTSIDE * call->count];
        } else {
            OF(solve)(w, row, call->index ? call->index[p] : 0, &r);
        }
        if (kept && !given) {
            kept[PIVOT * call->count] = (double)r.pivot, kept[PIVOT_LOGIT * call->count] = r.stats.pivot_logit;
            kept[SHIFT * call->count] = r.stats.shift, kept[SUM_REST * call->count] = r.stats.sum_rest;
            kept[KEPT * call->count] = r.gaps;
            kept[TOP_INSIDE * call->count] = r.rest.top_inside, kept[SUM_INSIDE * call->count] = r.rest.sum_inside;
            kept[TOP_OUTSIDE * call->count] = r.rest.top_outside, kept[SUM_OUTSIDE * call->count] = r.rest.sum_outside;
        }
        OF(row_stats)(&r.stats);
        if (has_rest) OF(rest_stats)(&r.rest);
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

/* The sums of b_c: without the heaviest class the others are summed by themselves. */
static void OF(total_smoothing)(OF(Task) *w) {
    const T *smoothing = w->asked->smoothing;
    OF(Sum) total = {0, 0}, others = {0, 0};
    for (int64_t c = 1; c < w->call->num_classes; c++)
        if (smoothing[c] > smoothing[w->heaviest]) w->heaviest = c;
    for (int64_t c = 0; c < w->call->num_classes; c++) {
        double low;
        total.high = OF(two_sum)(total.high, smoothing[c], &low), total.low += low;
        if (c == w->heaviest) continue;
        others.high = OF(two_sum)(others.high, smoothing[c], &low), others.low += low;
    }
    w->smoothing_total = OF(total)(total), w->smoothing_of_others = OF(total)(others);
}

static int OF(statistics_work)(const Call *call, Queue *queue) {
    const Statistics *asked = &((const StatisticsCall *)call)->asked;
    int tiled = is_tiled(call);
    int64_t tile = tiled ? tile_size(call) : 1, parts = 2 * (call->num_classes / CHUNK + 1);
    int64_t inside = asked->rest_log_prob || asked->rest_grad ? asked->num_selected : 0, chunks = parts / 2 + 1;
    parts += inside;
    OF(Task) w = {.call = call, .asked = asked, .step = tiled ? (int64_t)sizeof(T) : call->x.class_stride};
    w.type = tiled ? call->acc_type : call->x.type, w.pitch = OF(whole)(call->num_classes);
    w.direct = !call->softcap && call->inverse_temperature == 1 && (tiled || OF(is_direct)(&call->x));
    w.direct_grad = tiled || (call->x_grad.data && OF(is_direct)(&call->x_grad));
    const int has_rest = asked->rest_log_prob || asked->rest_grad, in_place = call->x.data == call->x_grad.data;
    w.has_terms = asked->entropy || asked->entropy_grad || asked->log_sum_sq;
    w.can_store = call->x_grad.data && !call->columns && !call->softcap && !w.has_terms && (!has_rest || asked->rest_grad);
    int64_t row = w.can_store && (tiled || in_place || !w.direct_grad) ? w.pitch : 0;
    size_t numbers = (size_t)(4 * CHUNK + (tiled ? tile * w.pitch : 0) + OF(whole)(asked->k) + OF(whole)(inside) + row);
    size_t scalars = (size_t)(4 * parts + asked->k + 2 * inside + 2 * chunks);
    char *memory = malloc(sizeof(double) * scalars + sizeof(T) * (numbers + (size_t)OF(whole)(chunks)) + 64);
    if (!memory) return -1;
    w.chunk = (T *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    w.grad = w.chunk + CHUNK, w.softcap_grad = w.grad + CHUNK, w.coefs = w.softcap_grad + CHUNK;
    w.panel = w.coefs + CHUNK, w.top_logits = w.panel + (tiled ? tile * w.pitch : 0);
    w.inside_logits = w.top_logits + OF(whole)(asked->k);
    w.row = row ? w.inside_logits + OF(whole)(inside) : NULL;
    w.former_logits = w.inside_logits + OF(whole)(inside) + row;
    w.shifts = (double *)(w.former_logits + OF(whole)(chunks)), w.sums = w.shifts + parts, w.gaps = w.sums + parts;
    w.squares = w.gaps + parts, w.top = (int64_t *)(w.squares + parts), w.inside = w.top + asked->k;
    w.inside_grads = (double *)(w.inside + inside), w.chunk_shifts = w.inside_grads + inside;
    w.former = (int64_t *)(w.chunk_shifts + chunks);
    if (asked->smoothing) OF(total_smoothing)(&w);
    for (int64_t first = 0, end = 0, n; (n = next_tile(call, queue, tile, &first, &end)); first += n)
        OF(work_tile)(&w, first, n, tiled);
    free(memory);
    return 0;
}
