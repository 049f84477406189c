"""The page and the figure show the numbers of the verdict, whatever is known, and need no other file."""

import copy
import json
import re

import pytest

from deq_enn.reporting import page as reporting_page
from deq_enn.verdicts import figure as verdict_figure
from deq_enn.verdicts.figure import draw
from deq_enn.verdicts.page import write
from tests.helpers.pages import check_page, check_widths


def candidate(name, kind, loss, **others):
    return {
        "name": name,
        "kind": kind,
        "kernel": "ck" if kind == "matched" else None,
        "family": None,
        "depth": 2,
        "input_scale": 1.0,
        "alignment": 0.4321,
        "fluctuation": 8.0,
        "width_from": 512,
        "cost": None,
        "distance": {
            "ck": {"relative": 0.0312, "factor": 0.98, "with_factor": 0.0201},
            "ntk": {"relative": 0.47, "factor": 0.6, "with_factor": 0.0199},
        },
        "infinite": {"accuracy": 0.91, "difference": 0.37, "interval": [0.1, 0.6], "rms": 0.1},
        "loss": loss,
        "loss_interval": None if loss is None else [loss - 0.31, loss + 0.32],
        "layers": ["a", "b"],
        "parameters": [{"kinks": [-0.61, 0.61], "slopes": [0.1, 0.9, 1.2], "value_at_zero": 0.0}],
        "measured": [],
    } | others


FOUND = {
    "answer": "replace",
    "reason": ["plain, depth 1 at width 256 loses -0.12 points.", "It is below 0.5."],
    "applies": {
        "fails": ["two samples are not nearly orthogonal"],
        "concentration": {key: 0.28 for key in ("norm_spread", "norm_farthest", "cosine", "cosine_largest")}
        | {"gaussian": dict.fromkeys(("norm_spread", "norm_farthest", "cosine", "cosine_largest"), 0.05)},
        "stability": {"tau": 0.9, "growth": 0.11, "growth_largest": 0.12, "lipschitz": 1.2},
    },
    "candidates": [
        candidate("matched ck: 2 l_relu, root 1", "matched", 0.03),
        candidate(
            "plain, depth 1",
            "plain",
            -0.12,
            parameters=None,
            cost={"inference": 6.2, "features": 7.7, "training_step": 5.4, "memory": 1.35, "measured": {}},
        ),
    ],
    "chosen": "plain, depth 1",
    "refused": {"ck hard_tanh": "a hard tanh is odd & has c2 < 0"},
    "deq": {},
    "drift": None,
    "settings": {
        "dataset": "mine <b>",
        "activation": "swish",
        "sigma_a2": 0.3,
        "width": 256,
        "tolerance": 0.5,
        "n": 6000,
        "p": 784,
        "classes": 10,
        "seed": 0,
        "level": 0.9,
        "budget": 60,
    },
    "seconds": 41.7,
}

DRIFT = {
    "left": True,
    "settle": True,
    "p": 0.05,
    "score": 34.7,
    "sigma_a2": 0.198,
    "gain": 1.0,
    "infinite": {"trained": 2.2, "random": 0.85},
    "statistics": {
        name: {"value": 1.02, "random": 1.03, "spread": 0.02, "score": score}
        for name, score in (("radius of A", -0.4), ("largest singular value of A", 1.2), ("kernel", 34.7))
    },
}


def trained():
    result = copy.deepcopy(FOUND) | {"drift": DRIFT, "applies": {}}
    result["candidates"] = [
        single
        | {
            "distance": None,
            "infinite": None,
            "width_from": None,
            "alignment": None,
            "accuracy": 80.12,
            "agreement": 95.67,
        }
        for single in result["candidates"]
    ]
    return result


def cells(html):
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html)]


