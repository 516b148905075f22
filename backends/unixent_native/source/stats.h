/* What rows come to, a vector of them at a time, in double: from the pivot's logit x_k, the largest m of the other
   classes and R = sum of exp(x_c - m) over these follow the loss and the factors of the gradient, free of cancellation. */

enum { DOUBLES = VECTOR_BYTES / sizeof(double) };

typedef struct {
    Vector_double pivot_logit, shift, sum_rest;                /* x_k, m, R */
    Vector_double nll, logsumexp, p, one_minus_p, exp_scale;   /* p: of the pivot; exp(x_c - m) exp_scale: of the others */
} RowStats;

static inline void row_stats(RowStats *s) {
    const Vector_double none = {0};
    Vector_double pivot = s->pivot_logit, shift = select_double(s->shift == -INFINITY, pivot, s->shift);
    Vector_double rest = select_double(pivot == INFINITY, none + NAN, s->sum_rest);
    Vector_double gap = shift - pivot, back = gap - shift, dropped = (shift - (gap - back)) - (pivot + back);
    Vector_double distance = (Vector_double)((Bits_double)gap & ~(Bits_double)-none);
    dropped = select_double(distance < INFINITY, dropped, none);
    Vector_double decay = exp_double(-distance);
    /* Another class is the largest. */
    Bits_double behind = gap > 0.0;
    Vector_double decay_behind = decay - decay * dropped;
    /* The pivot is. exp(-distance) is taken in two where it would be subnormal. */
    Vector_double half = exp_double(distance * -0.5);
    Vector_double odds = select_double(distance > 600.0, (rest * half) * half, rest * decay);
    odds += odds * dropped;
    Vector_double decay_ahead = decay + decay * dropped;

    Vector_double norm = select_double(behind, rest + decay_behind, 1.0 + odds);
    Vector_double log_norm = log1p_double(select_double(behind, (rest - 1.0) + decay_behind, odds));
    s->shift = shift;
    s->nll = select_double(behind, gap + (dropped + log_norm), log_norm);
    s->logsumexp = select_double(behind, shift, pivot) + log_norm;
    s->p = select_double(behind, decay_behind, none + 1.0) / norm;
    s->one_minus_p = select_double(behind, rest, odds) / norm;
    s->exp_scale = select_double(behind, none + 1.0, decay_ahead) / norm;
}
