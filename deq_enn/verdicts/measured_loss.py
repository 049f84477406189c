"""What the replacement of a trained DEQ loses, measured: explicit networks, their readouts solved on held-in samples.

The weights of a trained DEQ are not random, and no theory says what another network in its place would lose. So each
candidate is built, with first-layer weights of its own or with the DEQ's B, its readout is solved by ridge regression
on the labels or on the DEQ's outputs, and both networks are tried on samples that neither readout has seen. The
replacement is chosen on a part of the held-in samples of its own, so that what is held out measures its loss fairly.
"""

import math
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn.functional import one_hot
from tqdm import tqdm

from deq_enn.machines.readout import Readout, solve_targets
from deq_enn.networks.build import build_model
from deq_enn.networks.enn import ENN
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.utils.random import generator
from deq_enn.verdicts.candidates import PLAIN_DEPTHS, Network, networks

BATCH = 512
FIT = 10_000  # samples that a readout is solved on, at most
HELD = 10_000  # samples that the loss is measured on, at most
TAIL = 1.6449  # of a 90% interval
_OWN_SEEDS = 10_000  # the weights are not those of seeds that a user trains


@dataclass(eq=False)
class Replacement:
    """A network in the place of a trained DEQ.

    name, network : of `candidates.Network`. first : "drawn" weights of the first layer, or "B", the DEQ's.
    fitted_to : "labels" or "outputs". chosen_by : accuracy in % on the samples that choose.
    accuracy, loss, loss_interval : on the held-out samples, in %; the DEQ's accuracy less its own, in points, with the
        90% interval over samples and seeds. agreement : share of samples, in %, on which it says what the DEQ says.
    seeds : that all of these are means over. enn, readout : of the first seed, for rows times `gain`.
    """

    name: str
    network: Network
    first: str
    fitted_to: str
    chosen_by: float
    accuracy: float
    agreement: float
    loss: float
    loss_interval: tuple[float, float]
    seeds: int
    enn: ENN
    readout: Readout
    gain: float

    def to_dict(self) -> dict:
        keys = "name", "first", "fitted_to", "chosen_by", "accuracy", "agreement", "loss", "loss_interval", "seeds"
        return {key: getattr(self, key) for key in keys}


def candidates_of(deq, X) -> tuple[list[Network], dict[str, str], float]:
    """The networks for a DEQ of `trained_deq.adapt` and data X (n, p), why others are not there, and the input's gain.

    They are those of the random DEQ whose weights have the same mean squares. Where that one has no equilibrium the
    plain networks remain.
    """
    sigma_a2, gain = deq.sigma_a2, deq.gain
    if not math.isfinite(gain):
        gain = 1.0
    tau0 = gain * estimate_tau0(X)
    try:
        found, refused = networks(SimpleNamespace(activation=deq.activation, sigma_a2=sigma_a2, tau0=tau0), tau0)
    except ValueError as error:
        found, refused = [], {"matched": str(error)}
        for depth in PLAIN_DEPTHS:
            enn = build_model("unmatched_enn", 1, 1, 2, 0.5, tau0, activation=deq.activation, depth=depth)
            found.append(Network(f"plain, depth {depth}", "plain", None, None, enn.layers, enn.input_scale, tau0))
    return found, refused, gain


def _outputs(model, X):
    with torch.no_grad():
        return torch.cat([model(rows) for rows in X.split(BATCH)])


