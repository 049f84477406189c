"""Marks in a text, and tables in Markdown."""

import pytest

from deq_enn.reporting.markdown import Table, head, row
from deq_enn.reporting.page import heading, inline


@pytest.mark.parametrize(
    "text, html",
    [
        ("at sigma_a^2 = 0.2", "at σ<sub>a</sub><sup>2</sup> = 0.2"),
        ("at σ_a² = 0.2", "at σ<sub>a</sub><sup>2</sup> = 0.2"),
        ("τ_0, tau_0, τ_* and tau_*", "τ<sub>0</sub>, τ<sub>0</sub>, τ<sub>*</sub> and τ<sub>*</sub>"),
        ("E[phi'^2] and |x|²", "E[φ'<sup>2</sup>] and |x|<sup>2</sup>"),
        ("O(n^(-1/2))", "O(n<sup>-1/2</sup>)"),
        ("*ck l_relu*: 2 < 3 & `a_b`", "<em>ck l_relu</em>: 2 &lt; 3 &amp; <code>a_b</code>"),
        ("a tau of 3, sigma_x.py", "a tau of 3, σ<sub>x</sub>.py"),
    ],
)
def test_marks_become_html(text, html):
    assert inline(text) == html


def test_a_name_with_a_hyphen_is_not_broken():
    assert heading("ReLU-DEQ < σ_a²") == "ReLU\N{NON-BREAKING HYPHEN}DEQ &lt; σ<sub>a</sub><sup>2</sup>"


def test_a_table_in_markdown():
    table = Table("T", ["a|b", "n"], [["x", "1"], ["y", "–"]], "note")
    assert table.markdown() == "**T**\n\n| a\\|b | n |\n| --- | ---: |\n| x | 1 |\n| y | – |\n\nnote\n"
    assert head("a", "b") + "\n" + row("1", "2") == "| a | b |\n| --- | --- |\n| 1 | 2 |"
