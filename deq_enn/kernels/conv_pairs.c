/* The equations of conv.py for a tile of pairs of images, as compiled.py calls them; conv.py has the mathematics.

   Everything is in lanes: LANES pairs (a few rows times 8 columns) at each pixel, contiguous, so that the compiler
   makes one vector instruction of each inner loop, and a block's arrays stay in the second-level cache. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 8                /* columns side by side */
#define BLOCK 4               /* rows of a block */
#define LANES (WIDE * BLOCK)  /* its pairs; a constant, so that inner loops are unrolled */

typedef double Wide __attribute__((vector_size(WIDE * sizeof(double)), aligned(8))); /* both gcc and clang have these */

typedef struct {
    int h, w, radius, wraps;           /* images, window of 2 radius + 1, circular padding */
    int rows, cols, channels;          /* of the tile; channels of y */
    int same;                          /* column less row of an image with itself, or a number that no pair has */
    int tangent, injected;             /* whether the NTK is asked for; channels of y that aA leaves out of its source */
    double sigma_a2, least, most;      /* eigenvalues of M lie in [least, most] */
    double m2, h2;                     /* kinked at 0: g' = m2 + h2 asin(rho) */
    int degree, bins;                  /* of the series, 0 for kinked; number of reaches */
    double cut;                        /* largest |rho| of the series */
    double rounded, stalled;           /* residuals, relative to the weights, that are rounding */
} Problem;

typedef struct {
    int pixels;
    double *x, *b, *dot, *c, *ss, *inverse, *weight, *local, *t, *u, *v, *zeros, *residual, *source;
} Work;

static double asin_(double x) /* fdlibm's, without its branches */
{
    double a = fabs(x), z = a < 0.5 ? x * x : 0.5 * (1 - a), s = a < 0.5 ? a : sqrt(z);
    double p = z * (1.66666666666666657415e-01 + z * (-3.25565818622400915405e-01 + z * (2.01212532134862925881e-01 +
               z * (-4.00555345006794114027e-02 + z * (7.91534994289814532176e-04 + z * 3.47933107596021167570e-05)))));
    double q = 1 + z * (-2.40339491173441421878e+00 + z * (2.02094576023350569471e+00 +
               z * (-6.88283971605453293030e-01 + z * 7.70381505559019352791e-02)));
    double r = s + s * (p / q);
    r = a < 0.5 ? r : 1.57079632679489661923 - 2 * r;
    return x < 0 ? -r : r;
}

/* the window's sum along one axis of `length` with `stride`, for all of the other axis, from `in` to `out` */
static void sum_along(const Problem *q, const Work *k, const double *restrict in, double *restrict out, int down)
{
    int length = down ? q->h : q->w;
    long stride = (long)LANES * (down ? q->w : 1);
    for (int y = 0; y < q->h; y++)
        for (int x = 0; x < q->w; x++) {
            const double *restrict at = in + ((long)y * q->w + x) * LANES;
            double *restrict to = out + ((long)y * q->w + x) * LANES;
            int place = down ? y : x;
            if (q->radius == 0) {
                memcpy(to, at, LANES * sizeof(double));
                continue;
            }
            for (int d = 1; d <= q->radius; d++) {
                int lower = place - d, upper = place + d;
                const double *a = k->zeros, *b = k->zeros;
                if (lower >= 0) a = at - d * stride;
                else if (q->wraps) a = at + (length - d) * stride;
                if (upper < length) b = at + d * stride;
                else if (q->wraps) b = at - (length - d) * stride;
                Wide *sum = (Wide *)to;
                for (int i = 0; i < BLOCK; i++)
                    sum[i] = (d == 1 ? ((const Wide *)at)[i] : sum[i]) + ((const Wide *)a)[i] + ((const Wide *)b)[i];
            }
        }
}

static void total(const Problem *q, const Work *k, double *in, double *out) /* overwrites `in` as well */
{
    sum_along(q, k, in, out, 0);
    sum_along(q, k, out, in, 1);
}

