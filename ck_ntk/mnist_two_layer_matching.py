"""A ReLU-DEQ and its matched two-hidden-layer leaky-ReLU network on real MNIST, 6 against 8 (Example 2)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run


def main(args):
    from ck_ntk.common.kernel_figures import matching_figure
    from ck_ntk.common.samples import mnist
    from deq_enn.matching import two_layer_lrelu

    return matching_figure(args, mnist(args.dataset_path), "relu", "L-ReLU", two_layer_lrelu.match, 2, "MNIST, 6 and 8")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=3, spectrum=1600, dataset=True)
