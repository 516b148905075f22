/* float16 and bfloat16 as float and back, rounded to nearest even; NaN stays NaN. n may be any number. */

typedef uint16_t Half __attribute__((aligned(1), may_alias));

static inline float bits_to_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t float_to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

static inline float from_bfloat16(uint16_t h) { return bits_to_float((uint32_t)h << 16); }

static inline uint16_t to_bfloat16(float f) {
    uint32_t bits = float_to_bits(f);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

static inline float from_float16(uint16_t h) {
    /* The exponent is moved by a product, which makes subnormal numbers normal. */
    uint32_t bits = float_to_bits(bits_to_float((uint32_t)(h & 0x7fff) << 13) * 0x1p112f);
    bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    return bits_to_float(bits | (uint32_t)(h & 0x8000) << 16);
}

static inline uint16_t to_float16(float f) {
    uint32_t bits = float_to_bits(f), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    uint32_t result;
    if (size > 0x7f800000) result = 0x7e00;
    else if (size >= 0x477ff000) result = 0x7c00; /* 65520 and above */
    else if (size < 0x38800000) result = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000; /* subnormal */
    else result = (size + 0xfff + ((size >> 13) & 1) - 0x38000000) >> 13;
    return (uint16_t)(result | sign);
}

static void floats_from_float16(float *restrict out, const Half *restrict in, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(in + i))));
#endif
    for (; i < n; i++) out[i] = from_float16(in[i]);
}

static void float16_from_floats(Half *restrict out, const float *restrict in, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm_storeu_si128((void *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
#endif
    for (; i < n; i++) out[i] = to_float16(in[i]);
}
