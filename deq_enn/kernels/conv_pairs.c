/* The equations of conv.py for a tile of pairs of images, as compiled.py calls them; conv.py has the mathematics.

   Newton's method begins in single precision where the activation is kinked, and ends in double precision; the linear
   equation of each of its steps is in single precision. Everything of a block is kept in the second cache, and what
   single precision needs nearly in the first. */

#include "conv_work.h"

#define FINAL 5e-3 /* residual of a step in single precision after which double precision goes on */

/* One step of the iteration below at a line: before = c0 D M y + c1 b + c2 y + c3 before. */
INLINE void chebyshev(const Problem *q, Work *k, const Single *y, Single *before, int place, const float *c, int block,
                      int radius)
{
    int n = k->length / 2;
    long at = (long)place * n;
    Single *line = (Single *)k->half_line;
    down_single(q, y, line, (const Single *)k->half_zeros, place, n, block);
    const Single *restrict now = y + at, *restrict b = (const Single *)k->half_b + at;
    const Single *restrict dot = (const Single *)k->half_dot + at;
    Single *restrict old = before + at;
    float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    for (int e = 0; e < n; e++)
        old[e] = c0 * dot[e] * along_single(line + e, block, radius) + (c1 * b[e] + c2 * now[e] + c3 * old[e]);
}

/* Solves y = b + s D M y, D = dot, in single precision, for b in k->half_b, by the iteration of
   box_filter.WindowEquation, whose x is M y s + b/D. */
static Single *window_equation(const Problem *q, Work *k, double tolerance)
{
    int n = k->length / 2, block = k->block / 2;
    float s = q->sigma_a2, centre = 1, ratio = 0, omega = 1;
    double rate;
    if (k->low >= 0) {
        double first = 1 - q->sigma_a2 * k->high * q->most;
        double last = 1 - q->sigma_a2 * k->high * (q->least < 0 ? q->least : 0);
        centre = (first + last) / 2;
        ratio = (last - first) / (last + first);
        rate = ratio > 0 ? (1 - sqrt(1 - ratio * ratio)) / ratio : 0;
    } else
        rate = q->sigma_a2 * (k->high > -k->low ? k->high : -k->low);
    int steps = q->radius == 0 || rate <= 0 ? 0 : (int)ceil(log(2 / tolerance) / -log(rate));
    if (q->radius > 0 && rate > 0 && steps < 1) steps = 1;
    Single *y = (Single *)k->half_u, *before = (Single *)k->half_v;
    const Single *b = (const Single *)k->half_b, *dot = (const Single *)k->half_dot;
    for (long e = 0; e < (long)q->h * n; e++) y[e] = b[e] / (1 - s * dot[e]);
    for (int step = 0; step < steps; step++) {
        float c[4] = {omega * s / ((2 * q->radius + 1) * (2 * q->radius + 1)) / centre, omega / centre};
        c[2] = omega - c[1];
        c[3] = step == 0 || ratio == 0 ? 0 : 1 - omega;
        for (int place = 0; place < q->h; place++)
            if (q->radius == 1) chebyshev(q, k, y, before, place, c, block, 1);
            else chebyshev(q, k, y, before, place, c, block, q->radius);
        Single *swap = y;
        y = before;
        before = swap;
        omega = 1 / (1 - ratio * ratio * (step ? omega / 4 : 0.5f));
    }
    return y;
}

/* Completes a step of Newton's method, x = r + s M (D x), of which k->half_step has r and k->half_b D r. */
INLINE void newton_step(const Problem *q, Work *k, double tolerance, int block, int radius)
{
    int n = k->length / 2;
    float gain = q->sigma_a2 / ((2 * radius + 1) * (2 * radius + 1));
    Single *step = (Single *)k->half_step, *filtered = (Single *)k->half_line;
    const Single *y = window_equation(q, k, tolerance);
    for (int line = 0; line < q->h; line++, step += n) {
        down_single(q, y, filtered, (const Single *)k->half_zeros, line, n, block);
        for (int e = 0; e < n; e++) step[e] += gain * along_single(filtered + e, block, radius);
    }
}

