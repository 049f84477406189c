"""Intervals of losses as a Gaussian has them."""

from scipy.special import ndtr

from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.losses.model import Interval


def gaussian(mean, low, high, tolerance=0.5):
    """The interval whose risk is that of a Gaussian of this mean and width."""
    return Interval(mean, low, high, float(ndtr((mean - tolerance) / (high - low) * 2 * Z_90)))
