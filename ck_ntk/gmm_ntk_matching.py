"""Tangent kernel of a DEQ against its high-dimensional equivalent on the paper's Gaussian mixture (Theorem 2).

The relative spectral error falls like n^(-1/2) for each activation; beside it the spectrum and its limit.
"""

from experiment import run


def main(args):
    from spectra import equivalent_figure, mixture
    return equivalent_figure(args, mixture, "ntk", "Gaussian mixture")


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=5, spectrum=1600)
