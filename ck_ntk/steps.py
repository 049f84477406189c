"""How many explicit layers is a trained DEQ worth? Its accuracy, agreement and time against the number of its steps.

Each DEQ of `--deqs` is trained on every weight (Adam, one cycle). Then it is stopped after k steps as it is; distilled,
as a weight-tied network of k steps that is trained on its outputs; and that same network is trained from scratch on the
labels, as the DEQ was. Accuracy and agreement are on test samples; at the foot stands the DEQ's time for a batch over
that of k steps.
`python -m deq_enn verdict --checkpoint ...` does more of this, within a budget, for one DEQ.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import IMAGES, run
from deq_enn.utils.arguments import positive_int

STEPS = 1, 2, 3, 4, 6, 8, 12
TRAINED = 1, 2, 3, 4  # steps of the networks that are trained
RATES = {"DEQ": 0.01, "pcDEQ": 0.005}  # of Adam, at most
WAYS = {"stopped": ("C0", "o"), "distilled": ("C1", "s"), "from scratch": ("C2", "^")}
DEQS = "relu:0.5", "tanh:0.8", "linear_pcdeq_1:tanh"
BATCH = 64
HELD = 5000  # test samples
LEAST = 2.0  # points of accuracy that an axis spans, at least


def make(name, p, classes, width, tau0):
    """Returns the untrained DEQ of a name "activation:sigma_a2" or "pcdeq:activation", with a lenient solver."""
    from deq_enn.names import PCDEQS
    from deq_enn.networks.deq import DEQ
    from deq_enn.networks.fixed_point import FixedPoint, Picard
    from deq_enn.networks.pcdeq import build_pcdeq

    first, _, second = name.partition(":")
    if first in PCDEQS:
        return build_pcdeq(first, second, (1, 28, 28), classes)
    try:
        deq = DEQ(first, p, width, classes, float(second), tau0)
    except ValueError as error:
        raise ValueError(f"--deqs {name}: give activation:sigma_a2, or a positive concave DEQ as in {DEQS[-1]} "
                         f"({error})") from None  # fmt: skip
    deq.fixed_point = FixedPoint(Picard(tol=1e-3, max_steps=40, strict=False))
    return deq


def train(network, data, epochs, rate):
    """Trains every weight on the labels; returns the seconds of it, of the process."""
    import time

    import torch
    from torch.nn.functional import cross_entropy

    from deq_enn.networks.pcdeq import PcDEQNetwork, keep_nonnegative
    from deq_enn.training.optimizers import OPTIMIZERS
    from deq_enn.utils.random import generator

    X, y = data
    # the rate is that of a weight of size one, as a DEQ's are; others have one in proportion
    sizes = [max(w.detach().square().mean().sqrt().item(), 0.1) for w in network.parameters()]
    groups = [{"params": [w], "lr": rate * size} for w, size in zip(network.parameters(), sizes)]
    optimizer, start = OPTIMIZERS["adam"](groups, lr=rate), time.process_time()
    if isinstance(network, PcDEQNetwork) and network.equilibria[0].__class__.__name__ == "PcDEQ":
        keep_nonnegative(network, optimizer)
    steps = epochs * (len(X) // BATCH)
    tops = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        if step % (len(X) // BATCH) == 0:
            order = torch.randperm(len(X), generator=generator("steps", step))
        rows, order = order[:BATCH], order[BATCH:]
        factor = min((step + 1) / (0.2 * steps), (steps - step) / (0.8 * steps))
        for group, top in zip(optimizer.param_groups, tops):
            group["lr"] = factor * top
        optimizer.zero_grad()
        cross_entropy(network.train()(X[rows]), y[rows]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    return time.process_time() - start


def measured(network, test, deq_says):
    """[accuracy, agreement] in % on the test samples."""
    from deq_enn.unrolling.judged import outputs_of

    says = outputs_of(network, test[0]).argmax(1)
    return [100 * (says == other).double().mean().item() for other in (test[1], deq_says)]


def study(name, data, test, classes, args):
    """The numbers of one DEQ: {"accuracy", "seconds", way: {k: [accuracy, agreement]}, "saved": {k: time}}."""
    import copy
    import time

    from deq_enn.networks.pcdeq import PcDEQNetwork
    from deq_enn.theory.equilibrium import estimate_tau0
    from deq_enn.unrolling.judged import Part, outputs_of
    from deq_enn.unrolling.steppers import stopped
    from deq_enn.unrolling.students import distilled
    from deq_enn.unrolling.timing import compared

    X, y = data
    deq = make(name, X.shape[1], classes, args.dim[0], estimate_tau0(X))
    rate = RATES["pcDEQ" if isinstance(deq, PcDEQNetwork) else "DEQ"]
    untrained = copy.deepcopy(deq)
    seconds = train(deq, data, args.epoch, rate)
    own = outputs_of(deq, test[0])
    numbers = {"accuracy": 100 * (own.argmax(1) == test[1]).double().mean().item(), "seconds": seconds}
    explicit = {k: stopped(deq, k) for k in STEPS}
    numbers["stopped"] = {k: measured(network, test, own.argmax(1)) for k, network in explicit.items()}
    numbers["distilled"], numbers["from scratch"] = {}, {}
    cut = len(X) // 10
    parts = [Part(Z, outputs := outputs_of(deq, Z), outputs.argmax(1)) for Z in (X[cut:], X[:cut])]
    for k in TRAINED:
        share = seconds / args.epoch  # of the DEQ's training: one epoch
        student = distilled(deq, k, *parts, seconds=share, clock=time.process_time)
        numbers["distilled"][k] = measured(student.network, test, own.argmax(1))
        fresh = stopped(untrained, k, shared=False)
        train(fresh, data, args.epoch, rate)
        numbers["from scratch"][k] = measured(fresh, test, own.argmax(1))
    names = {str(k): network for k, network in explicit.items()}
    report = compared(deq, names, test[0], 0.2 * seconds, time.process_time)
    numbers["saved"] = {k: report[k]["saved"]["batch"] for k in names}
    return numbers


def draw(results):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(2.35 * len(results), 3.6), squeeze=False, sharex=True)
    for column, (name, numbers) in enumerate(results.items()):
        accuracy, agreement = axes[:, column]
        accuracy.axhline(numbers["accuracy"], color="0.3", linewidth=0.8)
        for way, (colour, marker) in WAYS.items():
            for ax, at in ((accuracy, 0), (agreement, 1)):
                steps = sorted(numbers[way], key=int)
                ax.plot([int(k) for k in steps], [numbers[way][k][at] for k in steps], marker, ls="-", color=colour,
                        label=way, markersize=3)  # fmt: skip
        low, high = accuracy.get_ylim()
        accuracy.set_ylim(min(low, high - LEAST) - 0.12 * max(high - low, LEAST), high)  # room for the times
        saved = numbers["saved"]
        for k, times in saved.items():
            if times and int(k) in (1, 2, 4, 12):
                accuracy.annotate(f"×{times:.2g}", (int(k), 0.01), xycoords=("data", "axes fraction"), ha="center",
                                  fontsize=6)  # fmt: skip
        first, _, second = name.partition(":")
        shown = rf"$\sigma_a^2 = {second}$" if second[:1].isdigit() else second
        accuracy.set_title(f"{first}, {shown}", fontsize=8)
        agreement.set(xscale="log", xlabel="steps")
        agreement.set_xticks(STEPS, [str(k) for k in STEPS])
        agreement.set_xticks([], minor=True)
        agreement.set_xlim(0.85, 1.2 * STEPS[-1])
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("as the DEQ (%)")
    axes[1, 0].legend(loc="lower right")
    return figure


def check(args, data):
    """Raises ValueError where the study could not be done, before the first DEQ is trained."""
    if args.samples > len(data.X_train):
        raise ValueError(f"--samples {args.samples}: {args.dataset} has {len(data.X_train)} training samples")
    if len(args.dim) > 1:
        raise ValueError(f"--dim {' '.join(map(str, args.dim))}: this figure has one width")
    for name in args.deqs:
        make(name, data.X_train.shape[1], data.n_classes, args.dim[0], 1.0)


def main(args):
    from tqdm import tqdm

    from deq_enn.data.datasets import load_dataset

    data = load_dataset(args.dataset, args.dataset_path)
    check(args, data)
    train_set = data.X_train[: args.samples], data.y_train[: args.samples]
    test = data.X_test[:HELD], data.y_test[:HELD]
    results = {}
    for name in tqdm(args.deqs, leave=False, disable=None):
        numbers = results[name] = study(name, train_set, test, data.n_classes, args)
        print(f"{name}: {numbers['accuracy']:.2f}%, trained in {numbers['seconds']:.0f} s", flush=True)
        for way in WAYS:
            print(f"  {way}: " + ", ".join(f"k = {k} {a:.2f}% ({g:.1f}%)" for k, (a, g) in numbers[way].items()))
    return draw(results), {"deqs": results}


if __name__ == "__main__":
    run(
        main,
        __doc__,
        epoch=3,
        dim=[128],
        dataset=True,
        flags={
            "--deqs": dict(nargs="+", default=list(DEQS), help=f"activation:sigma_a2, or as {DEQS[-1]} ({DEQS})"),
            **IMAGES,
            "--samples": dict(type=positive_int, default=6000, help="to train on (default 6000)"),
        },
    )
