"""The figure of the trained DEQs: what is lost after k steps, as they are, refitted and distilled, a line a DEQ."""

if __name__ == "__main__":
    raise SystemExit("figure.py is a part of scripts/trained_deqs.py: run that")

from pathlib import Path

from deq_enn.reporting.style import STYLE, save
from scripts.trained.report import TOLERANCE, true_loss

PANELS = {"stopped": "as they are", "refitted": "last layer refitted", "distilled": "distilled"}
STEPS = 1, 2, 4, 8, 16, 32
LINEAR = 1.0  # points about zero in which the axis is linear


def draw(records: list[dict], path: Path) -> None:
    """Draws the losses on samples that the verdicts did not see, and the range of what is tolerated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.3), sharex=True, sharey=True, layout="constrained")
        for ax, (kind, title), letter in zip(axes, PANELS.items(), "abc"):
            ax.axhspan(-LINEAR, TOLERANCE, color="0.93", linewidth=0)
            for number, record in enumerate(records):
                losses = {c["k"]: true_loss(c, record) for c in record["candidates"] if c["kind"] == kind}
                ax.plot(losses.keys(), losses.values(), ".-", color=f"C{number % 10}", linewidth=0.8, markersize=3)
            ax.set(xscale="log", xlabel="steps")
            ax.set_yscale("symlog", linthresh=LINEAR)
            ax.set_xticks(STEPS, [str(k) for k in STEPS])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"({letter}) {title}", loc="left")
        axes[0].set_ylabel("loss of accuracy (points)")
        save(figure, path, dpi=150)
        plt.close(figure)
