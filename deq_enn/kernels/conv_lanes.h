#ifndef CONV_LANES
#define CONV_LANES

/* Vectors of pairs of images, and what all kernels of pairs do with them: pair functions and the sum over a window.

   A row of a tile times WIDE columns is one vector at each pixel. A block is two such rows, or BLOCK of them where an
   activation's coefficients are shared by them; a line of pixels has the block's vectors pixel by pixel. In single
   precision two rows are one vector. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 8    /* columns side by side */
#define BLOCK 4   /* rows of a block that shares coefficients */
#define INLINE static inline __attribute__((always_inline))

typedef double Wide __attribute__((vector_size(WIDE * sizeof(double)), aligned(8))); /* both gcc and clang have these */
typedef long long Bits __attribute__((vector_size(WIDE * sizeof(double)), aligned(8)));
typedef float Half __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef float Single __attribute__((vector_size(2 * WIDE * sizeof(float)), aligned(4), may_alias)); /* of two Halves */
typedef int SingleBits __attribute__((vector_size(2 * WIDE * sizeof(int)), aligned(4)));

typedef struct {
    int h, w, radius, wraps;           /* images, window of 2 radius + 1, circular padding */
    int rows, cols, channels;          /* of the tile; channels of y */
    int same;                          /* column less row of an image with itself, or a number that no pair has */
    int tangent, injected;             /* whether the NTK is asked for; channels of y that aA leaves out of its source */
    double sigma_a2, least, most;      /* eigenvalues of M lie in [least, most] */
    double m2, h2;                     /* kinked at 0: g' = m2 + h2 asin(rho) */
    int terms, odd, bins;              /* of the series, 0 for kinked; whether it has odd powers only; reaches */
    double cut;                        /* largest |rho| of the series */
    int single;                        /* whether single precision suffices */
    double rounded, stalled;           /* residuals, relative to the weights, that are rounding */
} Problem;

INLINE Wide pick(Bits yes, Wide a, Wide b) { return (Wide)((yes & (Bits)a) | (~yes & (Bits)b)); }

INLINE Wide size_of(Wide a) { return (Wide)((Bits)a & 0x7fffffffffffffffLL); }

INLINE Single pick_single(SingleBits yes, Single a, Single b)
{
    return (Single)((yes & (SingleBits)a) | (~yes & (SingleBits)b));
}

INLINE Single size_of_single(Single a) { return (Single)((SingleBits)a & 0x7fffffff); }

INLINE float greatest_single(Single a)
{
    float most = a[0];
    for (int l = 1; l < 2 * WIDE; l++) most = a[l] > most ? a[l] : most;
    return most;
}

INLINE double greatest(Wide a)
{
    double most = a[0];
    for (int l = 1; l < WIDE; l++) most = a[l] > most ? a[l] : most;
    return most;
}

INLINE Wide clipped(Wide x, Wide most) /* what is not a number stays so */
{
    x = pick(x > most, most, x);
    return pick(x < -most, -most, x);
}

INLINE Wide root(Wide z) /* to rounding, from a guess that is right to 3% */
{
    Wide y = (Wide)(0x5fe6eb50c7b537a9LL - ((Bits)z >> 1)), zy = z * y, e = 1 - zy * y;
    y += y * e * (0.5 + e * (0.375 + e * (0.3125 + e * 0.2734375)));
    zy = z * y;
    e = 1 - zy * y;
    return zy + zy * e * (0.5 + e * 0.375);
}

INLINE Single root_single(Single z)
{
    Single y = (Single)(0x5f3759df - ((SingleBits)z >> 1)), e = 1 - z * y * y;
    y += y * e * (0.5f + e * (0.375f + e * 0.3125f));
    Single zy = z * y;
    return zy + zy * (1 - zy * y) * 0.5f;
}

