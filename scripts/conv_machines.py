"""Kernel regression with a convolutional DEQ and with small networks, by exact kernels of images.

    python scripts/conv_machines.py --dataset mnist --dataset_path DIR --n 500 1000 2000 --asquare 0.5

Images are halved in size and standardised, zero padding, all pixels read out. The ridge is chosen on held-out training
images, for each network and kernel by itself. One row a network: test accuracy of its CK and of its NTK, and how far
the DEQ is ahead on the same test images, with a paired 95% interval. Each kernel is kept in the output folder, so that
the same command goes on where it was stopped.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.reporting.markdown import head, row
from deq_enn.utils.arguments import OneLineParser, bounded_float, bounded_int, positive_int
from deq_enn.utils.intervals import Z_95
from deq_enn.utils.outcome import one_line

NETWORKS = ("deq", "matched", "plain 1", "plain 2", "plain 3", "fully connected deq", "unrolled 2")
RIDGES = tuple(10.0**k for k in range(-5, 2))  # multiples of the mean diagonal


def kernels_of(network, train, test, activation, sigma_a2):
    """Returns [(train, train), (test, train)] kernels of a network, (ck, ntk) each."""
    import numpy as np
    import torch

    from deq_enn.kernels.conv import conv_kernels
    from deq_enn.kernels.conv_explicit import conv_explicit_kernels, injected_kernels
    from deq_enn.kernels.exact import implicit_kernels
    from deq_enn.matching.families import match
    from deq_enn.theory.equilibrium import estimate_image_tau0, get_tau
    from deq_enn.theory.gaussian import centre, centred_layers

    tau0, kept = estimate_image_tau0(train), {"dtype": torch.float32}  # whatever kernels are computed in
    if network == "fully connected deq":
        X, Z = (part.flatten(1) / part[0].numel() ** 0.5 for part in (train, test))
        return [implicit_kernels(X, activation, sigma_a2, other=other) for other in (None, Z)]
    if network == "deq":
        return [conv_kernels(train, activation, sigma_a2, tau0=tau0, other=other, **kept) for other in (None, test)]
    if network.startswith("unrolled"):
        box, phi = np.full((3, 3), 1 / 9), centre(activation, get_tau(activation, sigma_a2, tau0))
        taps = sigma_a2 * box, (1 - sigma_a2) * box
        return [injected_kernels(train, phi, taps, int(network[-1]), other=other) for other in (None, test)]
    if network == "matched":
        layers = match(activation, sigma_a2, tau0).layers
        windows = [3] + [1] * (len(layers) - 1)
    else:
        layers = centred_layers([activation] * int(network[-1]), tau0)
        windows = [3] * len(layers)
    return [conv_explicit_kernels(train, layers, windows, other=other, **kept) for other in (None, test)]


def kept_kernels(file, *arguments):
    """Returns the kernels of a file, which is made if it is not there."""
    import torch

    from deq_enn.utils.files import atomic_write

    if not file.exists():
        kernels = [[kernel.float() for kernel in pair] for pair in kernels_of(*arguments)]
        with atomic_write(file, "wb") as out:
            torch.save(kernels, out)
    return torch.load(file, weights_only=True)


def predictions(K, cross, labels, classes):
    """Returns the predicted classes of the rows of `cross`, with the ridge that does best on a held-out fifth."""
    import torch

    targets = torch.nn.functional.one_hot(labels, classes).double() - 1 / classes
    K, cross, n = K.double(), cross.double(), len(labels)
    part, scale = n - n // 5, K.diagonal().mean()
    eye = torch.eye(n, dtype=torch.float64)

    def solved(ridge, size):
        """Returns the weights, or NaN where a kernel in single precision is not positive definite with this ridge."""
        factor, failed = torch.linalg.cholesky_ex(K[:size, :size] + ridge * scale * eye[:size, :size])
        return (
            torch.cholesky_solve(targets[:size], factor) if not failed else torch.full_like(targets[:size], torch.nan)
        )

    def error(ridge):
        value = (K[part:, :part] @ solved(ridge, part) - targets[part:]).square().sum().item()
        return value if value == value else float("inf")

    best = min(RIDGES, key=error)
    return (cross @ solved(best, n)).argmax(1), best


def table(args, n, data):
    """Yields the lines of the table of n training images."""
    from deq_enn.theory.activations import ACTIVATIONS

    train, labels, test, test_labels = data
    train, labels = train[:n], labels[:n]
    reference: dict = {}
    yield head("network", "CK, %", "DEQ ahead by", "NTK, %", "DEQ ahead by")
    for network in args.network:
        name = f"{args.dataset}-{args.activation}-{args.asquare:g}-{n}-{len(test)}-{network.replace(' ', '_')}.pt"
        arguments = network, train, test, ACTIVATIONS[args.activation], args.asquare
        (K, T), (K_test, T_test) = kept_kernels(args.output_path / name, *arguments)
        cells = []
        for which, square, cross in (("ck", K, K_test), ("ntk", T, T_test)):
            right = (predictions(square, cross, labels, 10)[0] == test_labels).double()
            gap = reference.setdefault(which, right) - right
            half = Z_95 * gap.std().item() / len(gap) ** 0.5
            cells += [f"{100 * right.mean().item():.2f}", f"{100 * gap.mean().item():+.2f} ± {100 * half:.2f}"]
        yield row(network, *cells)


def main():
    parser = OneLineParser(prog="conv_machines.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=("mnist", "fashion_mnist", "cifar10_images"), default="mnist", help="(default mnist)")
    add("--dataset_path", default="data", help="folder with its files (default data)")
    add("--n", type=bounded_int(20, 20000), nargs="+", default=[500], help="training images (default 500)")
    add("--test", type=positive_int, default=1000, help="test images (default 1000)")
    add(
        "--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME",
        help=f"networks, the first of which the others are compared with: {', '.join(NETWORKS)} (default all)",
    )  # fmt: skip
    add("--activation", choices=("relu", "tanh"), default="relu", help="(default relu)")
    add("--asquare", type=bounded_float(0, 1, "between 0 and 1"), default=0.5, help="sigma_a^2 (default 0.5)")
    add("--output_path", type=Path, default=Path("results/conv_machines"), help="(default results/conv_machines)")
    args = parser.parse_args()
    with one_line(parser):
        import torch

        from ck_ntk.common.conv_networks import images
        from deq_enn.utils.random import generator

        args.output_path.mkdir(parents=True, exist_ok=True)
        x, y, x_test, y_test = images(args.dataset, args.dataset_path)
        rows = torch.randperm(len(x), generator=generator("conv machines", "train"))
        rows_test = torch.randperm(len(x_test), generator=generator("conv machines", "test"))
        test = x_test[rows_test[: args.test]], y_test[rows_test[: args.test]]
        for n in sorted(set(args.n)):
            print(f"\n{args.dataset}, {args.activation}, sigma_a^2 = {args.asquare:g}, n = {n} + {len(test[0])}\n")
            for line in table(args, n, (x[rows[:n]], y[rows[:n]], *test)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
