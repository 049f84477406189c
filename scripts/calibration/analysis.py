"""Verdicts beside outcomes: coverage of the intervals, confusion of the answers, and what sets the constants.

The outcome has an error of its own, from few seeds of the weights and a finite test set. An interval [low, high] about
the mean is held to cover a measured loss that is within sqrt((high - mean)^2 + (z error)^2) above or as much below,
z = 1.645. That is exact where both errors are Gaussian and forgives nothing that is wrong with the interval alone, but
it tells less the larger the error is: coverage without it is reported beside it. "Beyond noise" means by more than
z errors.
"""

if __name__ == "__main__":
    raise SystemExit("analysis.py is a part of scripts/calibrate.py: run that")

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.stats import beta, rankdata, spearmanr

from deq_enn.reporting.markdown import head, row
from deq_enn.verdicts.losses.model import CONSTANTS, Z_90, Discrepancy, predict
from scripts.calibration.verdicts import points_of

TOLERANCE = 0.5  # percentage points, that of the verdicts
REAL = ("mnist", "cifar10_pixels", "cifar10_vgg16")
MIXTURES = ("mixed", "two_class")


@dataclass(frozen=True)
class Candidate:
    """mean, low, high : predicted loss in points and its 90% interval. loss, error : measured, None if not trained."""

    name: str
    work: int
    mean: float
    low: float
    high: float
    loss: float | None
    error: float | None
    scores: dict

    @property
    def covered(self) -> bool:
        """Allowing for the error of the measured loss."""
        end = self.high if self.loss > self.mean else self.low
        return abs(self.loss - self.mean) <= math.hypot(end - self.mean, Z_90 * self.error)

    @property
    def lost_too_much(self) -> bool:
        """Whether the measured loss is above the tolerance, beyond noise."""
        return self.loss - Z_90 * self.error > TOLERANCE

    @property
    def covered_as_measured(self) -> bool:
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class Held:
    """A case: what was answered, and the candidates. chosen : of "replace"."""

    case: str
    width: int
    answer: str
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    @property
    def data(self) -> str:
        return self.case.split("-")[0]

    @property
    def kind(self) -> str:
        return "mixtures" if self.data in MIXTURES else "images" if self.data in REAL else "assumptions broken"

    @property
    def trained(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.loss is not None]

    @property
    def happened(self) -> str:
        """Beyond noise: "some below" the tolerance, "all above", or "too near"."""
        if any(candidate.loss + Z_90 * candidate.error < TOLERANCE for candidate in self.trained):
            return "some below"
        return "all above" if all(candidate.lost_too_much for candidate in self.trained) else "too near"

    @property
    def wrong(self) -> bool | None:
        """Whether the replacement lost more than the tolerance, beyond noise; None if it was not trained."""
        return None if self.chosen.loss is None else self.chosen.lost_too_much


def merged(records: list[dict]) -> dict[str, dict]:
    """{case: record}: of several of one case the last, with the networks of all."""
    records_of_case = {}
    for record in records:
        networks = records_of_case.get(record["case"], {}).get("networks", {}) | record.get("networks", {})
        records_of_case[record["case"]] = record | ({"networks": networks} if "networks" in record else {})
    return records_of_case


def answer(candidates, tolerance=TOLERANCE) -> tuple[str, Candidate | None]:
    """As the verdict answers: of the candidates sure to be below the tolerance the cheapest, of these the best."""
    accepted = [candidate for candidate in candidates if candidate.high < tolerance]
    if accepted:
        return "replace", min(accepted, key=lambda candidate: (candidate.work, candidate.mean))
    return ("keep" if all(candidate.low > tolerance for candidate in candidates) else "undecided"), None


def joined(packed: dict, constants: Discrepancy = CONSTANTS) -> list[Held]:
    """Every case that has both, with intervals and answers as the constants give them."""
    outcomes, held = merged(packed["outcomes"]), []
    for record in packed["verdicts"]:
        outcome = outcomes.get(record["case"], {})
        if not outcome.get("networks") or not record.get("candidates"):
            continue
        candidates = tuple(
            _candidate(record, candidate, outcome["networks"].get(candidate["name"], {}), constants)
            for candidate in record["candidates"]
        )
        held.append(Held(record["case"], record["width"], *answer(candidates), candidates))
    return held


def _candidate(record, candidate, measured, constants):
    interval = predict(points_of(candidate, constants), record["width"], record["n"], constants)
    scores = {
        "kernel distance": candidate["distance"]["ck"]["with_factor"],
        "RMS of predictions": candidate["infinite"]["rms"],
        "fluctuation": (candidate["fluctuation"] - record["deq_fluctuation"]) / record["width"],
        "infinite width": candidate["infinite"]["difference"],
        "the verdict": interval.mean,
    }
    return Candidate(
        candidate["name"],
        candidate["work"],
        interval.mean,
        interval.low,
        interval.high,
        measured.get("loss"),
        measured.get("error"),
        scores,
    )


# ---------------------------------------------------------------------------------------------------------------
# the constants


