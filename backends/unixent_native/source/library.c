/* What the shared library exports: the pass over the logits, by threads of its own, for the instruction set at hand. */
#include <string.h>

#include "call.h"
#include "threads.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef void Exp(const void *x, void *out, int64_t n, int64_t type);

#define DECLARE(isa) Worker rows_##isa##_work; Exp rows_##isa##_exp;
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
    Worker *work;
    Exp *exp;
} Isa;

/* Those of this machine, the one to choose first. */
static int isas(Isa *list) {
    int n = 0;
#if defined(__x86_64__)
    int level = x86_level();
    if (level >= 1) list[n++] = (Isa){"avx2", rows_avx2_work, rows_avx2_exp};
    if (level >= 2) list[n++] = (Isa){"avx512", rows_avx512_work, rows_avx512_exp};
    list[n++] = (Isa){"plain", rows_plain_work, rows_plain_exp};
#elif defined(__aarch64__)
    list[n++] = (Isa){"neon", rows_plain_work, rows_plain_exp};
#else
    list[n++] = (Isa){"plain", rows_plain_work, rows_plain_exp};
#endif
    return n;
}

/* Name of the i-th instruction set of this machine; NULL beyond the last. */
EXPORT const char *unixent_isa(int64_t i) {
    Isa list[4];
    return i < isas(list) ? list[i].name : NULL;
}

EXPORT void unixent_exp(int64_t isa, const void *x, void *out, int64_t n, int64_t type) {
    Isa list[4];
    isas(list);
    list[isa].exp(x, out, n, type);
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

/* 0, or -1 where memory ran out: then the outputs are incomplete. */
EXPORT int unixent_rows(const Call *call, int64_t isa) {
    Isa list[4];
    isas(list);
    int64_t tile = tile_size(call), block = BLOCK_NUMBERS / call->num_classes;
    Queue queue = {0, block < tile ? tile : block / tile * tile};
    int64_t blocks = (call->count + queue.block - 1) / queue.block;
    int64_t threads = call->threads < blocks ? call->threads : blocks, started = 0;
    Share shares[MAX_THREADS];
    Thread handles[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (int64_t i = 0; i < threads; i++) shares[i] = (Share){call, &queue, list[isa].work, 0};
    /* Where no thread is to be had, the others do its part. */
    while (started + 1 < threads && !start_thread(&handles[started], run_share, &shares[started + 1])) started++;
    int failed = 0;
    if (threads > 0) run_share(&shares[0]), failed |= shares[0].failed;
    for (int64_t i = 0; i < started; i++) join_thread(handles[i]), failed |= shares[i + 1].failed;
    return failed;
}
