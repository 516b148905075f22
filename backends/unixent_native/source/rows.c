/* The pass over the logits for one instruction set, WORKER(float) and WORKER(double): the build compiles this file once
   for each, with -DISA=name. */
#include <math.h>
#include <stdlib.h>

#include "call.h"
#include "vector.h"
#include "exponential.h"
#include "half.h"
#include "stats.h"

enum { CHUNK = 2048 };

/* gcc makes "rep movs" of a memcpy of unknown length, which takes longer to start than a short row to copy. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

#define T float
#include "row.h"
#include "memory.h"
#include "short.h"
#include "targets.h"
#include "work.h"
#undef T
#define T double
#include "row.h"
#include "memory.h"
#include "short.h"
#include "targets.h"
#include "work.h"
#undef T

#define NAME_(isa, name) rows_##isa##_##name
#define NAME(isa, name) NAME_(isa, name)

int NAME(ISA, work)(const Call *call, Queue *queue) {
    if (is_short(call)) return call->acc_type == FLOAT64 ? work_short_double(call, queue) : work_short_float(call, queue);
    return call->acc_type == FLOAT64 ? work_double(call, queue) : work_float(call, queue);
}

/* exp of n numbers <= 0 and log(1 + x) of n numbers >= 0, whole vectors of them, for tests. */
void NAME(ISA, exp)(const void *x, void *out, int64_t n, int64_t type) {
    if (type == FLOAT64) {
        for (int64_t i = 0; i < n; i += DOUBLES) store_double((double *)out + i, exp_double(load_double((const double *)x + i)));
    } else {
        for (int64_t i = 0; i < n; i += 2 * DOUBLES) store_float((float *)out + i, exp_float(load_float((const float *)x + i)));
    }
}

void NAME(ISA, log1p)(const double *x, double *out, int64_t n) {
    for (int64_t i = 0; i < n; i += DOUBLES) store_double(out + i, log1p_double(load_double(x + i)));
}
