"""Several figures have these panels: errors against the number of samples, and spectra."""

if __name__ == "__main__":
    raise SystemExit("panels.py is shared by the figures: run one of ck_ntk/*.py")

import numpy as np
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

GREY = "0.55"


def scientific(x):
    """Writes x to one digit, in TeX."""
    digit, exponent = f"{x:.0e}".split("e")
    return rf"{digit} \times 10^{{{int(exponent)}}}"


def log_sizes(ax, sizes, label):
    ax.set(xscale="log", yscale="log", xlabel=label)
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_errors(ax, sizes, errors, label, **style):
    """Draws the geometric mean over the seeds, with bars of one standard deviation of the log."""
    log = np.log(np.asarray(errors))
    mean, spread = np.exp(log.mean(1)), log.std(1, ddof=1) if log.shape[1] > 1 else np.zeros(len(log))
    bars = [mean * (1 - np.exp(-spread)), mean * (np.exp(spread) - 1)]
    ax.errorbar(sizes, mean, yerr=bars, label=label, **style)


def draw_root_n(ax, sizes, anchor):
    if len(sizes) > 1:
        line = anchor * np.sqrt(sizes[0] / np.asarray(sizes, dtype=float))
        ax.plot(sizes, line, ":", color=GREY, zorder=0, label=r"$n^{-1/2}$")


def draw_spectrum(ax, spectra, limit, coordinate):
    """Draws histograms of eigenvalues {label: (values, colour)} over the limiting density, on a log axis."""
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
    if len(limit.isolated):  # a curve without points, drawn beyond its axes, has no place in a layout
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
    """Returns the actual eigenvalues nearest to the predicted isolated ones (the largest, in order)."""
    top = np.sort(values)[::-1][: len(limit.isolated)][::-1]
    return {"predicted": limit.isolated, "actual": top.tolist()}
