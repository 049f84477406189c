/* What conv_layers.c has in double and in single precision. It includes this for each, as conv_lanes.h conv_typed.h. */

#define LANES ((int)(sizeof(Vector) / sizeof(Scalar)))

/* The series for given correlations rho (pixels, rows, cols), into g and dg. */
int OF(conv_values)(const Problem *q, const Scalar *rho, const Scalar *ci, const Scalar *cj, const double *reach,
                    const int *terms, Scalar *g, Scalar *dg)
{
    long groups = (q->cols + LANES - 1) / LANES;
    for (long p = 0; p < (long)q->h * q->w; p++)
        for (int row = 0; row < q->rows; row += BLOCK)
            for (int col = 0; col < q->cols; col += LANES) {
                Vector r[BLOCK] = {{0}}, value[BLOCK], slope[BLOCK];
                int rows = q->rows - row < BLOCK ? q->rows - row : BLOCK, wide = q->cols - col;
                if (wide > LANES) wide = LANES;
                long at = (p * q->rows + row) * q->cols + col;
                for (int i = 0; i < rows; i++) memcpy(r + i, rho + at + (long)i * q->cols, wide * sizeof(Scalar));
                OF(series)(q, row, ci + p * q->rows * q->terms,
                           (const Vector *)cj + (p * groups + col / LANES) * q->terms, reach, terms, r, value, slope,
                           BLOCK);
                for (int i = 0; i < rows; i++) {
                    memcpy(g + at + (long)i * q->cols, value + i, wide * sizeof(Scalar));
                    memcpy(dg + at + (long)i * q->cols, slope + i, wide * sizeof(Scalar));
                }
            }
    return 0;
}

/* One layer at a pixel's line: sigma and K of the filtered fields in two lines, of rows' and columns' numbers. */
INLINE void OF(layer_line)(const Problem *q, const Vector *first, const Vector *second, const Scalar *const rows[3],
                           const Vector *const cols[3], Vector *sigma, Vector *K, const int radius)
{
    Scalar part = 1.0 / ((2 * radius + 1) * (2 * radius + 1));
    for (int e = 0; e < q->w; e++) {
        Vector g, dg, rho = part * OF(along)(first + e, 1, radius) * (rows[1][e] * cols[1][e]);
        OF(kinked)(q, rho, &g, &dg);
        g = rows[0][e] * cols[0][e] * g + rows[2][e] * cols[2][e];
        sigma[e] = g;
        if (q->tangent) K[e] = g + dg * (part * OF(along)(second + e, 1, radius));
    }
}

/* yi (rows, pixels, channels) and yj (pixels, channels, cols). Adds up sigma and K over pixels into ck and ntk; K begins
   as the images' products with `tangent` 1, and as 0 with 2. Returns 0, or 2 without memory. */
int OF(conv_layers)(const Problem *whole, int count, const Layer *layers, const Scalar *yi, const Scalar *yj,
                    double *ck, double *ntk)
{
    Problem own = *whole, *q = &own;
    long P = (long)q->h * q->w, ends = 0;
    for (int l = 0; l < count; l++) ends = layers[l].radius > ends ? layers[l].radius : ends;
    long line = q->w + 2 * ends, vectors = 4 * P + 2 * line + q->w + P * q->channels + 3 * P * count;
    Vector *memory = aligned_alloc(64, vectors * sizeof(Vector));
    if (!memory) return 2;
    memset(memory, 0, vectors * sizeof(Vector));
    Vector *sigma = memory, *K = sigma + P, *new_sigma = K + P, *new_K = new_sigma + P, *first = new_K + P;
    Vector *second = first + line, *zeros = second + line, *y = zeros + q->w, *numbers = y + P * q->channels;
    for (int col = 0; col < q->cols; col += LANES) {
        OF(columns)(q, yj, y, P * q->channels, col);
        for (int l = 0; l < count; l++) {
            OF(columns)(q, layers[l].sj, numbers + 3 * l * P, P, col);
            OF(columns)(q, layers[l].vj, numbers + (3 * l + 1) * P, P, col);
            OF(columns)(q, layers[l].mj, numbers + (3 * l + 2) * P, P, col);
        }
        for (int row = 0; row < q->rows; row++) {
            const Scalar *x = yi + row * P * q->channels;
            for (long p = 0; p < P; p++) {
                Vector sum = {0};
                for (int m = 0; m < q->channels; m++) sum += x[p * q->channels + m] * y[p * q->channels + m];
                int itself = row + q->same - col;
                if (itself >= 0 && itself < LANES) sum[itself] = 0;
                sigma[p] = sum;
                K[p] = sum * (Scalar)(q->tangent == 1);
            }
            for (int l = 0; l < count; l++) {
                const Layer *layer = layers + l;
                q->m2 = layer->m2, q->h2 = layer->h2;
                /* the ends of a line are 0 for zero padding; another radius has others */
                if (q->radius != layer->radius) memset(first, 0, 2 * line * sizeof(Vector));
                q->radius = layer->radius;
                for (int v = 0; v < q->h; v++) {
                    long at = (long)v * q->w, from = row * P + at;
                    OF(down)(q, sigma, first, zeros, v, q->w, 1);
                    if (q->tangent) OF(down)(q, K, second, zeros, v, q->w, 1);
                    const Scalar *const rows[] = {(const Scalar *)layer->si + from, (const Scalar *)layer->vi + from,
                                                  (const Scalar *)layer->mi + from};
                    const Vector *start = numbers + 3 * l * P + at, *const cols[] = {start, start + P, start + 2 * P};
                    if (q->radius == 1)
                        OF(layer_line)(q, first, second, rows, cols, new_sigma + at, new_K + at, 1);
                    else
                        OF(layer_line)(q, first, second, rows, cols, new_sigma + at, new_K + at, q->radius);
                }
                Vector *swap = sigma;
                sigma = new_sigma, new_sigma = swap;
                swap = K;
                K = new_K, new_K = swap;
            }
            int wide = q->cols - col < LANES ? q->cols - col : LANES;
            double total[LANES], extra[LANES]; /* in double precision, since an image has many pixels */
            for (int i = 0; i < LANES; i++) total[i] = extra[i] = 0;
            for (long p = 0; p < P; p++)
                for (int i = 0; i < LANES; i++) total[i] += sigma[p][i], extra[i] += K[p][i];
            memcpy(ck + (long)row * q->cols + col, total, wide * sizeof(double));
            if (q->tangent) memcpy(ntk + (long)row * q->cols + col, extra, wide * sizeof(double));
        }
    }
    free(memory);
    return 0;
}

#undef LANES