/* Returns the step from the residual times `factor`, whose parts are 1/factor too large; with `plain` the residual. */
static const Half *next_step(const Problem *q, Work *k, double factor, double tolerance, int plain)
{
    for (long e = 0; e < (long)q->h * k->length; e++) {
        k->half_step[e] = __builtin_convertvector(factor * k->residual[e], Half);
        k->half_b[e] = k->half_step[e] * k->half_dot[e];
    }
    if (plain) return k->half_step;
    if (q->radius == 1) newton_step(q, k, tolerance, k->block / 2, 1);
    else newton_step(q, k, tolerance, k->block / 2, q->radius);
    return k->half_step;
}

/* Adds sum_p D N into ntk (block), N = b + s M (D N). D N is solved for twice in single precision, the second time for
   what the first has left. */
static void tangent(const Problem *q, Work *k, const Wide *b, Wide *ntk)
{
    int n = k->length;
    long all = (long)q->h * n;
    double gain = q->sigma_a2 / ((2 * q->radius + 1) * (2 * q->radius + 1)), factor;
    Wide *rest = k->residual, *total = k->x;
    for (long e = 0; e < all; e++) {
        rest[e] = k->dot[e] * b[e];
        total[e] *= 0;
    }
    for (int turn = 0; turn < 2 - q->single; turn++) {
        Wide most = {0};
        for (long e = 0; e < all; e++) most = pick(size_of(rest[e]) > most, size_of(rest[e]), most);
        if (!((factor = greatest(most)) > 0)) break;
        for (long e = 0; e < all; e++) k->half_b[e] = __builtin_convertvector(rest[e] * (1 / factor), Half);
        const Half *y = (const Half *)window_equation(q, k, turn ? 1e-5 : 1e-6);
        for (long e = 0; e < all; e++) {
            total[e] += factor * __builtin_convertvector(y[e], Wide);
            rest[e] -= factor * __builtin_convertvector(y[e], Wide);
        }
        for (int line = 0; line < q->h && !turn && !q->single; line++) {
            long at = (long)line * n;
            down(q, total, k->line, k->zeros, line, n, k->block);
            for (int e = 0; e < n; e++) rest[at + e] += gain * k->dot[at + e] * along(k->line + e, k->block, q->radius);
        }
    }
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int i = 0; i < k->block; i++) ntk[i] += total[p * k->block + i];
}

typedef struct {
    const double *ci, *cj, *reach;
    const int *terms, *rough; /* numbers of terms that are right to rounding, and to 1e-6 */
    int row, group, groups;
} Tables;

/* g and g' at a line, from a step on: k->x is moved by `move` times k->step */
INLINE void evaluated(const Problem *q, Work *k, const Tables *t, const int *terms, int y, const Half *step,
                      double move, Wide *ck, Wide *low, Wide *high, const int block)
{
    for (int c = 0; c < q->w; c++) {
        long p = (long)y * q->w + c, at = p * block;
        Wide rho[BLOCK], g[BLOCK], dg[BLOCK], ss[BLOCK], sj = k->sj[p], vj = k->vj[p];
        for (int i = 0; i < block; i++) {
            Wide x = k->x[at + i];
            ss[i] = k->si[at + i] * sj;
            if (step) k->x[at + i] = x = clipped(x + move * __builtin_convertvector(step[at + i], Wide), ss[i]);
            rho[i] = x * (k->vi[at + i] * vj);
        }
        if (!q->terms)
            for (int i = 0; i < block; i++) kinked(q, rho[i], g + i, dg + i);
        else {
            const Wide *cj = (const Wide *)t->cj + (p * t->groups + t->group) * q->terms;
            series(q, t->row, t->ci + p * q->rows * q->terms, cj, t->reach, terms, rho, g, dg, block);
        }
        for (int i = 0; i < block; i++) {
            k->c[at + i] = g[i] *= ss[i];
            k->dot[at + i] = dg[i];
            k->half_dot[at + i] = __builtin_convertvector(dg[i], Half);
            ck[i] += g[i];
            *low = pick(dg[i] < *low, dg[i], *low);
            *high = pick(dg[i] > *high, dg[i], *high);
        }
    }
}

