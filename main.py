"""The gateway to all experiments: flags in; accuracy logs, a table and a figure out.

    python main.py                                                   the six networks on a Gaussian mixture
    python main.py --dataset mnist --model l_relu_enn --dim 1024     one network on MNIST
    python main.py --model deq matched_enn --activation swish        any DEQ, and the explicit network that matches it
    python main.py --dataset mnist --model linear_pcdeq_1            a positive concave DEQ on MNIST
    torchrun --nproc_per_node 2 main.py --seed 0 1 2                 the runs shared by two processes

--model, --dim and --seed take several values: the data is loaded once and the grid is run. Nothing here is
mathematics, and nothing heavy is imported before the flags are known to be good.
"""

import argparse
import math
import sys
import warnings
from pathlib import Path

from distributed import RESUME, World, cost

# the lists of data_prepare.py, model.py, matching.py and pcdeq.py, which tests hold equal: reading them there would
# import torch
DATASETS = ("gmm", "mnist", "fashion_mnist", "cifar10", "cifar10_images", "svhn", "npz")
PRESETS = ("mixed", "two_class")
MODELS = ("inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn", "tanh_enn")
GENERAL = ("deq", "matched_enn", "unmatched_enn")
FAMILIES = ("auto", "l_relu", "hard_tanh", "hermite", "piecewise")
PCDEQS = ("linear_pcdeq_1", "linear_pcdeq_2", "single_conv_pcdeq_1", "single_conv_pcdeq_2",
          "multi_conv_pcdeq_1", "multi_conv_pcdeq_2")
PCDEQ_ACTIVATIONS = ("tanh", "softsign", "relu6", "sigmoid")

# what a flag that is not given becomes, for the paper's networks and for positive concave DEQs; None: it is not theirs
DEFAULTS = {"dim": [256, 512, 1024], "train": "readout", "lr": 1.0, "epoch": 10, "batch_size": 128, "opt": "sgd",
            "asquare": 0.2, "activation": "", "match": "", "family": "auto", "weight_decay": None, "milestone": None,
            "aug": None}
PCDEQ_DEFAULTS = {"dim": None, "train": None, "lr": 7e-4, "epoch": 50, "batch_size": 64, "opt": None,
                  "asquare": None, "activation": "", "match": None, "family": None, "weight_decay": 1e-2, "milestone": 0,
                  "aug": False}

