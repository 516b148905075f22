/* One call of the pass over N x C logits, as unixent_native/call.py packs it. */
#ifndef UNIXENT_CALL_H
#define UNIXENT_CALL_H
#include <stddef.h>
#include <stdint.h>

enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };
enum { MAX_AXES = 8 };

/* An array P + (C,) anywhere in memory; strides in bytes. */
typedef struct {
    char *data;
    int64_t type;
    int64_t class_stride;
    int64_t strides[MAX_AXES];
} Array;

typedef struct {
    Array x, probabilities, x_grad, probabilities_grad; /* data: NULL where there is none */
    /* One number for each position, in C order; of the accumulation dtype but for index. */
    const int64_t *index;
    const void *weight; /* (C,) */
    const void *position_weight;
    const void *grad_scale;
    void *losses;
    double *columns; /* of a share of the classes, else NULL */
    int64_t grad_scale_step; /* 0: one number for all positions */
    int64_t acc_type;
    int64_t num_classes;
    int64_t num_axes; /* of the positions */
    int64_t shape[MAX_AXES];
    int64_t count; /* number of positions */
    int64_t threads;
    double label_smoothing, smoothing_per_class, z_loss, softcap; /* softcap: 0 where there is none */
} Call;

/* Where the classes of a row lie on several processes each has a call for its share, in two halves. The first, without
   a gradient, finds what the processes exchange; the second is given what follows from all of it. Of class indices
   those beyond the share are another's, and the pivot is the target; of probabilities it is the share's largest logit
   in the first half, and index says in the second where it is here. losses is not written. Columns of one number for
   each position: */
enum { PIVOT, PIVOT_LOGIT, SHIFT, SUM_REST, WEIGHTED_GAPS, REST_COEF, PIVOT_COEF }; /* written */
enum { EXP_GRAD, /* PIVOT_LOGIT, SHIFT, */ PIVOT_GRAD = 3, NLL };                     /* read */

/* The addresses of a call in its order. unixent_native/call.py packs them apart from the rest, which it packs once. */
typedef struct {
    char *x, *probabilities, *x_grad, *probabilities_grad;
    const int64_t *index;
    const void *weight, *position_weight, *grad_scale;
    void *losses;
    double *columns;
} Addresses;

/* Positions that the threads have taken so far, and how many each takes at a time. */
typedef struct {
    int64_t next, block;
} Queue;

/* Works positions off the queue until none is left. -1: out of memory. */
typedef int Worker(const Call *call, Queue *queue);

static inline size_t size_of(int64_t type) { return type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2; }

/* Whether positions lie closer together than classes, so that memory is read along them: several at a time. */
static inline int is_tiled(const Call *call) {
    if (call->num_axes == 0 || call->num_classes == 1) return 0;
    int64_t step = call->x.strides[call->num_axes - 1], classes = call->x.class_stride;
    return call->shape[call->num_axes - 1] > 1 && (step < 0 ? -step : step) < (classes < 0 ? -classes : classes);
}

/* How many positions are read at a time: whole cache lines of them, as much as stays in the second cache. */
static inline int64_t tile_size(const Call *call) {
    if (!is_tiled(call)) return 1;
    int64_t fits = 32768 / call->num_classes;
    return fits < 32 ? 32 : fits > 256 ? 256 : fits;
}
#endif
