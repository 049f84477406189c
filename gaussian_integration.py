"""Activations, Gaussian expectations and moments, Hermite coefficients.

Everything downstream (tau, the kernel coefficients, the matching, the exact kernels) sees an activation only
through the integrals of this file. All of it is float64. An expectation over xi ~ N(0, 1) is a composite
Gauss-Legendre rule whose panels end at the kinks of the integrand and are halved until they agree with
themselves; sampling a grid across a kink, as is often done, stops at about 1e-4.
"""

import math
import runpy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F

import names

Elementwise = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity, as the theory needs to know it.

    Attributes
    ----------
    name : str
    fn, derivative : elementwise functions on torch tensors of any shape and float dtype. `fn` must be continuous.
    kinks : points where `fn` or its derivative is not smooth; integrals are split there.
    lipschitz : the best Lipschitz constant; if not given, the largest |derivative| seen on a fine grid of [-20, 20].
    slopes : for a piecewise-linear `fn`, its slope on each of the len(kinks) + 1 intervals; else empty.
        The exact kernels have a closed form for these.
    """

    name: str
    fn: Elementwise
    derivative: Elementwise
    kinks: tuple[float, ...] = ()
    lipschitz: float | None = None
    slopes: tuple[float, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "kinks", tuple(sorted(float(k) for k in self.kinks)))
        if self.slopes and len(self.slopes) != len(self.kinks) + 1:
            raise ValueError(f"activation {self.name}: {len(self.kinks)} kinks need {len(self.kinks) + 1} slopes, "
                             f"got {len(self.slopes)}")
        if self.lipschitz is None:
            if self.slopes:
                bound = max(abs(s) for s in self.slopes)
            else:
                bound = self.derivative(torch.linspace(-20, 20, 40001, dtype=torch.float64)).abs().max().item()
            object.__setattr__(self, "lipschitz", bound)

    def __call__(self, x):
        return self.fn(x)


def piecewise_linear(name, kinks, slopes, value_at_zero=0.0) -> Activation:
    """The continuous function with the given slopes between the given (sorted) kinks and the given value at 0."""
    kinks, slopes = tuple(map(float, kinks)), tuple(map(float, slopes))
    jumps = [right - left for left, right in zip(slopes, slopes[1:])]
    # sum of ramps; the ramps' own values at 0 are taken off so that `value_at_zero` means what it says
    offset = value_at_zero - sum(j * max(-k, 0.0) for j, k in zip(jumps, kinks))

    def fn(x):
        y = x * slopes[0] + offset
        for jump, kink in zip(jumps, kinks):
            y = y + jump * (x - kink).clamp_min(0)
        return y

    def derivative(x):
        y = torch.full_like(x, slopes[0])
        for jump, kink in zip(jumps, kinks):
            y = y + jump * (x > kink).to(x.dtype)
        return y

    return Activation(name, fn, derivative, kinks, slopes=slopes)


def centre(activation: Activation, tau: float) -> Activation:
    """phi(x) = f(x) - E[f(tau xi)], the constant fixed; an activation already centred at tau is returned as it is."""
    mean = expectation(lambda x: activation.fn(tau * x), [k / tau for k in activation.kinks])
    if abs(mean) < 1e-15:
        return activation
    fn = activation.fn
    return replace(activation, fn=lambda x: fn(x) - mean)


# ---------------------------------------------------------------------------------------------------------------
# the registry

_SQRT_PI, _SQRT_2PI = math.sqrt(math.pi), math.sqrt(2 * math.pi)
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _d_swish(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _d_gelu(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / _SQRT_2PI


def _d_mish(x):
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


def _d_elu(x):
    return torch.where(x > 0, torch.ones_like(x), torch.exp(x.clamp_max(0)))


def _d_selu(x):
    return _SELU_SCALE * torch.where(x > 0, torch.ones_like(x), _SELU_ALPHA * torch.exp(x.clamp_max(0)))


def _softplus(x):
    # torch's softplus turns linear above its threshold of 20, which is a jump of 2e-9
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


ACTIVATIONS: dict[str, Activation] = {a.name: a for a in (
    Activation("relu", torch.relu, lambda x: (x > 0).to(x.dtype), (0,), 1.0, (0, 1)),
    Activation("leaky_relu", F.leaky_relu, lambda x: 0.01 + 0.99 * (x > 0).to(x.dtype), (0,), 1.0, (0.01, 1)),
    Activation("tanh", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, (), 1.0),
    Activation("hardtanh", F.hardtanh, lambda x: (x.abs() < 1).to(x.dtype), (-1, 1), 1.0, (0, 1, 0)),
    Activation("erf", torch.erf, lambda x: 2 / _SQRT_PI * torch.exp(-x * x), (), 2 / _SQRT_PI),
    Activation("sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), (), 0.25),
    Activation("swish", F.silu, _d_swish),
    Activation("gelu", F.gelu, _d_gelu),
    Activation("elu", F.elu, _d_elu, (0,), 1.0),
    Activation("selu", F.selu, _d_selu, (0,), _SELU_SCALE * _SELU_ALPHA),
    Activation("softplus", _softplus, torch.sigmoid, (), 1.0),
    Activation("mish", F.mish, _d_mish),
    Activation("softsign", F.softsign, lambda x: 1 / (1 + x.abs()) ** 2, (0,), 1.0),
    Activation("sin", torch.sin, torch.cos, (), 1.0),
)}
ACTIVATIONS = {name: ACTIVATIONS[name] for name in names.ACTIVATIONS}  # those that the command line offers


def from_function(fn: Elementwise, name: str | None = None, kinks=()) -> Activation:
    """An Activation from an elementwise torch function, its derivative taken by autograd."""

    def derivative(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = fn(x)
            return torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)

    return Activation(name or getattr(fn, "__name__", "activation"), fn, derivative, kinks)


def load_activation(spec: str) -> Activation:
    """A registry name, or "path/to/file.py:name", a function or `Activation` in a Python file, WHOSE CODE IS RUN.

    Raises ValueError, in one line, for an unknown name, a missing file or name, or a file that does not run.
    """
    if spec in ACTIVATIONS:
        return ACTIVATIONS[spec]
    path, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(f"unknown activation {spec!r}: choose from {', '.join(ACTIVATIONS)}, or give path/to/file.py:name")
    try:
        found = runpy.run_path(path).get(name)
    except FileNotFoundError:
        raise ValueError(f"activation {spec!r}: there is no file {path}") from None
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {path} does not run: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ValueError(f"activation {spec!r}: {path} defines no function or Activation called {name}")
    try:
        return found if isinstance(found, Activation) else from_function(found, name)
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {name} is not an elementwise torch function: {error}") from None


# ---------------------------------------------------------------------------------------------------------------
# expectations

_TOLERANCE = 1e-14  # of each panel, so that the whole is within 1e-12
_RANGE = 38.0       # beyond it the density is below the smallest normal float64
_EDGES = [-38.0, -30, -23, -18, -14, -11, *range(-8, 9), 11, 14, 18, 23, 30, 38.0]


@lru_cache(maxsize=None)
def _legendre(n):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _expectations(f, kinks):
    """E[f(xi)] for f : (q,) nodes -> (k, q) values. Returns (k,)."""
    nodes, weights = _legendre(20)

    def integrate(left, right):  # (panels,) -> integrals (k, panels) and integrals of the absolute value
        half = (right - left) / 2
        x = (left + half)[:, None] + half[:, None] * nodes
        density = torch.exp(-0.5 * x * x) * (weights * half[:, None]) / _SQRT_2PI
        values = f(x.reshape(-1)).reshape(-1, *x.shape)
        if not torch.isfinite(values).all():
            bad = x[~torch.isfinite(values).all(0)]
            raise ValueError(f"the integrand is not finite at x = {bad[bad.abs().argmin()].item():.6g}: "
                             "it has no finite Gaussian moments, or is not defined on all of R")
        values = values * density
        return values.sum(-1), values.abs().sum(-1)

    edges = torch.tensor(sorted({*_EDGES, *(k for k in kinks if -_RANGE < k < _RANGE)}), dtype=torch.float64)
    left, right = edges[:-1], edges[1:]
    value, size = integrate(left, right)
    if (size[:, [0, -1]].amax() > _TOLERANCE * size.sum(-1).amax().clamp_min(1.0)).item():
        raise ValueError("the integrand grows too fast for a Gaussian expectation: "
                         "its tail does not decay within 38 standard deviations")
    scale = size.sum(-1).amax().clamp_min(1.0)
    total = torch.zeros_like(value[:, 0])
    for _ in range(60):  # a kink that was not declared costs one panel a level
        middle = (left + right) / 2
        left, right = torch.stack([left, middle], 1).reshape(-1), torch.stack([middle, right], 1).reshape(-1)
        halves, size = integrate(left, right)
        refined = halves.reshape(len(value), -1, 2).sum(-1)
        rough = ((refined - value).abs() > _TOLERANCE * scale).any(0)
        total = total + refined[:, ~rough].sum(-1)
        if not rough.any():
            return total
        keep = rough.repeat_interleave(2)
        left, right, value = left[keep], right[keep], halves[:, keep]
        if len(left) > 20000:
            break
    raise ValueError("the Gaussian expectation does not converge: the integrand is not piecewise smooth")


def expectation(f: Elementwise, kinks=()) -> float:
    """E[f(xi)] for xi ~ N(0, 1), absolute error at most 1e-12 (relative, where E|f| exceeds 1).

    Parameters
    ----------
    f : elementwise function on a float64 tensor.
    kinks : points where f is not smooth. Those left out are found by bisection, at some cost.

    Raises
    ------
    ValueError : f is not finite, not elementwise, or grows too fast.
    """

    def row(x):
        y = f(x)
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            raise ValueError("the function is not elementwise: it must map a tensor to a tensor of the same shape")
        return y[None]

    return _expectations(row, kinks).item()


@dataclass(frozen=True)
class GaussianMoments:
    """Moments at tau*xi, xi ~ N(0, 1), of an activation f centred at tau: phi = f - E[f(tau xi)].

    mean = E[f], variance = E[phi^2], d1 = E[phi'], d2 = E[phi''], d1_sq = E[phi'^2], sq_dd = E[(phi^2)''].
    """

    mean: float
    variance: float
    d1: float
    d2: float
    d1_sq: float
    sq_dd: float


def gaussian_moments(activation: Activation, tau: float) -> GaussianMoments:
    """Moments of the activation centred at tau, absolute error about 1e-12.

    Second derivatives are taken by Stein's lemma, E[g'(tau xi)] = E[xi g(tau xi)] / tau, so that the kinks of a
    piecewise-linear activation contribute as they must. `tau` > 0 is the standard deviation of the pre-activation.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be positive and finite, got {tau}")

    def integrands(xi):
        x = tau * xi
        f, df = activation.fn(x), activation.derivative(x)
        if f.shape != x.shape or df.shape != x.shape:
            raise ValueError(f"activation {activation.name} is not elementwise")
        return torch.stack([f, f * f, df, xi * df / tau, df * df, 2 * xi * f * df / tau])

    try:
        mean, square, d1, d2, d1_sq, sq_dd = _expectations(integrands, [k / tau for k in activation.kinks]).tolist()
    except ValueError as error:
        raise ValueError(f"activation {activation.name} at scale {tau:.6g}: {error}") from None
    return GaussianMoments(mean, square - mean * mean, d1, d2, d1_sq, sq_dd - 2 * mean * d2)