/* x = b + s M (D x) as box_filter.WindowEquation; the result is in *x, and v[0], v[1] are exchanged with it */
static void window_equation(const Problem *q, Work *k, const double *b, double tolerance, double **result)
{
    long n = (long)k->pixels * LANES;
    double low = INFINITY, high = -INFINITY;
    const double *all = k->dot;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (long e = 0; e < n; e++) {
        low = all[e] < low ? all[e] : low;
        high = all[e] > high ? all[e] : high;
    }
    double centre = 1, ratio = 0, rate;
    if (low >= 0) {
        double first = 1 - q->sigma_a2 * high * q->most, last = 1 - q->sigma_a2 * high * (q->least < 0 ? q->least : 0);
        centre = (first + last) / 2;
        ratio = (last - first) / 2 / centre;
        rate = ratio > 0 ? (1 - sqrt(1 - ratio * ratio)) / ratio : 0;
    } else
        rate = q->sigma_a2 * (high > -low ? high : -low);
    int steps = q->radius == 0 || rate <= 0 ? 0 : (int)ceil(log(2 / tolerance) / -log(rate));
    if (q->radius > 0 && rate > 0 && steps < 1) steps = 1;
    double *x = k->u, *before = k->v, omega = 1;
    double gain = q->sigma_a2 / ((2 * q->radius + 1) * (2 * q->radius + 1));
    for (long e = 0; e < n; e++) x[e] = b[e] / (1 - q->sigma_a2 * k->dot[e]);
    for (int step = 0; step < steps; step++) {
        double *restrict t = k->t, *restrict old = before;
        const double *restrict now = x, *restrict dot = k->dot, *restrict right = b;
        for (long e = 0; e < n; e++) t[e] = dot[e] * now[e];
        total(q, k, k->t, k->local);
        double c0 = omega * gain / centre, c1 = omega / centre, c2 = omega * (1 - 1 / centre), c3 = 1 - omega;
        if (step == 0 || ratio == 0)
            for (long e = 0; e < n; e++) old[e] = c0 * t[e] + c1 * right[e] + c2 * now[e];
        else
            for (long e = 0; e < n; e++) old[e] = c0 * t[e] + c1 * right[e] + c2 * now[e] + c3 * old[e];
        double *swap = x;
        x = before;
        before = swap;
        omega = 1 / (1 - ratio * ratio * (step ? omega / 4 : 0.5));
    }
    if (x != k->u) {
        k->v = k->u;
        k->u = x;
    }
    *result = k->u;
}

static void kinked(const Problem *q, Work *k)
{
    long n = (long)k->pixels * LANES;
    const double *restrict x = k->x, *restrict inverse = k->inverse, *restrict ss = k->ss;
    double *restrict c = k->c, *restrict dot = k->dot, m2 = q->m2, h2 = q->h2;
#pragma omp simd
    for (long e = 0; e < n; e++) {
        double rho = x[e] * inverse[e] * (1 + 8 * 2.220446049250313e-16);
        rho = rho > 1 ? 1 : rho;
        rho = rho < -1 ? -1 : rho;
        double angle = asin_(rho), cosine = sqrt((1 - rho) * (1 + rho));
        c[e] = ss[e] * (m2 * rho + h2 * (cosine + rho * angle - 1));
        dot[e] = m2 + h2 * angle;
    }
}

/* the series sum_k ci_k cj_k rho^k of a block at a pixel, and its derivative, with as many terms as the largest |rho|
   asks for; ci (rows, degree + 1), cj (degree + 1, WIDE) */
static void series(const Problem *q, int row, const double *ci, const double *cj, const double *reach,
                   const int *degrees, Wide *rho, Wide *g, Wide *dg)
{
    int K1 = q->degree + 1;
    double largest = 0;
    const double *a[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        a[i] = ci + (long)(row + i < q->rows ? row + i : q->rows - 1) * K1;
        for (int l = 0; l < WIDE; l++) {
            double r = rho[i][l];
            rho[i][l] = r > q->cut ? q->cut : r < -q->cut ? -q->cut : r;
            largest = fabs(r) > largest ? fabs(r) : largest;
        }
    }
    int bin = 0;
    while (bin < q->bins - 1 && reach[bin] < largest) bin++;
    int degree = degrees[bin] < q->degree ? degrees[bin] : q->degree;
    for (int i = 0; i < BLOCK; i++) {
        g[i] = a[i][degree] * ((const Wide *)cj)[degree];
        dg[i] = g[i] * 0;
    }
    for (int j = degree - 1; j >= 0; j--) {
        Wide right = ((const Wide *)cj)[j];
        for (int i = 0; i < BLOCK; i++) {
            dg[i] = dg[i] * rho[i] + g[i];
            g[i] = g[i] * rho[i] + a[i][j] * right;
        }
    }
}

