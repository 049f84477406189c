"""Example 1 of the paper: the explicit network of one hard-tanh layer that has the conjugate kernel of a tanh-DEQ.

The layer is sigma(x) = a clip(x, -c, c). The ratio gamma^2/(alpha_1 tau_0^2) of the DEQ fixes c, which is found as one
bracketed root. Then alpha_1 fixes a.

    python one_layer_tanh.py --asquare 0.2 [--tau0 1]       prints a and c

The code lives in `deq_enn/matching/one_layer_tanh.py`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":  # first, so that --help and a bad flag do not wait for torch
    from deq_enn.commands.doorways import hard_tanh

    hard_tanh(description=__doc__)
else:
    from deq_enn.matching.one_layer_tanh import HardTanhMatch, match

__all__ = ["HardTanhMatch", "match"]
