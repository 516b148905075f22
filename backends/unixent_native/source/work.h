/* One thread's share of a call: rows loaded, their statistics, the losses, the gradients stored. */

/* Fills the scratch row with classes start .. start + n: read, unless a tile's were, and transformed. */
static inline void OF(fill)(OF(Context) *w, T *row, const char *x, int64_t start, int64_t n) {
    const Call *call = w->call;
    if (x) OF(read)(row + start, 1, x + start * call->x.class_stride, call->x.class_stride, call->x.type, n);
    int64_t end = start + n;
    if (end == call->num_classes)
        for (; end < w->padded; end++) row[end] = -(T)INFINITY;
    if (call->softcap)
        OF(softcap)(row + start, w->scratch.softcap_grad ? w->scratch.softcap_grad + start : NULL, end - start, call->softcap);
    if (call->inverse_temperature != 1) {
        T factor = (T)call->inverse_temperature;
        for (int64_t c = start; c < end; c++) row[c] *= factor;
    }
}

/* Statistics of a row. x: the logits where they can be worked in place, else NULL and the row is in scratch, filled from
   memory on the way unless it is complete. e: where the exponentials go, or NULL. */
static void OF(statistics)(OF(Context) *w, const T *x, T *row, const char *source, int complete, const char *q,
                           T *coefs, T *e, int64_t pivot, OF(Stats) *s) {
    const Call *call = w->call;
    OF(Scratch) *scratch = &w->scratch;
    OF(Sum) gaps = {0, 0}, rest_coef = {0, 0}, sum = {0, 0};
    int64_t num_classes = call->num_classes, chunks = 0;
    double largest = -INFINITY;
    for (int64_t start = 0; start < num_classes; start += CHUNK, chunks++) {
        int64_t n = num_classes - start < CHUNK ? num_classes - start : CHUNK;
        int64_t whole = (n + LANES - 1) / LANES * LANES;
        int has_pivot = pivot >= start && pivot < start + n;
        const T *in = x + start;
        T *out = e ? e + start : NULL, *buffer = NULL;
        if (!x) {
            if (!complete) OF(fill)(w, row, source, start, n);
            in = buffer = row + start;
        } else if (has_pivot || whole != n) {
            buffer = scratch->chunk;
            copy(buffer, in, (size_t)n * sizeof(T));
            for (int64_t i = n; i < whole; i++) buffer[i] = -(T)INFINITY;
            in = buffer;
        }
        if (has_pivot) s->pivot_logit = in[pivot - start];
        if (w->is_mixed) {
            T saved = 0;
            if (q) {
                OF(read)(coefs + start, 1, q + start * call->probabilities.class_stride, call->probabilities.class_stride,
                         call->probabilities.type, n);
            }
            if (call->probabilities.data) {
                OF(to_coefs)(w, coefs + start, start, n);
                for (int64_t i = n; i < whole; i++) coefs[start + i] = 0;
            }
            if (has_pivot) saved = coefs[pivot], coefs[pivot] = 0;
            OF(sum_gaps)(in, coefs + start, whole, s->level, &gaps, &rest_coef);
            if (has_pivot) coefs[pivot] = saved;
            if (scratch->gaps)
                for (int64_t i = 0; i < n; i++) scratch->gaps[start + i] = s->level - in[i];
        }
        if (has_pivot) buffer[pivot - start] = -(T)INFINITY;
        T shift = OF(largest)(in, whole);
        /* A row that is worked in place has no room for the last vector. */
        T *target = out && whole != n && out != row + start ? scratch->chunk : out;
        int64_t size = (int64_t)size_of(call->x.type);
        const char *ahead = (x ? (const char *)x : source) + (start + CHUNK) * size;
        double chunk_sum = target ? OF(sum_exp)(in, target, whole, shift == -(T)INFINITY ? 0 : shift, ahead, size)
                                  : OF(sum_exp)(in, NULL, whole, shift == -(T)INFINITY ? 0 : shift, ahead, size);
        if (target != out) copy(out, target, (size_t)n * sizeof(T));
        scratch->shifts[chunks] = shift, scratch->sums[chunks] = chunk_sum;
        largest = shift > largest ? shift : largest;
    }
    /* Each sum is rescaled once: shifts that rise slowly would else add up their errors. */
    for (int64_t i = 0; i < chunks; i++) {
        double shift = scratch->shifts[i];
        OF(add)(&sum, shift == largest ? scratch->sums[i] : scratch->sums[i] * exp(shift - largest));
    }
    s->shift = largest, s->sum_rest = OF(total)(sum);
    s->weighted_gaps = OF(total)(gaps), s->rest_coef = OF(total)(rest_coef);
}

static inline double OF(product)(double coef, double value) { return coef == 0 && isinf(value) ? 0 : coef * value; }