/* The residual at a line; its largest entry, that relative to the weights, and the latter's sum are updated. */
INLINE void residual(const Problem *q, Work *k, int y, double gain, Wide *largest, Wide *worst, Wide *sum,
                     const int block)
{
    down(q, k->c, k->line, k->zeros, y, k->length, block);
    for (int c = 0; c < q->w; c++) {
        long p = (long)y * q->w + c;
        for (int i = 0; i < block; i++) {
            long at = p * block + i, e = c * block + i;
            Wide r = gain * along(k->line + e, block, q->radius) + k->b[at] - k->x[at], size = size_of(r);
            k->residual[at] = r;
            *largest = pick(size > *largest, size, *largest);
            size *= k->wi[at] * k->wj[p];
            *worst = pick(size > *worst, size, *worst);
            *sum += size;
        }
    }
}

/* The error of a step of Newton's method that its linear equation may leave, with a residual of this size and one that
   is to be reached. */
static double tolerated(double size, double wanted)
{
    double tolerance = 0.2 * size, enough = 0.1 * wanted / size;
    tolerance = tolerance > enough ? tolerance : enough;
    return tolerance < 0.1 ? tolerance > 1e-6 ? tolerance : 1e-6 : 0.1;
}

/* Writes a block's numbers in single precision. Returns 0 where it has not the range for them. */
static int narrowed(const Problem *q, Work *k)
{
    Wide most = {0};
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int i = 0; i < k->block; i++) {
            long at = p * k->block + i;
            Wide product = k->si[at] * k->sj[p];
            most = pick(product > most, product, most);
            k->half_ss[at] = __builtin_convertvector(product, Half);
            k->half_inverse[at] = __builtin_convertvector(k->vi[at] * k->vj[p], Half);
            k->half_weight[at] = __builtin_convertvector(k->wi[at] * k->wj[p], Half);
            k->half_x[at] = __builtin_convertvector(k->x[at], Half);
            k->half_base[at] = __builtin_convertvector(k->b[at], Half);
        }
    return greatest(most) < 1e15 && greatest(most) > 1e-15;
}

/* C, g' and the residual, of which k->half_step has the latter. Returns its largest entry relative to the weights, or
   NaN where something is not a number. */
INLINE double residual_single(const Problem *q, Work *k, int block, int radius)
{
    int n = k->length / 2;
    float gain = q->sigma_a2 / ((2 * radius + 1) * (2 * radius + 1));
    const Single *x = (Single *)k->half_x, *base = (Single *)k->half_base, *weight = (Single *)k->half_weight;
    const Single *ss = (Single *)k->half_ss, *inverse = (Single *)k->half_inverse;
    Single *c = (Single *)k->half_c, *dot = (Single *)k->half_dot, *step = (Single *)k->half_step;
    Single *right = (Single *)k->half_b, *line = (Single *)k->half_line;
    Single none = {0}, low = none + INFINITY, high = -low, worst = none, sum = none;
    for (long e = 0; e < (long)q->h * n; e++) {
        Single g, dg;
        kinked_single(q, x[e] * inverse[e], &g, &dg);
        c[e] = g * ss[e];
        dot[e] = dg;
        low = pick_single(dg < low, dg, low);
        high = pick_single(dg > high, dg, high);
    }
    for (int y = 0; y < q->h; y++) {
        down_single(q, c, line, (const Single *)k->half_zeros, y, n, block);
        for (int e = 0; e < n; e++) {
            long at = (long)y * n + e;
            Single r = gain * along_single(line + e, block, radius) + base[at] - x[at];
            Single size = size_of_single(r) * weight[at];
            worst = pick_single(size > worst, size, worst);
            sum += size;
            step[at] = r;
            right[at] = r * dot[at];
        }
    }
    double total = 0;
    k->low = -greatest_single(-low);
    k->high = greatest_single(high);
    for (int l = 0; l < 2 * WIDE; l++) total += sum[l];
    return total < INFINITY ? greatest_single(worst) : NAN;
}

