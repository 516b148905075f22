/* exp(x) for x <= 0, within 1 ulp, subnormal results included; NaN for NaN.

   x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n + 2^n (r + r^2 q(r)). n is rounded by adding 1.5 * 2^23 (or 2^52),
   which leaves it in the low bits of the sum, and 64 plus the bias of the exponent with it: 2^n is taken as
   2^(n + 64) 2^-64, so that a subnormal result is rounded once. ln 2 is taken in two parts, the first of which times n is
   exact. Terms of q are added in pairs: a chain of them would take longer than the processor can look ahead. */

static inline Vector_float exp_float(Vector_float x) {
    const Vector_float none = {0};
    const float shift = 12582912.0f + (127 + 64);
    x = max_float(none - 104.0f, x); /* exp(-104) rounds to 0 */
    Vector_float shifted = x * 1.44269504088896341f + shift, n = shifted - shift;
    Vector_float r = (x - n * 0.693145751953125f) - n * 1.428606765330187045e-06f, r2 = r * r;
    Vector_float q0 = r * 1.666666269e-1f + 0.5f, q1 = r * 8.333451115e-3f + 4.166587070e-2f; /* found by trying */
    Vector_float q2 = r * 1.985958515e-4f + 1.398199936e-3f, q = (q2 * r2 + q1) * r2 + q0;
    Vector_float power = (Vector_float)((Bits_float)shifted << 23); /* the rest of shifted's bits is shifted out */
    return ((q * r2 + r) * power + power) * 0x1p-64f;
}

static inline Vector_double exp_double(Vector_double x) {
    const Vector_double none = {0};
    const double shift = 6755399441055744.0 + (1023 + 64);
    x = max_double(none - 746.0, x);
    Vector_double shifted = x * 1.44269504088896340736 + shift, n = shifted - shift;
    Vector_double high = x - n * 6.93147180369123816490e-01, low = n * 1.90821492927058770002e-10, r = high - low;
    Vector_double r2 = r * r, r4 = r2 * r2;
    Vector_double q0 = r * (1.0 / 6) + 0.5, q1 = r * (1.0 / 120) + 1.0 / 24, q2 = r * (1.0 / 5040) + 1.0 / 720;
    Vector_double q3 = r * (1.0 / 362880) + 1.0 / 40320, q4 = r * (1.0 / 39916800) + 1.0 / 3628800;
    Vector_double q5 = r * (1.0 / 6227020800) + 1.0 / 479001600; /* Taylor: the next term is below 2^-57 */
    Vector_double q = (q1 * r2 + q0) + ((q3 * r2 + q2) + (q5 * r2 + q4) * r4) * r4;
    Vector_double power = (Vector_double)((Bits_double)shifted << 52);
    return (((q * r2 - low) + high) * power + power) * 0x1p-64;
}

/* log(1 + x) for x >= 0, within 1 ulp; NaN for NaN and infinity.

   1 + x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); log(1 + f) by FreeBSD's polynomial in f / (2 + f)
   (msun/src/s_log1p.c). c is what the rounding of 1 + x dropped. */
static inline Vector_double log1p_double(Vector_double x) {
    const Vector_double none = {0};
    typedef uint64_t Places __attribute__((vector_size(VECTOR_BYTES)));
    const uint64_t low = 0x3fe6a09e00000000, one = 0x3ff0000000000000; /* sqrt(1/2), 1 */
    Vector_double sum = x + 1.0;
    Places places = (Places)sum + (one - low);
    Vector_double k = (Vector_double)((places >> 52) - 1023 + 0x4338000000000000) - 0x1.8p52;
    Vector_double f = (Vector_double)((places & 0x000fffffffffffff) + low) - 1.0;
    Bits_double small = x < 0.4142, doubled = k >= 2.0;
    Vector_double c = select_double(doubled, 1.0 - (sum - x), x - (sum - 1.0)) / sum;
    f = select_double(small, x, f), k = select_double(small, none, k), c = select_double(small, none, c);
    Vector_double half = 0.5 * f * f, s = f / (2.0 + f), z = s * s, w = z * z;
    Vector_double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    Vector_double odd = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
                             w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    return s * (half + (even + odd)) + (k * 1.90821492927058770002e-10 + c) - half + f + k * 6.93147180369123816490e-01;
}
