"""The tangent kernel of a DEQ is held against its high-dimensional equivalent on a Gaussian mixture (Theorem 2).

Its relative spectral error against n, with the slope for each activation (the theorem: O(n^(-1/2))); beside it the
spectrum and its limit.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run


def main(args):
    from ck_ntk.common.kernel_figures import equivalent_figure
    from ck_ntk.common.samples import mixture

    return equivalent_figure(args, mixture, "ntk", "Gaussian mixture")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=5, spectrum=1600)
