"""Both kernels of DEQs and of their matched networks on VGG16 features of CIFAR-10, cats against dogs.

Top the conjugate kernel, bottom the tangent kernel with every weight trained. Left: the spectra of the ReLU-DEQ, of its
matched and of its unmatched network. Right: relative distance to the DEQ, of matched networks (full lines, leaky-ReLU
layers where they do, piecewise-linear ones elsewhere) and of two centred layers of the DEQ's own activation (dashed).
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run

NAMES = ("relu", "tanh", "swish")
KERNELS = ("ck", "ntk")


def kernels(sample, name, sigma_a2, device="cpu"):
    """Returns {"ck": (DEQ, matched, unmatched), "ntk": the same}, each (n, n)."""
    from ck_ntk.common.exact_kernels import explicit_kernels, implicit_kernels
    from deq_enn.matching.families import match
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.gaussian import centred_layers

    activation, tau0 = ACTIVATIONS[name], sample.statistics.tau0
    deq = implicit_kernels(sample.X, activation, sigma_a2, tau0=tau0, device=device)
    plain = explicit_kernels(sample.X, centred_layers([activation] * 2, tau0), device)
    triples = {}
    for index, kernel in enumerate(KERNELS):
        matched = explicit_kernels(sample.X, match(activation, sigma_a2, tau0, kernel).layers, device)
        triples[kernel] = deq[index], matched[index], plain[index]
    return triples


def main(args):
    import numpy as np
    import torch
    from matplotlib import pyplot as plt
    from tqdm import tqdm

    from ck_ntk.common.panels import draw_errors, log_sizes
    from ck_ntk.common.samples import LABEL, MARKER, cifar10
    from ck_ntk.common.slopes import fit_slope
    from deq_enn.kernels.distance import relative_error

    draw = cifar10(args.dataset_path)
    errors = {
        (kernel, name, kind): np.zeros((len(args.n), args.seeds))
        for kernel in KERNELS
        for name in NAMES
        for kind in ("matched", "unmatched")
    }
    cells = [(i, k) for i in range(len(args.n)) for k in range(args.seeds)]
    for i, k in tqdm(cells, desc="kernels", leave=False, disable=None):
        sample = draw(args.n[i], k)
        for name in NAMES:
            for kernel, (deq, matched, unmatched) in kernels(sample, name, args.asquare, args.device).items():
                errors[kernel, name, "matched"][i, k] = relative_error(deq, matched)
                errors[kernel, name, "unmatched"][i, k] = relative_error(deq, unmatched)

    figure, axes = plt.subplots(2, 2, figsize=(6.75, 5.0))
    shown = kernels(draw(args.spectrum, 0), "relu", args.asquare, args.device)
    eigenvalues = {}
    for row, (kernel, letters) in enumerate(zip(KERNELS, ("ab", "cd"))):
        left, right = axes[row]
        for label, colour, line, matrix in zip(
            ("ReLU-DEQ", "matched ENN", "unmatched ReLU-ENN"), ("C0", "C1", "C2"), ("-", "--", ":"), shown[kernel]
        ):
            values = torch.linalg.eigvalsh(matrix).flip(0).numpy()
            eigenvalues[f"{kernel} {label}"] = values[:20].tolist()
            look = {"linewidth": 4, "alpha": 0.35} if line == "-" else {"linewidth": 1.2}
            left.plot(np.arange(1, len(values) + 1), values, line, color=colour, label=label, **look)
        left.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue")
        left.set_title(f"({letters[0]}) {kernel.upper()}, $n = {args.spectrum}$")
        left.legend(loc="upper right")
        for index, name in enumerate(NAMES):
            look = {"color": f"C{index}", "marker": MARKER[name]}
            draw_errors(right, args.n, errors[kernel, name, "matched"], f"{LABEL[name]}, matched", **look)
            draw_errors(
                right,
                args.n,
                errors[kernel, name, "unmatched"],
                f"{LABEL[name]}, unmatched",
                ls="--",
                mfc="white",
                **look,
            )
        log_sizes(right, args.n, "number of samples $n$")
        low, high = right.get_ylim()
        right.set_ylim(top=high * (high / low) ** 0.45)  # room for the legend
        right.set_ylabel(r"relative distance to the DEQ")
        right.set_title(f"({letters[1]}) {kernel.upper()}, cats and dogs")
        right.legend(loc="upper right", ncols=2, fontsize=6.5)
    for (kernel, name, kind), error in errors.items():
        mean = np.exp(np.log(error[-1]).mean())
        print(f"{kernel:3} {name:5} {kind:9} relative distance at n = {args.n[-1]}: {mean:.1e}")
    return figure, {
        "errors": {" ".join(key): error.tolist() for key, error in errors.items()},
        "slopes": {" ".join(key): fit_slope(args.n, error) for key, error in errors.items()},
        "largest_eigenvalues": eigenvalues,
    }


if __name__ == "__main__":
    run(main, __doc__, n=[200, 400, 800, 1600, 3200], seeds=3, spectrum=1600, dataset=True)
