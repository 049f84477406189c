"""A tanh-DEQ and its matched one-hidden-layer hard-tanh network on the paper's Gaussian mixture (Example 1)."""

from experiment import run


def main(args):
    import one_layer_tanh
    from spectra import matching_figure, mixture

    return matching_figure(args, mixture, "tanh", "H-Tanh", one_layer_tanh.match, 1, "Gaussian mixture")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=5, spectrum=1600)
