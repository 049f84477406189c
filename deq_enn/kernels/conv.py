"""Convolutional DEQs of infinite width have conjugate and tangent kernels that obey an equation at each pair of pixels.

The DEQ is z = phi(sigma_a A * z + sigma_b B * x) on images of h x w pixels and c channels, m -> infinity feature maps,
with k x k filters A and B whose entries have variance 1/(k^2 m) and 1/(k^2 c). For two images, with both pixels of a
pair shifted together, M the mean over the window and S(p) = x(p).x'(p)/c,

    Lambda = M [sigma_a^2 G + sigma_b^2 S],    G(p) = E[phi(u) phi(v)],    G_dot(p) = E[phi'(u) phi'(v)],

(u, v) centred Gaussian with covariance Lambda(p) and the two pixels' own scales (pixel_scales.py). The readout a takes
the mean over pixels: CK = mean G. Training a, A and B,

    T = G + G_dot (sigma_a^2 M T + sigma_b^2 M S),    NTK = mean T,

and training a and A leaves the last term out. With N = sigma_a^2 M T + sigma_b^2 M S this is the linear equation
N = Lambda + sigma_a^2 M (G_dot N), of the same operator as a Newton step for Lambda. So Lambda takes a few evaluations
of the pair function and, like N, some steps of box filters (box_filter.py).

The equation for one image alone is that of Garriga-Alonso, Rasmussen & Aitchison (ICLR 2019) and of Arora et al.
(NeurIPS 2019) for explicit convolutional networks, at its fixed point. One pixel gives the kernels of `exact`.
"""

import torch

from deq_enn.kernels.box_filter import BoxFilter, WindowEquation, error_of
from deq_enn.kernels.compiled import Problem, conv_pairs, library
from deq_enn.kernels.conv_blocks import COMPILED_ENTRIES, ConvBlocks, pixel_pairs
from deq_enn.kernels.images.checks import check_dtype
from deq_enn.kernels.images.foretold import kernels_of
from deq_enn.kernels.pixel_scales import implicit_pixel_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_sigma_a2, check_window, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.theory.recognise import recognise

_STEPS = 60  # Newton or plain steps at most
_ROUNDED = 1e-14  # residual, relative to the scales of the two pixels, that is rounding
_STALLED = 1e-11  # residual below which one that does not shrink is rounding too
_SINGLE = 3e-7, 1e-5  # the same two residuals where single precision suffices
_FLOOR = 0.1  # share of an image's largest scale; at pixels of smaller ones the residual is relative to that


