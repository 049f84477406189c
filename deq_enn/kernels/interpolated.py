"""Kernels are interpolated to the precision of float32, in which kernel machines store them, at the cost of X X^T.

Every kernel here is a function of three numbers, K_ij = H(cos_ij, |x_i|, |x_j|), whatever it takes to compute it: a
Newton solve with a Mehler series of a hundred terms, or three layers of quadrature. H over the square root of the two
diagonals is smooth and the same for all pairs. So it is computed once, exactly, on a grid of Chebyshev nodes,

    K_ij = sqrt(K_ii K_jj) sum_k T_k(asin cos_ij / asin reach) M_k(log |x_i|, log |x_j|),    M_k of low rank

and evaluated by Clenshaw's recurrence in float32 on tiles that stay in the cache (Trefethen, Approximation Theory and
Approximation Practice, 2013, chapters 3 and 8; the low rank is that of Townsend & Trefethen, SIAM J. Sci. Comput. 35,
2013).

We interpolate in the angle, not in its cosine. As a function of the cosine, H has a (1 - cos)^(3/2) singularity at
parallel samples whenever the activation has a kink; in the angle it is smooth. That halves the number of terms for
cosines up to 0.9, and saves two thirds up to 0.99. Still, the closer a cosine comes to 1 the more terms it takes, so
that each tile takes the terms of its own largest cosine. Pairs beyond the last reach for which H is smooth enough are
computed exactly, one by one. If the activation has a kink away from 0, H has the singularity of a distance where two
samples have the same direction and norm. Then no polynomial is enough for cosines above about 0.9995; otherwise that is
so above 0.99999.
"""

import math
from collections.abc import Callable
from threading import Lock, local

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.kernels.blocks import Blocks
from deq_enn.utils.tiles import for_each, largest, tiles

REACHES = 0.9, 0.96, 0.99, 0.998, 0.9995, 0.9999, 0.99999  # largest cosines of the tables
ROUNDED = 0.99  # cosine beyond which its float32 value no longer determines the angle
TILE = 360  # rows and columns of a thread's tile, small enough for its arrays to stay in the cache
DEGREE, NORM_DEGREE = 128, 40  # degrees, in the angle and in the norms, of the grid on which H is computed
TOLERANCE = 5e-8  # error relative to the square root of the two diagonals, a unit of float32


def _transform(values, axis):
    """Returns the Chebyshev coefficients along an axis of values at the nodes of the first kind."""
    nodes = values.shape[axis]
    inverse = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(nodes), nodes - 1))
    return np.moveaxis(np.tensordot(inverse, values, (1, axis)), 0, axis)


def _needed(sizes):
    """Returns the degree after which coefficients of these sizes add up to half the tolerance, or the last degree."""
    tails = np.cumsum(sizes[::-1])[::-1]
    return max(1, int((tails > TOLERANCE / 2).sum()) - 1)


def _cosines(reach, t):
    """Returns the cosines of angles at positions t in [-1, 1] between those of -reach and reach."""
    return np.sin(math.asin(reach) * t)


