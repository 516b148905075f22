/* Vectors of T with LANES numbers, and of integers of the same width: what the instruction set has registers for. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <string.h>

typedef float Vector_float __attribute__((vector_size(VECTOR_BYTES)));
typedef double Vector_double __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Bits_float __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t Bits_double __attribute__((vector_size(VECTOR_BYTES)));

/* a > b ? a : b, so that b is the result where either is NaN, or NaN in the case of NEON. */
#if defined(__AVX512F__)
static inline Vector_float max_float(Vector_float a, Vector_float b) { return _mm512_max_ps(a, b); }
static inline Vector_double max_double(Vector_double a, Vector_double b) { return _mm512_max_pd(a, b); }
#elif defined(__AVX2__)
static inline Vector_float max_float(Vector_float a, Vector_float b) { return _mm256_max_ps(a, b); }
static inline Vector_double max_double(Vector_double a, Vector_double b) { return _mm256_max_pd(a, b); }
#elif defined(__x86_64__)
static inline Vector_float max_float(Vector_float a, Vector_float b) { return _mm_max_ps(a, b); }
static inline Vector_double max_double(Vector_double a, Vector_double b) { return _mm_max_pd(a, b); }
#elif defined(__aarch64__)
static inline Vector_float max_float(Vector_float a, Vector_float b) { return vmaxq_f32(a, b); }
static inline Vector_double max_double(Vector_double a, Vector_double b) { return vmaxq_f64(a, b); }
#else
static inline Vector_float max_float(Vector_float a, Vector_float b) {
    Bits_float larger = a > b;
    return (Vector_float)(((Bits_float)a & larger) | ((Bits_float)b & ~larger));
}
static inline Vector_double max_double(Vector_double a, Vector_double b) {
    Bits_double larger = a > b;
    return (Vector_double)(((Bits_double)a & larger) | ((Bits_double)b & ~larger));
}
#endif

static inline Vector_float load_float(const float *p) { Vector_float v; memcpy(&v, p, sizeof v); return v; }
static inline Vector_double load_double(const double *p) { Vector_double v; memcpy(&v, p, sizeof v); return v; }
static inline void store_float(float *p, Vector_float v) { memcpy(p, &v, sizeof v); }
static inline void store_double(double *p, Vector_double v) { memcpy(p, &v, sizeof v); }

static inline Vector_double select_double(Bits_double which, Vector_double a, Vector_double b) {
    return (Vector_double)((which & (Bits_double)a) | (~which & (Bits_double)b));
}

/* Four rows of four numbers become its columns. */
typedef float Four __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(16)))){__VA_ARGS__})
#endif
static inline void transpose_four(Four v[4]) {
    Four a = SHUFFLE(v[0], v[1], 0, 4, 1, 5), b = SHUFFLE(v[0], v[1], 2, 6, 3, 7);
    Four c = SHUFFLE(v[2], v[3], 0, 4, 1, 5), d = SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    v[0] = SHUFFLE(a, c, 0, 1, 4, 5), v[1] = SHUFFLE(a, c, 2, 3, 6, 7);
    v[2] = SHUFFLE(b, d, 0, 1, 4, 5), v[3] = SHUFFLE(b, d, 2, 3, 6, 7);
}
