/* exp(x) for x <= 0, within 1 ulp, subnormal results included; NaN for NaN.

   x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n (1 + r + r^2 q(r)). n is rounded by adding 1.5 * 2^23 (or 2^52),
   which leaves it in the low bits of the sum. ln 2 is taken in two parts, the first of which times n is exact, and r is
   too where it counts most, the difference of high and low. 2^n is taken as 2^(n + 64) 2^-64, so that a subnormal result is rounded once. */

static inline Vector_float exp_float(Vector_float x) {
    const Vector_float none = {0};
    x = max_float(none - 104.0f, x); /* exp(-104) rounds to 0 */
    Vector_float shifted = x * 1.44269504088896341f + 12582912.0f;
    Vector_float n = shifted - 12582912.0f;
    Vector_float high = x - n * 0.693145751953125f, low = n * 1.428606765330187045e-06f, r = high - low;
    Vector_float q = r * 1.9875691500e-4f + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    q = high + ((q * r) * r - low);
    q = q + 1.0f;
    Bits_float power = ((Bits_float)shifted + (127 + 64)) << 23; /* the rest of shifted's bits is shifted out */
    return q * (Vector_float)power * 0x1p-64f;
}

static inline Vector_double exp_double(Vector_double x) {
    const Vector_double none = {0};
    x = max_double(none - 746.0, x);
    Vector_double shifted = x * 1.44269504088896340736 + 6755399441055744.0;
    Vector_double n = shifted - 6755399441055744.0;
    Vector_double high = x - n * 6.93147180369123816490e-01, low = n * 1.90821492927058770002e-10, r = high - low;
    Vector_double q = r * (1.0 / 6227020800) + 1.0 / 479001600; /* Taylor: the next term is below 2^-57 */
    q = q * r + 1.0 / 39916800;
    q = q * r + 1.0 / 3628800;
    q = q * r + 1.0 / 362880;
    q = q * r + 1.0 / 40320;
    q = q * r + 1.0 / 5040;
    q = q * r + 1.0 / 720;
    q = q * r + 1.0 / 120;
    q = q * r + 1.0 / 24;
    q = q * r + 1.0 / 6;
    q = q * r + 0.5;
    q = high + ((q * r) * r - low);
    q = q + 1.0;
    Bits_double power = ((Bits_double)shifted + (1023 + 64)) << 52;
    return q * (Vector_double)power * 0x1p-64;
}
