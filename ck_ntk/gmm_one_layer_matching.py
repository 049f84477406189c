"""A tanh-DEQ and its matched one-hidden-layer hard-tanh network on the paper's Gaussian mixture (Example 1)."""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run


def main(args):
    from ck_ntk.common.kernel_figures import matching_figure
    from ck_ntk.common.samples import mixture
    from deq_enn.matching import one_layer_tanh

    return matching_figure(args, mixture, "tanh", "H-Tanh", one_layer_tanh.match, 1, "Gaussian mixture")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=5, spectrum=1600)