def interval_score(candidate: Candidate) -> float:
    """Width of the interval and 20 times what it misses: of least mean for the true quantiles of 5% and 95%.

    (Gneiting & Raftery, J. Am. Stat. Assoc. 102 (2007), eq. 43.) The interval is widened by the error of the outcome.
    """
    low = candidate.mean - math.hypot(candidate.mean - candidate.low, Z_90 * candidate.error)
    high = candidate.mean + math.hypot(candidate.high - candidate.mean, Z_90 * candidate.error)
    return high - low + 20 * max(low - candidate.loss, candidate.loss - high, 0.0)


def mean_score(held: list[Held]) -> float:
    """Cases count alike, however many candidates they have."""
    return float(np.mean([np.mean([interval_score(candidate) for candidate in case.trained]) for case in held]))


FREE = ("amplitude", "spread", "length_u", "length_w", "floor", "seeds")
START = replace(CONSTANTS, amplitude=0.1, spread=1.5, length_u=3.0, length_w=3.0, floor=0.05, seeds=0.04)


def set_constants(packed: dict, half: set[str], steps: int = 400) -> Discrepancy:
    """The constants of the least mean interval score over the cases in `half`, by Nelder and Mead, in logarithms."""
    packed = packed | {"verdicts": [record for record in packed["verdicts"] if record["case"] in half]}

    def constants(logs):
        return replace(START, **dict(zip(FREE, np.exp(logs).tolist())))

    least = minimize(
        lambda logs: mean_score(joined(packed, constants(logs))),
        np.log([getattr(START, name) for name in FREE]),
        method="Nelder-Mead",
        options=dict(maxfev=steps, xatol=0.02, fatol=1e-3),
    )
    return constants(least.x)


# ---------------------------------------------------------------------------------------------------------------
# tables


def rate(yes: int, of: int) -> str:
    """A share in % with its 95% interval (Clopper and Pearson)."""
    if not of:
        return "none of 0"
    low = beta.ppf(0.025, yes, of - yes + 1) if yes else 0.0
    high = beta.ppf(0.975, yes + 1, of - yes) if yes < of else 1.0
    return f"{yes} of {of}, {100 * yes / of:.0f}% ({100 * low:.0f}% to {100 * high:.0f}%)"


def coverage(held: list[Held]) -> dict:
    """Shares in %, of all candidates that were trained: cases count alike."""

    def share(of):
        return 100 * float(np.mean([np.mean([of(candidate) for candidate in case.trained]) for case in held]))

    return {
        "covered": share(lambda candidate: candidate.covered),
        "as measured": share(lambda candidate: candidate.covered_as_measured),
        "below": share(lambda candidate: not candidate.covered and candidate.loss < candidate.mean),
        "above": share(lambda candidate: not candidate.covered and candidate.loss > candidate.mean),
    }


def _spread(held, draws=2000):
    """Half the width of the 95% interval of the coverage, by the bootstrap over cases."""
    each = np.array([np.mean([candidate.covered for candidate in case.trained]) for case in held])
    draw = np.random.default_rng(0).choice(each, (draws, len(each)))
    low, high = np.quantile(100 * draw.mean(1), [0.025, 0.975])
    return f"{low:.0f} to {high:.0f}"


COVERAGE = ("cases", "coverage, %", "its 95% interval", "as measured", "too low", "too high", "score", "median width")


def tables(held: list[Held], half: set[str], sgd: list[dict]):
    """Lines of Markdown."""
    halves = {
        "sets constants": [case for case in held if case.case in half],
        "reports": [case for case in held if case.case not in half],
    }
    yield _head("half", *COVERAGE)
    for name, cases in halves.items():
        yield _coverage_row(name, cases)
    reporting = halves["reports"]
    for title, key in (
        ("data", lambda case: case.kind),
        ("data set", lambda case: case.data),
        ("width", lambda case: f"{case.width}"),
    ):
        yield "\n" + _head(f"{title} (reports)", *COVERAGE)
        for value in sorted({key(case) for case in reporting}, key=lambda v: (len(v), v) if title == "width" else v):
            yield _coverage_row(value, [case for case in reporting if key(case) == value])
    for name, cases in halves.items():
        yield from _confusion(name, cases)
        yield from _confusion(f"{name}, matched networks alone", matched_alone(cases))
    yield from _alone(halves)
    yield from _by_sgd(held, sgd)


def _head(*names):
    """The first lines of a table whose columns but the first are numbers."""
    return head(*names, right=range(1, len(names)))


def _coverage_row(name, cases):
    c = coverage(cases)
    width = np.median([candidate.high - candidate.low for case in cases for candidate in case.trained])
    return row(
        name,
        f"{len(cases)}",
        f"{c['covered']:.0f}",
        _spread(cases),
        *(f"{c[key]:.0f}" for key in ("as measured", "above", "below")),
        f"{mean_score(cases):.2f}",
        f"{width:.2f}",
    )


