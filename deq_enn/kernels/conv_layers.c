/* The kernels of explicit convolutional networks, and pair functions by themselves, for a tile of pairs of images. */

#include "conv_lanes.h"

/* the same for given correlations rho (pixels, rows, cols), into g and dg */
int conv_values(const Problem *q, const double *rho, const double *ci, const double *cj, const double *reach,
                const int *terms, double *g, double *dg)
{
    long columns = (q->cols + WIDE - 1) / WIDE;
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int row = 0; row < q->rows; row += BLOCK)
            for (int col = 0; col < q->cols; col += WIDE) {
                Wide r[BLOCK] = {{0}}, value[BLOCK], slope[BLOCK];
                int rows = q->rows - row < BLOCK ? q->rows - row : BLOCK, wide = q->cols - col;
                if (wide > WIDE) wide = WIDE;
                long at = (p * q->rows + row) * q->cols + col;
                for (int i = 0; i < rows; i++) memcpy(r + i, rho + at + (long)i * q->cols, wide * sizeof(double));
                series(q, row, ci + p * q->rows * q->terms, (const Wide *)cj + (p * columns + col / WIDE) * q->terms,
                       reach, terms, r, value, slope, BLOCK);
                for (int i = 0; i < rows; i++) {
                    memcpy(g + at + (long)i * q->cols, value + i, wide * sizeof(double));
                    memcpy(dg + at + (long)i * q->cols, slope + i, wide * sizeof(double));
                }
            }
    return 0;
}

typedef struct {
    double m2, h2;                     /* of an activation kinked at 0 */
    int radius;                        /* window of 2 radius + 1 */
    const double *si, *sj, *mi, *mj;   /* scales and means (rows, pixels) and (pixels, cols) */
} Layer;

/* One layer at a pixel's line: sigma and K of the filtered fields in two lines. */
INLINE void layer_line(const Problem *q, const Wide *first, const Wide *second, const double *si, const double *mi,
                       const Wide *sj, const Wide *mj, Wide *sigma, Wide *K, const int radius)
{
    double part = 1.0 / ((2 * radius + 1) * (2 * radius + 1));
    for (int e = 0; e < q->w; e++) {
        Wide g, dg, ss = si[e] * sj[e], rho = part * along(first + e, 1, radius) * inverse(ss);
        kinked(q, rho, &g, &dg);
        g = ss * g + mi[e] * mj[e];
        sigma[e] = g;
        if (q->tangent) K[e] = g + dg * (part * along(second + e, 1, radius));
    }
}

/* yi (rows, pixels, channels) and yj (pixels, channels, cols). Adds up sigma and K over pixels into ck and ntk; K begins
   as the images' products with `tangent` 1, and as 0 with 2. Returns 0, or 2 without memory. */
int conv_layers(const Problem *whole, int count, const Layer *layers, const double *yi, const double *yj, double *ck,
                double *ntk)
{
    Problem own = *whole, *q = &own;
    long P = (long)q->h * q->w, ends = 0;
    for (int l = 0; l < count; l++) ends = layers[l].radius > ends ? layers[l].radius : ends;
    long line = q->w + 2 * ends, vectors = 4 * P + 2 * line + q->w + P * q->channels + 2 * P * count;
    Wide *memory = aligned_alloc(64, vectors * sizeof(Wide));
    if (!memory) return 2;
    memset(memory, 0, vectors * sizeof(Wide));
    Wide *sigma = memory, *K = sigma + P, *new_sigma = K + P, *new_K = new_sigma + P, *first = new_K + P;
    Wide *second = first + line, *zeros = second + line, *y = zeros + q->w, *sj = y + P * q->channels;
    Wide *mj = sj + P * count;
    for (int col = 0; col < q->cols; col += WIDE) {
        columns(q, yj, y, P * q->channels, col);
        for (int l = 0; l < count; l++) {
            columns(q, layers[l].sj, sj + l * P, P, col);
            columns(q, layers[l].mj, mj + l * P, P, col);
        }
        for (int row = 0; row < q->rows; row++) {
            const double *x = yi + row * P * q->channels;
            for (long p = 0; p < P; p++) {
                Wide sum = {0};
                for (int m = 0; m < q->channels; m++) sum += x[p * q->channels + m] * y[p * q->channels + m];
                int itself = row + q->same - col;
                if (itself >= 0 && itself < WIDE) sum[itself] = 0;
                sigma[p] = sum;
                K[p] = q->tangent == 1 ? sum : sum * 0;
            }
            for (int l = 0; l < count; l++) {
                const Layer *layer = layers + l;
                q->m2 = layer->m2, q->h2 = layer->h2;
                /* the ends of a line are 0 for zero padding; another radius has others */
                if (q->radius != layer->radius) memset(first, 0, 2 * line * sizeof(Wide));
                q->radius = layer->radius;
                for (int v = 0; v < q->h; v++) {
                    long at = (long)v * q->w;
                    down(q, sigma, first, zeros, v, q->w, 1);
                    if (q->tangent) down(q, K, second, zeros, v, q->w, 1);
                    const double *si = layer->si + row * P + at, *mi = layer->mi + row * P + at;
                    if (q->radius == 1)
                        layer_line(q, first, second, si, mi, sj + l * P + at, mj + l * P + at, new_sigma + at,
                                   new_K + at, 1);
                    else
                        layer_line(q, first, second, si, mi, sj + l * P + at, mj + l * P + at, new_sigma + at,
                                   new_K + at, q->radius);
                }
                Wide *swap = sigma;
                sigma = new_sigma, new_sigma = swap;
                swap = K;
                K = new_K, new_K = swap;
            }
            Wide total = {0}, extra = {0};
            for (long p = 0; p < P; p++) total += sigma[p], extra += K[p];
            int wide = q->cols - col < WIDE ? q->cols - col : WIDE;
            memcpy(ck + (long)row * q->cols + col, &total, wide * sizeof(double));
            if (q->tangent) memcpy(ntk + (long)row * q->cols + col, &extra, wide * sizeof(double));
        }
    }
    free(memory);
    return 0;
}