def figure_of(result, monkeypatch, tmp_path):
    """The matplotlib figure that is drawn, laid out."""
    kept = []
    monkeypatch.setattr(
        verdict_figure, "save", lambda figure, path, **_: (figure.draw_without_rendering(), kept.append(figure))
    )
    assert draw(result, tmp_path / "x.png")
    return kept[0]


def test_the_page_shows_the_numbers_and_needs_nothing_else(tmp_path):
    picture, page = write(FOUND, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG") and sorted(tmp_path.iterdir()) == sorted([picture, page])
    html = page.read_text()
    check_page(html, pictures=1)
    assert "Replace it: the swish-DEQ of width 256" in html and all(sentence in html for sentence in FOUND["reason"])
    shown = cells(html)
    for number in (
        "−0.12",
        "−0.43 to +0.20",
        "512",
        "+0.37",
        "0.031",
        "0.02",
        "0.47",
        "0.43",
        "6.2",
        "7.7",
        "5.4",
        "0.28",
    ):
        assert number in shown, number
    assert "kinks = (-0.61, 0.61), slopes = (0.1, 0.9, 1.2), value_at_zero = 0" in shown
    assert "mine &lt;b&gt;: 6000 samples of dimension p = 784" in html and "odd &amp; has c2 &lt; 0" in html
    assert "Two samples are not nearly orthogonal." in html
    before = picture.read_bytes(), html
    write(json.loads(json.dumps(FOUND)), tmp_path)
    assert (picture.read_bytes(), page.read_text()) == before


@pytest.mark.slow
def test_nothing_lies_beyond_the_windows_edge(tmp_path):
    check_widths(write(FOUND, tmp_path)[-1], tmp_path)


def test_the_page_shows_risks_where_they_are_known(tmp_path):
    """A verdict.json of an earlier version has none."""
    verdict = copy.deepcopy(FOUND)
    verdict["settings"] |= {"risk": 0.1, "for": "draw"}
    verdict["candidates"][0] |= {"risk": 0.0312, "draw_risk": 0.0004}
    html = write(verdict, tmp_path / "new")[1].read_text()
    assert "tolerated are 0.5, at a risk of 10%." in html and {"3.1%", "less than 0.1%"} <= set(cells(html))
    before = write(FOUND, tmp_path / "old")[1].read_text()
    assert "tolerated are 0.5." in before and "%" not in "".join(cells(before))


def test_the_figure_has_the_losses_and_their_intervals(tmp_path, monkeypatch):
    figure = figure_of(FOUND, monkeypatch, tmp_path)
    loss, distance, saved = figure.axes
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in loss.lines if len(line.get_xdata()) == 1}
    assert {(0.03, 0), (-0.12, 1), (0.37, 0), (0.37, 1)} <= points  # and the open ones, of infinite width
    ends = [segment[:, 0].tolist() for bars in loss.collections for segment in bars.get_segments()]
    assert [[round(x, 9) for x in end] for end in ends] == [[-0.28, 0.35], [-0.43, 0.2]]
    assert [label.get_text() for label in loss.get_yticklabels()] == ["matched CK: 2 l-relu, root 1", "plain, depth 1"]
    assert [label.get_fontweight() for label in loss.get_yticklabels()] == ["normal", "bold"]
    assert loss.get_xlim()[0] < -1 and loss.get_xlim()[1] > 1
    assert {0.0312, 0.0201, 0.47} <= {x for line in distance.lines for x in line.get_xdata()}
    assert [bar.get_width() for bar in saved.patches] == [6.2, 7.7, 5.4, 1.35]
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "(a) loss at width 256",
        "(b) kernels beside the DEQ's",
        "(c) saved",
    ]
    assert not any(ax.get_title() for ax in figure.axes)


