/* What the shared library exports: the passes over the logits, by threads of their own, for the instruction set at hand. */
#include <string.h>

#include "statistics.h"
#include "threads.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef void Exp(const void *x, void *out, int64_t n, int64_t type);
typedef void Log1p(const double *x, double *out, int64_t n);

#define DECLARE(isa) Worker rows_##isa##_work, rows_##isa##_statistics; Exp rows_##isa##_exp; Log1p rows_##isa##_log1p;
DECLARE(plain)

#if defined(__x86_64__)
#include <cpuid.h>
DECLARE(avx2)
DECLARE(avx512)

static uint64_t enabled_registers(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* 2: AVX-512 (F, BW, DQ, VL), 1: AVX2 with FMA and F16C, as far as the operating system saves their registers. */
static int x86_level(void) {
    unsigned a, b, c, d, b7;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29, wanted = fma | osxsave | avx | f16c;
    if ((c & wanted) != wanted || (enabled_registers() & 0x6) != 0x6) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c, &d) || !(b7 & 1u << 5)) return 0;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    return (b7 & avx512) == avx512 && (enabled_registers() & 0xe6) == 0xe6 ? 2 : 1;
}
#endif

typedef struct {
    const char *name;
    Worker *work, *statistics;
    Exp *exp;
    Log1p *log1p;
} Isa;

#define ISA_OF(name, isa) ((Isa){name, rows_##isa##_work, rows_##isa##_statistics, rows_##isa##_exp, rows_##isa##_log1p})

/* Those of this machine, the one to choose first. */
static int isas(Isa *list) {
    int n = 0;
#if defined(__x86_64__)
    /* Asked once: on a virtual machine the answer takes as long as a small loss. */
    static int known = -1;
    int level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (level < 0) __atomic_store_n(&known, level = x86_level(), __ATOMIC_RELAXED);
    if (level >= 1) list[n++] = ISA_OF("avx2", avx2);
    if (level >= 2) list[n++] = ISA_OF("avx512", avx512);
    list[n++] = ISA_OF("plain", plain);
#elif defined(__aarch64__)
    list[n++] = ISA_OF("neon", plain);
#else
    list[n++] = ISA_OF("plain", plain);
#endif
    return n;
}

/* Name of the i-th instruction set of this machine; NULL beyond the last. */
EXPORT const char *unixent_isa(int64_t i) {
    Isa list[4];
    return i < isas(list) ? list[i].name : NULL;
}

/* Tells the loader whether it packs calls as this library reads them. */
EXPORT int unixent_call_size(void) { return (int)(sizeof(Addresses) + sizeof(Call) + sizeof(Statistics)); }

EXPORT void unixent_exp(int64_t isa, const void *x, void *out, int64_t n, int64_t type) {
    Isa list[4];
    isas(list);
    list[isa].exp(x, out, n, type);
}

EXPORT void unixent_log1p(int64_t isa, const double *x, double *out, int64_t n) {
    Isa list[4];
    isas(list);
    list[isa].log1p(x, out, n);
}

/* Whether all of n class indices are in [0, num_classes). */
EXPORT int unixent_in_range(const int64_t *index, int64_t n, int64_t num_classes) {
    int out = 0;
    for (int64_t i = 0; i < n; i++) out |= index[i] < 0 || index[i] >= num_classes;
    return !out;
}

/* Sum of n finite numbers, rounded once or twice: each addition's rounding error is added up too. */
EXPORT double unixent_sum(const void *x, int64_t n, int64_t type) {
    double high[4] = {0}, low[4] = {0}; /* four sums, so that no addition waits for the last */
    for (int64_t i = 0; i < n; i++) {
        double value = type == FLOAT64 ? ((const double *)x)[i] : ((const float *)x)[i];
        double sum = high[i % 4] + value, back = sum - high[i % 4];
        low[i % 4] += (high[i % 4] - (sum - back)) + (value - back);
        high[i % 4] = sum;
    }
    return (high[0] + high[1]) + (high[2] + high[3]) + ((low[0] + low[1]) + (low[2] + low[3]));
}

typedef struct {
    const Call *call;
    Queue *queue;
    Worker *work;
    int failed;
} Share;

THREAD_FUNCTION run_share(void *argument) {
    Share *share = argument;
    share->failed = share->work(share->call, share->queue);
    return THREAD_RESULT;
}

enum { MAX_THREADS = 256, BLOCK_NUMBERS = 1 << 15 };

/* All positions of a call, a tile of them at the least for each thread. 0, or -1 where memory ran out. */
static int run(const Call *call, Worker *work, int64_t tile) {
    int64_t block = BLOCK_NUMBERS / call->num_classes;
    Queue queue = {0, block < tile ? tile : block / tile * tile};
    int64_t blocks = (call->count + queue.block - 1) / queue.block;
    int64_t threads = call->threads < blocks ? call->threads : blocks, started = 0;
    Share shares[MAX_THREADS];
    Thread handles[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (int64_t i = 0; i < threads; i++) shares[i] = (Share){call, &queue, work, 0};
    /* Where no thread is to be had, the others do its part. */
    while (started + 1 < threads && !start_thread(&handles[started], run_share, &shares[started + 1])) started++;
    int failed = 0;
    if (threads > 0) run_share(&shares[0]), failed |= shares[0].failed;
    for (int64_t i = 0; i < started; i++) join_thread(handles[i]), failed |= shares[i + 1].failed;
    return failed;
}

/* rest: a call without its addresses. 0, or -1 where memory ran out: then the outputs are incomplete. */
EXPORT int unixent_rows(const Addresses *at, const Call *rest, int64_t isa) {
    Call filled = *rest, *call = &filled;
    call->x.data = at->x, call->probabilities.data = at->probabilities;
    call->x_grad.data = at->x_grad, call->probabilities_grad.data = at->probabilities_grad;
    call->index = at->index, call->weight = at->weight, call->position_weight = at->position_weight;
    call->grad_scale = at->grad_scale, call->losses = at->losses, call->columns = at->columns;
    Isa list[4];
    isas(list);
    return run(call, list[isa].work, tile_size(call));
}

/* The same for statistics of positions (statistics.h). */
EXPORT int unixent_statistics(const Addresses *at, const Call *rest, const Statistics *asked, int64_t isa) {
    StatisticsCall filled = {*rest, *asked};
    Call *call = &filled.rows;
    call->x.data = at->x, call->x_grad.data = at->x_grad;
    call->index = at->index, call->position_weight = at->position_weight, call->columns = at->columns;
    Isa list[4];
    isas(list);
    return run(call, list[isa].statistics, is_tiled(call) ? tile_size(call) : 1);
}
