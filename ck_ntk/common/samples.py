"""The figure scripts' numerics and panels: data, spectral errors and their slopes, spectra beside their limits."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from tqdm import tqdm

from deq_enn.theory.coefficients import MixtureStatistics, equivalent_kernel, estimate_statistics, implicit_ck, implicit_ntk
from deq_enn.data.datasets import gaussian_mixture, load_dataset
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.gaussian import centre, gaussian_moments
from deq_enn.kernels.distance import relative_error
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.theory.limiting_spectrum import limiting_spectrum
from deq_enn.theory.equilibrium import generator

SHOWN = ("relu", "leaky_relu", "tanh", "swish", "elu")
LABEL = {"relu": "ReLU", "leaky_relu": "Leaky ReLU", "tanh": "Tanh", "swish": "Swish", "elu": "ELU"}
MARKER = dict(zip(SHOWN, "osD^v"))
GREY = "0.55"


# ---------------------------------------------------------------------------------------------------------------
# data


@dataclass(frozen=True)
class Sample:
    """n samples with their statistics, and what the limiting spectrum needs beside those.

    covariances : (K, q) eigenvalues of the C_a in a common basis, in q groups of `multiplicity` (q,), p in all.
    overlaps : (q, K, K) what each group adds to the class means' mu_a^T mu_b, mu_a = sqrt(p) E[x].
    psi_variance : (K,) Var[psi_i].
    """

    X: torch.Tensor
    y: torch.Tensor
    statistics: MixtureStatistics
    covariances: np.ndarray
    multiplicity: np.ndarray
    overlaps: np.ndarray
    psi_variance: np.ndarray


def mixture(n, seed):
    """The paper's two classes: mu_a has an 8 at a coordinate of its own, C_a = (1 + 8 (a - 1)/sqrt(p)) I, p = 0.8 n."""
    p = round(0.8 * n)
    scales = np.array([1.0, 1 + 8 / math.sqrt(p)])
    X, y, statistics = gaussian_mixture(
        8 * torch.eye(2, p), scales.tolist(), [n - n // 2, n // 2], generator("figures", n, seed)
    )
    return Sample(X, y, statistics, scales[:, None], np.array([p]), 64 * np.eye(2)[None], 2 * scales**2 / p)


def mnist(path):
    """Draws of MNIST's 6s and 8s."""
    return real_data("mnist", path, (6, 8))


def cifar10(path):
    """Draws of the VGG16 features of CIFAR-10's cats and dogs, the two classes that are told apart worst."""
    return real_data("cifar10", path, (3, 5))


def real_data(name, path, classes):
    """(n, seed) -> Sample of n training rows of two classes, normalised over all, with statistics of the n."""
    data = load_dataset(name, path, classes=classes)
    X_all = data.X_train.double()
    p = X_all.shape[1]
    means = torch.stack([X_all[data.y_train == a].mean(0) for a in (0, 1)])
    # the limit needs covariances in one basis: that of the pooled one, each class by its variances there
    _, basis = torch.linalg.eigh(sum(torch.cov(X_all[data.y_train == a].T) for a in (0, 1)))
    variances = torch.stack([p * (X_all[data.y_train == a] @ basis).var(0) for a in (0, 1)]).numpy()
    mu = math.sqrt(p) * (means @ basis).numpy()
    # eigenvalues within 10% of one another make a group
    group = np.unique(np.round(np.log(variances.mean(0) + 1e-6) / 0.1), return_inverse=True)[1]
    member = np.equal.outer(np.arange(group.max() + 1), group).astype(float)
    shape = (variances @ member.T / member.sum(1), member.sum(1), np.einsum("gi,ai,bi->gab", member, mu, mu))

    def draw(n, seed):
        if n > len(X_all):
            raise ValueError(f"{name} has {len(X_all)} training images of classes {classes}, fewer than n = {n}")
        rows = torch.randperm(len(X_all), generator=generator("figures", n, seed))[:n]
        rows = rows[data.y_train[rows].sort(stable=True).indices]
        X, y = X_all[rows], data.y_train[rows]
        statistics = estimate_statistics(X, y)
        variance = [statistics.psi[y == a].var().item() for a in (0, 1)]  # that of a Gaussian is far smaller
        return Sample(X, y, statistics, *shape, np.array(variance))

    return draw


# ---------------------------------------------------------------------------------------------------------------
# numbers


def fit_slope(sizes, errors):
    """Least-squares slope of log error (sizes, seeds) against log size, and its standard error."""
    errors = np.asarray(errors)
    x = np.repeat(np.log(sizes), errors.shape[1])
    y = np.log(errors).reshape(-1)
    if len(sizes) < 2 or len(x) < 3:
        return None
    dx = x - x.mean()
    slope = dx @ y / (dx @ dx)
    residual = y - y.mean() - slope * dx
    return float(slope), float(math.sqrt(residual @ residual / (len(x) - 2) / (dx @ dx)))


def slope_interval(sizes, errors):
    """(low, high), the 95% interval of that slope by Student's t; None where there is no slope.

    It takes log error to be linear in log size with errors of one spread: where the curve bends, it is that of the mean
    slope over these sizes, not of the slope in the limit.
    """
    fitted = fit_slope(sizes, errors)
    if fitted is None:
        return None
    from scipy.special import stdtrit  # scipy.stats.t's own, without the half second that its import takes

    half = float(stdtrit(np.size(errors) - 2, 0.975)) * fitted[1]
    return fitted[0] - half, fitted[0] + half


def print_slopes(slopes, intervals):
    """One line a curve, of {curve: fit_slope} and {curve: slope_interval}."""
    for name, fitted in slopes.items():
        if fitted:
            low, high = intervals[name]
            print(f"{name:11s} slope {fitted[0]:+.3f} +- {fitted[1]:.3f} (95% interval {low:+.3f} to {high:+.3f})")


def slope_text(errors, sizes):
    fitted = fit_slope(sizes, errors)
    return "" if fitted is None else rf" (slope ${fitted[0]:.3f} \pm {fitted[1]:.3f}$)"


def scientific(x):
    """x to one digit, in TeX."""
    digit, exponent = f"{x:.0e}".split("e")
    return rf"{digit} \times 10^{{{int(exponent)}}}"


def own_layers(name, depth, tau0):
    """An explicit network with no matching: `depth` layers of the DEQ's own activation, each centred at its scale."""
    layers = []
    for _ in range(depth):
        layers.append(centre(ACTIVATIONS[name], tau0))
        tau0 = math.sqrt(gaussian_moments(layers[-1], tau0).variance)
    return layers


# ---------------------------------------------------------------------------------------------------------------
# panels


def log_sizes(ax, sizes, label):
    ax.set(xscale="log", yscale="log", xlabel=label)
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_errors(ax, sizes, errors, label, **style):
    """Geometric mean over the seeds, with bars of one standard deviation of the log."""
    log = np.log(np.asarray(errors))
    mean, spread = np.exp(log.mean(1)), log.std(1, ddof=1) if log.shape[1] > 1 else np.zeros(len(log))
    bars = [mean * (1 - np.exp(-spread)), mean * (np.exp(spread) - 1)]
    ax.errorbar(sizes, mean, yerr=bars, label=label, **style)


def draw_root_n(ax, sizes, anchor):
    if len(sizes) > 1:
        line = anchor * np.sqrt(sizes[0] / np.asarray(sizes, dtype=float))
        ax.plot(sizes, line, ":", color=GREY, zorder=0, label=r"$n^{-1/2}$")


def draw_spectrum(ax, spectra, limit, coordinate):
    """Histograms of eigenvalues {label: (values, colour)} over the limiting density, on a log axis."""
    everything = np.concatenate([values for values, _ in spectra.values()])
    low, high = max(everything.min(), 1e-6) * 0.9, everything.max() * 1.3
    edges = np.geomspace(low, high, 70)
    width = np.diff(np.log(edges)).mean()
    for index, (label, (values, colour)) in enumerate(spectra.items()):
        counts, _ = np.histogram(values, edges)
        ax.stairs(counts, edges, fill=index == 0, color=colour, alpha=0.35 if index == 0 else 1, lw=1.0, label=label)
    n = len(next(iter(spectra.values()))[0])
    # counts per bin of equal width in log x; the grid of the density starts at the atom
    ax.plot(limit.x, limit.density * limit.x * n * width, color="black", lw=1.1, label="limiting density")
    ax.plot(
        limit.isolated,
        np.full(len(limit.isolated), 0.75),
        "x",
        color="black",
        ms=5,
        mew=1.1,
        clip_on=False,
        label="predicted isolated eigenvalues",
    )
    if limit.atom_mass > 0:
        ax.axvline(
            limit.atom, ymax=0.9, color="black", lw=0.9, ls="--", label=f"predicted atom, mass {limit.atom_mass:.2f}"
        )
    ax.set(xscale="log", yscale="log", ylim=(0.5, 8 * n), xlabel=f"eigenvalue of {coordinate}", ylabel="count per bin")
    ax.legend(loc="upper right")


def compare_isolated(limit, values):
    """The actual eigenvalues nearest to the predicted isolated ones (the largest, in order)."""
    top = np.sort(values)[::-1][: len(limit.isolated)][::-1]
    return {"predicted": limit.isolated, "actual": top.tolist()}


# ---------------------------------------------------------------------------------------------------------------
# figures


def draws(args, label):
    """(index of n, seed) of every draw, with a progress bar."""
    return tqdm([(i, k) for i in range(len(args.n)) for k in range(args.seeds)], desc=label, leave=False, disable=None)


def deq_kernel(which, sample, name, sigma_a2):
    """The exact kernel of the DEQ and its coefficients; `which` is "ck" or "ntk" (the paper's: a and A trained)."""
    tau0 = sample.statistics.tau0
    ck, ntk = implicit_kernels(sample.X, ACTIVATIONS[name], sigma_a2, "aA", tau0)
    if which == "ck":
        return ck, implicit_ck(ACTIVATIONS[name], sigma_a2, tau0)
    return ntk, implicit_ntk(ACTIVATIONS[name], sigma_a2, tau0, "aA")


def equivalent_figure(args, draw, which, data):
    """Exact against equivalent kernel: the error against n for five activations, and the spectrum at one n."""
    symbol = {"ck": "G", "ntk": "K"}[which]
    errors = {name: np.zeros((len(args.n), args.seeds)) for name in SHOWN}
    for i, k in draws(args, which):
        sample = draw(args.n[i], k)
        for name in SHOWN:
            M, coefficients = deq_kernel(which, sample, name, args.sigma_a2)
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
    M, coefficients = deq_kernel(which, sample, "relu", args.sigma_a2)
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
    """A DEQ, its matched explicit network, and one that is not matched: spectra, top eigenvectors, distance against n.

    match : (coefficients, tau0) -> an object with `layers`; `network` is what the figure calls it.
    depth : of the network that is not matched, which has the DEQ's own activation.
    """
    matched_name, plain_name = f"matched {network}-ENN", f"unmatched {LABEL[name]}-ENN"

    def kernels_of(sample):
        tau0 = sample.statistics.tau0
        G, coefficients = deq_kernel("ck", sample, name, args.sigma_a2)
        matched, _ = explicit_kernels(sample.X, match(coefficients, tau0).layers)
        plain, _ = explicit_kernels(sample.X, own_layers(name, depth, tau0))
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
