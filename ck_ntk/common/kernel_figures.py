"""Here are the two kernel figures of the paper: the equivalent of a DEQ's kernel, and the kernel of its match."""

if __name__ == "__main__":
    raise SystemExit("kernel_figures.py is shared by the figures: run one of ck_ntk/*.py")

import math

import numpy as np
import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

from ck_ntk.common.exact_kernels import explicit_kernels, implicit_kernels
from ck_ntk.common.panels import compare_isolated, draw_errors, draw_root_n, draw_spectrum, log_sizes, scientific
from ck_ntk.common.samples import LABEL, MARKER, SHOWN
from ck_ntk.common.slopes import fit_slope, print_slopes, slope_interval, slope_text
from deq_enn.kernels.distance import relative_error
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import implicit_ck, implicit_ntk
from deq_enn.theory.gaussian import centred_layers
from deq_enn.theory.limiting_spectrum import limiting_spectrum
from deq_enn.theory.mixture import equivalent_kernel


def draws(args, label):
    """Yields (index of n, seed) of every draw, with a progress bar."""
    return tqdm([(i, k) for i in range(len(args.n)) for k in range(args.seeds)], desc=label, leave=False, disable=None)


def deq_kernel(which, sample, name, sigma_a2, device="cpu"):
    """Returns the DEQ's exact kernel and its coefficients; `which` is "ck" or "ntk" (the paper's: a and A trained)."""
    tau0 = sample.statistics.tau0
    ck, ntk = implicit_kernels(sample.X, ACTIVATIONS[name], sigma_a2, "aA", tau0, device=device)
    if which == "ck":
        return ck, implicit_ck(ACTIVATIONS[name], sigma_a2, tau0)
    return ntk, implicit_ntk(ACTIVATIONS[name], sigma_a2, tau0, "aA")


def equivalent_figure(args, draw, which, data):
    """Draws the error of the equivalent kernel against n for five activations, and the spectrum at one n."""
    symbol = {"ck": "G", "ntk": "K"}[which]
    errors = {name: np.zeros((len(args.n), args.seeds)) for name in SHOWN}
    for i, k in draws(args, which):
        sample = draw(args.n[i], k)
        for name in SHOWN:
            M, coefficients = deq_kernel(which, sample, name, args.asquare, args.device)
            errors[name][i, k] = relative_error(M, equivalent_kernel(coefficients, sample.X, sample.statistics))
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.75, 2.7))
    for name in SHOWN:
        draw_errors(left, args.n, errors[name], LABEL[name] + slope_text(errors[name], args.n), marker=MARKER[name])
    draw_root_n(left, args.n, 0.8 * min(np.exp(np.log(e[0]).mean()) for e in errors.values()))
    log_sizes(left, args.n, "number of samples $n$")
    left.set_ylabel(rf"$\|{symbol} - \bar{{{symbol}}}\| \,/\, \|{symbol}\|$")
    left.set_ylim(top=left.get_ylim()[1] * 8)
    left.legend(loc="upper right", fontsize=6.5)
    sample = draw(args.spectrum, 0)
    M, coefficients = deq_kernel(which, sample, "relu", args.asquare, args.device)
    equivalent = equivalent_kernel(coefficients, sample.X, sample.statistics)
    values, others = (torch.linalg.eigvalsh(A).numpy() for A in (M, equivalent))
    limit = limiting_spectrum(sample, coefficients)
    draw_spectrum(
        right,
        {f"exact ${symbol}$": (values, "C0"), rf"equivalent $\bar{{{symbol}}}$": (others, "C1")},
        limit,
        f"the ReLU-DEQ's {which.upper()}",
    )
    left.set_title(f"(a) {data}")
    right.set_title(f"(b) spectrum at $n = {args.spectrum}$")
    slopes = {name: fit_slope(args.n, e) for name, e in errors.items()}
    intervals = {name: slope_interval(args.n, e) for name, e in errors.items()}
    print_slopes(slopes, intervals)
    return figure, {
        "errors": {name: e.tolist() for name, e in errors.items()},
        "slopes": slopes,
        "slope_intervals": intervals,
        "isolated": compare_isolated(limit, values),
        "isolated_equivalent": compare_isolated(limit, others),
    }


