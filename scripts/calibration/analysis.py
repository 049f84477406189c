"""Verdicts beside outcomes: coverage of the intervals, confusion of the answers, and what sets the constants.

The outcome has an error of its own, from few seeds of the weights and a finite test set. An interval [low, high] about
the mean is held to cover a measured loss that is within sqrt((high - mean)^2 + (z error)^2) above or as much below,
z = Z_90. That is exact where both errors are Gaussian and forgives nothing that is wrong with the interval alone, but
it tells less the larger the error is: coverage without it is reported beside it. "Beyond noise" means by more than
z errors.
"""

if __name__ == "__main__":
    raise SystemExit("analysis.py is a part of scripts/calibrate.py: run that")

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.at_initialisation import UNKNOWN
from deq_enn.verdicts.decision import no_better_than_majority
from deq_enn.verdicts.losses.model import predict
from deq_enn.verdicts.losses.points import CONSTANTS, Discrepancy
from deq_enn.verdicts.result import RISK
from scripts.calibration.fresh import KINDS
from scripts.calibration.outcomes import MAJORITY
from scripts.calibration.verdicts import constants_of, points_of

TOLERANCE = 0.5  # percentage points, that of the verdicts
REAL = ("mnist", "cifar10_pixels", "cifar10_vgg16")
MIXTURES = ("mixed", "two_class")
POOLED = 2.0  # seeds that the variance of all networks of a case counts as, beside those of one network


@dataclass(frozen=True)
class Candidate:
    """This is a network that was judged.

    mean, low, high : predicted loss in points and its 90% interval. risk : probability that it is above TOLERANCE.
    loss, error : measured, None if not trained.
    """

    name: str
    work: int
    mean: float
    low: float
    high: float
    risk: float
    loss: float | None
    error: float | None
    scores: dict

    @property
    def covered(self) -> bool:
        """Tells whether the interval covers the measured loss, allowing for the error of that."""
        end = self.high if self.loss > self.mean else self.low
        return abs(self.loss - self.mean) <= math.hypot(end - self.mean, Z_90 * self.error)

    @property
    def lost_too_much(self) -> bool:
        """Tells whether the measured loss is above the tolerance, beyond noise."""
        return self.loss - Z_90 * self.error > TOLERANCE

    @property
    def covered_as_measured(self) -> bool:
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class Held:
    """This is a case: what was answered, and the candidates. chosen : of "replace".

    n : number of training samples.
    majority : the commonest class as a candidate: what is lost by always saying it. None in the first cases.
    overrun : seconds taken over the budget. peak_mib : the most memory held, None where it was not recorded.
    """

    case: str
    width: int
    answer: str
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    n: int = 0
    majority: Candidate | None = None
    overrun: float = 0.0
    peak_mib: float | None = None

    @property
    def data(self) -> str:
        return self.case.split("-")[0]

    @property
    def kind(self) -> str:
        fresh = next((kind for kind, data in KINDS.items() if self.data in data), None)
        return fresh or (
            "mixtures" if self.data in MIXTURES else "images" if self.data in REAL else "assumptions broken"
        )

    @property
    def trained(self) -> list[Candidate]:
        return [
            candidate for candidate in self.candidates if candidate.loss is not None and math.isfinite(candidate.high)
        ]

    @property
    def happened(self) -> str:
        """Says what is so beyond noise.

        The words are "DEQ no better" than the commonest class; "some below" the tolerance, "all above" it; "too near".
        """
        if self.majority is not None and self.majority.loss is not None:
            gain, noise = self.majority.loss, Z_90 * self.majority.error
            if gain - noise <= 0 or gain + noise < TOLERANCE:
                return "DEQ no better"
        trained = [candidate for candidate in self.candidates if candidate.loss is not None]
        if any(candidate.loss + Z_90 * candidate.error < TOLERANCE for candidate in trained):
            return "some below"
        return "all above" if all(candidate.lost_too_much for candidate in trained) else "too near"

    @property
    def wrong(self) -> bool | None:
        """Tells whether the replacement lost more than the tolerance, beyond noise; None if it was not trained."""
        return None if self.chosen.loss is None else self.chosen.lost_too_much