class _Implicit(ConvBlocks):
    def __init__(self, images, activation, sigma_a2, kernel_size, padding, readout, trained, tau0, other, dtype):
        super().__init__(images, other, padding, readout)
        check_window((1, self.height, self.width), kernel_size, padding)
        self.activation, self.sigma_a2, self.trained, self.kernel_size = activation, sigma_a2, trained, kernel_size
        self.dtype = dtype
        self.M = BoxFilter((self.height, self.width), kernel_size, padding)
        shape = self.height, self.width, -1
        variance = self.M(self._x.square().sum(2).reshape(shape))  # M S_ii
        if tau0 is None:
            tau0 = variance[..., : self.shape[1]].mean().sqrt().item()
        tau = get_tau(activation, sigma_a2, tau0)
        centre = gaussian_moments(activation, tau).mean
        scales = implicit_pixel_scales(
            activation, sigma_a2, (1 - sigma_a2) * variance.cpu().numpy(), centre, tau, self.M
        )
        self.pair = pixel_pairs(activation, scales, self._x.shape[1], self.device)
        self.entries = self.pair.entries
        self.s, self.mean, self.d1, self.second, self.d1_sq = (
            torch.from_numpy(values.reshape(self.pixels.size, -1)).to(self.device)
            for values in (scales.s, scales.mean, scales.d1, scales.second, scales.d1_sq)
        )
        most = self.s.amax(0)
        self.weight = torch.where(most > 0, 1 / torch.maximum(self.s, _FLOOR * most), 0.0)
        self._x = self._x * (1 - sigma_a2) ** 0.5
        self.terms = self.pair.terms() if self.device.type == "cpu" and library() else None
        if self.terms:
            self.entries = COMPILED_ENTRIES
            self._y = torch.cat([self._x, (sigma_a2**0.5 * self.mean)[..., None]], 2)

    def _own_fields(self):
        q, shape = self.s.square(), (self.height, self.width, -1)
        source = q if self.trained == "aAB" else q - self.M(self._x.square().sum(2).reshape(shape)).reshape(q.shape)
        N = WindowEquation(self.M, self.sigma_a2, self.d1_sq.reshape(shape))(source.reshape(shape), 1e-15)
        return self.second, self.second + self.d1_sq * N.reshape(q.shape)

    def _fields(self, rows, cols, tangent, exact):
        injected = self.M(self._products(rows, cols))  # _x has the factor sigma_b
        means = rows.of(self.mean) * cols.of(self.mean)
        base = self.M(means).mul_(self.sigma_a2).add_(injected)
        covariance, C, dot = self._solve(rows, cols, base)
        G = C.add_(means)
        if not tangent:
            return G, None
        source = covariance if self.trained == "aAB" else covariance - injected
        N = WindowEquation(self.M, self.sigma_a2, dot)(source, 1e-12)
        return G, dot.mul_(N).add_(G)

    def offset_sums(self, rows, cols, tangent, exact=False):
        if not self.terms:
            return super().offset_sums(rows, cols, tangent, exact)
        channels = self._y.shape[2]
        own, other = rows.rows_of(self._y), cols.rows_of(self._y)
        single = self.dtype == torch.float32 and not exact
        rounded, stalled = _SINGLE if single else (_ROUNDED, _STALLED)
        problem = Problem(
            *rows.pixels.shape,
            self.M.radius,
            self.M.wraps,
            own.shape[1],
            other.shape[1],
            channels,
            self._itself(rows, cols),
            tangent,
            0 if self.trained == "aAB" else channels - 1,
            self.sigma_a2,
            self.M.least,
            self.M.most,
            single=single,
            rounded=rounded,
            stalled=stalled,
        )
        tables = self.terms.fill(problem, rows, cols)
        sides = [side.rows_of(values) for values in (self.s, self.weight, self.d1) for side in (rows, cols)]
        arrays = [own.contiguous(), other.mT.contiguous(), *(values.contiguous() for values in sides), *tables]
        means = rows.rows_of(self.mean).T @ cols.rows_of(self.mean)
        return [part.add_(means) for part in conv_pairs(problem, arrays, tangent)]

    def _solve(self, rows, cols, base):
        """Returns (Lambda, C, G_dot) with Lambda = sigma_a^2 M C + base, C = Cov[f(u), f(v)]."""
        s = self.sigma_a2
        ss = rows.of(self.s) * cols.of(self.s)
        weight, inverse = rows.of(self.weight) * cols.of(self.weight), 1 / ss.clamp_min(1e-300)
        # where nothing varies over a window, and to first order
        x = base / (1 - s * rows.of(self.d1) * cols.of(self.d1))
        x = torch.minimum(torch.maximum(x, -ss), ss)
        before = float("inf")
        for _ in range(_STEPS):
            g, dot = self.pair(rows, cols, x * inverse)
            C = g.mul_(ss)
            residual = self.M(C).mul_(s).add_(base).sub_(x)
            size = error_of(residual, weight)
            if size <= _ROUNDED or size >= before / 2 and size <= _STALLED:
                return x, C, dot
            if size > 0.9 * before:  # a plain step is a contraction
                step = residual
            else:
                step = WindowEquation(self.M, s, dot)(residual, min(0.1, max(0.1 * size, 1e-9)))
            before = size
            x = torch.minimum(torch.maximum(x.add_(step), -ss), ss)
        raise ValueError(
            f"the kernel of {self.activation.name} between images did not converge (residual {size:.2g}): take a "
            "smaller sigma_a^2"
        )


def conv_blocks(
    images: torch.Tensor,
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    kernel_size: int = 3,
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConvBlocks:
    """Returns the kernels of `conv_kernels` as `ConvBlocks`; `conv_kernels` explains the parameters."""
    check_sigma_a2(sigma_a2)
    if trained not in ("aA", "aAB"):
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
    check_dtype(dtype)
    return _Implicit(
        images, recognise(activation), sigma_a2, kernel_size, padding, readout, trained, tau0, other, dtype
    )


def conv_kernels(
    images: torch.Tensor,
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    kernel_size: int = 3,
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of a convolutional DEQ of infinitely many feature maps.

    Parameters
    ----------
    images : (n, c, h, w), on any device.
    activation : an `Activation`, a name of the registry or a torch function, as given; phi is it minus
        E[f(tau_* xi)], one constant for all pixels.
    sigma_a2 : sigma_a^2 in (0, 1).
    kernel_size : side k of the filters A and B, odd.
    padding : what lies outside the images, "zero" or "circular".
    readout : "flatten" reads every pixel of every feature map, "pool" the mean of each feature map over its pixels.
    trained : "aAB" for readout, A and B; "aA" for readout and A.
    tau0 : the data scale that tau_* is computed at; by default the root of the mean over images and pixels of M S_ii.
    other : (m, c, h, w), other images, such as test data: then the kernels are those between them (rows) and the images
        (columns).
    dtype : of the kernels. torch.float32 is for kernel machines, which store that: pairs are then solved in single
        precision where that is faster (in C), and the diagonal in double precision.

    Returns
    -------
    (ck, ntk) : two (n, n) or (m, n) tensors.

    Raises
    ------
    ValueError : images not finite, not (n, c, h, w), or zero; others of another shape; an even window, or with circular
        padding one larger than the image; an activation without these kernels (`exact.implicit_kernels`).

    Notes
    -----
    Time grows as n^2 h w, and with "pool" as n^2 (h w)^2. Where it will take a day or more, a warning says so before it
    begins. A pixel, or a whole image, may be zero.
    """
    given = activation, sigma_a2, kernel_size, padding, readout, trained, tau0
    return kernels_of(lambda x, others: conv_blocks(x, *given, others, dtype), images, other)
