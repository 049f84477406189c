"""The figure of the trained DEQs shows what is lost after k steps, a line a DEQ, in the colour of its form."""

if __name__ == "__main__":
    raise SystemExit("figure.py is a part of scripts/trained_deqs.py: run that")

from pathlib import Path

from deq_enn.reporting.style import STYLE, save
from scripts.trained.report import TOLERANCE, true_loss

PANELS = {"stopped": "as they are", "refitted": "last layer refitted", "distilled": "distilled"}
STEPS = 1, 2, 4, 8, 16, 32
POINTS = -10, -1, 0, 1, 10, 100
LINEAR = 1.0  # points about zero in which the axis is linear
FORMS = {  # form of a DEQ: a word of its name, and colour and marker of its line; the first that fits is taken
    "sequences": ("sequence", "C6", "^"),
    "by torchdeq": ("torchdeq", "C2", "s"),
    "positive concave": ("pcdeq", "C1", "D"),
    "by hand": ("by hand", "C3", "v"),
    "fully connected": ("", "C0", "o"),
}


def form(case: str) -> str:
    """Returns the form of the DEQ of that name, one of FORMS."""
    return next(name for name, (word, _, _) in FORMS.items() if word in case)


def draw(records: list[dict], path: Path) -> None:
    """Draws the losses on samples that the verdicts did not see, and the range of what is tolerated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(7.0, 2.7), sharex=True, sharey=True, layout="constrained")
        for ax, (kind, title), letter in zip(axes, PANELS.items(), "abc"):
            for record in records:
                _, colour, marker = FORMS[form(record["case"])]
                losses = {c["k"]: true_loss(c, record) for c in record["candidates"] if c["kind"] == kind}
                ax.plot(losses.keys(), losses.values(), marker + "-", color=colour, alpha=0.6, linewidth=0.8, ms=2.5)
            ax.set(xscale="log", xlabel="steps $k$")
            ax.set_yscale("symlog", linthresh=LINEAR)
            ax.set_xticks(STEPS, [str(k) for k in STEPS])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"({letter}) {title}", loc="left")
        least, most = axes[0].get_ylim()  # of all three
        for ax in axes:
            ax.axhspan(least, TOLERANCE, color="0.93", linewidth=0, zorder=0)
        axes[0].set_yticks(POINTS, [str(loss).replace("-", "\N{MINUS SIGN}") for loss in POINTS])
        axes[0].set(ylabel="loss of accuracy (points)", ylim=(least, most))
        lines = [Line2D([], [], color=c, marker=m, ms=3, label=name) for name, (_, c, m) in reversed(FORMS.items())]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(FORMS))
        save(figure, path, dpi=200)
        plt.close(figure)