/* The n exponentials of a chunk become the gradient of its logits, but for the pivot's. */
static inline void OF(to_gradient)(const OF(Context) *w, T *restrict e, const T *restrict coefs, int64_t start, int64_t n,
                                   double factor, double grad_scale) {
    const T *restrict softcap_grad = w->scratch.softcap_grad;
    if (!w->is_mixed) {
        T f = (T)(factor * grad_scale);
        for (int64_t i = 0; i < n; i++) e[i] *= f;
    } else {
        T f = (T)factor, g = (T)grad_scale;
        for (int64_t i = 0; i < n; i++) e[i] = (e[i] * f - coefs[start + i]) * g;
    }
    if (softcap_grad)
        for (int64_t i = 0; i < n; i++) e[i] *= softcap_grad[start + i];
}

static void OF(gradients)(OF(Context) *w, T *e, T *coefs, char *out, int64_t pivot, int64_t target, double rest_coef,
                          double pivot_grad, double target_coef, double grad_scale, const OF(Stats) *s) {
    const Call *call = w->call;
    T *softcap_grad = w->scratch.softcap_grad;
    grad_scale *= call->inverse_temperature, pivot_grad *= call->inverse_temperature;
    for (int64_t start = 0, i = 0; start < call->num_classes; start += CHUNK, i++) {
        int64_t n = call->num_classes - start < CHUNK ? call->num_classes - start : CHUNK;
        double shift = w->scratch.shifts[i];
        double factor = rest_coef * s->exp_scale;
        if (shift != s->shift) factor *= exp(shift - s->shift);
        int has_target = w->is_mixed && target >= start && target < start + n && target != pivot;
        T saved = has_target ? coefs[target] : 0;
        if (has_target) coefs[target] += (T)target_coef;
        OF(to_gradient)(w, e + start, coefs, start, n, factor, grad_scale);
        if (has_target) coefs[target] = saved;
        if (pivot >= start && pivot < start + n)
            e[pivot] = (T)(softcap_grad ? pivot_grad * softcap_grad[pivot] : pivot_grad);
        if (out) OF(write)(out + start * call->x_grad.class_stride, call->x_grad.class_stride, call->x_grad.type, e + start, 1, n);
    }
}

/* Index of the largest of the classes but one, filling the scratch row on the way where it is not complete. */
static int64_t OF(find_largest)(OF(Context) *w, const T *x, T *row, const char *source, int complete, int64_t but) {
    int64_t num_classes = w->call->num_classes, chunk = 0;
    T largest = -(T)INFINITY;
    for (int64_t start = 0; start < num_classes; start += CHUNK) {
        int64_t n = num_classes - start < CHUNK ? num_classes - start : CHUNK, whole = n / LANES * LANES;
        if (!x && !complete) OF(fill)(w, row, source, start, n);
        const T *in = (x ? x : row) + start;
        if (but >= start && but < start + n) {
            copy(w->scratch.chunk, in, (size_t)n * sizeof(T)), in = w->scratch.chunk;
            w->scratch.chunk[but - start] = -(T)INFINITY;
        }
        T m = OF(largest)(in, whole);
        for (int64_t i = whole; i < n; i++) m = in[i] > m ? in[i] : m;
        if (m > largest) largest = m, chunk = start;
    }
    const T *in = x ? x : row;
    int64_t end = num_classes - chunk < CHUNK ? num_classes : chunk + CHUNK;
    for (int64_t c = chunk; c < end; c++)
        if (in[c] == largest && c != but) return c;
    return 0; /* all of them NaN */
}

/* What is left of the gaps, level - x_c, becomes the gradient of the probabilities. */
static void OF(probability_gradients)(const OF(Context) *w, T nll, T scale) {
    T *gaps = w->scratch.gaps;
    const T *weight = w->call->weight;
    for (int64_t c = 0; c < w->call->num_classes; c++) {
        T coef = w->of_probability * (weight ? weight[c] : 1);
        T grad = coef == 0 ? 0 : coef * (gaps[c] + nll);
        gaps[c] = scale == 0 && isinf(grad) ? 0 : grad * scale;
    }
}

