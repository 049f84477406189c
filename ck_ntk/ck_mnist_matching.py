"""The conjugate kernel of a DEQ is held against its high-dimensional equivalent on two classes of images (Theorem 1).

They are 6 and 8 of MNIST, or with --dataset fashion_mnist shirts and bags.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import IMAGES, run


def main(args):
    from ck_ntk.common.kernel_figures import equivalent_figure
    from ck_ntk.common.samples import images

    draw, title = images(args.dataset, args.dataset_path)
    return equivalent_figure(args, draw, "ck", title)


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=3, spectrum=1600, dataset=True, flags=IMAGES)