# ---------------------------------------------------------------------------------------------------------------
# Hermite coefficients

def hermite_functions(x: torch.Tensor, degree: int) -> torch.Tensor:
    """h_k(x) exp(-x^2/4) for k = 0 .. degree, shape (degree + 1, *x.shape), with h_k orthonormal under N(0, 1).

    The weight keeps the three-term recurrence h_{k+1} = (x h_k - sqrt(k) h_{k-1}) / sqrt(k+1) bounded at any degree.
    """
    table = torch.empty((degree + 1, *x.shape), dtype=x.dtype, device=x.device)
    table[0] = torch.exp(-x * x / 4)
    if degree:
        table[1] = x * table[0]
    for k in range(1, degree):
        torch.mul(x, table[k], out=table[k + 1])
        table[k + 1].sub_(table[k - 1], alpha=math.sqrt(k)).div_(math.sqrt(k + 1))
    return table


def hermite_coefficients(activation: Activation, scale, degree: int) -> torch.Tensor:
    """c_k = E[f(s xi) h_k(xi)], k = 0 .. degree, of the activation as given (not centred) at each scale s.

    Parameters
    ----------
    scale : positive scale(s), a float or (n,) tensor.
    degree : the largest k.

    Returns
    -------
    (n, degree + 1) float64 tensor, on the device of `scale`. Absolute error about 1e-13.

    Notes
    -----
    E[f(s xi) f(t xi')] = sum_k c_k(s) c_k(t) rho^k for unit Gaussians of correlation rho (Mehler).
    """
    scale = torch.atleast_1d(torch.as_tensor(scale, dtype=torch.float64))
    if scale.ndim != 1 or not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError("scale must be one or more positive finite numbers")
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    # f * density * h_k = f * exp(-x^2/4) * (bounded), negligible beyond 16; h_k oscillates at frequency ~ sqrt(k)
    width = min(0.5, 4 / math.sqrt(degree + 1))
    nodes, weights = (t.to(scale.device) for t in _legendre(20))

    def on_panels(edges, s):  # edges (..., panels + 1) shared by or one row for each of the scales s
        half = edges.diff() / 2
        x = ((edges[..., :-1] + half)[..., None] + half[..., None] * nodes).flatten(-2)
        w = (half[..., None] * weights).flatten(-2) / _SQRT_2PI
        f = activation.fn(s[:, None] * x) * torch.exp(-x * x / 4) * w
        table = hermite_functions(x, degree)
        return f @ table.T if x.ndim == 1 else torch.einsum("nq,knq->nk", f, table)

    n_panels = math.ceil(32 / width / 2) * 2
    edges = torch.linspace(-16, 16, n_panels + 1, dtype=torch.float64, device=scale.device)  # 0 is an edge
    if all(k == 0 for k in activation.kinks):
        return torch.cat([on_panels(edges, s) for s in scale.split(4096)])
    # kinks sit at another place for each scale: each scale gets its own panels, empty where a kink is out of range
    distinct, where = torch.unique(scale, return_inverse=True)
    kinks = torch.tensor(activation.kinks, dtype=torch.float64, device=scale.device)
    chunk = max(1, int(2e7 / ((degree + 1) * (n_panels + len(kinks)) * 20)))
    rows = []
    for s in distinct.split(chunk):
        own = (kinks / s[:, None]).clamp(-16, 16)
        rows.append(on_panels(torch.cat([edges.expand(len(s), -1), own], 1).sort(1).values, s))
    return torch.cat(rows)[where]