/* Newton's method in single precision, for an activation kinked at 0, from the first guess k->x. Without q->single it
   is left to double precision to go on from where the next residual is about 1e-6; with it, it is solved. Returns 0
   where single precision has not the range, or the method does not converge. */
INLINE int approached(const Problem *q, Work *k, int block, int radius)
{
    const Single *ss = (Single *)k->half_ss, *step = (Single *)k->half_step;
    Single *x = (Single *)k->half_x;
    double before = INFINITY;
    if (!narrowed(q, k)) return 0;
    for (int count = 0; count < 12; count++) {
        double size = residual_single(q, k, block, radius);
        if (q->single && (size <= 1e-6 || (size >= before / 2 && size <= 1e-5))) return 1;
        if (!(size <= 0.9 * before)) return 0;
        newton_step(q, k, tolerated(size, 1e-7), block, radius);
        for (long e = 0; e < (long)q->h * k->length / 2; e++) {
            Single moved = x[e] + step[e];
            moved = pick_single(moved > ss[e], ss[e], moved);
            x[e] = pick_single(moved < -ss[e], -ss[e], moved);
        }
        if (!q->single && size < FINAL) return 1;
        before = size;
    }
    return 0;
}

/* Sums C, and C + D N, over pixels in single precision, where that has solved for x. */
static void sums_single(const Problem *q, Work *k, Wide *ck, Wide *ntk)
{
    long all = (long)q->h * k->length;
    for (int i = 0; i < k->block; i++) ck[i] = ntk[i] = (Wide){0};
    for (long e = 0; e < all; e++) ck[e % k->block] += __builtin_convertvector(k->half_c[e], Wide);
    if (!q->tangent) return;
    for (long e = 0; e < all; e++) {
        Half source = k->half_x[e];
        if (q->injected) source -= __builtin_convertvector(k->source[e], Half);
        k->half_b[e] = k->half_dot[e] * source;
    }
    const Half *y = (const Half *)window_equation(q, k, 1e-6);
    for (long e = 0; e < all; e++) ntk[e % k->block] += __builtin_convertvector(y[e], Wide);
    for (int i = 0; i < k->block; i++) ntk[i] += ck[i];
}

/* Begins in single precision, or with q->single ends in it. Returns 1 where the latter is done. */
static int approach(const Problem *q, Work *k)
{
    if (!(q->radius == 1 ? approached(q, k, 1, 1) : approached(q, k, 1, q->radius))) return 0;
    if (q->single) return 1;
    for (long e = 0; e < (long)q->h * k->length; e++) k->x[e] = __builtin_convertvector(k->half_x[e], Wide);
    return 0;
}

