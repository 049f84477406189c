/* The kernels of explicit convolutional networks, and pair functions by themselves, for a tile of pairs of images. */

#include "conv_lanes.h"

typedef struct {
    double m2, h2;     /* of an activation kinked at 0 */
    int radius;        /* window of 2 radius + 1 */
    const void *si, *vi, *mi, *sj, *vj, *mj; /* scales, 1/scales and means, (rows, pixels) and (pixels, cols) */
} Layer;

#define Vector Wide
#define Scalar double
#define OF(name) name
#include "conv_layers.h"
#undef Vector
#undef Scalar
#undef OF
#define Vector Single
#define Scalar float
#define OF(name) name##_single
#include "conv_layers.h"
