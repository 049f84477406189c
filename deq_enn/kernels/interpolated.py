"""Kernels to the precision of float32, by interpolation: what kernel machines store, at the cost of the product X X^T.

Every kernel here is a function of three numbers, K_ij = H(cos_ij, |x_i|, |x_j|), whatever it takes to compute it: a
Newton solve with a Mehler series of a hundred terms, or three layers of quadrature. H over the square root of the two
diagonals is smooth and the same for all pairs, so it is computed once, exactly, on a grid of Chebyshev nodes,

    K_ij = sqrt(K_ii K_jj) sum_k T_k(asin cos_ij / asin reach) M_k(log |x_i|, log |x_j|),    M_k of low rank

and evaluated by Clenshaw's recurrence in float32 on tiles that stay in the cache (Trefethen, Approximation Theory and
Approximation Practice, 2013, chapters 3 and 8; the low rank is that of Townsend & Trefethen, SIAM J. Sci. Comput. 35,
2013). In the angle H has no (1 - cos)^(3/2), which every kink of an activation puts next to parallel samples: at reach
0.9 that spares half of the terms, at 0.99 two thirds. The closer a cosine comes to 1 the more terms it takes all the
same: each tile takes those of its own largest. Pairs beyond the last reach for which H is smooth enough are computed
exactly, one by one. An activation with a kink away from 0 gives H the singularity of a distance where two samples have
one direction and one norm: there no polynomial is enough for cosines above about 0.9995, elsewhere above 0.99999.
"""

import math
from threading import Lock, local

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.utils.tiles import for_each, largest, tiles

REACHES = 0.9, 0.96, 0.99, 0.998, 0.9995, 0.9999, 0.99999
ROUNDED = 0.99  # beyond it, a cosine in float32 determines the angle no longer
TILE = 360  # rows and columns of what a thread works on: its arrays stay in the cache
DEGREE, NORM_DEGREE = 128, 40  # of the grid on which H is computed
TOLERANCE = 5e-8  # relative to the square root of the two diagonals: a unit of float32


def _transform(values, axis):
    """Chebyshev coefficients along an axis of values at the nodes of the first kind."""
    nodes = values.shape[axis]
    inverse = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(nodes), nodes - 1))
    return np.moveaxis(np.tensordot(inverse, values, (1, axis)), 0, axis)


def _needed(sizes):
    """The degree after which the coefficients of these sizes add up to half the tolerance; the last, if they do not."""
    tails = np.cumsum(sizes[::-1])[::-1]
    return max(1, int((tails > TOLERANCE / 2).sum()) - 1)


def _cosines(reach, t):
    """Those at positions t in [-1, 1] of their angle from a right one."""
    return np.sin(math.asin(reach) * t)