def test_the_intervals_of_one_draw_are_shown_to_their_ends(tmp_path, monkeypatch):
    """Where they were asked for; those of the mean are shorter."""
    verdict = copy.deepcopy(FOUND)
    verdict["settings"]["for"] = "draw"
    for each in verdict["candidates"]:
        each |= {"draw_loss": each["loss"] + 0.1, "draw_interval": [each["loss"] - 5.0, each["loss"] + 6.0]}
    loss = figure_of(verdict, monkeypatch, tmp_path).axes[0]
    ends = [segment[:, 0].tolist() for bars in loss.collections for segment in bars.get_segments()]
    assert [[round(x, 9) for x in end] for end in ends] == [[-4.97, 6.03], [-5.12, 5.88]]
    assert loss.get_xlim()[0] < -5.12 and loss.get_xlim()[1] > 6.03


@pytest.mark.slow
def test_nothing_in_the_figure_lies_on_something_else(tmp_path, monkeypatch):
    for result in (FOUND, trained()):
        figure = figure_of(result, monkeypatch, tmp_path)
        texts = [
            text for ax in figure.axes for text in (*ax.get_yticklabels(), ax.xaxis.label, ax.title) if text.get_text()
        ] + [text for legend in figure.legends for text in legend.get_texts()]
        boxes = [text.get_window_extent() for text in texts]
        overlapping = [
            (a.get_text(), b.get_text())
            for i, a in enumerate(texts)
            for j, b in enumerate(texts)
            if i < j and boxes[i].overlaps(boxes[j])
        ]
        assert not overlapping
        size = figure.bbox
        assert all(box.x0 >= size.x0 - 1 and box.x1 <= size.x1 + 1 for box in boxes)


@pytest.mark.slow
def test_a_trained_deq_has_its_weights_and_measured_losses_shown(tmp_path, monkeypatch):
    _, page = write(trained(), tmp_path)
    html = page.read_text()
    assert "have left the random regime" in html and "34.7 standard deviations" in html
    assert {"80.12", "95.67", "+34.7", "2.2", "0.85", "-0.4"} <= set(cells(html))
    within = trained()
    within["drift"] = DRIFT | {"left": False, "infinite": None}
    assert "are within the random regime" in write(within, tmp_path)[1].read_text()
    figure = figure_of(trained(), monkeypatch, tmp_path)
    bars = next(ax for ax in figure.axes if "trained weights" in ax.get_title(loc="left"))
    assert [bar.get_width() for bar in bars.patches][-3:] == [-0.4, 1.2, 34.7]


@pytest.mark.slow
def test_whatever_is_known_has_a_page(tmp_path):
    """As after an interruption, or without labels."""
    nothing = copy.deepcopy(FOUND) | {
        "candidates": [],
        "chosen": None,
        "answer": "undecided",
        "applies": {},
        "refused": {},
    }
    assert [path.name for path in write(nothing, tmp_path / "a")] == ["verdict.html"]
    for keys in (
        ("loss", "loss_interval", "infinite", "cost", "alignment", "width_from"),
        ("loss", "loss_interval", "infinite", "cost", "alignment", "width_from", "distance"),
        ("cost",),
        ("infinite",),
        ("distance",),
    ):
        result = copy.deepcopy(FOUND)
        for single in result["candidates"]:
            single |= dict.fromkeys(keys)
        result["settings"]["classes"] = None
        html = re.sub(r"base64,[^\"]*", "", write(result, tmp_path / "b")[-1].read_text())
        assert "plain, depth 1" in html and "no labels" in html and "None" not in html and "nan" not in html


@pytest.mark.slow
def test_of_many_candidates_the_best_are_drawn(tmp_path, monkeypatch):
    result = copy.deepcopy(FOUND)
    result["candidates"] = [candidate(f"n{i}", "plain", 20.0 - i) for i in range(30)] + [candidate("it", "plain", 99.0)]
    result["chosen"] = "it"
    figure = figure_of(result, monkeypatch, tmp_path)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"n{i}" for i in range(19, 30)] + ["it"]


def test_nothing_is_left_of_a_page_that_cannot_be_written(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting_page, "render", broken)
    with pytest.raises(OSError):
        write(FOUND, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["verdict.png"]
