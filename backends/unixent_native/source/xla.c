/* The pass as a custom call of XLA on host memory: a handler of its typed foreign function interface.

   Declared here is what the handler reads of XLA's stable C interface (xla/ffi/api/c_api.h, version 0.1 and up), so that
   the library compiles without XLA; tests/native/xla_declarations.c compares it with XLA's own header. */
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "call.h"
#include "xla.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

int unixent_rows(const Addresses *at, const Call *rest, int64_t isa);

static XlaError *fail(const XlaFrame *frame, int code, const char *message) {
    XlaErrorArguments arguments = {sizeof arguments, NULL, message, code};
    return frame->api->create_error(&arguments);
}

/* Has fresh memory come in pages of 2 MiB: XLA asks for none, and the small ones would take longer than the pass. */
static void use_huge_pages(const XlaBuffer *buffer) {
#if defined(__linux__)
    uintptr_t page = 1 << 21, size = buffer->type == XLA_FLOAT64 ? 8 : buffer->type == XLA_FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < buffer->rank; i++) size *= (uintptr_t)buffer->shape[i];
    uintptr_t start = ((uintptr_t)buffer->data + page - 1) / page * page, end = ((uintptr_t)buffer->data + size) / page * page;
    if (start < end) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)buffer;
#endif
}

/* Attributes, sorted by name: the call without its addresses; the instruction set; the place of each operand and then of
   each result among the addresses. */
EXPORT XlaError *unixent_xla_rows(XlaFrame *frame) {
    if (frame->extensions && frame->extensions->type == XLA_METADATA) {
        XlaMetadata *metadata = ((XlaMetadataExtension *)frame->extensions)->metadata;
        metadata->version.major = 0, metadata->version.minor = 1;
        return NULL;
    }
    if (frame->stage != XLA_EXECUTE) return NULL;
    const Call *rest = ((XlaArray *)frame->attributes.values[0])->data;
    int64_t isa = *(int64_t *)((XlaScalar *)frame->attributes.values[1])->value;
    const int64_t *places = ((XlaArray *)frame->attributes.values[2])->data;
    void *addresses[sizeof(Addresses) / sizeof(void *)] = {0};
    for (int64_t i = 0; i < frame->operands.size; i++) addresses[*places++] = frame->operands.buffers[i]->data;
    for (int64_t i = 0; i < frame->results.size; i++) {
        addresses[*places++] = frame->results.buffers[i]->data;
        use_huge_pages(frame->results.buffers[i]);
    }
    Addresses at;
    memcpy(&at, addresses, sizeof at);
    static const float one = 1;
    static const double one_double = 1;
    if (!at.grad_scale) at.grad_scale = rest->acc_type == FLOAT64 ? (const void *)&one_double : &one;
    int64_t *index = NULL;
    if (at.index) { /* JAX has no int64 of its own accord */
        if (!(index = malloc(sizeof(int64_t) * (size_t)(rest->count + 1)))) return fail(frame, XLA_NO_MEMORY, "unixent: no memory");
        for (int64_t i = 0; i < rest->count; i++) index[i] = ((const int32_t *)at.index)[i];
        at.index = index;
    }
    int failed = unixent_rows(&at, rest, isa);
    free(index);
    return failed ? fail(frame, XLA_NO_MEMORY, "unixent: no memory for a row of logits") : NULL;
}