/* Solves for x; C is summed over pixels into ck (block). Returns 1 where it does not converge. */
INLINE int solve(const Problem *q, Work *k, const Tables *t, Wide *ck, double *left, const int block)
{
    int precise = !q->terms || q->single;
    double before = INFINITY, move = 0, gain = q->sigma_a2 / ((2 * q->radius + 1) * (2 * q->radius + 1));
    const Half *step = NULL;
    for (int count = 0; count < 60; count++) {
        Wide none = {0}, low = none + INFINITY, high = -low, largest = none, worst = none, sum = none;
        for (int i = 0; i < block; i++) ck[i] = none;
        for (int y = 0; y < q->h; y++)
            evaluated(q, k, t, precise ? t->terms : t->rough, y, step, move, ck, &low, &high, block);
        for (int y = 0; y < q->h; y++) residual(q, k, y, gain, &largest, &worst, &sum, block);
        double size = greatest(worst), total = 0;
        k->low = -greatest(-low);
        k->high = greatest(high);
        for (int l = 0; l < WIDE; l++) total += sum[l];
        *left = total < INFINITY ? size : total;
        if (!(total < INFINITY)) return 1; /* not a number, which no comparison sees */
        /* g' of a kink has the root of an error where pixels are parallel, and elsewhere a small multiple of it */
        int apart = !q->terms && k->high < q->m2 + 1.526 * q->h2 && k->low > q->m2 - 1.526 * q->h2; /* |rho| < 0.999 */
        if (precise && (size <= (apart ? q->stalled : q->rounded) || (size >= before / 2 && size <= q->stalled)))
            return 0;
        if (size <= q->rounded) { /* of a rough series: there is no step to take, but all terms to be had */
            precise = 1;
            step = NULL;
            continue;
        }
        move = greatest(largest);
        /* a plain step is a contraction */
        step = next_step(q, k, 1 / move, tolerated(size, apart ? q->stalled : q->rounded), size > 0.9 * before);
        precise |= size < 0.03;
        before = size;
    }
    return 1;
}

/* Solves a block in double precision: C, and C + D N, are summed over pixels. Returns 1 where it does not converge. */
static int solved(const Problem *q, Work *k, const Tables *t, Wide *ck, Wide *ntk, double *left)
{
    if (q->terms ? solve(q, k, t, ck, left, BLOCK) : solve(q, k, t, ck, left, 2)) return 1;
    if (!q->tangent) return 0;
    memcpy(ntk, ck, k->block * sizeof(Wide));
    if (q->injected)
        for (long e = 0; e < (long)q->h * k->length; e++) k->source[e] = k->x[e] - k->source[e];
    tangent(q, k, q->injected ? k->source : k->x, ntk);
    return 0;
}

/* ci (pixels, rows, terms) and cj (pixels, groups of WIDE columns, terms, WIDE). Adds up over pixels: ck (rows, cols)
   gets Cov[f, f], and ntk that plus G_dot N. Returns 0, or 1 where the equation is not solved, 2 without memory. */
int conv_pairs(const Problem *q, const double *yi, const double *yj, const double *si, const double *sj,
               const double *wi, const double *wj, const double *di, const double *dj, const double *ci,
               const double *cj, const double *reach, const int *terms, const int *rough, double *ck, double *ntk,
               double *left)
{
    Sides sides = {yi, yj, si, sj, wi, wj, di, dj};
    Tables t = {ci, cj, reach, terms, rough, 0, 0, (q->cols + WIDE - 1) / WIDE};
    Work k;
    long P = (long)q->h * q->w;
    int failed = 0;
    if (!allocated(q, &k, q->terms ? BLOCK : 2)) return 2;
    for (int col = 0; col < q->cols && !failed; col += WIDE) {
        int wide = q->cols - col < WIDE ? q->cols - col : WIDE;
        t.group = col / WIDE;
        columns(q, sj, k.sj, P, col);
        columns(q, wj, k.wj, P, col);
        columns(q, dj, k.dj, P, col);
        columns(q, yj, k.yj, P * q->channels, col);
        for (long p = 0; p < P; p++) k.vj[p] = inverse(k.sj[p]);
        for (int row = 0; row < q->rows && !failed; row += k.block) {
            Wide first[BLOCK], second[BLOCK];
            t.row = row;
            begun(q, &k, &sides, row, col);
            if (!q->terms && approach(q, &k)) sums_single(q, &k, first, second);
            else failed = solved(q, &k, &t, first, second, left);
            for (int i = 0; i < k.block && row + i < q->rows && !failed; i++) {
                long at = (long)(row + i) * q->cols + col;
                memcpy(ck + at, first + i, wide * sizeof(double));
                if (q->tangent) memcpy(ntk + at, second + i, wide * sizeof(double));
            }
        }
    }
    free(k.memory);
    return failed;
}
