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

#define Vector Wide
#define Words Bits
#define Scalar double
#define OF(name) name
#define SIGN (1ULL << 63)
#include "conv_typed.h"
#undef Vector
#undef Words
#undef Scalar
#undef OF
#undef SIGN
#define Vector Single
#define Words SingleBits
#define Scalar float
#define OF(name) name##_single
#define SIGN (1U << 31)
#include "conv_typed.h"
#undef Vector
#undef Words
#undef Scalar
#undef OF
#undef SIGN

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
    Wide size = size_of(rho);
    size = pick(size > 1 - 64 * 2.220446049250313e-16, size * 0 + 1, size); /* the residual that is left has its root */
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

INLINE Wide inverse(Wide s) { return pick(s > 0, 1 / pick(s > 0, s, 1 + s * 0), s * 0); }

#endif