/* The loss of a position, and its gradients: of logits in e (and stored at out), of probabilities in scratch->gaps. */
static T OF(position)(OF(Context) *w, const T *x, T *row, const char *source, int complete, const char *q, T *coefs, T *e,
                      char *out, int64_t index, double position_weight, double grad_scale) {
    const Call *call = w->call;
    OF(Stats) s = {0};
    if (call->index && (index < 0 || index >= call->num_classes)) index = 0, position_weight = grad_scale = NAN;
    int64_t pivot = index;
    double target_gap = 0, target_coef = 0;
    if (w->is_mixed) {
        pivot = OF(find_largest)(w, x, row, source, complete, -1), complete = 1;
        const T *in = x ? x : row;
        s.level = in[pivot];
        if (call->index) target_gap = (double)in[pivot] - in[index];
    }
    OF(statistics)(w, x, row, source, complete, q, coefs, e, pivot, &s);
    OF(row_stats)(&s);
    double loss, total, pivot_coef, rest_coef = 0;
    if (call->index) target_coef = (1 - call->label_smoothing) * OF(weight)(call, index);
    if (!w->is_mixed) {
        total = pivot_coef = target_coef;
        loss = OF(product)(target_coef, s.nll);
    } else if (call->index) {
        total = w->total + target_coef;
        pivot_coef = OF(weight)(call, pivot) * w->base + (pivot == index ? target_coef : 0);
        rest_coef = pivot == w->heaviest ? w->rest_of_heaviest : w->total - OF(weight)(call, pivot) * w->base;
        rest_coef += pivot == index ? 0 : target_coef;
        loss = s.weighted_gaps + OF(product)(target_coef, target_gap) + total * s.nll;
    } else {
        pivot_coef = coefs[pivot], rest_coef = s.rest_coef;
        total = rest_coef + pivot_coef;
        loss = s.weighted_gaps + total * s.nll;
    }
    double z_loss_grad = call->z_loss ? 2 * call->z_loss * s.logsumexp : 0;
    if (call->z_loss) loss += call->z_loss * s.logsumexp * s.logsumexp;
    if (e) {
        double pivot_grad = rest_coef * s.p - pivot_coef * s.one_minus_p;
        if (call->z_loss) pivot_grad += z_loss_grad * s.p, total += z_loss_grad;
        OF(gradients)(w, e, coefs, out, pivot, index, total, grad_scale * pivot_grad, target_coef, grad_scale, &s);
    }
    if (w->scratch.gaps) OF(probability_gradients)(w, (T)s.nll, (T)grad_scale);
    return (T)(loss * position_weight);
}

/* Half of a position whose other classes are elsewhere; see call.h. */
static void OF(share)(OF(Context) *w, const T *x, T *row, const char *source, int complete, const char *q, T *coefs, T *e,
                      char *out, int64_t index, double grad_scale, double *columns) {
    const Call *call = w->call;
    const int64_t step = call->count;
    OF(Stats) s = {0};
    int64_t pivot = index >= 0 && index < call->num_classes ? index : -1;
    if (e || w->scratch.gaps) {
        s.level = (T)columns[PIVOT_LOGIT * step];
        OF(statistics)(w, x, row, source, complete, q, coefs, e, pivot, &s);
        s.shift = columns[SHIFT * step], s.exp_scale = 1;
        if (e)
            OF(gradients)(w, e, coefs, out, pivot, -1, columns[EXP_GRAD * step], grad_scale * columns[PIVOT_GRAD * step], 0,
                          grad_scale, &s);
        if (w->scratch.gaps) OF(probability_gradients)(w, (T)columns[NLL * step], (T)grad_scale);
        return;
    }
    if (w->is_mixed) {
        int64_t largest = OF(find_largest)(w, x, row, source, complete, pivot);
        complete = 1, s.level = (x ? x : row)[largest];
        if (s.level == -(T)INFINITY) s.level = 0;
        if (call->probabilities.data) pivot = largest;
    }
    OF(statistics)(w, x, row, source, complete, q, coefs, NULL, pivot, &s);
    columns[PIVOT_LOGIT * step] = s.pivot_logit, columns[PIVOT * step] = (double)pivot;
    columns[SHIFT * step] = s.shift, columns[SUM_REST * step] = s.sum_rest;
    columns[WEIGHTED_GAPS * step] = s.weighted_gaps, columns[REST_COEF * step] = s.rest_coef;
    columns[PIVOT_COEF * step] = w->is_mixed && pivot >= 0 ? coefs[pivot] : 0;
}

