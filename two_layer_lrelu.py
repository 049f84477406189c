"""Example 2 of the paper: the explicit network of two leaky-ReLU layers with the conjugate kernel of a ReLU-DEQ.

Each layer is sigma_l(x) = max(a_l x, b_l x) - (a_l - b_l) tau_{l-1}/sqrt(2 pi). Its four slopes solve four equations,
alpha_1, alpha_2, alpha_3 and gamma^2 of the DEQ, which come down to one cubic: `solutions` gives every admissible root,
`match` the one that is best at finite width. The code lives in `deq_enn/matching/two_layer_lrelu.py`.
"""

from deq_enn.matching.two_layer_lrelu import LReLUMatch, match, solutions

__all__ = ["LReLUMatch", "match", "solutions"]
