"""How far each small network is from a convolutional DEQ, in exact kernels of images, against sigma_a^2.

Candidates: the DEQ unrolled for 1 to 3 steps, its resolvent's network of 1 to 3 steps, the matched network (one 3 x 3
convolution, then 1 x 1), and plain 3 x 3 networks of depth 1 to 3. Circular padding, all pixels read out.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import SIZE, run
from deq_enn.utils.arguments import bounded_float

LOOKS = {
    **{f"plain {t}": dict(color="0.55", marker="ov^"[t - 1]) for t in (1, 2, 3)},
    **{f"unrolled {t}": dict(color="C0", marker="ov^"[t - 1]) for t in (1, 2, 3)},
    **{f"resolvent {t}": dict(color="C1", marker="ov^"[t - 1]) for t in (1, 2, 3)},
    "matched": dict(color="C2", marker="s"),
}


def measured(args):
    """Returns {activation: {data set: {sigma_a^2: distances}}}, from the output folder what is there already."""
    import json

    from tqdm import tqdm

    from ck_ntk.common.conv_networks import TITLES, distances, draw
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.utils.files import atomic_write

    names = [name for name in TITLES if args.dataset is None or name in args.dataset]
    kept = args.output_path / f"conv_matching_{args.samples}.partial.json"
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    jobs = [(a, name, s) for a in args.activation for name in names for s in args.asquare]
    x = {}
    for activation, name, s in tqdm(jobs, desc="kernels", leave=False, disable=None):
        key = f"{activation} {name} {s:g}"
        if key not in rows:
            x.setdefault(name, draw(name, args.dataset_path, args.samples))
            rows[key] = distances(x[name], ACTIVATIONS[activation], s)
            with atomic_write(kept, "w") as file:
                json.dump(rows, file)
    return names, {
        a: {name: {f"{s:g}": rows[f"{a} {name} {s:g}"] for s in args.asquare} for name in names}
        for a in args.activation
    }


def main(args):
    from matplotlib import pyplot as plt

    from ck_ntk.common.conv_networks import TITLES

    args.asquare = sorted(set(args.asquare))
    datasets, numbers = measured(args)
    panels = [(a, which) for a in args.activation for which in ("CK", "NTK")]
    size = 0.6 + 1.75 * len(datasets), 0.9 + 1.6 * len(panels)
    figure, axes = plt.subplots(
        len(panels), len(datasets), figsize=size, sharex=True, sharey=True, squeeze=False
    )  # fmt: skip
    for row, (activation, which) in zip(axes, panels):
        for ax, name in zip(row, datasets):
            table = numbers[activation][name]
            for candidate, look in LOOKS.items():
                points = [
                    (float(s), distances[candidate][1 if which == "CK" else 3])
                    for s, distances in table.items()
                    if candidate in distances
                ]
                if points:
                    ax.plot(*zip(*points), ms=2.5, lw=0.8, label=candidate, **look)
            ax.set(yscale="log")
        row[0].set_ylabel(f"{activation}: distance, {which}")
    for ax, name in zip(axes[0], datasets):
        ax.set_title(TITLES[name], fontsize=7.5)
    for ax in axes[-1]:
        ax.set_xlabel(r"$\sigma_a^2$")
    handles = {}
    for ax in axes.flat:
        handles.update(zip(*ax.get_legend_handles_labels()[::-1]))
    # a column for each family; the last has one network, and is filled up
    names = sorted(handles, key=list(LOOKS).index)
    lines = [handles[name] for name in names] + [plt.Line2D([], [], ls="") for _ in range(-len(names) % 3)]
    names += [""] * (len(lines) - len(names))
    figure.legend(lines, names, loc="outside upper center", ncols=len(lines) // 3, columnspacing=1.5)
    return figure, {"columns": ["CK", "CK centred", "NTK", "NTK centred"], "distances": numbers}


if __name__ == "__main__":
    share = bounded_float(0, 1, "between 0 and 1")
    run(
        main,
        __doc__,
        flags={
            "--dataset_path": dict(default="data", help="folder with the image files (default data)"),
            "--samples": dict(type=SIZE, default=48, help="images of each data set (default 48)"),
            "--asquare": dict(
                type=share, nargs="+", default=[0.2, 0.5, 0.9],
                help="weight variances sigma_a^2 (default 0.2 0.5 0.9)",
            ),
            "--activation": dict(
                nargs="+", choices=("relu", "tanh"), default=["relu", "tanh"], help="DEQs (default relu tanh)"
            ),
            "--dataset": dict(
                nargs="+", choices=("mnist", "fashion_mnist", "cifar10_images", "mixture"),
                help="data sets (default all four)",
            ),
        },
    )  # fmt: skip
