/* What conv_lanes.h has of vectors in double and in single precision. It includes this for each, with Vector, the whole
   numbers Words of its size, Scalar, the sign's bit SIGN, and names OF(...). */

#define LANES ((int)(sizeof(Vector) / sizeof(Scalar)))

INLINE Vector OF(pick)(Words yes, Vector a, Vector b) { return (Vector)((yes & (Words)a) | (~yes & (Words)b)); }

INLINE Vector OF(size_of)(Vector a) { return (Vector)((Words)a & ~SIGN); }

INLINE Scalar OF(greatest)(Vector a)
{
    Scalar most = a[0];
    for (int l = 1; l < LANES; l++) most = a[l] > most ? a[l] : most;
    return most;
}

INLINE Vector OF(clipped)(Vector x, Vector most) /* what is not a number stays so */
{
    x = OF(pick)(x > most, most, x);
    return OF(pick)(x < -most, -most, x);
}

/* rho sum_l a_l b_l w^l of a block at a pixel, w = rho or its square, and its derivative, with as many terms as the
   largest |rho| asks for; ci (rows, terms), cj (terms, LANES) */
INLINE void OF(series)(const Problem *q, int row, const Scalar *ci, const Vector *cj, const double *reach,
                       const int *terms, const Vector *rho, Vector *g, Vector *dg, const int block)
{
    Vector most = rho[0] * 0, w[BLOCK];
    const Scalar *a[BLOCK];
    for (int i = 0; i < block; i++) {
        Vector size = OF(size_of)(rho[i]), bounded = OF(clipped)(rho[i], (Scalar)q->cut + size * 0);
        a[i] = ci + (long)(row + i < q->rows ? row + i : q->rows - 1) * q->terms;
        w[i] = bounded;
        if (q->odd) w[i] *= bounded;
        most = OF(pick)(size > most, size, most);
    }
    Scalar largest = OF(greatest)(most);
    int bin = 0;
    while (bin < q->bins - 1 && reach[bin] < largest) bin++;
    int last = (terms[bin] < q->terms ? terms[bin] : q->terms) - 1;
    for (int i = 0; i < block; i++) {
        g[i] = a[i][last] * cj[last];
        dg[i] = g[i] * 0;
    }
    for (int l = last - 1; l >= 0; l--) {
        Vector right = cj[l];
        for (int i = 0; i < block; i++) {
            dg[i] = dg[i] * w[i] + g[i];
            g[i] = g[i] * w[i] + a[i][l] * right;
        }
    }
    for (int i = 0; i < block; i++) {
        Vector bounded = OF(clipped)(rho[i], (Scalar)q->cut + w[i] * 0);
        dg[i] = g[i] + (Scalar)(q->odd ? 2 : 1) * w[i] * dg[i];
        g[i] *= bounded;
    }
}

/* Sums the lines of `from` in the window about line y into `line`, whose ends are filled, so that what remains is the
   sum along it. */
INLINE void OF(down)(const Problem *q, const Vector *from, Vector *line, const Vector *zeros, int y, int n, int block)
{
    int r = q->radius, ends = r * block;
    Vector *restrict middle = line + ends;
    for (int first = -r; first <= r; first += 3) { /* three lines at a time */
        const Vector *lines[3];
        for (int d = first; d < first + 3; d++) {
            int at = y + d;
            if (q->wraps) at = at < 0 ? at + q->h : at >= q->h ? at - q->h : at;
            lines[d - first] = d > r || at < 0 || at >= q->h ? zeros : from + (long)at * n;
        }
        const Vector *restrict a = lines[0], *restrict b = lines[1], *restrict c = lines[2];
        if (first == -r)
            for (int e = 0; e < n; e++) middle[e] = a[e] + b[e] + c[e];
        else
            for (int e = 0; e < n; e++) middle[e] += a[e] + b[e] + c[e];
    }
    if (q->wraps) {
        memcpy(line, line + n, ends * sizeof(Vector));
        memcpy(middle + n, middle, ends * sizeof(Vector));
    }
}

INLINE Vector OF(along)(const Vector *line, int block, int radius)
{
    Vector sum = line[0];
    for (int d = 1; d <= 2 * radius; d++) sum += line[d * block];
    return sum;
}

/* Copies a vector of columns from `col` on, the last of them again where there are fewer. */
INLINE void OF(columns)(const Problem *q, const Scalar *from, Vector *to, long count, int col)
{
    int wide = q->cols - col < LANES ? q->cols - col : LANES;
    for (long a = 0; a < count; a++)
        for (int l = 0; l < LANES; l++) to[a][l] = from[a * q->cols + col + (l < wide ? l : wide - 1)];
}

#undef LANES