def _confusion(name, cases):
    yield "\n" + _head(f"{name}: answer", "some below", "too near", "all above")
    for said in ("replace", "undecided", "keep"):
        counts = [
            sum(case.answer == said and case.happened == what for case in cases)
            for what in ("some below", "too near", "all above")
        ]
        yield row(said, *map(str, counts))
    replaced = [case for case in cases if case.answer == "replace"]
    trained = [case for case in replaced if case.wrong is not None]
    kept = [case for case in cases if case.answer == "keep"]
    yield f"\n- wrong replace: {rate(sum(case.wrong for case in trained), len(trained))}" + (
        f"; {len(replaced) - len(trained)} chosen ones not trained" if len(replaced) > len(trained) else ""
    )
    yield f"- wrong keep: {rate(sum(case.happened == 'some below' for case in kept), len(kept))}"
    yield f"- undecided: {rate(sum(case.answer == 'undecided' for case in cases), len(cases))}"
    yield f"- the chosen network's interval covers: {rate(sum(case.chosen.covered for case in trained), len(trained))}"


def matched_alone(held: list[Held]) -> list[Held]:
    """The cases as they would be without plain networks, of the matched ones that were trained."""
    alone = []
    for case in held:
        matched = tuple(candidate for candidate in case.trained if candidate.name.startswith("matched"))
        if matched:
            alone.append(Held(case.case, case.width, *answer(matched), matched))
    return alone


def _alone(halves):
    """What one number alone would have said: a line through the constants half, held against the other."""
    columns = "rank correlation", "area under ROC", "median error, points", "replaced", "wrong"
    yield "\n" + _head("predictor alone", *columns)
    values = {
        name: [(candidate.scores, candidate.loss) for case in cases for candidate in case.trained]
        for name, cases in halves.items()
    }
    for score in next(iter(values["reports"]))[0]:
        (x, y), (x_new, y_new) = (
            np.array([(scores[score], loss) for scores, loss in part]).T for part in values.values()
        )
        above = y_new > TOLERANCE
        area = (rankdata(x_new)[above].mean() - (above.sum() + 1) / 2) / (~above).sum() if 0 < above.sum() else math.nan
        slope, offset = (1.0, 0.0) if score == "the verdict" else np.linalg.lstsq(np.stack([x, x**0], 1), y)[0]
        error = np.median(np.abs(slope * x_new + offset - y_new))
        threshold = _threshold(halves["sets constants"], score)
        said = [chosen for case in halves["reports"] if (chosen := _below(case, score, threshold))]
        wrong = sum(candidate.lost_too_much for candidate in said)
        numbers = spearmanr(x_new, y_new).statistic, area, error
        replaced = f"{len(said)} of {len(halves['reports'])}"
        yield row(score, *(f"{number:.2f}" for number in numbers), replaced, f"{wrong}")
    for kind in ("plain, depth 1", "plain, depth 2"):
        always = [candidate for case in halves["reports"] for candidate in case.trained if candidate.name == kind]
        wrong = sum(candidate.lost_too_much for candidate in always)
        yield row(f"always {kind}", "", "", "", f"{len(always)} of {len(halves['reports'])}", f"{wrong}")


def _below(case, score, threshold):
    """The cheapest trained candidate whose score is below the threshold, or None."""
    accepted = [candidate for candidate in case.trained if candidate.scores[score] < threshold]
    return min(accepted, key=lambda candidate: (candidate.work, candidate.scores[score]), default=None)


def _threshold(held, score):
    """The largest below which at most 3% of the replacements are wrong."""
    best = -math.inf
    for threshold in sorted({candidate.scores[score] for case in held for candidate in case.trained}):
        said = [chosen for case in held if (chosen := _below(case, score, threshold))]
        if said and sum(candidate.lost_too_much for candidate in said) <= 0.03 * len(said):
            best = threshold
    return best


def _by_sgd(held, sgd):
    """Losses by SGD beside those of the exact readout."""
    losses = {(case.case, candidate.name): candidate for case in held for candidate in case.trained}
    for train, title in (("readout", "readouts by SGD"), ("full", "all weights by SGD")):
        pairs = [
            (record["case"], name, _mean_difference(record["runs"], name), losses[record["case"], name])
            for record in sgd
            if record["train"] == train
            for name in record["runs"]
            if (record["case"], name) in losses
        ]
        if not pairs:
            continue
        by_sgd, exact = np.array([p[2][0] for p in pairs]), np.array([p[3].loss for p in pairs])
        error = np.array([math.hypot(p[2][1], p[3].error) for p in pairs])
        apart = by_sgd - exact
        yield (
            f"\n{title}: {len(pairs)} losses of {len({p[0] for p in pairs})} cases; less those of the exact readout "
            f"{apart.mean():+.2f} on average, RMS {math.sqrt((apart**2).mean()):.2f} (of their errors "
            f"{math.sqrt((error**2).mean()):.2f}), correlation {np.corrcoef(by_sgd, exact)[0, 1]:.2f}"
        )
        for case, name, (loss, own), candidate in pairs:
            yield f"- {case}, {name}: {loss:+.2f} ± {own:.2f}; exact {candidate.loss:+.2f} ± {candidate.error:.2f}"


def _mean_difference(runs, name):
    d = np.array([a["accuracy"] - b["accuracy"] for a, b in zip(runs["deq"], runs[name])])
    return d.mean(), d.std(ddof=1) / math.sqrt(len(d))
