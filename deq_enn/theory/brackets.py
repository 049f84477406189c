"""scipy's bounded methods find the root or the minimum of a function of one number on an interval."""

from collections.abc import Callable
from typing import cast

import numpy as np
from scipy.optimize import OptimizeResult, brentq, minimize_scalar

_EPS = 2.0**-52


def root_between(f: Callable[[float], float], low: float, high: float, xtol: float, rtol: float = 4 * _EPS) -> float:
    """Returns the root of f between two points where its signs differ, to xtol + rtol |root| (Brent's method)."""
    root = brentq(f, low, high, xtol=xtol, rtol=np.float64(rtol))
    assert isinstance(root, float)
    return root


def least_between(
    f: Callable[[float], float], low: float, high: float, xtol: float, maxiter: int = 500
) -> tuple[float, float]:
    """Returns the least value of f that a bounded search finds between two points, and where that is."""
    options = dict(xatol=xtol, maxiter=maxiter)
    result = cast(OptimizeResult, minimize_scalar(f, bounds=(low, high), method="bounded", options=options))
    return float(result["fun"]), float(result["x"])