class Interpolated:
    """This interpolates `Blocks`: its tiles are in float32, with errors relative to the diagonal below 5e-7.

    Parameters
    ----------
    make : (X, other) -> `Blocks` of one network.
    X, other : as those of `exact.implicit_blocks`.

    Attributes
    ----------
    exact : the blocks that are interpolated. shape : as theirs.
    """

    def __init__(
        self,
        make: Callable[[torch.Tensor, torch.Tensor | None], Blocks],
        X: torch.Tensor,
        other: torch.Tensor | None = None,
    ):
        self._make, self.exact = make, make(X, other)
        self.shape, self._square, self.device = self.exact.shape, other is None, X.device
        other = None if other is None else other.to(X.device)
        norms = [Z.double().norm(dim=1) for Z in ([X] if other is None else [X, other])]
        # a zero sample has no direction: its entries are computed exactly, and a row of the least norm stands for it
        self._zeros = [norm == 0 for norm in norms]
        least = torch.cat([norm[norm > 0] for norm in norms]).min()
        norms = [norm.clamp_min(least) for norm in norms]
        low, high = (f(torch.cat(norms)).log().item() for f in (torch.min, torch.max))
        self._middle, self._half = (low + high) / 2, (high - low) / 2 + 1e-6
        self._diagonals = [
            [d.sqrt() for d in blocks.diagonal()]
            for blocks in ([self.exact] if other is None else [make(X, None), self.exact])
        ]
        self._units = [Z.double() / norm[:, None] for Z, norm in zip([X] if other is None else [X, other], norms)]
        self._positions = [(norm.log() - self._middle).cpu().numpy() / self._half for norm in norms]
        self._tables, self._lock, self._local = {}, Lock(), local()

    def diagonal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the exact (ck, ntk) of each of the rows' samples with itself, float64."""
        return self.exact.diagonal()

    def _values(self, kernel, cosines, u, v):
        """Returns H over the root of the diagonals at cosines and positions u, v of norms, (cosines, u, v), float64."""
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
        """Returns left and right factors (degree of the norms + 1, sum of ranks) of all M_k, and where each k begins.

        Returns None where H is not smooth enough on this reach.
        """
        # the few nodes in the angle include the ends, where H is least smooth
        few, nodes = chebyshev.chebpts2(9), chebyshev.chebpts1(NORM_DEGREE + 1)
        C = self._values(kernel, _cosines(reach, few), nodes, nodes)
        for axis in (1, 2):
            C = _transform(C, axis)
        size = _needed(np.maximum(np.abs(C).max((0, 1)), np.abs(C).max((0, 2))))
        nodes = chebyshev.chebpts1(size + 1)
        C = self._values(kernel, _cosines(reach, chebyshev.chebpts1(DEGREE + 1)), nodes, nodes)
        for axis in range(3):
            C = _transform(C, axis)
        C = C[: _needed(np.abs(C).sum((1, 2))) + 1]  # the coefficients in the norms may all add up
        left, right, starts = [], [], [0]
        for M in C:
            U, values, V = np.linalg.svd(M)
            rank = max(1, int((values > TOLERANCE / max(16, len(C))).sum()))
            left.append(U[:, :rank] * values[:rank])
            right.append(V[:rank].T)
            starts.append(starts[-1] + rank)
        if not self._accurate(kernel, reach, left, right):
            return None
        return np.concatenate(left, 1), np.concatenate(right, 1), starts

    def _accurate(self, kernel, reach, left, right):
        """Returns whether the factors of all M_k give H at points between the nodes."""
        random = np.random.default_rng(0)
        norms = random.uniform(-0.9, 0.9, 4)
        norms = np.concatenate([norms, norms + 0.01, norms + 0.1, (-1, 1)])
        near = 1 - 10.0 ** np.arange(-4, 0)  # H is least smooth next to parallel samples of almost the same norm
        t = np.concatenate([random.uniform(-1, 1, 20), (-1, 1), near])
        basis = chebyshev.chebvander(norms, len(left[0]) - 1)
        values = np.stack([basis @ L @ R.T @ basis.T for L, R in zip(left, right)], -1)
        values = np.moveaxis(values @ chebyshev.chebvander(t, len(left) - 1).T, -1, 0)
        return np.abs(values - self._values(kernel, _cosines(reach, t), norms, norms)).max() <= 4 * TOLERANCE

    def tile(self, rows: slice, cols: slice, kernel: str = "ck", out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the kernel at these rows and columns as `Blocks.tile` does, in float32."""
        rows, cols = (slice(*span.indices(size)[:2]) for span, size in zip((rows, cols), self.shape))
        shape = rows.stop - rows.start, cols.stop - cols.start
        target = torch.empty(shape, dtype=torch.float32, device=self.device) if out is None else out

        def work(r, c):
            place = (slice(part.start - span.start, part.stop - span.start) for part, span in ((r, rows), (c, cols)))
            self._fill(r, c, kernel, target[*place])

        for_each(work, tiles(rows, cols, TILE), target.device)
        return target

    def _fill(self, rows, cols, kernel, out):
        """Writes the entries rows x cols into `out`."""
        product, angle, b1, b2 = self._arrays(*out.shape)
        torch.mm(self._units[-1][rows], self._units[0][cols].T, out=product)
        same = range(max(rows.start, cols.start), min(rows.stop, cols.stop)) if self._square else ()
        same = torch.tensor(same, dtype=torch.long, device=self.device)
        product[same - rows.start, same - cols.start] = 0
        bound = largest(product)
        reach, table = self._table_for(bound, kernel)
        beyond = (product.abs() > reach).nonzero(as_tuple=True) if reach < bound else ((), ())
        if table is None or len(beyond[0]) > out.numel() // 2:
            out.copy_(self.exact.tile(rows, cols, kernel))
            return
        left, right, starts = table
        which = kernel == "ntk"
        size = len(left) - 1
        A, B = (
            torch.from_numpy(
                (chebyshev.chebvander(position[span], size) @ factor) * diagonal[which][span].cpu().numpy()[:, None]
            ).to(out.device, torch.float32)
            for position, span, factor, diagonal in (
                (self._positions[-1], rows, left, self._diagonals[-1]),
                (self._positions[0], cols, right, self._diagonals[0]),
            )
        )
        product.clamp_(-reach, reach)
        twice = angle.copy_(product.asin_()) if reach > ROUNDED else angle.copy_(product).asin_()
        twice.mul_(2 / math.asin(reach))
        b1.zero_()
        b2.zero_()
        for k in range(len(starts) - 2, -1, -1):  # Clenshaw: b_k = 2 x b_{k+1} - b_{k+2} + M_k
            part = slice(starts[k], starts[k + 1])
            torch.addmm(b2, A[:, part], B[:, part].T, beta=-1, out=b2)
            if k:
                b1, b2 = b2.addcmul_(twice, b1), b1
        torch.addcmul(b2, twice, b1, value=0.5, out=out)
        if len(beyond[0]):
            out[beyond] = self.exact.entries(beyond[0] + rows.start, beyond[1] + cols.start, kernel).to(out.dtype)
        self._fill_zeros(rows, cols, kernel, out)
        out[same - rows.start, same - cols.start] = self._diagonals[0][kernel == "ntk"][same].square().float()

    def _fill_zeros(self, rows, cols, kernel, out):
        """Writes the entries of samples that are zero."""
        for row in self._zeros[-1][rows].nonzero()[:, 0].tolist():
            own = slice(rows.start + row, rows.start + row + 1)
            out[row : row + 1] = self.exact.tile(own, cols, kernel).to(out.dtype)
        for col in self._zeros[0][cols].nonzero()[:, 0].tolist():
            own = slice(cols.start + col, cols.start + col + 1)
            out[:, col : col + 1] = self.exact.tile(rows, own, kernel).to(out.dtype)

    def _table_for(self, bound, kernel):
        """Returns the least reach that goes so far, or else the farthest, with its table.

        Returns (inf, None) where H is smooth on no reach.
        """
        far = [reach for reach in REACHES if reach >= bound]
        for reach in far + [reach for reach in REACHES[::-1] if reach < bound]:
            with self._lock:  # the first thread that needs a table makes it
                if (kernel, reach) not in self._tables:
                    self._tables[kernel, reach] = self._table(kernel, reach)
            if self._tables[kernel, reach]:
                return reach, self._tables[kernel, reach]
        return math.inf, None

    def _arrays(self, height, width):
        """Returns arrays that a thread keeps from tile to tile: new memory would cost it more than the arithmetic."""
        own = self._local
        if getattr(own, "shape", None) != (height, width):
            own.shape = height, width
            own.arrays = [
                torch.empty(height, width, dtype=torch.float64, device=self.device),
                *torch.empty(3, height, width, dtype=torch.float32, device=self.device),
            ]
        return own.arrays