/* asin(t)/t and (sin a - a cos a)/t^3 at t^2 = z, a = 2 asin(t), for z in [0, 1/2], to rounding */
static const double ASIN[] = {
    0.9999999999999999, 0.166666666666762, 0.07499999997954958, 0.04464285887635292, 0.03038186720347429,
    0.022374245713577247, 0.01731559954431618, 0.014425198539078435, 0.007444628520337835, 0.03675841815436629,
    -0.12408231204352452, 0.4950065878219168, -1.3361380175788322, 2.733327968715509, -3.974232006625551,
    3.9651660247789384, -2.4213345116985456, 0.7052735073244606,
};
static const double SINE[] = {
    2.6666666666666665, 0.26666666666668143, 0.0857142857111221, 0.03968253995077448, 0.022095947639427637,
    0.013767805682029654, 0.009249048024860408, 0.006643093513241805, 0.004226242976164667, 0.007915306613725855,
    -0.017704735518716593, 0.07840039475553413, -0.20794244601856987, 0.42909747522187885, -0.6245889328726089,
    0.6269979801368656, -0.38489219072557274, 0.11366132592446036,
};
#define DEGREE ((int)(sizeof(ASIN) / sizeof(*ASIN)) - 1) /* odd */

INLINE void kinked(const Problem *q, Wide rho, Wide *g, Wide *dg)
{
    const double half_pi = 1.57079632679489661923;
    Wide size = size_of(rho) * (1 + 8 * 2.220446049250313e-16);
    size = pick(size > 1, size * 0 + 1, size);
    Wide z = 0.5 - 0.5 * size, t = root(z), z2 = z * z;
    Wide a = ASIN[DEGREE] + z * 0, b = ASIN[DEGREE - 1] + z * 0, c = SINE[DEGREE] + z * 0, d = SINE[DEGREE - 1] + z * 0;
    for (int k = DEGREE - 2; k > 0; k -= 2) { /* odd and even powers by themselves, which do not wait for each other */
        a = a * z2 + ASIN[k];
        b = b * z2 + ASIN[k - 1];
        c = c * z2 + SINE[k];
        d = d * z2 + SINE[k - 1];
    }
    Wide angle = half_pi - 2 * t * (a * z + b);
    angle = (Wide)((Bits)angle | ((Bits)rho & ~0x7fffffffffffffffLL)); /* odd */
    *g = q->m2 * rho + q->h2 * (z * t * (c * z + d) + half_pi * size - 1);
    *dg = q->m2 + q->h2 * angle;
}

/* the same in single precision; *g is right to 1e-7 and *dg to the root of that */
INLINE void kinked_single(const Problem *q, Single rho, Single *g, Single *dg)
{
    const float half_pi = 1.57079632679f, m2 = q->m2, h2 = q->h2;
    Single size = size_of_single(rho);
    size = pick_single(size > 1 - 4 * 1.1920929e-7f, size * 0 + 1, size); /* rounding errors have the root of theirs */
    Single z = 0.5f - 0.5f * size, t = root_single(z), z2 = z * z;
    Single a = (1.0f + 0.166670203f * z) + z2 * (0.0748597309f + 0.0467416309f * z), z4 = z2 * z2;
    a += z4 * ((0.0152228745f + 0.0800101534f * z) + z2 * (-0.0966451243f + 0.113449842f * z));
    Single c = (2.66666675f + 0.266667843f * z) + z2 * (0.0856673196f + 0.0403877907f * z);
    c += z4 * ((0.0169746f + 0.0333978161f * z) + z2 * (-0.0300822612f + 0.0418138094f * z));
    Single angle = half_pi - 2 * t * a;
    angle = (Single)((SingleBits)angle | ((SingleBits)rho & ~0x7fffffff)); /* odd */
    *g = m2 * rho + h2 * (z * t * c + half_pi * size - 1);
    *dg = m2 + h2 * angle;
}

/* rho sum_l a_l b_l w^l of a block at a pixel, w = rho or its square, and its derivative, with as many terms as the
   largest |rho| asks for; ci (rows, terms), cj (terms, WIDE) */