# a family has one colour; its DEQ is solid, the matched network dashed, the unmatched one dotted
LOOKS = {"inn": ("C0", "-", "ReLU-DEQ"), "l_relu_enn": ("C0", "--", "matched L-ReLU-ENN"),
         "relu_enn": ("C0", ":", "unmatched ReLU-ENN"), "tanh_inn": ("C1", "-", "tanh-DEQ"),
         "h_tanh_enn": ("C1", "--", "matched hard-tanh-ENN"), "tanh_enn": ("C1", ":", "unmatched tanh-ENN")}

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    def __init__(self, world, **options):
        super().__init__(**options)
        self.exit = world.exit  # what is wrong is said once, however many processes there are

    def error(self, message):  # one line, without the usage text
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def positive_int(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return value


def natural_int(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def bounded_float(low, high, what):
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value
    return parse


def parse_arguments(argv, world):
    parser = Parser(world, prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="gmm", choices=DATASETS, help="default: gmm, a Gaussian mixture that needs no files")
    add("--preset", default="mixed", choices=PRESETS, help="which Gaussian mixture (default: mixed)")
    add("--classes", nargs="+", type=natural_int, metavar="C", help="only these classes, such as 6 8")
    add("--model", nargs="+", default=list(MODELS), choices=MODELS + GENERAL + PCDEQS, metavar="MODEL",
        help=f"from {', '.join(MODELS)} (default: these), {', '.join(GENERAL)} (of --activation), "
             f"or one of {', '.join(PCDEQS)}")
    add("--dim", nargs="+", type=positive_int, help="width(s) (default: 256 512 1024)")
    add("--seed", nargs="+", type=natural_int, default=[0], help="seed(s) of weights and order (default: 0)")
    add("--train", choices=("readout", "full"), help="the readout on fixed features (default), or every weight")
    add("--lr", type=bounded_float(0, math.inf, "positive and finite"), help="learning rate (default: 1; pcDEQ: 7e-4)")
    add("--epoch", type=positive_int, help="epochs (default: 10; pcDEQ: 50)")
    add("--batch_size", type=positive_int, help="batch size (default: 128; pcDEQ: 64)")
    add("--opt", choices=("sgd", "adam"), help="optimizer (default: sgd; a pcDEQ has AdamW)")
    add("--asquare", type=bounded_float(0, 1, "between 0 and 1"),
        help="sigma_a^2, for everything in the run; sigma_b^2 = 1 - sigma_a^2 (default: 0.2)")
    add("--activation", metavar="NAME", help=f"of {', '.join(GENERAL)}: relu, leaky_relu, tanh, hardtanh, erf, sigmoid, swish, "
        "gelu, elu, selu, softplus, mish, softsign, sin, or path/to/file.py:name, whose code is run; "
        "of a pcDEQ-1: tanh (default), softsign, relu6; of a pcDEQ-2: sigmoid")
    add("--match", choices=("ck", "ntk"), help="the kernel that matched_enn matches (default: ck with --train readout, "
        "ntk with --train full)")
    add("--family", choices=FAMILIES, help="the layers of matched_enn (default: auto)")
    add("--weight_decay", type=bounded_float(-1e-300, math.inf, "0 or positive, and finite"), help="of a pcDEQ (default: 1e-2)")
    add("--milestone", type=positive_int, metavar="EPOCH", help="after it a pcDEQ's learning rate is a tenth (default: never)")
    add("--aug", action="store_true", default=None, help="a pcDEQ's training images are shifted and flipped at random")
    add("--device", help="cpu, cuda or cuda:0 (default: CUDA if there is one)")
    add("--dataset_path", help="folder of the data, or the .npz file (default: data)")
    add("--vgg_path", help="weights of the VGG16 that makes the CIFAR-10 features, or imagenet")
    add("--output_path", default="results", help="folder for logs and figure (default: results)")
    add("--save_path", default="checkpoints", help="folder for checkpoints (default: checkpoints)")
    add("--resume", action="store_true", help="skip finished runs and go on with a killed one")
    arguments = parser.parse_args(argv)
    arguments.pcdeq = any(name in PCDEQS for name in arguments.model)
    if arguments.pcdeq and len(arguments.model) > 1:
        parser.error(f"argument --model: a positive concave DEQ is trained alone, got {' '.join(arguments.model)}")
    for flag, default in (PCDEQ_DEFAULTS if arguments.pcdeq else DEFAULTS).items():
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, default)
        elif default is None:
            parser.error(f"argument --{flag}: not a setting of {arguments.model[0]}")
    arguments.match = arguments.match or ("ntk" if arguments.train == "full" else "ck")
    general = [name for name in arguments.model if name in GENERAL]
    if general and not arguments.activation:
        parser.error(f"argument --activation: {general[0]} needs one, such as swish")
    if arguments.activation and not general and not arguments.pcdeq:
        parser.error(f"argument --activation: not a setting of {arguments.model[0]}, which has its own")
    if arguments.activation and arguments.pcdeq and arguments.activation not in PCDEQ_ACTIVATIONS:
        parser.error(f"argument --activation: a positive concave DEQ has one of {', '.join(PCDEQ_ACTIVATIONS)}, "
                     f"got {arguments.activation!r}")
    for flag in ("model", "dim", "seed", "classes"):
        values = getattr(arguments, flag)
        if values and len(set(values)) < len(values):
            parser.error(f"argument --{flag}: a value is given twice")
    if arguments.dataset == "npz" and not arguments.dataset_path:
        parser.error("argument --dataset_path: the npz dataset needs the path of a .npz file")
    for flag in ("output_path", "save_path"):
        path = Path(getattr(arguments, flag))
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not existing.is_dir():
            parser.error(f"argument --{flag}: {existing} is a file, not a folder")
    runs = len(arguments.model) * len(arguments.dim or [None]) * len(arguments.seed)
    arguments.together = world.size > 1 == runs and arguments.train == "full"  # every rank trains it, on its share
    if world.size > runs and not arguments.together:
        parser.error(f"{world.size} ranks for {runs} run{'s' * (runs > 1)} (models x dims x seeds): start at most one "
                     "rank a run; only a single run with --train full is shared by ranks")
    return parser, arguments


def print_theory(arguments, data, tau0, theories):
    print(f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test samples, p = {data.X_train.shape[1]}, "
          f"{data.n_classes} classes; tau_0 = {tau0:.6g}" + ("" if arguments.pcdeq else f", sigma_a^2 = {arguments.asquare:g}"))
    for name, theory in theories.items():
        # what is 0 but for rounding is shown as 0
        shown = {k: str(v) if isinstance(v, str) else f"{v if abs(v) > 1e-15 else 0:.6g}" for k, v in theory.items()
                 if isinstance(v, (int, float, str)) and k != "tau0"}
        print(f"  {name:<13} " + "  ".join(f"{k} = {v}" for k, v in shown.items()))
        for index, layer in enumerate(theory.get("parameters", ()), 1):
            print(f"{'':16}layer {index}: {layer}")


def mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def print_table(arguments, results):
    print(f"\ntest accuracy in % after {arguments.epoch} epochs (mean ± std over {len(arguments.seed)} seed(s)), "
          "and seconds a run")
    print(f"{'model':<19}" + "".join(f"{f'dim {dim}':>24}" for dim in arguments.dim))
    for model in arguments.model:
        cells = []
        for dim in arguments.dim:
            runs = [results[model, dim, seed] for seed in arguments.seed]
            mean, std = mean_std([100 * run.history[-1]["test_accuracy"] for run in runs])
            cells.append(f"{mean:.2f} ± {std:.2f} {sum(run.seconds for run in runs) / len(runs):7.1f} s")
        print(f"{model:<19}" + "".join(f"{cell:>24}" for cell in cells))


def plot(arguments, data, results):
    """Test accuracy against epoch at the largest width, and against width after the last epoch."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from utils import atomic_write

    short = arguments.activation.rpartition(":")[2]
    looks = LOOKS | {"deq": ("C2", "-", f"{short}-DEQ"), "matched_enn": ("C2", "--", f"its {arguments.match}-matched ENN"),
                     "unmatched_enn": ("C2", ":", f"unmatched {short}-ENN")}
    plt.style.use(Path(__file__).parent / "ck_ntk" / "paper.mplstyle")
    panels = 2 if len(arguments.dim) > 1 else 1
    figure, axes = plt.subplots(1, panels, figsize=(3.4 * panels, 2.7), squeeze=False, layout="constrained")
    widths, widest = sorted(arguments.dim), max(arguments.dim)
    for model in arguments.model:
        colour, line, label = looks.get(model, ("C2", "-", model))
        look = {"color": colour, "linestyle": line, "label": label}
        # a DEQ is a broad pale line, so that the network on top of it can be seen to be there
        look |= {"linewidth": 3, "alpha": 0.4} if line == "-" and len(arguments.model) > 1 else {"linewidth": 1.3}

        def curve(points):
            return zip(*(mean_std([100 * run.history[epoch]["test_accuracy"] for run in runs]) for epoch, runs in points))

        def runs(dim):
            return [results[model, dim, seed] for seed in arguments.seed]

        epochs = range(1, arguments.epoch + 1)
        mean, std = curve((epoch - 1, runs(widest)) for epoch in epochs)
        axes[0, 0].plot(epochs, mean, **look)
        axes[0, 0].fill_between(epochs, [m - s for m, s in zip(mean, std)], [m + s for m, s in zip(mean, std)],
                                color=colour, alpha=0.15, linewidth=0)
        if panels == 2:
            mean, std = curve((-1, runs(dim)) for dim in widths)
            axes[0, 1].errorbar(widths, mean, std if len(arguments.seed) > 1 else None, **look)
    axes[0, 0].set(xlabel="epoch", ylabel="test accuracy (%)", title=f"{data.name}, width {widest}")
    if panels == 2:
        axes[0, 1].set(xlabel="width $m$", title=f"after {arguments.epoch} epochs", xscale="log")
        axes[0, 1].set_xticks(widths, widths)
        axes[0, 1].minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3 if panels == 2 else 2,
                  handlelength=3)
    path = Path(arguments.output_path) / f"accuracy_{arguments.dataset}.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=200)
    return path


def main(argv=None):
    with World() as world, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"main.py: warning: {message}", file=sys.stderr)  # one line
        parser, arguments = parse_arguments(argv, world)
        try:
            data, results = experiment(parser, arguments, world)
            if world.rank == 0:
                print_table(arguments, results)
                print(f"\nlogs in {arguments.output_path}, figure {plot(arguments, data, results)}")
        except ValueError as error:
            parser.error(str(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"{parser.prog}: failed: {error}\n")
        except KeyboardInterrupt as error:
            parser.exit(INTERRUPTED, f"{parser.prog}: {error if error.args else 'interrupted'}; {RESUME}\n")


def experiment(parser, arguments, world):
    """The data, and on rank 0 the result of each (model, dim, seed)."""
    try:
        from data_prepare import load_dataset
        from gaussian_integration import ACTIVATIONS, load_activation
        from model import build_model
        from pcdeq import WIDTHS, build_pcdeq
        from train import Config, Result, check_output, fingerprint, fingerprint_code, run
        from utils import check_assumptions, estimate_tau0, get_device

        folders = arguments.output_path, arguments.save_path
        world.form()
        world.await_leader(*folders)
        device = get_device(world.device(arguments.device))
        pixels = arguments.pcdeq and arguments.dataset == "cifar10"  # a convolution has no use for VGG16 features
        activation = load_activation(arguments.activation) if arguments.activation and not arguments.pcdeq else None
        data = load_dataset("cifar10_images" if pixels else arguments.dataset, arguments.dataset_path, preset=arguments.preset,
                            classes=arguments.classes, vgg_path=arguments.vgg_path, device=device)
        n, p = data.X_train.shape
        if arguments.batch_size > n:
            raise ValueError(f"--batch_size {arguments.batch_size} is larger than the training set of {n}")
        tau0 = estimate_tau0(data.X_train)
        if arguments.pcdeq:
            settings = {"train": "pcdeq", "opt": "adamw", "weight_decay": arguments.weight_decay, "aug": arguments.aug,
                        "milestone": arguments.milestone,
                        "activation": arguments.activation or ("tanh" if arguments.model[0][-1] == "1" else "sigmoid")}
            shape = {math.prod(shape): shape for shape in WIDTHS}.get(p, (p,))
        else:
            settings = {"train": arguments.train, "opt": arguments.opt, "asquare": arguments.asquare}

        def network(model, dim, seed):
            if arguments.pcdeq:
                return build_pcdeq(model, settings["activation"], shape, data.n_classes, seed, arguments.aug)
            return build_model(model, p, dim, data.n_classes, arguments.asquare, tau0, seed, activation, arguments.match,
                               arguments.family)

        theories = {name: network(name, 1, 0).describe() for name in arguments.model}
        if arguments.pcdeq:
            arguments.dim = [theories[arguments.model[0]]["widths"][-1]]
        data_key = fingerprint(data)
        code = fingerprint_code(arguments.activation)
        extra = {name: {"activation": arguments.activation, "code": code} for name in GENERAL}
        extra["matched_enn"] |= {"match": arguments.match, "family": arguments.family}
        grid = [Config(dataset=arguments.dataset, model=model, dim=dim, seed=seed, lr=arguments.lr, epoch=arguments.epoch,
                       batch_size=arguments.batch_size, data=data_key,
                       **settings, **extra.get(model, {}))
                for seed in arguments.seed for dim in arguments.dim for model in arguments.model]
        if world.rank == 0:  # the others come when it may have begun to write there
            check_output(grid, arguments.output_path)
        world.let_start("-".join(config.key for config in grid), *folders)
    except OSError as error:  # in the data, so bad input
        raise ValueError(str(error)) from None
    deqs = {"inn": ACTIVATIONS["relu"], "tanh_inn": ACTIVATIONS["tanh"], "deq": activation}
    for model in [name for name in arguments.model if name in deqs]:
        for warning in check_assumptions(deqs[model], arguments.asquare, tau0):
            print(f"{parser.prog}: warning: {warning}", file=sys.stderr)
    print_theory(arguments, data, tau0, theories)
    team = world.team(device) if arguments.together else None

    def train_one(config):
        return vars(run(config, data, lambda: network(config.model, config.dim, config.seed), *folders, device,
                        arguments.resume, team))

    costs = [cost(config, n + len(data.X_test), p, data.n_classes) for config in grid]
    done = world.map(train_one, grid, costs, together=arguments.together)
    return data, {(config.model, config.dim, config.seed): Result(**values) for config, values in zip(grid, done)}


if __name__ == "__main__":
    main()
