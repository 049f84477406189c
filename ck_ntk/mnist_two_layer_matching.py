"""A ReLU-DEQ and its matched two-hidden-layer leaky-ReLU network on real MNIST, 6 against 8 (Example 2)."""

from experiment import run


def main(args):
    import two_layer_lrelu
    from spectra import matching_figure, mnist

    return matching_figure(args, mnist(args.dataset_path), "relu", "L-ReLU", two_layer_lrelu.match, 2, "MNIST, 6 and 8")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=3, spectrum=1600, dataset=True)
