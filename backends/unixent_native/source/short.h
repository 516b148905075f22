/* Rows of few classes are worked LANES at a time, one in each lane of a vector, and so is what their sums come to. The
   rows of a tile lie in panels of LANES, each a vector for every class. Classes are added up in their order, whatever
   their layout in memory and whatever the other rows are. */

typedef struct {
    double pivot_logit[MAX_TILE], shift[MAX_TILE], sum_rest[MAX_TILE];
    double target_coef[MAX_TILE], grad_scale[MAX_TILE], pivot_grad[MAX_TILE];
    T position_weight[MAX_TILE], factor[MAX_TILE], line[MAX_SHORT * VECTOR_BYTES / sizeof(T)];
    int64_t pivot[MAX_TILE];
    T panels[];
} OF(Tile);

/* Rows of numbers next to each other, step bytes from one to the next, become columns, and columns rows. */
static inline void OF(transpose)(char *out, int64_t out_step, const char *in, int64_t in_step, int64_t rows, int64_t columns) {
    const int64_t size = sizeof(T);
    int64_t whole_rows = size == 4 ? rows / 4 * 4 : 0, whole_columns = size == 4 ? columns / 4 * 4 : 0;
    for (int64_t r = 0; r < whole_rows; r += 4) {
        for (int64_t c = 0; c < whole_columns; c += 4) {
            Four v[4];
            for (int i = 0; i < 4; i++) memcpy(&v[i], in + (r + i) * in_step + c * size, sizeof v[i]);
            transpose_four(v);
            for (int i = 0; i < 4; i++) memcpy(out + (c + i) * out_step + r * size, &v[i], sizeof v[i]);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; c++)
            memcpy(out + c * out_step + r * size, in + r * in_step + c * size, sizeof(T));
}

/* Bytes from one row to the next along the last axis, and how far ahead of a vector of a panel memory is fetched: with
   classes far apart only as long as there are few, more would fall on the same lines of the caches. */
static inline int64_t OF(row_step)(const Array *a, const Call *call) { return call->num_axes ? a->strides[call->num_axes - 1] : 0; }
static inline int64_t OF(fetch_step)(const Array *a, const Call *call) {
    return !is_tiled(call) ? LANES * (int64_t)size_of(a->type) : call->num_classes <= 32 ? a->class_stride : 0;
}

/* n rows, adjacent along the last axis, from memory to the panels; and back. */
static void OF(load_tile)(OF(Tile) *tile, const Call *call, const char *in, int64_t n) {
    const Array *a = &call->x;
    int64_t num_classes = call->num_classes, size = sizeof(T), step = OF(row_step)(a, call);
    T *line = tile->line;
    int same = (int64_t)size_of(a->type) == size;
    if (is_tiled(call)) {
        int direct = same && step == size && n % LANES == 0;
        for (int64_t c = 0; c < num_classes; c++, in += a->class_stride) {
            if (!direct) OF(read)(line, 1, in, step, a->type, n);
            for (int64_t i = 0; i < n; i += LANES)
                memcpy(tile->panels + i * num_classes + c * LANES, direct ? in + i * size : (char *)(line + i), VECTOR_BYTES);
        }
        return;
    }
    int direct = same && a->class_stride == size;
    for (int64_t i = 0; i < n; i += LANES, in += LANES * step) {
        int64_t rows = n - i < LANES ? n - i : LANES;
        for (int64_t r = 0; !direct && r < rows; r++)
            OF(read)(line + r * num_classes, 1, in + r * step, a->class_stride, a->type, num_classes);
        OF(transpose)((char *)(tile->panels + i * num_classes), VECTOR_BYTES, direct ? in : (char *)line,
                      direct ? step : num_classes * size, rows, num_classes);
    }
}

static void OF(store_tile)(OF(Tile) *tile, const Call *call, char *out, int64_t n) {
    const Array *a = &call->x_grad;
    int64_t num_classes = call->num_classes, size = sizeof(T), step = OF(row_step)(a, call);
    T *line = tile->line;
    int same = (int64_t)size_of(a->type) == size;
    if (is_tiled(call)) {
        int direct = same && step == size && n % LANES == 0;
        for (int64_t c = 0; c < num_classes; c++, out += a->class_stride) {
            for (int64_t i = 0; i < n; i += LANES)
                memcpy(direct ? out + i * size : (char *)(line + i), tile->panels + i * num_classes + c * LANES, VECTOR_BYTES);
            if (!direct) OF(write)(out, step, a->type, line, 1, n);
        }
        return;
    }
    int direct = same && a->class_stride == size;
    for (int64_t i = 0; i < n; i += LANES, out += LANES * step) {
        int64_t rows = n - i < LANES ? n - i : LANES;
        OF(transpose)(direct ? out : (char *)line, direct ? step : num_classes * size,
                      (char *)(tile->panels + i * num_classes), VECTOR_BYTES, num_classes, rows);
        for (int64_t r = 0; !direct && r < rows; r++)
            OF(write)(out + r * step, a->class_stride, a->type, line + r * num_classes, 1, num_classes);
    }
}

/* The largest logit of each row of a panel and its sum of exponentials, which are kept where a gradient is wanted, while
   the rows ahead are fetched: computing leaves the memory idle. */
static inline __attribute__((always_inline)) void OF(sum_panel)(T *panel, int64_t num_classes, int keep, double *shift,
                                                               double *sum_rest, const char *ahead, int64_t step) {
    const VECTOR none = {0};
    VECTOR m = none - (T)INFINITY;
    T lanes[VECTOR_BYTES / sizeof(T)];
    for (int64_t c = 0; c < num_classes; c++) m = OF(max)(OF(load)(panel + c * LANES), m);
    OF(store)(lanes, m);
    for (int64_t i = 0; i < LANES; i++) shift[i] = lanes[i];
    m = (VECTOR)((OF(Bits))m & (OF(Bits))(m != -(T)INFINITY)); /* exp(-inf - 0) = 0 where all of them are -inf */
    OF(Sum) sums[VECTOR_BYTES / sizeof(T)] = {{0, 0}};
    for (int64_t start = 0; start < num_classes; start += 32) {
        int64_t stop = num_classes - start < 32 ? num_classes : start + 32, c = start;
        VECTOR s0 = none, s1 = none;
        for (; c + 2 <= stop; c += 2) {
            T *at = panel + c * LANES;
            __builtin_prefetch(ahead + c * step), __builtin_prefetch(ahead + c * step + step);
            VECTOR e0 = OF(exp)(OF(load)(at) - m), e1 = OF(exp)(OF(load)(at + LANES) - m);
            if (keep) OF(store)(at, e0), OF(store)(at + LANES, e1);
            s0 += e0, s1 += e1;
        }
        if (c < stop) {
            VECTOR e0 = OF(exp)(OF(load)(panel + c * LANES) - m);
            if (keep) OF(store)(panel + c * LANES, e0);
            s0 += e0;
        }
        OF(store)(lanes, s0 + s1);
        for (int64_t i = 0; i < LANES; i++) OF(add)(&sums[i], lanes[i]);
    }
    for (int64_t i = 0; i < LANES; i++) sum_rest[i] = OF(total)(sums[i]);
}

/* The losses of DOUBLES rows, and the factors of their gradients. */
static inline void OF(short_losses)(OF(Tile) *tile, int64_t i, const Call *call, double *loss) {
    const Vector_double none = {0};
    RowStats s = {.pivot_logit = load_double(tile->pivot_logit + i), .shift = load_double(tile->shift + i),
                  .sum_rest = load_double(tile->sum_rest + i)};
    row_stats(&s);
    Vector_double coef = load_double(tile->target_coef + i), scale = load_double(tile->grad_scale + i);
    Bits_double nothing = (coef == 0.0) & (s.nll == INFINITY);
    Vector_double value = select_double(nothing, none, coef * s.nll), pivot_grad = -coef * s.one_minus_p;
    if (call->z_loss) {
        Vector_double z_grad = 2 * call->z_loss * s.logsumexp;
        value += call->z_loss * s.logsumexp * s.logsumexp;
        pivot_grad += z_grad * s.p, coef += z_grad;
    }
    store_double(loss, value);
    store_double(tile->pivot_grad + i, scale * pivot_grad);
    double factor[DOUBLES];
    store_double(factor, coef * s.exp_scale * scale);
    for (int64_t k = 0; k < DOUBLES; k++) tile->factor[i + k] = (T)factor[k];
}

/* Losses and gradients of positions first .. first + n, adjacent along the last axis. */
static void OF(short_tile)(OF(Tile) *tile, const Call *call, int64_t first, int64_t n) {
    const Array *x = &call->x, *xg = &call->x_grad;
    const char *in = x->data + OF(offset)(x, call, first);
    int64_t num_classes = call->num_classes, row_step = OF(row_step)(x, call), step = OF(fetch_step)(x, call);
    OF(load_tile)(tile, call, in, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t p = first + i, index = call->index[p];
        T v = call->position_weight ? ((const T *)call->position_weight)[p] : 1;
        double scale = call->grad_scale ? ((const T *)call->grad_scale)[p * call->grad_scale_step] : 0;
        if (index < 0 || index >= num_classes) index = 0, scale = NAN, v = v == 0 ? 0 : (T)NAN;
        tile->position_weight[i] = v, tile->grad_scale[i] = scale;
        tile->target_coef[i] = call->weight ? ((const T *)call->weight)[index] : 1;
        int64_t pivot = tile->pivot[i] = i / LANES * LANES * num_classes + index * LANES + i % LANES;
        tile->pivot_logit[i] = tile->panels[pivot];
        tile->panels[pivot] = -(T)INFINITY;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        T *panel = tile->panels + i * num_classes;
        const char *ahead = in + (n + i) * row_step;
        if (xg->data) OF(sum_panel)(panel, num_classes, 1, tile->shift + i, tile->sum_rest + i, ahead, step);
        else OF(sum_panel)(panel, num_classes, 0, tile->shift + i, tile->sum_rest + i, ahead, step);
    }
    for (int64_t i = 0; i < n; i += DOUBLES) {
        double loss[DOUBLES];
        OF(short_losses)(tile, i, call, loss);
        for (int64_t k = i; k < n && k < i + DOUBLES; k++) {
            T v = tile->position_weight[k];
            ((T *)call->losses)[first + k] = v == 0 ? 0 : (T)(loss[k - i] * v);
        }
    }
    if (!xg->data) return;
    char *out = xg->data + OF(offset)(xg, call, first);
    row_step = OF(row_step)(xg, call), step = OF(fetch_step)(xg, call);
    for (int64_t i = 0; i < n; i += LANES) {
        T *panel = tile->panels + i * num_classes;
        VECTOR factor = OF(load)(tile->factor + i);
        OF(Bits) counted = (OF(Bits))(OF(load)(tile->position_weight + i) != 0);
        for (int64_t c = 0; c < num_classes; c++) {
            __builtin_prefetch(out + i * row_step + c * step, 1);
            OF(store)(panel + c * LANES, (VECTOR)((OF(Bits))(OF(load)(panel + c * LANES) * factor) & counted));
        }
    }
    for (int64_t i = 0; i < n; i++) tile->panels[tile->pivot[i]] = tile->position_weight[i] == 0 ? 0 : (T)tile->pivot_grad[i];
    OF(store_tile)(tile, call, out, n);
}

static int OF(work_short)(const Call *call, Queue *queue) {
    int64_t size = tile_size(call);
    char *memory = calloc(1, sizeof(OF(Tile)) + sizeof(T) * (size_t)(size * call->num_classes) + 64);
    if (!memory) return -1;
    OF(Tile) *tile = (OF(Tile) *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    for (int64_t first = 0, end = 0, n; (n = next_tile(call, queue, size, &first, &end)); first += n)
        OF(short_tile)(tile, call, first, n);
    free(memory);
    return 0;
}