INLINE void series(const Problem *q, int row, const double *ci, const Wide *cj, const double *reach, const int *terms,
                   const Wide *rho, Wide *g, Wide *dg, const int block)
{
    Wide most = rho[0] * 0, w[BLOCK];
    const double *a[BLOCK];
    for (int i = 0; i < block; i++) {
        Wide size = size_of(rho[i]), bounded = clipped(rho[i], q->cut + size * 0);
        a[i] = ci + (long)(row + i < q->rows ? row + i : q->rows - 1) * q->terms;
        w[i] = q->odd ? bounded * bounded : bounded;
        most = pick(size > most, size, most);
    }
    double largest = 0;
    for (int l = 0; l < WIDE; l++) largest = most[l] > largest ? most[l] : largest;
    int bin = 0;
    while (bin < q->bins - 1 && reach[bin] < largest) bin++;
    int last = (terms[bin] < q->terms ? terms[bin] : q->terms) - 1;
    for (int i = 0; i < block; i++) {
        g[i] = a[i][last] * cj[last];
        dg[i] = g[i] * 0;
    }
    for (int l = last - 1; l >= 0; l--) {
        Wide right = cj[l];
        for (int i = 0; i < block; i++) {
            dg[i] = dg[i] * w[i] + g[i];
            g[i] = g[i] * w[i] + a[i][l] * right;
        }
    }
    for (int i = 0; i < block; i++) {
        Wide bounded = clipped(rho[i], q->cut + w[i] * 0);
        dg[i] = g[i] + (q->odd ? 2 : 1) * w[i] * dg[i];
        g[i] *= bounded;
    }
}

/* Sums the lines of `from` in the window about line y into `line`, whose ends are filled, so that what remains is the
   sum along it. */
#define FILTER(Vector, down, along)                                                                                    \
    INLINE void down(const Problem *q, const Vector *from, Vector *line, const Vector *zeros, int y, int n, int block) \
    {                                                                                                                  \
        int r = q->radius, ends = r * block;                                                                           \
        Vector *restrict middle = line + ends;                                                                         \
        for (int first = -r; first <= r; first += 3) { /* three lines at a time */                                     \
            const Vector *lines[3];                                                                                    \
            for (int d = first; d < first + 3; d++) {                                                                  \
                int at = y + d;                                                                                        \
                if (q->wraps) at = at < 0 ? at + q->h : at >= q->h ? at - q->h : at;                                   \
                lines[d - first] = d > r || at < 0 || at >= q->h ? zeros : from + (long)at * n;                        \
            }                                                                                                          \
            const Vector *restrict a = lines[0], *restrict b = lines[1], *restrict c = lines[2];                       \
            if (first == -r)                                                                                           \
                for (int e = 0; e < n; e++) middle[e] = a[e] + b[e] + c[e];                                            \
            else                                                                                                       \
                for (int e = 0; e < n; e++) middle[e] += a[e] + b[e] + c[e];                                           \
        }                                                                                                              \
        if (q->wraps) {                                                                                                \
            memcpy(line, line + n, ends * sizeof(Vector));                                                             \
            memcpy(middle + n, middle, ends * sizeof(Vector));                                                         \
        }                                                                                                              \
    }                                                                                                                  \
    INLINE Vector along(const Vector *line, int block, int radius)                                                     \
    {                                                                                                                  \
        Vector sum = line[0];                                                                                          \
        for (int d = 1; d <= 2 * radius; d++) sum += line[d * block];                                                  \
        return sum;                                                                                                    \
    }
FILTER(Wide, down, along)
FILTER(Single, single_down, single_along)

/* Copies WIDE columns from `col` on, the last of them again where there are fewer. */
INLINE void columns(const Problem *q, const double *from, Wide *to, long count, int col)
{
    int wide = q->cols - col < WIDE ? q->cols - col : WIDE;
    for (long a = 0; a < count; a++)
        for (int l = 0; l < WIDE; l++) to[a][l] = from[a * q->cols + col + (l < wide ? l : wide - 1)];
}

INLINE Wide inverse(Wide s) { return pick(s > 0, 1 / pick(s > 0, s, 1 + s * 0), s * 0); }

#endif
