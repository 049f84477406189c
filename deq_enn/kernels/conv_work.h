/* What conv_pairs.c has of a block of pairs of images: its memory, its numbers, and the guess that it begins with. */

#include "conv_lanes.h"

typedef struct {
    int block, length;                           /* rows of a block; vectors of a line */
    Wide *x, *b, *dot, *c, *residual, *source, *line, *zeros;
    Wide *sj, *wj, *vj, *dj, *yj;                /* of the columns: scale, weight, 1/scale, E[f'], images */
    double *si, *wi, *vi, *di, *yi;              /* the same of the rows, (pixels, block) */
    Half *half_b, *half_dot, *half_u, *half_v, *half_step, *half_line, *half_zeros;
    /* of Newton's method in single precision; ss is the product of the two scales, inverse and weight those of theirs */
    Half *half_x, *half_c, *half_base, *half_ss, *half_inverse, *half_weight;
    double low, high;                            /* of g' */
    void *memory;
} Work;

/* yi (pixels, rows, channels) and yj (pixels, channels, cols); scales, weights and E[f'] (pixels, rows or cols) */
typedef struct {
    const double *yi, *yj, *si, *sj, *wi, *wj, *di, *dj;
} Sides;

static int allocated(const Problem *q, Work *k, int block)
{
    long P = (long)q->h * q->w, n = P * block, line = (long)block * q->w, ends = line + 2L * block * q->radius;
    Wide **parts[] = {&k->x, &k->b, &k->dot, &k->c, &k->residual, &k->source, &k->line, &k->zeros,
                      &k->sj, &k->wj, &k->vj, &k->dj, &k->yj};
    long sizes[] = {n, n, n, n, n, q->injected ? n : 0, ends, line, P, P, P, P, P * q->channels};
    Half **halves[] = {&k->half_b, &k->half_dot, &k->half_u, &k->half_v, &k->half_step, &k->half_line,
                       &k->half_zeros, &k->half_x, &k->half_c, &k->half_base, &k->half_ss, &k->half_inverse,
                       &k->half_weight};
    long more = q->terms ? 0 : n, half_sizes[] = {n, n, n, n, n, ends, line, more, more, more, more, more, more};
    double **rows[] = {&k->si, &k->wi, &k->vi, &k->di, &k->yi};
    long bytes = n * (4 + q->channels) * sizeof(double);
    for (int part = 0; part < 13; part++) bytes += sizes[part] * sizeof(Wide);
    for (int part = 0; part < 13; part++) bytes += half_sizes[part] * sizeof(Half);
    char *at = k->memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!at) return 0;
    memset(at, 0, bytes);
    for (int part = 0; part < 13; at += sizes[part++] * sizeof(Wide)) *parts[part] = (Wide *)at;
    for (int part = 0; part < 13; at += half_sizes[part++] * sizeof(Half)) *halves[part] = (Half *)at;
    for (int part = 0; part < 5; part++) *rows[part] = (double *)at + part * n;
    k->block = block;
    k->length = q->w * block;
    return 1;
}

/* Sets up a block: the rows' numbers, b = M y y', and a first guess, which is right to first order where nothing varies
   over a window. */
static void begun(const Problem *q, Work *k, const Sides *sides, int row, int col)
{
    int n = k->length, block = k->block, channels = q->channels;
    double part = 1.0 / ((2 * q->radius + 1) * (2 * q->radius + 1));
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int i = 0; i < block; i++) {
            long from = p * q->rows + (row + i < q->rows ? row + i : q->rows - 1), to = p * block + i;
            k->si[to] = sides->si[from];
            k->vi[to] = sides->si[from] > 0 ? 1 / sides->si[from] : 0;
            k->wi[to] = sides->wi[from];
            k->di[to] = sides->di[from];
            memcpy(k->yi + to * channels, sides->yi + from * channels, channels * sizeof(double));
        }
    for (int field = 0; field < 1 + (q->injected > 0); field++) { /* all channels; those that aA leaves out */
        Wide *result = field ? k->source : k->b;
        int last = field ? q->injected : channels;
        for (long p = 0; p < (long)q->h * q->w; p++)
            for (int i = 0; i < block; i++) {
                Wide sum = {0};
                for (int m = 0; m < last; m++) sum += k->yi[(p * block + i) * channels + m] * k->yj[p * channels + m];
                int itself = row + i + q->same - col;
                if (itself >= 0 && itself < WIDE) sum[itself] = 0;
                k->c[p * block + i] = sum * part;
            }
        for (int y = 0; y < q->h; y++) {
            down(q, k->c, k->line, k->zeros, y, n, block);
            for (int e = 0; e < n; e++) result[(long)y * n + e] = along(k->line + e, block, q->radius);
        }
    }
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int i = 0; i < block; i++) {
            long at = p * block + i;
            Wide guess = k->b[at] / (1 - q->sigma_a2 * k->di[at] * k->dj[p]);
            k->x[at] = clipped(guess, k->si[at] * k->sj[p]);
        }
}
