"""These explicit networks may replace a DEQ: matched ones of each kernel, family and root, and plain ones.

A matched network has the four coefficients of the DEQ's conjugate or tangent kernel (`matching.families.match`). A
plain one has 1 to 3 centred layers of the DEQ's own activation. Which of them is best is known only after measuring.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch

from deq_enn.machines.leave_one_out import Targets, from_features
from deq_enn.machines.precise_readout import features, solve_precisely, too_small
from deq_enn.machines.readout import Readout, solve
from deq_enn.matching import two_layer_lrelu
from deq_enn.matching.families import Match, match
from deq_enn.matching.other_scale import layers_at_scale
from deq_enn.networks.build import build_model
from deq_enn.networks.enn import ENN
from deq_enn.networks.export import ExportedENN, network_of
from deq_enn.networks.fixed_point import FixedPoint, Picard
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import MatchError, explicit_ck
from deq_enn.theory.finite_width import fluctuation
from deq_enn.theory.norm_sensitivity import explicit_response, implicit_response, mismatch
from deq_enn.utils.deadline import OutOfTime

EXAMPLES = 64  # samples that the programs of an exported network are tried with
# families of the matched candidates; without "own": what the answers are worth was counted on cases that had these
FAMILIES = "l_relu", "hard_tanh", "hermite", "piecewise"
PLAIN_DEPTHS = 1, 2, 3
NO_TIME = "for want of time (--budget) it was not looked for"
# relative difference of the data's tau_0 and the DEQ's that counts as none: subsamples of heavy-tailed data differ so
SAME_SCALE = 0.05
PRECISE = Picard(1e-9, 3000)  # its error is below the smallest ridge of `precise_readout`
FEATURE_BYTES = 1e9  # bytes that the features may take by which a ridge is chosen


class RandomDEQ(Protocol):
    """This is a DEQ as the theory sees it: a `networks.deq.DEQ`, or a `Scales`."""

    @property
    def activation(self) -> Activation:
        """Returns the activation."""
        ...

    @property
    def sigma_a2(self) -> float:
        """Returns sigma_a^2."""
        ...

    @property
    def tau0(self) -> float:
        """Returns the scale that the activation is centred for."""
        ...


class Scales(NamedTuple):
    """These are the numbers of a random DEQ that its candidates depend on."""

    activation: Activation
    sigma_a2: float
    tau0: float


@dataclass(frozen=True)
class Network:
    """This is an explicit network of any width.

    name : such as "matched ck: 2 piecewise" or "plain, depth 1".
    kind : "matched" or "plain". kernel, family : of a match, else None.
    layers, input_scale, tau0, match : as `networks.enn.ENN` takes them.
    """

    name: str
    kind: str
    kernel: str | None
    family: str | None
    layers: tuple[Activation, ...]
    input_scale: float
    tau0: float
    match: Match | None = None

    @property
    def depth(self) -> int:
        """Returns the number of hidden layers."""
        return len(self.layers)

    def build(self, p: int, width: int, classes: int, seed: int = 0) -> ENN:
        """Builds the network for inputs (n, p). Its first-layer weights are those of the DEQ of the same seed."""
        return ENN(self.layers, p, width, classes, self.tau0, self.input_scale, seed, self.match)

    def work(self, p: int, width: int) -> int:
        """Returns how many multiplications the features of one sample of p entries take."""
        return width * (p + (self.depth - 1) * width)

    @property
    def fluctuation(self) -> float:
        """Returns m times the mean squared relative error of its CK at width m, off the diagonal plus on it."""
        layers = self.layers if self.match is None else self.match.layers
        return float(sum(fluctuation(layers, self.tau0 * self.input_scale, "readout")))


def networks(deq: RandomDEQ, tau0: float) -> tuple[list[Network], dict[str, str]]:
    """Returns every network that may replace `deq` on data of scale `tau0`, and why each other family has none.

    Where the data's scale differs from the DEQ's by more than SAME_SCALE, the matches are those at the data's scale,
    with the constants of `matching.other_scale.layers_at_scale`.

    Returns
    -------
    (networks, refused) : refused maps the name of a kernel and family to the message of `matching.families.match`, or
        to NO_TIME where a deadline has passed before.
    """
    matched, refused = [], {}
    if abs(tau0 / deq.tau0 - 1) < SAME_SCALE:
        tau0 = deq.tau0
    wanted = list(product(("ck", "ntk"), FAMILIES))
    for number, (kernel, family) in enumerate(wanted):
        try:
            more, why = _matched(deq, tau0, kernel, family)
        except OutOfTime:
            refused |= {" ".join(each): NO_TIME for each in wanted[number:]}
            break
        matched += more
        refused |= why
    plain = plain_networks(deq.activation, deq.sigma_a2, tau0)
    for depth in PLAIN_DEPTHS[len(plain) :]:
        refused[f"plain, depth {depth}"] = f"{deq.activation.name} in so many layers is constant: the signal dies"
    return matched + plain, refused


def plain_networks(activation: Activation, sigma_a2: float, tau0: float) -> list[Network]:
    """Returns the networks of 1 to 3 centred layers of this activation, as many as do not become constant.

    Raises ValueError where a single layer does.
    """
    plain = []
    for depth in PLAIN_DEPTHS:
        try:
            enn = build_model("unmatched_enn", 1, 1, 2, sigma_a2, tau0, activation=activation, depth=depth)
            assert isinstance(enn, ENN)
            network = Network(f"plain, depth {depth}", "plain", None, None, enn.layers, enn.input_scale, tau0)
            dead = not math.isfinite(network.fluctuation)
        except (ValueError, ZeroDivisionError):  # a layer is constant, or nearly so
            dead = True
        if dead:
            break
        plain.append(network)
    if not plain:
        raise ValueError(f"{activation.name} is constant at the scale of these data: no layer of it passes anything on")
    return plain


def _matched(deq, tau0, kernel, family) -> tuple[list[Network], dict[str, str]]:
    """Returns the networks of one kernel and family, and why there is none."""
    try:
        matches = _matches(deq, tau0, kernel, family)
    except MatchError as error:
        return [], {f"{kernel} {family}": str(error)}
    networks, refused = [], {}
    for number, each in enumerate(matches, 1):
        root = f", root {number}" if len(matches) > 1 else ""
        name = f"matched {kernel}: {len(each.layers)} {family}{root}"
        try:
            layers = _centred_as(deq, each, tau0, kernel)
        except ValueError as error:
            refused[f"{kernel} {family}{root}"] = str(error)
            continue
        networks.append(Network(name, "matched", kernel, family, layers, 1.0, tau0, each))
    return networks, refused


def _matches(deq, tau0, kernel, family) -> list[Match]:
    """Returns the match of the family; for the paper's two-layer L-ReLU one for each root of its cubic."""
    first = match(deq.activation, deq.sigma_a2, tau0, kernel, family)
    if family != "l_relu" or kernel != "ck":
        return [first]
    goal = implicit_response(deq.activation, deq.sigma_a2, tau0, kernel)
    matches = []
    for root in two_layer_lrelu.solutions(first.target, tau0):
        layers = root.layers
        matches.append(
            replace(
                first,
                layers=layers,
                achieved=explicit_ck(layers, tau0),
                fluctuation=sum(fluctuation(layers, tau0, "readout")),
                parameters=(dict(a=root.a1, b=root.b1), dict(a=root.a2, b=root.b2)),
                mismatch=mismatch(goal, explicit_response(layers, tau0, "readout")),
            )
        )
    return matches


