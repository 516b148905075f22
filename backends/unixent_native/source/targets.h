/* What one thread's share of a call has for all its rows, and the coefficients t_c of mixed targets: probabilities, or
   smoothed indices. */

typedef struct {
    const Call *call;
    OF(Scratch) scratch;
    int is_mixed, tiled, direct_x, direct_grad;
    int64_t padded;                   /* C rounded up to whole vectors */
    T of_probability;                 /* 1 - s */
    double base;                      /* s / C, of all classes */
    double total, rest_of_heaviest;   /* sums of b_c */
    int64_t heaviest;
} OF(Context);

static inline T OF(weight)(const Call *call, int64_t c) { return call->weight ? ((const T *)call->weight)[c] : 1; }

/* b_c = w_c s / C and their sums: without the heaviest class the others are summed by themselves. */
static void OF(sum_smoothing)(OF(Context) *w) {
    const Call *call = w->call;
    OF(Sum) total = {0, 0}, rest = {0, 0};
    for (int64_t c = 1; c < call->num_classes; c++)
        if (OF(weight)(call, c) > OF(weight)(call, w->heaviest)) w->heaviest = c;
    for (int64_t c = 0; c < call->num_classes; c++) {
        double b = OF(weight)(call, c) * w->base, low;
        double high = OF(two_sum)(total.high, b, &low);
        total.high = high, total.low += low;
        if (c == w->heaviest) continue;
        high = OF(two_sum)(rest.high, b, &low);
        rest.high = high, rest.low += low;
    }
    w->total = OF(total)(total), w->rest_of_heaviest = OF(total)(rest);
    if (!call->probabilities.data)
        for (int64_t c = 0; c < call->num_classes; c++) w->scratch.coefs[c] = (T)(OF(weight)(call, c) * w->base);
}

/* t_c = w_c (1 - s) q_c + b_c of n classes of a row, whose probabilities coefs hold. */
static void OF(to_coefs)(const OF(Context) *w, T *restrict coefs, int64_t start, int64_t n) {
    const T *restrict weight = w->call->weight;
    T scale = w->of_probability, base = (T)w->base;
    if (w->call->label_smoothing > 0) {
        if (weight) for (int64_t i = 0; i < n; i++) coefs[i] = coefs[i] * scale * weight[start + i] + (T)(weight[start + i] * w->base);
        else for (int64_t i = 0; i < n; i++) coefs[i] = coefs[i] * scale + base;
    } else if (weight) {
        for (int64_t i = 0; i < n; i++) coefs[i] *= weight[start + i];
    }
}
