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
    double label_smoothing, smoothing_per_class, z_loss;
    double softcap, inverse_temperature; /* of LogitTransform, unixent/logit_transform.py; softcap: 0 where there is none */
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

/* Whether rows are worked many at a time, one in each lane of a vector (short.h): where a row by itself would not take
   longer. */
enum { MAX_SHORT = 256, MAX_TILE = 256 };
static inline int is_short(const Call *call) {
    return call->num_classes <= MAX_SHORT && call->label_smoothing == 0 && call->softcap == 0 && call->inverse_temperature == 1
        && !call->probabilities.data && !call->columns;
}

/* How many positions are read at a time: whole cache lines of them, as much as stays in the second cache; of short rows
   that lie one after the other, in the first. */
static inline int64_t tile_size(const Call *call) {
    int tiled = is_tiled(call);
    if (!tiled && !is_short(call)) return 1;
    int64_t fits = (tiled ? 32768 : 4096) / call->num_classes / 16 * 16;
    return fits < 32 ? 32 : fits > MAX_TILE ? MAX_TILE : fits;
}

/* The next positions that lie adjacent along the last axis, tile at most; 0 where none is left. *end: of what this
   thread has taken from the queue, 0 at first. */
static inline int64_t next_tile(const Call *call, Queue *queue, int64_t tile, int64_t *first, int64_t *end) {
    if (*first == *end) {
        *first = __atomic_fetch_add(&queue->next, queue->block, __ATOMIC_RELAXED);
        if (*first >= call->count) return 0;
        *end = call->count - *first < queue->block ? call->count : *first + queue->block;
    }
    int64_t run = call->num_axes ? call->shape[call->num_axes - 1] : 1, n = *end - *first;
    n = n < tile ? n : tile;
    return n < run - *first % run ? n : run - *first % run;
}
#endif