/* Positions first .. first + n, adjacent along the last axis; n is 1 unless they are tiled. */
static void OF(tile)(OF(Context) *w, int64_t first, int64_t n) {
    const Call *call = w->call;
    OF(Scratch) *scratch = &w->scratch, whole = *scratch;
    int64_t last = call->num_axes - 1, num_classes = call->num_classes;
    const Array *x = &call->x, *q = &call->probabilities, *xg = &call->x_grad, *qg = &call->probabilities_grad;
    char *at_x = x->data + OF(offset)(x, call, first), *at_q = q->data ? q->data + OF(offset)(q, call, first) : NULL;
    char *at_xg = xg->data ? xg->data + OF(offset)(xg, call, first) : NULL;
    char *at_qg = qg->data ? qg->data + OF(offset)(qg, call, first) : NULL;
    if (w->tiled) {
        for (int64_t c = 0; c < num_classes; c++) {
            OF(read)(whole.row + c, whole.pitch, at_x + c * x->class_stride, x->strides[last], x->type, n);
            if (at_q) OF(read)(whole.coefs + c, whole.pitch, at_q + c * q->class_stride, q->strides[last], q->type, n);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t p = first + i;
        T *row = whole.row + i * whole.pitch, *coefs = at_q ? whole.coefs + i * whole.pitch : whole.coefs;
        T *e = !at_xg ? NULL : w->direct_grad ? (T *)at_xg : row, *losses = call->losses;
        if (whole.gaps) scratch->gaps = whole.gaps + i * whole.pitch;
        char *out = w->tiled || w->direct_grad ? NULL : at_xg;
        T v = call->position_weight ? ((const T *)call->position_weight)[p] : 1;
        if (v == 0) {
            losses[p] = 0;
            if (e) memset(e, 0, (size_t)num_classes * sizeof(T));
            if (out) OF(write)(out, xg->class_stride, xg->type, e, 1, num_classes);
            if (whole.gaps) memset(scratch->gaps, 0, (size_t)num_classes * sizeof(T));
        } else {
            T scale = call->grad_scale ? ((const T *)call->grad_scale)[p * call->grad_scale_step] : 0;
            const T *direct = w->direct_x ? (const T *)at_x : NULL;
            const char *unread_q = w->tiled ? NULL : at_q;
            int64_t index = call->index ? call->index[p] : -1;
            if (w->tiled) OF(fill)(w, row, NULL, 0, num_classes);
            if (call->columns)
                OF(share)(w, direct, row, at_x, w->tiled, unread_q, coefs, e, out, index, scale, call->columns + p);
            else losses[p] = OF(position)(w, direct, row, at_x, w->tiled, unread_q, coefs, e, out, index, v, scale);
        }
        if (at_qg && !w->tiled) OF(write)(at_qg, qg->class_stride, qg->type, scratch->gaps, 1, num_classes);
    }
    *scratch = whole;
    for (int64_t c = 0; w->tiled && c < num_classes; c++) {
        if (at_xg) OF(write)(at_xg + c * xg->class_stride, xg->strides[last], xg->type, whole.row + c, whole.pitch, n);
        if (at_qg) OF(write)(at_qg + c * qg->class_stride, qg->strides[last], qg->type, whole.gaps + c, whole.pitch, n);
    }
}

static int OF(work)(const Call *call, Queue *queue) {
    OF(Context) w = {.call = call};
    int64_t num_classes = call->num_classes, tile = tile_size(call);
    w.tiled = tile > 1;
    w.is_mixed = call->probabilities.data || call->label_smoothing > 0;
    w.direct_x = !w.tiled && !call->softcap && call->inverse_temperature == 1 && OF(is_direct)(&call->x);
    w.direct_grad = w.direct_x && call->x_grad.data && OF(is_direct)(&call->x_grad);
    w.of_probability = (T)(1 - call->label_smoothing), w.base = call->smoothing_per_class;
    w.padded = (num_classes + LANES - 1) / LANES * LANES;
    OF(Scratch) *scratch = &w.scratch;
    int64_t pitch = scratch->pitch = w.padded, chunks = num_classes / CHUNK + 1;
    int has_row = !w.direct_x || (call->x_grad.data && !w.direct_grad);
    int64_t rows = has_row ? tile : 0, coefs = call->probabilities.data ? tile : w.is_mixed;
    int64_t gaps = call->probabilities_grad.data ? tile : 0, cap = call->softcap && call->x_grad.data;
    size_t size = sizeof(double) * 2 * (size_t)chunks + sizeof(T) * ((size_t)((rows + coefs + gaps + cap) * pitch) + CHUNK);
    char *memory = malloc(size + 64), *p = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    if (!memory) return -1;
    scratch->chunk = (T *)p, p += sizeof(T) * CHUNK;
#define TAKE(name, n) if (n) scratch->name = (T *)p, p += sizeof(T) * (size_t)((n) * pitch)
    TAKE(row, rows); TAKE(coefs, coefs); TAKE(gaps, gaps); TAKE(softcap_grad, cap);
#undef TAKE
    scratch->shifts = (double *)p, scratch->sums = scratch->shifts + chunks;
    if (scratch->coefs) memset(scratch->coefs, 0, sizeof(T) * (size_t)(coefs * pitch));
    if (w.is_mixed && call->label_smoothing > 0) OF(sum_smoothing)(&w);
    for (int64_t first = 0, end = 0, n; (n = next_tile(call, queue, tile, &first, &end)); first += n) OF(tile)(&w, first, n);
    free(memory);
    return 0;
}