def merged(records: list[dict]) -> dict[str, dict]:
    """Returns {case: record}: of several of one case the last, with the networks of all."""
    records_of_case = {}
    for record in records:
        networks = records_of_case.get(record["case"], {}).get("networks", {}) | record.get("networks", {})
        records_of_case[record["case"]] = record | ({"networks": networks} if "networks" in record else {})
    return records_of_case


def answer(candidates, majority=None, risk=RISK) -> tuple[str, Candidate | None]:
    """Answers as the verdict does: of the candidates surely below TOLERANCE the cheapest, of these the best.

    risk : the probability with which what is sure may be wrong.
    """
    if majority is not None and no_better_than_majority(majority, TOLERANCE):
        return "majority", None
    accepted = [candidate for candidate in candidates if candidate.risk < risk]
    if accepted:
        return "replace", min(accepted, key=lambda candidate: (candidate.work, candidate.mean))
    return ("keep" if all(1 - candidate.risk < risk for candidate in candidates) else "undecided"), None


def joined(packed: dict, constants: Discrepancy = CONSTANTS, of: str = "mean") -> list[Held]:
    """Returns every case that has both, with intervals and answers as the constants give them.

    of : "mean" over seeds, or the "draw" of the user's own seed, which the first cases have not.
    """
    outcomes, held = merged(packed["outcomes"]), []
    for record in packed["verdicts"]:
        networks = outcomes.get(record["case"], {}).get("networks")
        if not networks or not record.get("candidates"):
            continue
        if of == "draw" and not any("own" in measured for measured in networks.values()):
            continue
        truth, own = Truth.of_case(outcomes[record["case"]], of), constants_of(record, constants)
        candidates = tuple(_candidate(record, candidate, truth, own) for candidate in record["candidates"])
        majority = None
        if record.get("majority"):
            place = record["width"], record["n"]
            gains = predict(points_of(record["majority"], own), *place, own, of == "draw", TOLERANCE)
            majority = Candidate(MAJORITY, 0, **vars(gains), **truth.of_network(MAJORITY), scores={})
        over = record.get("seconds", 0.0) - record.get("budget", math.inf)
        said = answer(candidates, majority)
        peak = record.get("peak_mib")
        held.append(Held(record["case"], record["width"], *said, candidates, record["n"], majority, over, peak))
    return held


@dataclass(frozen=True)
class Truth:
    """This is the outcome of a case.

    seeds : those of the mean. of_seeds : the variance of a seed's loss, in the mean over the networks.
    """

    networks: dict
    of: str
    seeds: int
    of_seeds: float

    @classmethod
    def of_case(cls, outcome: dict, of: str) -> "Truth":
        spreads = [network["seed_sd"] for network in outcome["networks"].values() if "seed_sd" in network]
        return cls(outcome["networks"], of, outcome.get("seeds", 0), float(np.mean(np.square(spreads or [0.0]))))

    def loss_and_error(self, name: str) -> tuple[float | None, float | None]:
        """Returns the loss of a network and its standard error, or None twice where it was not trained.

        From two to eight seeds their variance is hardly known: it is drawn to that of the case's other networks.
        """
        network = self.networks.get(name, {})
        if self.of == "draw":
            return network.get("own", {}).get("loss"), network.get("own", {}).get("error")
        if "seed_sd" not in network:
            return network.get("loss"), network.get("error")
        own, drawn = network["seed_sd"] ** 2, self.spread(name)
        return network["loss"], math.sqrt(max(network["error"] ** 2 - own / self.seeds, 0.0) + drawn / self.seeds)

    def of_network(self, name: str) -> dict[str, float | None]:
        """Returns {"loss", "error"} of `loss_and_error`."""
        return dict(zip(("loss", "error"), self.loss_and_error(name)))

    def spread(self, name: str) -> float:
        """Returns the variance of a seed's loss, drawn to that of the case's other networks."""
        own = self.networks[name]["seed_sd"] ** 2
        return (POOLED * self.of_seeds + (self.seeds - 1) * own) / (POOLED + self.seeds - 1)


