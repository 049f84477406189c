"""A ReLU-DEQ and its matched two-hidden-layer leaky-ReLU network on the paper's Gaussian mixture (Example 2)."""

from experiment import run


def main(args):
    import two_layer_lrelu
    from spectra import matching_figure, mixture

    return matching_figure(args, mixture, "relu", "L-ReLU", two_layer_lrelu.match, 2, "Gaussian mixture")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=5, spectrum=1600)
