/* Statistics of positions for one instruction set: the build compiles this file, too, once for each. */
#include <math.h>
#include <stdlib.h>

#include "statistics.h"
#include "vector.h"
#include "exponential.h"
#include "half.h"
#include "stats.h"

enum { CHUNK = 2048 };

/* See rows.c. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

static int compare_classes(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

#define T float
#include "row.h"
#include "memory.h"
#include "solve.h"
#include "positions.h"
#undef T
#define T double
#include "row.h"
#include "memory.h"
#include "solve.h"
#include "positions.h"
#undef T

#define NAME_(isa, name) rows_##isa##_##name
#define NAME(isa, name) NAME_(isa, name)

int NAME(ISA, statistics)(const Call *call, Queue *queue) {
    return call->acc_type == FLOAT64 ? statistics_work_double(call, queue) : statistics_work_float(call, queue);
}