def _centred_as(deq, matched, tau0, kernel) -> tuple[Activation, ...]:
    """Returns the layers of the match, with constants where the DEQ is centred at another scale than the data's."""
    if tau0 == deq.tau0:
        return tuple(matched.layers)
    return layers_at_scale(matched.layers, deq.activation, deq.sigma_a2, tau0, deq.tau0, kernel)


def in_float64(model: Any, solver: Any = PRECISE) -> Any:
    """Returns the network in float64. An equilibrium of it is then found by `solver`."""
    model = model.double()
    if hasattr(model, "fixed_point"):
        model.fixed_point = FixedPoint(solver)
    return model


def fitted(
    model: Any, X: torch.Tensor, y: torch.Tensor, classes: int, copies: torch.Tensor | None = None
) -> tuple[Any, Readout]:
    """Returns a network with its readout of all samples, in float64 where the best ridge asks for that.

    The ridge is that of the least squared error of samples that the others predict. Where not all features fit in
    memory, it is chosen on the first samples.

    model : an `ENN` or a DEQ. X, y : (n, p) and labels (n,) in 0 .. classes - 1.
    copies : (n,), which samples are left out together (`machines.copies.Repeated.left_out`); by default each alone.
    """
    width = model.readout.in_features
    part = slice(max(int(FEATURE_BYTES / (4 * width)), 1))
    targets = Targets(y[part], classes, None if copies is None else copies[part], model.readout.weight.device)
    chosen = from_features(features(model, X[part]), targets)
    if too_small(chosen.ridge, len(X), width, chosen.faintest):
        model = in_float64(model)
        return model, solve_precisely(model, X.double(), y, classes, copies)[0]
    return model, solve(model, X, y, classes, [chosen.ridge])[0]


@dataclass(eq=False)
class Fitting:
    """The chosen network of a verdict at initialisation; when asked for, it is fitted to all samples by regression.

    samples : (X, y, order): the samples, their labels 0, 1, ... or None, and the random order to take them in. They
        are given up once the readout is known.
    copies : of X, as `fitted` takes them.
    classes, width, seed : of the network.
    gain : the network takes rows times this.
    """

    network: Network
    samples: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor] | None
    classes: int | None
    width: int
    seed: int
    gain: float = 1.0
    copies: torch.Tensor | None = None
    fitted: tuple[ENN, Readout] | None = None

    def fit(self) -> tuple[ENN, Readout]:
        """Returns the network and its readout; ValueError where there are no labels."""
        if self.fitted is None:
            assert self.samples is not None
            X, y, order = self.samples
            if y is None or self.classes is None:
                raise ValueError("no network is exported: a readout is fitted to labels, and the data have none")
            enn = self.network.build(X.shape[1], self.width, self.classes, self.seed)
            copies = None if self.copies is None else self.copies[order]
            self.fitted, self.samples = fitted(enn, X[order], y[order], self.classes, copies), None
        return self.fitted

    def __getstate__(self) -> dict[str, Any]:
        # the samples stay behind, and the readout goes along
        if self.samples is not None and self.samples[1] is not None:
            self.fit()
        return vars(self)

    def exported(
        self, mean: torch.Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> ExportedENN:
        """Returns the fitted network for rows x of which the DEQ takes (x - mean)/scale."""
        return network_of(*self.fit(), mean, scale / self.gain, labels)
