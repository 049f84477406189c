"""Gaussian expectations and moments, Hermite coefficients.

Everything downstream (tau, the kernel coefficients, the matching, the exact kernels) sees an activation only
through the integrals of this file. All of it is float64. An expectation over xi ~ N(0, 1) is a composite
Gauss-Lobatto rule whose panels end at the kinks of the integrand, narrow towards them and towards 0, and are halved
until they agree with themselves; sampling a grid across a kink, as is often done, stops at about 1e-4. The rule has
nodes at both ends of a panel, so that nothing hides between the last node of one panel and the first of the next.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import legendre

from activations import ACTIVATIONS, Activation, Elementwise, from_function, load_activation, piecewise_linear

__all__ = ["ACTIVATIONS", "Activation", "GaussianMoments", "centre", "expectation", "from_function", "gaussian_moments",
           "hermite_coefficients", "hermite_functions", "load_activation", "piecewise_linear"]

_TOLERANCE = 1e-14  # of each panel, so that the whole is within 1e-12
_RANGE = 38.0       # beyond it the density is below the smallest normal float64
_EDGES = [-38.0, -30, -23, -18, -14, -11, *range(-8, 9), 11, 14, 18, 23, 30, 38.0]
_EPS, _SQRT_2PI = 2.0**-52, math.sqrt(2 * math.pi)


# ---------------------------------------------------------------------------------------------------------------
# expectations

@dataclass(frozen=True)
class _Rule:
    """Gauss-Lobatto on [-1, 1] with 20 nodes.

    integral @ f is the integral of f's interpolant from -1 to each node, spectrum @ f its Legendre coefficients.
    """

    nodes: np.ndarray
    weights: np.ndarray
    integral: np.ndarray
    spectrum: np.ndarray


@lru_cache(maxsize=None)
def _lobatto(n=20):
    last = [0] * (n - 1) + [1]
    inner = legendre.legroots(legendre.legder(last))
    inner = inner - legendre.legval(inner, legendre.legder(last)) / legendre.legval(inner, legendre.legder(last, 2))
    nodes = np.concatenate([[-1.0], (inner - inner[::-1]) / 2, [1.0]])
    spectrum = np.linalg.inv(legendre.legvander(nodes, n - 1))
    antiderivatives = legendre.legval(nodes, legendre.legint(np.eye(n), lbnd=-1)).T
    return _Rule(nodes, 2 / (n * (n - 1) * legendre.legval(nodes, last) ** 2), antiderivatives @ spectrum, spectrum)


@dataclass(frozen=True)
class _Panels:
    """Panels in N(0, 1) and what was seen there: nodes x (panels, 20), weights with the density, values (k, panels, 20)."""

    left: np.ndarray
    right: np.ndarray
    x: np.ndarray
    weights: np.ndarray
    values: np.ndarray

    def pick(self, index):
        return _Panels(self.left[index], self.right[index], self.x[index], self.weights[index], self.values[:, index])

    def sums(self, values):
        return np.einsum("...pq,pq->...p", values, self.weights)


def _sample(f, left, right):
    rule, half = _lobatto(), (right - left) / 2
    # an edge may be a kink or a jump: its panels see their own side of it, a few units in the last place away
    margin = 4 * _EPS * np.maximum(abs(left), abs(right))
    x = np.clip((left + half)[:, None] + half[:, None] * rule.nodes, (left + margin)[:, None], (right - margin)[:, None])
    values = f(x.reshape(-1))
    values = values.reshape(len(values), *x.shape)
    if not np.isfinite(values).all():
        bad = x[~np.isfinite(values).all(0)]
        raise ValueError(f"the integrand is not finite at x = {bad[abs(bad).argmin()]:.6g}: "
                         "it has no finite Gaussian moments, or is not defined on all of R")
    return _Panels(left, right, x, np.exp(-0.5 * x * x) * (half[:, None] * rule.weights) / _SQRT_2PI, values)


def _adapt(f, edges, floors, inspect=None):
    """Panels, sorted, on which f : (q,) nodes -> (k, q) values is resolved: each to _TOLERANCE of E|f| or of `floors` (k,).

    `inspect` : (panels, E|f|) -> two (panels,) bool arrays, those not resolved for a further reason, and those at fault.
    A fault is halved for as long as float64 allows, and may remain (a jump). Returns the panels, and whether faults
    spread over more than 1000 panels, which are then left wide.
    """
    edges = np.array(sorted(edges))
    panels = _sample(f, edges[:-1], edges[1:])
    value, size = panels.sums(panels.values), panels.sums(abs(panels.values))
    scale = np.maximum(size.sum(-1), floors)
    if (size[:, [0, -1]].max(1) > _TOLERANCE * scale).any():
        raise ValueError("the integrand grows too fast for a Gaussian expectation: "
                         "its tail does not decay within 38 standard deviations")
    done, spread = [], False
    for _ in range(120):  # a kink that was not declared costs one panel a level
        middle = (panels.left + panels.right) / 2
        panels = _sample(f, np.stack([panels.left, middle], 1).reshape(-1), np.stack([middle, panels.right], 1).reshape(-1))
        halves = panels.sums(panels.values)
        scale = np.maximum(scale, panels.sums(abs(panels.values)).sum(-1))
        rough = (abs(halves.reshape(len(halves), -1, 2).sum(-1) - value) > _TOLERANCE * scale[:, None]).any(0)
        if inspect is not None:
            narrow = panels.right - panels.left < 64 * _EPS * np.maximum(abs(panels.left), abs(panels.right))
            unresolved, fault = ((found & ~narrow).reshape(-1, 2).any(1) for found in inspect(panels, scale))
            rough |= unresolved
            spread = fault.sum() > 1000 > 10 * rough.sum()
            rough |= fault
        keep = rough.repeat(2)
        done.append(panels.pick(~keep))
        if spread or len(panels.left) > 20000:
            done.append(panels.pick(keep))
            break
        panels, value = panels.pick(keep), halves[:, keep]
        if not keep.any():
            break
    if len(panels.left) and not spread:
        raise ValueError("the Gaussian expectation does not converge: the integrand is not piecewise smooth, or "
                         "varies too quickly")
    order = np.argsort(np.concatenate([p.left for p in done]), kind="stable")
    joined = [np.concatenate([getattr(p, name) for p in done]) for name in ("left", "right", "x", "weights")]
    return _Panels(*joined, np.concatenate([p.values for p in done], 1)).pick(order), spread


def _graded(points, steps):
    """Edges of the first panels: the fixed ones, the points, and each point less and plus each step."""
    around = {p + s for p in points for s in (0.0, *steps, *(-s for s in steps))}
    return {*_EDGES, *(e for e in around if -_RANGE < e < _RANGE)}


def expectation(f: Elementwise, kinks=()) -> float:
    """E[f(xi)] for xi ~ N(0, 1), absolute error at most 1e-12 (relative, where E|f| exceeds 1).

    Parameters
    ----------
    f : elementwise function on a float64 tensor.
    kinks : points where f is not smooth. Those left out are found by bisection, at some cost.

    Raises
    ------
    ValueError : f is not finite, not elementwise, varies too quickly, or grows too fast.

    Notes
    -----
    f is sampled: a peak away from 0 and from the kinks is seen only if it is wider than about 1e-2. Panels narrow to
    1e-12 about 0 and the kinks, and there any peak is seen.
    """

    def row(x):
        y = f(torch.from_numpy(x))
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            raise ValueError("the function is not elementwise: it must map a tensor to a tensor of the same shape")
        return y.detach().numpy()[None]

    # a panel's nodes lie so close at its ends that one of the next finer panel's width is seen there
    panels, _ = _adapt(row, _graded({0.0, *kinks}, 256.0 ** -np.arange(1, 6)), np.ones(1))
    return panels.sums(panels.values).sum()


def centre(activation: Activation, tau: float) -> Activation:
    """phi(x) = f(x) - E[f(tau xi)], the constant fixed; an activation already centred at tau is returned as it is."""
    mean = expectation(lambda x: activation.fn(tau * x), [k / tau for k in activation.kinks])
    if abs(mean) < 1e-15:
        return activation
    fn = activation.fn
    return replace(activation, fn=lambda x: fn(x) - mean)


# ---------------------------------------------------------------------------------------------------------------
# moments

_AGREE = 1e-10  # of d1: a function and its derivative must agree to this

@dataclass(frozen=True)
class GaussianMoments:
    """Moments at tau*xi, xi ~ N(0, 1), of an activation f centred at tau: phi = f - E[f(tau xi)].

    mean = E[f], variance = E[phi^2], d1 = E[phi'], d2 = E[phi''], d1_sq = E[phi'^2], sq_dd = E[(phi^2)''], where the
    derivatives are those of distributions: a jump counts in each. jumps : the places where f jumps; if there is one,
    d1_sq is infinite.
    """

    mean: float
    variance: float
    d1: float
    d2: float
    d1_sq: float
    sq_dd: float
    jumps: tuple[float, ...] = ()


def gaussian_moments(activation: Activation, tau: float) -> GaussianMoments:
    """Moments of the activation centred at tau. `tau` > 0 is the standard deviation of the pre-activation.

    The error is about 1e-12 of each moment's own size, and that of the mean 1e-12 of the function's. Where tau is small,
    d2 and sq_dd have an error of about 1e-16 d1/tau as well, the rounding of the derivative.

    Raises
    ------
    ValueError : the function has no finite moments, varies too quickly at this scale (sin at 1e5), or `derivative` is
        not the derivative of `fn`: their integrals are compared panel by panel, and d1 with Stein's E[xi f(tau xi)]/tau.

    Notes
    -----
    Where f is continuous: d1 = E[f'], and by Stein's lemma, E[g'(tau xi)] = E[xi g(tau xi)]/tau, d2 = E[xi f']/tau and
    sq_dd = 2 E[xi phi f']/tau, so that the kinks of a piecewise-linear activation contribute as they must. phi comes
    from the integral of f' where that is f - f(0) to rounding, as it keeps the digits which f - f(0) loses at small tau.

    Where f jumps: d1 = E[xi phi]/tau, d2 = E[(xi^2 - 1) phi]/tau^2 and sq_dd = E[(xi^2 - 1) phi^2]/tau^2, which hold for
    any f, and d1_sq = inf. A jump that makes less than 1e-10 of d1 is taken for rounding.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    panels, spread = _resolve(activation, tau)
    x, weights, (f, df, df_sq) = panels.x, panels.weights, panels.values
    slope, size = (weights * df).sum(), (weights * abs(df)).sum()
    # the integral of df from 0, outwards panel by panel; f less this is constant but for jumps
    integral, zero = _antiderivative(panels, tau), np.searchsorted(panels.left, 0.0)
    ends = integral[:, -1]
    integral += np.concatenate([-np.cumsum(ends[:zero][::-1])[::-1], [0.0], np.cumsum(ends[zero:-1])])[:, None]
    shifted = f - f[zero, 0]
    between = (x.reshape(-1)[1:] + x.reshape(-1)[:-1]) / 2
    density, noise = np.exp(-0.5 * between**2) / _SQRT_2PI, _rounding(activation, tau, x, f)
    steps = np.diff((shifted - integral).reshape(-1)) * density / tau  # what each makes of d1
    jump = abs(steps) > _AGREE * size + 2 * density * noise.reshape(-1)[1:] / tau

    d1 = (weights * x * shifted).sum() / tau
    tolerance = _AGREE * size + (weights * (1 + abs(x)) * noise).sum() / tau
    if spread or abs(slope + steps[jump].sum() - d1) > tolerance:
        at = np.unravel_index(np.argmax(abs(shifted - integral) * np.exp(-0.5 * x * x)), x.shape)
        raise ValueError(
            f"activation {activation.name}: its derivative is not that of its function. From x = 0 to {tau * x[at]:.6g} "
            f"the function grows by {shifted[at]:.12g}, the integral of the derivative by {integral[at]:.12g}; at scale "
            f"{tau:.6g}, E[f'] = {slope:.12g}, while by Stein's lemma E[xi f(tau xi)]/tau = {d1:.12g}")

    mean = (weights * f).sum()
    if jump.any():
        phi = f - mean
        phi_sq, curved = phi * phi, x * x - 1
        return GaussianMoments(*map(float, (
            mean, (weights * phi_sq).sum(), d1, (weights * curved * phi).sum() / tau**2, math.inf,
            (weights * curved * phi_sq).sum() / tau**2)), _places(activation, tau, between[jump]))
    phi = np.where(abs(shifted - integral) <= noise, integral, shifted)
    phi = phi - (weights * phi).sum()
    return GaussianMoments(*map(float, (
        mean, (weights * phi * phi).sum(), slope, (weights * x * (df - slope)).sum() / tau, (weights * df_sq).sum(),
        2 * (weights * x * phi * df).sum() / tau)))


def _resolve(activation, tau):
    """The panels on which f, f' and f'^2 are resolved, and f is the integral of f' but for jumps."""

    def integrands(xi):
        x = torch.from_numpy(tau * xi)
        f, df = activation.fn(x), activation.derivative(x)
        if f.shape != x.shape or df.shape != x.shape:
            raise ValueError(f"activation {activation.name} is not elementwise")
        f, df = f.detach().numpy(), df.detach().numpy()
        with np.errstate(over="ignore"):  # _sample refuses what is not finite
            return np.stack([f, df, df * df])

    def inspect(panels, scale):
        f, density = panels.values[0], np.exp(-0.5 * panels.x**2) / _SQRT_2PI
        # the interpolant of f', and whether its integral is f
        tail = abs(panels.values[1] @ _lobatto().spectrum[-2:].T).max(1) * (panels.right - panels.left)
        gap, noise = np.ptp(f - _antiderivative(panels, tau), axis=1), _rounding(activation, tau, panels.x, f)
        return (tail * density.max(1) > 1e-12 * scale[1],
                gap * density.max(1) > 0.01 * _AGREE * tau * scale[1] + (noise * density).max(1))

    # the activation varies on a scale of 1 in x, about 0 and about its kinks
    steps = () if activation.slopes else 2.0 ** np.arange(math.ceil(math.log2(max(tau, 1.0)))) / tau
    edges = _graded({0.0, *(k / tau for k in activation.kinks)}, steps)
    try:
        return _adapt(integrands, edges, np.array([_bound(activation), 0.0, 0.0]), inspect)
    except ValueError as error:
        raise ValueError(f"activation {activation.name} at scale {tau:.6g}: {error}") from None


def _antiderivative(panels, tau):
    """The integral of f' over x = tau xi, from the left end of each panel to each of its nodes."""
    return tau * (panels.right - panels.left)[:, None] / 2 * (panels.values[1] @ _lobatto().integral.T)


def _bound(activation):
    return activation.lipschitz if math.isfinite(activation.lipschitz) else 0.0


def _rounding(activation, tau, x, f):
    """The rounding of f: of its value, or of intermediate values, such as the exp(x) in elu."""
    return 64 * _EPS * (abs(f) + _bound(activation) * (1 + tau * abs(x)))


def _places(activation, tau, jumps):
    """Where the function jumps, in x: the declared kink or 0 if it is one, each place once."""
    found = []
    for place in (tau * jumps).tolist():
        place = next((k for k in (0.0, *activation.kinks) if abs(place - k) < 1e-11 * tau), place)
        if not found or place - found[-1] > 1e-11 * tau:
            found.append(place)
    return tuple(found)


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
    (n, degree + 1) float64 tensor, on the device of `scale`. Absolute error about 1e-13 of the largest |f(s x)| e^(-x^2/4).

    Raises
    ------
    ValueError : f(s xi) is not resolved by 4096 panels (sin at scale 1e4, or a kink that was not declared).

    Notes
    -----
    E[f(s xi) f(t xi')] = sum_k c_k(s) c_k(t) rho^k for unit Gaussians of correlation rho (Mehler).
    """
    scale = torch.atleast_1d(torch.as_tensor(scale, dtype=torch.float64))
    if scale.ndim != 1 or not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError("scale must be one or more positive finite numbers")
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    distinct, where = torch.unique(scale, return_inverse=True)
    kinks = torch.tensor([k for k in activation.kinks if k], dtype=torch.float64, device=scale.device)
    spectrum = torch.from_numpy(_lobatto().spectrum[-2:].T.copy()).to(scale.device)

    def own_edges(edges, s):
        """(n, panels + 1), or (1, panels + 1) shared by all scales s: kinks sit at another place for each scale."""
        if not len(kinks):
            return edges[None]
        return torch.cat([edges.expand(len(s), -1), (kinks / s[:, None]).clamp(-_REACH, _REACH)], 1).sort(1).values

    def chunks(edges):  # of scales, to bound memory
        return distinct.split(max(1, int(2e7 / (20 * len(edges) * (degree + 1 if len(kinks) else 1)))))

    def unresolved(edges):  # -> one bool for each panel: at some scale, f is no polynomial there
        rough = torch.zeros(len(edges) - 1, dtype=torch.bool, device=edges.device)
        for s in chunks(edges):
            own = own_edges(edges, s)
            x, half = _lobatto_panels(own)
            f = activation.fn(s[:, None, None] * x) * torch.exp(-x * x / 4)
            largest, ends = f.abs().amax((1, 2)), torch.stack([f[:, 0, 0], f[:, -1, -1]]).abs().amax(0)
            if not (ends <= 1e-16 * largest).all():
                raise ValueError(f"activation {activation.name} grows too fast for its Hermite coefficients, or is not "
                                 f"finite, at scale {s.max().item():.6g}")
            at_fault = (f @ spectrum).abs().amax(-1) * half > _TOLERANCE * largest[:, None]
            middles = ((own[:, 1:] + own[:, :-1]) / 2).expand(len(s), -1)[at_fault]
            rough[torch.searchsorted(edges, middles) - 1] = True
        return rough

    # f * density * h_k = f * exp(-x^2/4) * (bounded), negligible beyond 16; h_k oscillates at frequency ~ sqrt(k)
    width = min(0.5, 4 / math.sqrt(degree + 1))
    edges = np.linspace(-_REACH, _REACH, math.ceil(_REACH / width) * 2 + 1)  # 0 is an edge
    if not activation.slopes:  # f(s x) varies on a scale of 1/s about 0
        steps = width * 2.0 ** -np.arange(1, math.ceil(math.log2(max(1.0, 2 * width * scale.max().item()))))
        edges = np.sort(np.concatenate([edges, steps, -steps]))
    edges = torch.from_numpy(edges).to(scale.device)
    while (rough := unresolved(edges)).any():
        edges = torch.cat([edges, ((edges[1:] + edges[:-1]) / 2)[rough]]).sort().values
        if len(edges) > 4096:
            raise ValueError(f"the Hermite coefficients of {activation.name} at scale {scale.max().item():.6g} do not "
                             "converge: it varies too quickly, or a kink of it is not declared")

    rows = []
    for s in chunks(edges):
        own = own_edges(edges, s)
        row = torch.zeros(len(s), degree + 1, dtype=torch.float64, device=scale.device)
        block = max(1, int(2e7 / (20 * len(own) * (degree + 1))))
        for start in range(0, own.shape[1] - 1, block):
            x, half = _lobatto_panels(own[:, start:start + block + 1])
            weights = half[..., None] * torch.from_numpy(_lobatto().weights).to(half) / _SQRT_2PI
            f = (activation.fn(s[:, None, None] * x) * torch.exp(-x * x / 4) * weights).flatten(1)
            table = hermite_functions(x.flatten(1), degree)
            row += f @ table[:, 0].T if len(own) == 1 else torch.einsum("nq,knq->nk", f, table)
        rows.append(row)
    return torch.cat(rows)[where]


_REACH = 16.0


def _lobatto_panels(edges):
    """Nodes (r, panels, 20) and half-widths (r, panels) of the panels between edges (r, panels + 1)."""
    left, right = edges[:, :-1], edges[:, 1:]
    half, margin = (right - left) / 2, 4 * _EPS * torch.maximum(left.abs(), right.abs())
    x = (left + half)[..., None] + half[..., None] * torch.from_numpy(_lobatto().nodes).to(edges)
    return torch.clamp(x, (left + margin)[..., None], (right - margin)[..., None]), half