def matching_figure(args, draw, name, network, match, depth, data):
    """Draws spectra, top eigenvectors and distances of a DEQ, its matched network and one that is not matched.

    match : (coefficients, tau0) -> an object with `layers`; `network` is what the figure calls it.
    depth : of the network that is not matched, which has the DEQ's own activation.
    """
    matched_name, plain_name = f"matched {network}-ENN", f"unmatched {LABEL[name]}-ENN"

    def kernels_of(sample):
        tau0 = sample.statistics.tau0
        G, coefficients = deq_kernel("ck", sample, name, args.asquare, args.device)
        matched, _ = explicit_kernels(sample.X, match(coefficients, tau0).layers, args.device)
        plain, _ = explicit_kernels(sample.X, centred_layers([ACTIVATIONS[name]] * depth, tau0), args.device)
        return G, coefficients, matched, plain

    errors = {"matched": np.zeros((len(args.n), args.seeds)), "unmatched": np.zeros((len(args.n), args.seeds))}
    for i, k in draws(args, name):
        G, _, matched, plain = kernels_of(draw(args.n[i], k))
        errors["matched"][i, k] = relative_error(G, matched)
        errors["unmatched"][i, k] = relative_error(G, plain)

    sample = draw(args.spectrum, 0)
    G, coefficients, matched, plain = kernels_of(sample)
    limit = limiting_spectrum(sample, coefficients)
    (values, vectors), (values_matched, vectors_matched), (values_plain, _) = map(
        torch.linalg.eigh, (G, matched, plain)
    )
    figure, axes = plt.subplots(2, 2, figsize=(6.75, 5.0))
    deq = f"{LABEL[name]}-DEQ"
    for ax, label, other, colour in (
        (axes[0, 0], matched_name, values_matched, "C1"),
        (axes[0, 1], plain_name, values_plain, "C2"),
    ):
        draw_spectrum(ax, {deq: (values.numpy(), "C0"), label: (other.numpy(), colour)}, limit, "the CK")
    top = axes[1, 0]
    overlaps = []
    height = 5 / math.sqrt(len(G))
    for index in (1, 2):
        u, v = vectors[:, -index], vectors_matched[:, -index]
        overlaps.append(abs(float(u @ v)))
        u, v = u * torch.sign(u.sum()), v * torch.sign((u @ v) * u.sum())
        shift = height * (2 - index)
        top.plot(u + shift, color="C0", lw=1.4, alpha=0.45, label=deq if index == 1 else None)
        top.plot(v + shift, color="C1", lw=0.35, label=matched_name if index == 1 else None)
    top.set(xlabel="sample, sorted by class", ylabel="entries of the eigenvector", ylim=(-0.65 * height, 1.95 * height))
    top.set_yticks([height, 0], ["$u_1$", "$u_2$"])
    top.legend(loc="upper right", ncols=2)
    gap = max(1 - min(overlaps), 1e-15)
    last = axes[1, 1]
    draw_errors(
        last, args.n, errors["matched"], matched_name + slope_text(errors["matched"], args.n), marker="s", color="C1"
    )
    draw_errors(last, args.n, errors["unmatched"], plain_name, marker="^", color="C2")
    draw_root_n(last, args.n, 0.8 * np.exp(np.log(errors["matched"][0]).mean()))
    log_sizes(last, args.n, "number of samples $n$")
    last.set_ylabel(r"$\|G - \Sigma\| \,/\, \|G\|$")
    low, high = last.get_ylim()
    last.set_ylim(top=high * (high / low) ** 0.45)  # room for the legend
    last.legend(loc="upper right")
    titles = (
        f"{data}, $n = {args.spectrum}$",
        f"{data}, $n = {args.spectrum}$",
        rf"eigenvectors, $1 - |\langle u, v \rangle| \leq {scientific(gap)}$",
        f"distance of the kernels, {data}",
    )
    for ax, letter, title in zip(axes.flat, "abcd", titles):
        ax.set_title(f"({letter}) {title}")
    fitted, interval = fit_slope(args.n, errors["matched"]), slope_interval(args.n, errors["matched"])
    print_slopes({"matched": fitted}, {"matched": interval})
    return figure, {
        "errors": {key: e.tolist() for key, e in errors.items()},
        "slope": fitted,
        "slope_interval": interval,
        "overlaps": overlaps,
        "isolated": compare_isolated(limit, values.numpy()),
    }
