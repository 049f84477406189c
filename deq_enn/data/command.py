"""`python data_prepare.py` fetches a data set and says what the theory sees of it."""

from collections.abc import Sequence

from deq_enn.utils.arguments import OneLineParser, add_data_flags, check_data_flags
from deq_enn.utils.outcome import one_line


def main(argv: Sequence[str] | None = None, description: str | None = None) -> None:
    """Loads the data set that the flags name, downloading what is not there, and prints its numbers.

    These are its size, the scale tau_0 before and after it was normalised, and how far the squared norms of its rows
    are from equal, which the theory takes them to be in high dimension.
    """
    parser = OneLineParser(prog="data_prepare.py", description=description)
    add_data_flags(parser.add_argument)
    a = parser.parse_args(argv)
    check_data_flags(parser, a)
    with one_line(parser):
        from deq_enn.data.datasets import listed, load_dataset
        from deq_enn.theory.equilibrium import estimate_tau0

        try:
            data = load_dataset(a.dataset, a.dataset_path, preset=a.preset, classes=a.classes, vgg_path=a.vgg_path)
        except OSError as error:
            raise ValueError(str(error)) from None
        n, p = data.X_train.shape
        norms = data.X_train.double().square().sum(1)
        print(f"{a.dataset}: n = {n} training and {len(data.X_test)} test samples, p = {p}, {data.n_classes} classes")
        if data.mapping:
            print(f"labels 0, 1, ... are {listed(data.mapping)}")
        print(f"tau_0 = {estimate_tau0(data.X_train):.6g}, by centring and dividing by {data.scale:.6g}")
        print(
            f"squared norms: {norms.min():.4g} to {norms.max():.4g}, standard deviation {norms.std():.4g} "
            f"(mean {norms.mean():.4g})"
        )
