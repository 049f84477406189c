"""Example 2 of the paper: the explicit network of two leaky-ReLU layers that has the conjugate kernel of a ReLU-DEQ.

Each layer is sigma_l(x) = max(a_l x, b_l x) - (a_l - b_l) tau_{l-1}/sqrt(2 pi). Its four slopes solve four equations,
one each for alpha_1, alpha_2, alpha_3 and gamma^2 of the DEQ. The equations come down to one cubic. `solutions` gives
every admissible root, and `match` the one whose kernel is nearest to its limit at finite width.

    python two_layer_lrelu.py --asquare 0.2 [--tau0 1]      prints a1, b1, a2, b2 of each root

The code lives in `deq_enn/matching/two_layer_lrelu.py`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":  # first, so that --help and a bad flag do not wait for torch
    from deq_enn.commands.doorways import leaky_relu

    leaky_relu(description=__doc__)
else:
    from deq_enn.matching.two_layer_lrelu import LReLUMatch, match, solutions

__all__ = ["LReLUMatch", "match", "solutions"]