def _candidate(record, candidate, truth, constants):
    points = points_of(candidate["points"], constants)
    interval = UNKNOWN  # of which no network of finite width was measured
    if any(math.isfinite(point.width) for point in points):
        interval = predict(points, record["width"], record["n"], constants, truth.of == "draw", TOLERANCE)
    distance, infinite = candidate["distance"] or {}, candidate["infinite"] or {}
    scores = {
        "kernel distance": distance.get("ck", {}).get("with_factor", math.nan),
        "RMS of predictions": infinite.get("rms", math.nan),
        "fluctuation": (candidate["fluctuation"] - record["deq_fluctuation"]) / record["width"],
        "infinite width": infinite.get("difference", math.nan),
        "the verdict": interval.mean,
    }
    name = candidate["name"]
    return Candidate(name, candidate["work"], **vars(interval), **truth.of_network(name), scores=scores)


# ---------------------------------------------------------------------------------------------------------------
# the constants


def interval_score(candidate: Candidate) -> float:
    """Returns the width of the interval and 20 times what it misses.

    Its mean is least for the true quantiles of 5% and 95%.

    (Gneiting & Raftery, J. Am. Stat. Assoc. 102 (2007), eq. 43.) The interval is widened by the error of the outcome.
    """
    low = candidate.mean - math.hypot(candidate.mean - candidate.low, Z_90 * candidate.error)
    high = candidate.mean + math.hypot(candidate.high - candidate.mean, Z_90 * candidate.error)
    return high - low + 20 * max(low - candidate.loss, candidate.loss - high, 0.0)


def mean_score(held: list[Held]) -> float:
    """Returns the mean score; cases count alike, however many candidates they have."""
    held = [case for case in held if case.trained]
    return float(np.mean([np.mean([interval_score(candidate) for candidate in case.trained]) for case in held]))


FREE = (
    "amplitude",
    "spread",
    "length_u",
    "length_w",
    "floor",
    "relative",
    "seeds",
    "pooled",
    "weight",
    "dependence",
    "decay",
    "scatter",
    "slopes",
)


def set_constants(packed: dict, half: set[str], steps: int = 80, start: Discrepancy = CONSTANTS) -> Discrepancy:
    """Returns the constants of the least mean interval score over the cases in `half`.

    They are searched by Nelder and Mead, in logarithms.

    The score is that of the mean over seeds, and that of the user's own draw where it was measured.
    """
    packed = packed | {"verdicts": [record for record in packed["verdicts"] if record["case"] in half]}

    def constants(logs):
        return replace(start, **dict(zip(FREE, np.exp(logs).tolist())))

    def score(logs):
        held = [joined(packed, constants(logs), of) for of in ("mean", "draw")]
        return sum(mean_score(cases) for cases in held if cases)

    least = minimize(
        score,
        np.log([max(getattr(start, name), 1e-3) for name in FREE]),
        method="Nelder-Mead",
        options=dict(maxfev=steps, xatol=0.02, fatol=1e-3),
    )
    return constants(least.x)


# ---------------------------------------------------------------------------------------------------------------
# coverage


def coverage(held: list[Held]) -> dict:
    """Returns shares in %, of all candidates that were trained: cases count alike."""

    def share(of):
        with_losses = [case for case in held if case.trained]
        return 100 * float(np.mean([np.mean([of(candidate) for candidate in case.trained]) for case in with_losses]))

    return {
        "covered": share(lambda candidate: candidate.covered),
        "as measured": share(lambda candidate: candidate.covered_as_measured),
        "below": share(lambda candidate: not candidate.covered and candidate.loss < candidate.mean),
        "above": share(lambda candidate: not candidate.covered and candidate.loss > candidate.mean),
    }


def matched_alone(held: list[Held]) -> list[Held]:
    """Returns the cases as they would be without plain networks, of the matched ones that were trained."""
    alone = []
    for case in held:
        matched = tuple(candidate for candidate in case.trained if candidate.name.startswith("matched"))
        if matched:
            alone.append(Held(case.case, case.width, *answer(matched), matched, case.n))
    return alone
