"""Slopes of errors in log-log coordinates are fitted and printed here, with their intervals."""

if __name__ == "__main__":
    raise SystemExit("slopes.py is shared by the figures: run one of ck_ntk/*.py")

import math

import numpy as np


def fit_slope(sizes, errors):
    """Returns the least-squares slope of log error (sizes, seeds) against log size, and its standard error."""
    errors = np.asarray(errors)
    x = np.repeat(np.log(sizes), errors.shape[1])
    y = np.log(errors).reshape(-1)
    if len(sizes) < 2 or len(x) < 3:
        return None
    dx = x - x.mean()
    slope = dx @ y / (dx @ dx)
    residual = y - y.mean() - slope * dx
    return float(slope), float(math.sqrt(residual @ residual / (len(x) - 2) / (dx @ dx)))


def slope_interval(sizes, errors):
    """Returns (low, high), the 95% interval of that slope by Student's t; None where there is no slope.

    It takes log error to be linear in log size with errors of one spread: where the curve bends, it is that of the mean
    slope over these sizes, not of the slope in the limit.
    """
    fitted = fit_slope(sizes, errors)
    if fitted is None:
        return None
    from scipy.special import stdtrit  # scipy.stats.t's own, without the half second that its import takes

    half = float(stdtrit(np.size(errors) - 2, 0.975)) * fitted[1]
    return fitted[0] - half, fitted[0] + half


def print_slopes(slopes, intervals):
    """Prints a line for each curve of {curve: fit_slope} and {curve: slope_interval}."""
    for name, fitted in slopes.items():
        if fitted:
            low, high = intervals[name]
            print(f"{name:11s} slope {fitted[0]:+.3f} +- {fitted[1]:.3f} (95% interval {low:+.3f} to {high:+.3f})")


def slope_text(errors, sizes):
    fitted = fit_slope(sizes, errors)
    return "" if fitted is None else rf" (slope ${fitted[0]:.3f} \pm {fitted[1]:.3f}$)"
