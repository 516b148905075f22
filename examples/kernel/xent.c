/* Cross-entropy of rows of float32 logits, with its gradient: two passes over each row, nothing stored.

       cc -O2 -shared -fPIC -o libxent.so xent.c -lm

   There is a bug in here; docs/kernels.md finds it. */

#include <math.h>
#include <stdint.h>

/* Fills loss[rows] and, unless it is NULL, gradient[rows][classes], scaled by upstream[rows] and, for a mean, by the
   number of positions that count. Returns that number, or -1 - n where y[n] is neither a class nor `ignored`. */
int64_t xent(const float *x, const int64_t *y, int64_t rows, int64_t classes, int64_t ignored, int mean,
             const float *upstream, float *loss, float *gradient)
{
    int64_t counted = 0;
    for (int64_t n = 0; n < rows; n++) {
        if (y[n] == ignored)
            continue;
        if (y[n] < 0 || y[n] >= classes)
            return -1 - n;
        counted++;
    }
    const double scale = mean ? 1.0 / rows : 1.0;

    for (int64_t n = 0; n < rows; n++, x += classes) {
        float *g = gradient ? gradient + n * classes : 0;
        if (y[n] == ignored) {
            loss[n] = 0;
            for (int64_t c = 0; g && c < classes; c++)
                g[c] = 0;
            continue;
        }

        /* m: the largest logit but the target's. r: sum of exp(x_c - m) over the same, rescaled whenever m grows. */
        const double target = x[y[n]];
        double m = -INFINITY, r = 0;
        for (int64_t c = 0; c < classes; c++) {
            if (c == y[n] || x[c] == -INFINITY)
                continue;
            if (x[c] > m) {
                r = r * exp(m - x[c]) + 1;
                m = x[c];
            } else {
                r += exp(x[c] - m);
            }
        }

        /* The target's share is 1/(1 + t) or e/(r + e): whichever does not overflow. */
        const double d = m - target, e = exp(-fabs(d)), t = r * e;
        const int nowhere = m == INFINITY || target == INFINITY;
        loss[n] = nowhere ? NAN : d <= 0 ? log1p(t) : d + log(r + e);
        const double rest = nowhere ? NAN : d <= 0 ? t / (1 + t) : d > 0 ? r / (r + e) : NAN;
        const double share = d <= 0 ? e / (1 + t) : 1 / (r + e);
        for (int64_t c = 0; g && c < classes; c++) {
            const double p = x[c] == -INFINITY ? 0 : exp(x[c] - m) * share;
            g[c] = upstream[n] * scale * (isnan(rest) ? NAN : c == y[n] ? -rest : p);
        }
    }
    return counted;
}
