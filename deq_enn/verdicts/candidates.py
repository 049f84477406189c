"""The explicit networks that may replace a DEQ: matched ones of every family, kernel and root, and plain ones.

A matched network has the four coefficients of the DEQ's conjugate or tangent kernel (`matching.match`). A plain one has
1 to 3 centred layers of the DEQ's own activation. None of them is known to be the best before it is measured.
"""

from dataclasses import dataclass, replace

from deq_enn.matching import two_layer_lrelu
from deq_enn.matching.families import Match, match
from deq_enn.matching.other_scale import off_centre
from deq_enn.names import FAMILIES
from deq_enn.networks.build import build_model
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import MatchError, explicit_ck
from deq_enn.theory.finite_width import fluctuation
from deq_enn.theory.norm_sensitivity import explicit_response, implicit_response, mismatch

PLAIN_DEPTHS = 1, 2, 3
SAME_SCALE = 0.05  # relative, of the data's tau_0 and the DEQ's: a subsample of heavy-tailed data is so far off


@dataclass(frozen=True)
class Network:
    """An explicit network of any width.

    name : such as "matched ck: 2 piecewise" or "plain, depth 1".
    kind : "matched" or "plain". kernel, family : of a match, else None.
    layers, input_scale, tau0, match : as `model.ENN` takes them.
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
        return len(self.layers)

    def build(self, p: int, width: int, classes: int, seed: int = 0) -> ENN:
        """The network for inputs (n, p); with the seed of a DEQ it has its first-layer weights."""
        return ENN(self.layers, p, width, classes, self.tau0, self.input_scale, seed, self.match)

    @property
    def fluctuation(self) -> float:
        """m times the mean squared relative error of its conjugate kernel at width m (`width_error.fluctuation`)."""
        layers = self.layers if self.match is None else self.match.layers
        return float(sum(fluctuation(layers, self.tau0 * self.input_scale, "readout")))


def networks(deq: DEQ, tau0: float) -> tuple[list[Network], dict[str, str]]:
    """Every network that may stand in for `deq` on data of scale `tau0`, and why each other family has none.

    Parameters
    ----------
    deq : its activation, sigma_a^2 and tau_0 count. Where the data's is another (`SAME_SCALE`), the matches are those
        at the data's, with the constants of `off_centre`.

    Returns
    -------
    (networks, refused) : refused maps the name of a kernel and family to what `matching.match` says of it.
    """
    found, refused = [], {}
    if abs(tau0 / deq.tau0 - 1) < SAME_SCALE:
        tau0 = deq.tau0
    for kernel in ("ck", "ntk"):
        for family in FAMILIES[1:]:
            try:
                matches = _matches(deq, tau0, kernel, family)
            except MatchError as error:
                refused[f"{kernel} {family}"] = str(error)
                continue
            for number, one in enumerate(matches, 1):
                root = f", root {number}" if len(matches) > 1 else ""
                name = f"matched {kernel}: {len(one.layers)} {family}{root}"
                try:
                    layers = _centred_as(deq, one, tau0, kernel)
                except ValueError as error:
                    refused[f"{kernel} {family}{root}"] = str(error)
                    continue
                found.append(Network(name, "matched", kernel, family, layers, 1.0, tau0, one))
    for depth in PLAIN_DEPTHS:
        plain = build_model("unmatched_enn", 1, 1, 2, deq.sigma_a2, tau0, activation=deq.activation, depth=depth)
        found.append(Network(f"plain, depth {depth}", "plain", None, None, plain.layers, plain.input_scale, tau0))
    return found, refused


def _matches(deq, tau0, kernel, family):
    """One match of the family, or one of each root of the paper's cubic."""
    one = match(deq.activation, deq.sigma_a2, tau0, kernel, family)
    if family != "l_relu" or kernel != "ck":
        return [one]
    goal = implicit_response(deq.activation, deq.sigma_a2, tau0, kernel)
    out = []
    for found in two_layer_lrelu.solutions(one.target, tau0):
        layers = found.layers
        out.append(
            replace(
                one,
                layers=layers,
                achieved=explicit_ck(layers, tau0),
                fluctuation=sum(fluctuation(layers, tau0, "readout")),
                parameters=(dict(a=found.a1, b=found.b1), dict(a=found.a2, b=found.b2)),
                mismatch=mismatch(goal, explicit_response(layers, tau0, "readout")),
            )
        )
    return out


def _centred_as(deq, one, tau0, kernel):
    if tau0 == deq.tau0:
        return tuple(one.layers)
    return off_centre(one.layers, deq.activation, deq.sigma_a2, tau0, deq.tau0, kernel)
