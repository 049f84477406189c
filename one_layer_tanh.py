"""Example 1 of the paper: the explicit network of one hard-tanh layer with the conjugate kernel of a tanh-DEQ.

The layer is sigma(x) = a clip(x, -c, c). The ratio gamma^2/(alpha_1 tau_0^2) of the DEQ fixes c, by one bracketed root,
and alpha_1 then fixes a. The code lives in `deq_enn/matching/one_layer_tanh.py`.
"""

from deq_enn.matching.one_layer_tanh import HardTanhMatch, match

__all__ = ["HardTanhMatch", "match"]