static void series_everywhere(const Problem *q, Work *k, int row, int col, const double *ci, const double *cj,
                              const double *reach, const int *degrees)
{
    long K1 = q->degree + 1, columns = (q->cols + WIDE - 1) / WIDE * WIDE;
    for (int p = 0; p < k->pixels; p++) {
        Wide rho[BLOCK], g[BLOCK], dg[BLOCK];
        const Wide *x = (const Wide *)(k->x + (long)p * LANES), *inverse = (const Wide *)(k->inverse + (long)p * LANES);
        const Wide *ss = (const Wide *)(k->ss + (long)p * LANES);
        for (int i = 0; i < BLOCK; i++) rho[i] = x[i] * inverse[i];
        series(q, row, ci + (long)p * q->rows * K1, cj + ((long)p * columns + col) * K1, reach, degrees, rho, g, dg);
        for (int i = 0; i < BLOCK; i++) {
            ((Wide *)(k->c + (long)p * LANES))[i] = ss[i] * g[i];
            ((Wide *)(k->dot + (long)p * LANES))[i] = dg[i];
        }
    }
}

/* the same for given correlations rho (pixels, rows, cols), into g and dg */
int conv_values(const Problem *q, const double *rho, const double *ci, const double *cj, const double *reach,
                const int *degrees, double *g, double *dg)
{
    long K1 = q->degree + 1, columns = (q->cols + WIDE - 1) / WIDE * WIDE;
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int row = 0; row < q->rows; row += BLOCK)
            for (int col = 0; col < q->cols; col += WIDE) {
                Wide r[BLOCK] = {{0}}, value[BLOCK], slope[BLOCK];
                int rows = q->rows - row < BLOCK ? q->rows - row : BLOCK, wide = q->cols - col;
                if (wide > WIDE) wide = WIDE;
                long at = (p * q->rows + row) * q->cols + col;
                for (int i = 0; i < rows; i++)
                    for (int l = 0; l < wide; l++) r[i][l] = rho[at + (long)i * q->cols + l];
                series(q, row, ci + p * q->rows * K1, cj + (p * columns + col) * K1, reach, degrees, r, value, slope);
                for (int i = 0; i < rows; i++)
                    for (int l = 0; l < wide; l++) {
                        g[at + (long)i * q->cols + l] = value[i][l];
                        dg[at + (long)i * q->cols + l] = slope[i][l];
                    }
            }
    return 0;
}

static int solve(const Problem *q, Work *k, int row, int col, const double *ci, const double *cj, const double *reach,
                 const int *degrees, double *left)
{
    long n = (long)k->pixels * LANES;
    double before = INFINITY, gain = q->sigma_a2 / ((2 * q->radius + 1) * (2 * q->radius + 1));
    for (int step = 0; step < 60; step++) {
        if (q->degree) series_everywhere(q, k, row, col, ci, cj, reach, degrees);
        else kinked(q, k);
        memcpy(k->t, k->c, n * sizeof(double));
        total(q, k, k->t, k->local);
        double size = 0, sum = 0;
        double *restrict residual = k->residual;
        const double *restrict t = k->t, *restrict b = k->b, *restrict x = k->x, *restrict weight = k->weight;
#pragma omp simd reduction(max : size) reduction(+ : sum)
        for (long e = 0; e < n; e++) {
            residual[e] = gain * t[e] + b[e] - x[e];
            double r = fabs(residual[e] * weight[e]);
            size = r > size ? r : size;
            sum += r;
        }
        *left = sum < INFINITY ? size : sum;
        if (!(sum < INFINITY)) return 1; /* not a number, which no comparison sees */
        if (size <= q->rounded || (size >= before / 2 && size <= q->stalled)) return 0;
        double *by = k->residual; /* a plain step is a contraction */
        if (!(size > 0.9 * before)) {
            double wanted = 0.1 * size;
            window_equation(q, k, k->residual, wanted > 0.1 ? 0.1 : wanted < 1e-9 ? 1e-9 : wanted, &by);
        }
        before = size;
        for (long e = 0; e < n; e++) {
            double y = k->x[e] + by[e];
            y = y > k->ss[e] ? k->ss[e] : y;
            k->x[e] = y < -k->ss[e] ? -k->ss[e] : y;
        }
    }
    return 1;
}