def replacements(
    deq,
    X,
    y,
    held=None,
    *,
    width: int | None = None,
    seed: int = 0,
    budget: float = 60.0,
    most_seeds=3,
    clock=time.perf_counter,
) -> tuple[list[Replacement], dict]:
    """Every candidate's measured loss, the one to choose first.

    Parameters
    ----------
    deq : of `trained_deq.adapt`.
    X, y : (n, p), and labels (n,) from 0 on or None. The DEQ is flattered by samples that it was trained on, and the
        loss is then too large: hand in others, here or as `held`.
    held : (X, y) of test samples; by default the last fifth of a random order of the samples.
    width : of the networks; by default the DEQ's.
    budget : seconds; one network is tried at least, and then as many, with up to `most_seeds` seeds, as there is time.

    Returns
    -------
    (replacements, facts); facts : {"accuracy" of the DEQ, in %, "fit", "choose", "held": numbers of samples, "labels":
    whether there were any (else the DEQ's own classes stand for them), "untried": number of networks, "refused"}.

    Raises
    ------
    ValueError : too few samples, or labels beyond the DEQ's outputs.
    ConvergenceError : the DEQ has no equilibrium for a sample.
    """
    end = clock() + budget
    X = X.to(deq.W)
    parts = _parts(X, y, held, seed)
    outputs = [_outputs(deq, part) for part, _ in parts]
    labels = [out.argmax(1) if one is None else one.to(out.device) for out, (_, one) in zip(outputs, parts)]
    classes = deq.readout.out_features
    if max(one.max().item() for one in labels) >= classes:
        raise ValueError(
            f"the labels go up to {max(one.max().item() for one in labels)}, and the DEQ has {classes} "
            "outputs: labels 0, 1, ... in the order of its outputs are needed"
        )
    found, refused, gain = candidates_of(deq, X)
    fit, choose, test = (part * gain for part, _ in parts)
    deq_right = outputs[2].argmax(1) == labels[2]
    width = len(deq.W) if width is None else width
    targets = {"outputs": outputs[0].double()}
    if y is not None:
        targets = {"labels": one_hot(labels[0], classes).double()} | targets
    tried: dict[tuple, list] = {}
    firsts = ("B", "drawn") if width == len(deq.W) else ("drawn",)
    trials = [(number, first, network) for number in range(most_seeds) for first in firsts for network in found]
    for number, first, network in tqdm(trials, desc="replacements", leave=False, disable=None, delay=1):
        if tried and clock() > end:
            break
        enn = network.build(X.shape[1], width, classes, _OWN_SEEDS + seed + number).to(deq.W)
        if first == "B":
            with torch.no_grad():
                enn.weights[0].copy_(deq.U / deq.U.square().mean().sqrt())
        for name, target in targets.items():
            mean = target.mean(0)
            readout, _ = solve_targets(enn, fit, target - mean, mean, device=deq.W.device)
            chosen, said = (readout.predict(enn, part, deq.W.device).mean.argmax(1) for part in (choose, test))
            right = (chosen == labels[1].cpu()).double().mean().item()
            tried.setdefault((network.name, first, name), []).append((right, said, network, enn, readout))
    deq_right, deq_said = deq_right.cpu(), outputs[2].argmax(1).cpu()
    results = []
    for (own_name, first, target), rows in tried.items():
        right = torch.stack([said == labels[2].cpu() for _, said, *_ in rows]).double()
        agree = torch.stack([said == deq_said for _, said, *_ in rows]).double().mean().item()
        loss, half = paired(deq_right.double() - right)
        network, enn, readout = rows[0][2:]
        chosen_by = 100 * sum(row[0] for row in rows) / len(rows)
        results.append(
            Replacement(
                own_name,
                network,
                first,
                target,
                chosen_by,
                100 * right.mean().item(),
                100 * agree,
                loss,
                (loss - half, loss + half),
                len(rows),
                enn,
                readout,
                gain,
            )
        )
    results.sort(key=lambda one: -one.chosen_by)
    facts = {
        "accuracy": 100 * deq_right.double().mean().item(),
        "labels": y is not None,
        "refused": refused,
        "untried": len(found) * len(firsts) - len(tried) // len(targets),
        **dict(zip(("fit", "choose", "held"), (len(part) for part, _ in parts))),
    }
    return results, facts


def paired(differences: torch.Tensor) -> tuple[float, float]:
    """Mean of the differences (seeds, n) in percentage points, and half of its 90% interval over samples and seeds.

    One sample more is taken to differ, since there may be some where none was seen.
    """
    seeds, n = differences.shape
    each = 100 * differences.mean(0)
    variance = each.var().item() / n + (100 / n) ** 2 / seeds
    if seeds > 1:
        variance += (100 * differences).mean(1).var().item() / seeds
    return each.mean().item(), TAIL * math.sqrt(variance)


def _parts(X, y, held, seed):
    """(samples, labels) to fit, to choose and to measure with."""
    order = torch.randperm(len(X), generator=generator("replacement", seed))
    if held is None:
        count = max(len(X) // 5, 1)
        order, last = order[:-count], order[-count:]
        held = X[last], None if y is None else y[last]
    order = order[: FIT + FIT // 4]
    count = max(len(order) // 5, 1)
    if len(order) < 40 or len(held[0]) < 20:
        raise ValueError(f"{len(X)} samples are too few to measure a loss: at least 60 are needed")
    parts = order[:-count], order[-count:]
    return [
        *((X[part], None if y is None else y[part]) for part in parts),
        (held[0][:HELD].to(X), None if held[1] is None else held[1][:HELD]),
    ]