class Interpolated:
    """`kernels.Blocks` of which `tile` is in float32, its errors relative to the diagonal below 5e-7.

    Parameters
    ----------
    make : (X, other) -> `kernels.Blocks`, of one network.
    X, other : as those of `kernels.implicit_blocks`, on the CPU.

    Attributes
    ----------
    exact : the blocks that are interpolated. shape : as theirs.
    """

    def __init__(self, make, X: torch.Tensor, other: torch.Tensor | None = None):
        self._make, self.exact = make, make(X, other)
        self.shape, self._square = self.exact.shape, other is None
        norms = [Z.double().norm(dim=1) for Z in ([X] if other is None else [X, other])]
        low, high = (f(torch.cat(norms)).log().item() for f in (torch.min, torch.max))
        self._middle, self._half = (low + high) / 2, (high - low) / 2 + 1e-6
        self._diagonals = [
            [d.sqrt() for d in blocks.diagonal()]
            for blocks in ([self.exact] if other is None else [make(X, None), self.exact])
        ]
        self._units = [Z.double() / norm[:, None] for Z, norm in zip([X] if other is None else [X, other], norms)]
        self._positions = [(norm.log() - self._middle).numpy() / self._half for norm in norms]
        self._tables, self._lock, self._local = {}, Lock(), local()

    def diagonal(self):
        return self.exact.diagonal()

    def _values(self, kernel, cosines, u, v):
        """H over the root of the diagonals, (cosines, u, v), float64."""
        which = kernel == "ntk"
        norms_u, norms_v = (np.exp(self._middle + self._half * w) for w in (u, v))
        X = torch.from_numpy(np.stack([norms_v, 0 * norms_v], 1))
        directions = np.stack([cosines, np.sqrt(1 - cosines**2)], 1)
        other = torch.from_numpy((directions[:, None] * norms_u[:, None]).reshape(-1, 2))
        blocks = self._make(X, other)
        tile = blocks.tile(slice(None), slice(None), kernel)
        roots = torch.outer(blocks.diagonal()[which].sqrt(), self._make(X, None).diagonal()[which].sqrt())
        return (tile / roots).numpy().reshape(len(cosines), len(u), len(v))

    def _table(self, kernel, reach):
        """Left and right factors (degree of the norms + 1, sum of ranks) of all M_k, and where each k begins.

        None where H is not smooth enough on this reach.
        """
        few, nodes = chebyshev.chebpts2(9), chebyshev.chebpts1(NORM_DEGREE + 1)  # with the ends: least smooth there
        C = self._values(kernel, _cosines(reach, few), nodes, nodes)
        for axis in (1, 2):
            C = _transform(C, axis)
        size = _needed(np.maximum(np.abs(C).max((0, 1)), np.abs(C).max((0, 2))))
        nodes = chebyshev.chebpts1(size + 1)
        C = self._values(kernel, _cosines(reach, chebyshev.chebpts1(DEGREE + 1)), nodes, nodes)
        for axis in range(3):
            C = _transform(C, axis)
        C = C[: _needed(np.abs(C).sum((1, 2))) + 1]  # all coefficients of the norms may add up
        left, right, starts = [], [], [0]
        for M in C:
            U, values, V = np.linalg.svd(M)
            rank = max(1, int((values > TOLERANCE / max(16, len(C))).sum()))
            left.append(U[:, :rank] * values[:rank])
            right.append(V[:rank].T)
            starts.append(starts[-1] + rank)
        random = np.random.default_rng(0)
        norms = random.uniform(-0.9, 0.9, 4)
        norms = np.concatenate([norms, norms + 0.01, norms + 0.1, (-1, 1)])
        near = 1 - 10.0 ** np.arange(-4, 0)  # next to parallel, and of almost the same norm, H is least smooth
        t = np.concatenate([random.uniform(-1, 1, 20), (-1, 1), near])
        basis = chebyshev.chebvander(norms, size)
        found = np.stack([basis @ L @ R.T @ basis.T for L, R in zip(left, right)], -1)
        found = np.moveaxis(found @ chebyshev.chebvander(t, len(C) - 1).T, -1, 0)
        if np.abs(found - self._values(kernel, _cosines(reach, t), norms, norms)).max() > 4 * TOLERANCE:
            return None
        return np.concatenate(left, 1), np.concatenate(right, 1), starts

    def tile(self, rows: slice, cols: slice, kernel: str = "ck", out: torch.Tensor | None = None) -> torch.Tensor:
        """As `kernels.Blocks.tile`, in float32."""
        rows, cols = (slice(*span.indices(size)[:2]) for span, size in zip((rows, cols), self.shape))
        out = torch.empty(rows.stop - rows.start, cols.stop - cols.start) if out is None else out

        def work(r, c):
            place = (slice(part.start - span.start, part.stop - span.start) for part, span in ((r, rows), (c, cols)))
            self._fill(r, c, kernel, out[*place])

        for_each(work, tiles(rows, cols, TILE), out.device)
        return out

    def _fill(self, rows, cols, kernel, out):
        """The entries rows x cols, into `out`."""
        product, angle, one, two = self._arrays(*out.shape)
        torch.mm(self._units[-1][rows], self._units[0][cols].T, out=product)
        same = range(max(rows.start, cols.start), min(rows.stop, cols.stop)) if self._square else ()
        same = torch.tensor(same, dtype=torch.long)
        product[same - rows.start, same - cols.start] = 0
        bound = largest(product)
        reach, table = self._table_for(bound, kernel)
        beyond = (product.abs() > reach).nonzero(as_tuple=True) if table and reach < bound else ((), ())
        if table is None or len(beyond[0]) > out.numel() // 2:
            out.copy_(self.exact.tile(rows, cols, kernel))
            return
        left, right, starts = table
        size = len(left) - 1
        A, B = (
            torch.from_numpy(
                (chebyshev.chebvander(position[span], size) @ factor) * diagonal[kernel == "ntk"][span].numpy()[:, None]
            ).float()
            for position, span, factor, diagonal in (
                (self._positions[-1], rows, left, self._diagonals[-1]),
                (self._positions[0], cols, right, self._diagonals[0]),
            )
        )
        product.clamp_(-reach, reach)
        twice = angle.copy_(product.asin_()) if reach > ROUNDED else angle.copy_(product).asin_()
        twice.mul_(2 / math.asin(reach))
        one.zero_(), two.zero_()
        for k in range(len(starts) - 2, -1, -1):  # Clenshaw: b_k = 2 x b_{k+1} - b_{k+2} + M_k
            part = slice(starts[k], starts[k + 1])
            torch.addmm(two, A[:, part], B[:, part].T, beta=-1, out=two)
            if k:
                one, two = two.addcmul_(twice, one), one
        torch.addcmul(two, twice, one, value=0.5, out=out)
        if len(beyond[0]):
            out[beyond] = self.exact.entries(beyond[0] + rows.start, beyond[1] + cols.start, kernel).to(out.dtype)
        out[same - rows.start, same - cols.start] = self._diagonals[0][kernel == "ntk"][same].square().float()

    def _table_for(self, bound, kernel):
        """The least reach that goes so far or else the farthest, and its table; None and None where no H is smooth."""
        far = [reach for reach in REACHES if reach >= bound]
        for reach in far + [reach for reach in REACHES[::-1] if reach < bound]:
            with self._lock:  # the first thread that needs a table makes it
                if (kernel, reach) not in self._tables:
                    self._tables[kernel, reach] = self._table(kernel, reach)
            if self._tables[kernel, reach]:
                return reach, self._tables[kernel, reach]
        return None, None

    def _arrays(self, height, width):
        """What a thread works with, kept from tile to tile: new memory would cost it more than the arithmetic."""
        own = self._local
        if getattr(own, "shape", None) != (height, width):
            own.shape = height, width
            own.arrays = [torch.empty(height, width, dtype=torch.float64), *torch.empty(3, height, width)]
        return own.arrays