/* y_i (pixels, rows, channels) and y_j (pixels, channels, cols); s, weight, d1 (pixels, rows or cols); ci (pixels, rows,
   degree + 1) and cj (pixels, groups of WIDE columns, degree + 1, WIDE). Adds up over pixels: ck (rows, cols) gets
   Cov[f, f], and ntk that plus G_dot N. Returns 0, or 1 where the equation is not solved, or 2 without memory. */
int conv_pairs(const Problem *q, const double *yi, const double *yj, const double *si, const double *sj,
               const double *wi, const double *wj, const double *di, const double *dj, const double *ci,
               const double *cj, const double *reach, const int *degrees, double *ck, double *ntk, double *left)
{
    Work k;
    k.pixels = q->h * q->w;
    long n = (long)k.pixels * LANES;
    double *memory = aligned_alloc(64, ((13 * n + LANES) * sizeof(double) + 63) / 64 * 64);
    if (!memory) return 2;
    double **parts[] = {&k.x, &k.b, &k.dot, &k.c, &k.ss, &k.inverse, &k.weight, &k.local, &k.t, &k.u, &k.v, &k.residual,
                        &k.source};
    for (int part = 0; part < 13; part++) *parts[part] = memory + part * n;
    k.zeros = memory + 13 * n;
    memset(k.zeros, 0, LANES * sizeof(double));
    double window = (2 * q->radius + 1) * (2 * q->radius + 1);
    int failed = 0;
    for (int row = 0; row < q->rows && !failed; row += BLOCK)
        for (int col = 0; col < q->cols && !failed; col += WIDE) {
            for (int p = 0; p < k.pixels; p++)
                for (int i = 0; i < BLOCK; i++) {
                    int r = row + i < q->rows ? row + i : q->rows - 1;
                    long a = (long)p * q->rows + r;
                    for (int l = 0; l < WIDE; l++) {
                        int c = col + l < q->cols ? col + l : q->cols - 1;
                        long b = (long)p * q->cols + c, e = (long)p * LANES + i * WIDE + l;
                        double sum = 0, part = 0;
                        for (int m = 0; m < q->channels; m++) {
                            if (m == q->injected) part = sum;
                            sum += yi[a * q->channels + m] * yj[((long)p * q->channels + m) * q->cols + c];
                        }
                        if (q->injected == q->channels) part = sum;
                        if (c - r == q->same) sum = part = 0;
                        k.t[e] = sum / window;
                        k.source[e] = part / window;
                        k.ss[e] = si[a] * sj[b];
                        k.inverse[e] = 1 / (k.ss[e] > 1e-300 ? k.ss[e] : 1e-300);
                        k.weight[e] = wi[a] * wj[b];
                        k.dot[e] = di[a] * dj[b];
                    }
                }
            total(q, &k, k.t, k.local);
            memcpy(k.b, k.t, n * sizeof(double));
            if (q->injected) {
                total(q, &k, k.source, k.local);
            }
            for (long e = 0; e < n; e++) {
                double y = k.b[e] / (1 - q->sigma_a2 * k.dot[e]);
                y = y > k.ss[e] ? k.ss[e] : y;
                k.x[e] = y < -k.ss[e] ? -k.ss[e] : y;
            }
            failed = solve(q, &k, row, col, ci, cj, reach, degrees, left);
            double *N = k.x;
            if (q->tangent && !failed) {
                for (long e = 0; e < n; e++) k.source[e] = q->injected ? k.x[e] - k.source[e] : k.x[e];
                window_equation(q, &k, k.source, 1e-12, &N);
            }
            for (int i = 0; i < BLOCK && row + i < q->rows; i++)
                for (int l = 0; l < WIDE && col + l < q->cols; l++) {
                    double sum = 0, extra = 0;
                    for (int p = 0; p < k.pixels; p++) {
                        long e = (long)p * LANES + i * WIDE + l;
                        sum += k.c[e];
                        extra += k.dot[e] * N[e];
                    }
                    ck[(long)(row + i) * q->cols + col + l] = sum;
                    if (q->tangent) ntk[(long)(row + i) * q->cols + col + l] = sum + extra;
                }
        }
    free(memory);
    return failed;
}
