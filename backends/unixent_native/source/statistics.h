/* One call for statistics of positions, as unixent_native/statistics.py packs it. */
#ifndef UNIXENT_STATISTICS_H
#define UNIXENT_STATISTICS_H
#include "call.h"

/* One number, K or k of them, for each position, in C order; NULL where there is none. Floating ones are of the
   accumulation dtype. The classes that are not selected count as one in rest_log_prob, which no call asks for together
   with the gradient of entropy. */
typedef struct {
    void *log_prob, *entropy, *logsumexp, *selected_log_prob, *log_sum_sq, *max_prob;
    int64_t *prediction;
    char *correct;
    int64_t *rank;
    void *top_log_prob;
    int64_t *top_index;
    void *mean_logit, *rest_log_prob, *regularizer; /* of unixent/sparse_rows.py */
    const void *log_prob_grad, *entropy_grad, *logsumexp_grad, *selected_grad, *rest_grad, *regularizer_grad; /* upstream */
    const int64_t *selected;     /* in [0, C) */
    const void *selected_weight; /* 1; 0 at padding, NaN where it is no class; NULL: ones */
    const void *smoothing;       /* b_c of the regularizer, (C,), or NULL; its z_loss is that of the call */
    int64_t num_selected, k;
} Statistics;

/* Of the call there are the logits, their gradient or NULL, index (the targets, or NULL), position_weight and columns,
   or NULL. These hold PIVOT, PIVOT_LOGIT, SHIFT, SUM_REST, WEIGHTED_GAPS (of exp(x_c - m), level x_k) and what
   follows of the classes selected and of the others: written without a gradient, and read with one, where the logits are
   then read but once and no statistic is written. */
enum { TOP_OUTSIDE = 5, SUM_OUTSIDE, TOP_INSIDE, SUM_INSIDE };

typedef struct {
    Call rows;
    Statistics asked;
} StatisticsCall;
#endif
