"""Verdicts in pictures: on which side, how far in units of the paper's size, under which title, in which look."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from plot_tables import findings

from vit_analysis import plot
from vit_analysis.plot.rows import LEAST, MOST, SIDE
from vit_analysis.plot.verdicts import DIFFERENCES as TITLES
from vit_analysis.plot.verdicts import UNTRAINED
from vit_analysis.study import controls, rules
from vit_analysis.study.differences import DIFFERENCES

LOOKS = {  # colour, marker, and whether it is filled
    "reproduced": ("#1f4e9c", "o", True),
    "reproduced, smaller than claimed": ("#1f4e9c", "o", False),
    "architectural": ("#5b6bb5", "^", False),
    "fragile": ("#b07d12", "D", False),
    "not reproduced": ("#b3261e", "s", True),
    "inconclusive": ("0.4", "D", True),
}
DRAWN = ["F1a", "F2a", "F5", "F7a", "F8b", "F9a", "F9b", "H1"]


class Marks(NamedTuple):
    bar: Line2D
    runs: Line2D
    untrained: Line2D
    value: Line2D


def marked(ax: Axes) -> list[Marks]:
    """What is drawn of every row, from top to bottom, by how far in front it lies."""
    by_front = [[line for line in ax.lines if line.get_zorder() == front] for front in (2, 3, 4, 5)]
    return [Marks(*own) for own in zip(*by_front, strict=True)]


def words(ax: Axes) -> list[Text]:
    """The verdicts of rows as they are written, from top to bottom."""
    held = (*LOOKS, "weather")
    return [t for t in ax.texts if t.get_text().replace("\n", " ") in held and t.get_fontweight() != "bold"]


def written(ax: Axes) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in ax.texts)


def test_a_row_is_in_units_of_the_papers_size_with_the_wanted_side_to_the_right():
    ax = plot.verdicts(findings()).axes[0]
    values = [row.value.get_xdata()[0] for row in marked(ax)]
    # 0.3 of 0.2; 0.1 too much; 0.7 of 0.8 down; 1 of 4; 3 of 2; ten times; 0.05 of the 0.1 that the interval reaches; 0.5
    assert values == pytest.approx([1.5, -SIDE * 2 / 3, 0.875, 0.25, 1.5, MOST, SIDE / 2, SIDE])
    bars = [row.bar.get_xdata() for row in marked(ax)]
    np.testing.assert_allclose(bars[0], [1, 2])
    np.testing.assert_allclose(
        bars[1], [-SIDE, -SIDE / 3]
    )  # a number that should be low: the ends change places
    np.testing.assert_allclose(bars[2], [0.625, 1.125])
    assert np.isnan(bars[-1]).all()
    heights = [row.value.get_ydata()[0] for row in marked(ax)]
    assert all(above < below for above, below in pairwise(heights))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is at the top


def test_what_is_farther_than_drawn_is_an_arrow_at_the_edge():
    table = findings()
    table.loc[table["id"] == "F9b", ["size", "value"]] = 0.201, -5.0
    rows = dict(zip(DRAWN, marked(plot.verdicts(table).axes[0]), strict=True))
    assert (rows["F9a"].value.get_marker(), rows["F9a"].value.get_xdata()[0]) == (">", MOST)
    assert (rows["F9b"].value.get_marker(), rows["F9b"].value.get_xdata()[0]) == ("<", LEAST)


def test_rows_without_a_size_are_dotted():
    ax = plot.verdicts(findings()).axes[0]
    ground = [line.get_linestyle() for line in ax.lines if line.get_linewidth() == 0.6]
    assert ground == ["-", ":", "-", "-", "-", "-", ":", ":"]


def test_findings_without_a_number_or_a_side_are_named_and_not_drawn():
    figure = plot.verdicts(findings())
    assert [name for name in findings()["id"] if name not in written(figure.axes[0]).split()] == [
        "F3e",
        "F12a",
    ]
    assert "nan" not in written(figure.axes[0])
    (told,) = [text.get_text() for text in figure.texts]
    assert "Not drawn: F3e, F12a." in told.replace("\n", " ")
    assert told.startswith("1,760 images of the lab.")


def test_numbers_stand_beside_their_claim():
    told = written(plot.verdicts(findings()).axes[0])
    assert "-0.7 [-0.9, -0.5], wanted < 0, in size -0.8" in told
    assert "0.25 [0.2, 0.3], wanted > 0.2" in told
    assert "[" not in written(plot.five_differences(findings()).axes[0])


def test_training_runs_are_dots_and_untrained_twins_open():
    rows = dict(zip(DRAWN, marked(plot.verdicts(findings()).axes[0]), strict=True))
    np.testing.assert_allclose(rows["F7a"].runs.get_xdata(), [0.25, 0.1, -0.5])
    ends = [SIDE / 2, -SIDE / 2]  # the interval reaches farther
    np.testing.assert_allclose(rows["F9b"].runs.get_xdata(), ends)
    assert rows["F1a"].untrained.get_xdata() == pytest.approx([0.5])
    assert rows["F1a"].untrained.get_markerfacecolor() == "none"
    assert np.isnan(rows["F9b"].untrained.get_xdata()).all()
    assert controls.UNTRAINED.words == UNTRAINED


@pytest.mark.parametrize("column", ["runs", "controls", "wanted", "size"])
def test_a_table_of_an_earlier_version_is_drawn(column):
    assert marked(plot.verdicts(findings().drop(columns=column)).axes[0])


@pytest.mark.parametrize(("word", "look"), [*LOOKS.items(), ("weather", LOOKS["inconclusive"])])
def test_a_verdict_has_its_look_and_one_that_is_not_known_a_neutral_one(word, look):
    colour, marker, filled = look
    table = findings().assign(verdict=word)
    ax = plot.verdicts(table[table["id"] == "F9b"]).axes[0]
    (row,) = marked(ax)
    assert row.value.get_marker() == marker
    assert row.value.get_markerfacecolor() == (colour if filled else "white")
    (written_word,) = words(ax)
    assert {own.get_color() for own in (row.bar, row.runs, row.value, written_word)} == {colour}


def test_verdicts_are_told_apart_without_colour():
    assert set(LOOKS) == set(rules.WORDS) - {rules.UNKNOWN}
    assert len({(marker, filled) for _, marker, filled in LOOKS.values()}) == len(LOOKS)


def titles(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"][1:]


def test_verdicts_are_grouped_by_difference_or_else_by_verdict():
    def groups(table: pd.DataFrame) -> list[str]:
        return [title for title in titles(plot.verdicts(table).axes[0]) if title]

    table = findings()
    assert [title[:2] for title in groups(table)] == ["1.", "2.", "3.", "4.", "Ot"]
    table.loc[0, "verdict"] = "weather"
    assert groups(table.drop(columns="difference")) == [
        *("Reproduced, smaller than claimed", "Architectural", "Fragile", "Not reproduced", "Inconclusive"),
        "Weather",
    ]
    assert groups(table[:0]) == []


def test_the_five_differences_have_their_verdicts_and_claims_and_what_words_mean():
    figure = plot.five_differences(findings())
    ax = figure.axes[0]
    heads = titles(ax)
    assert heads[:2] == [f"1. {TITLES[1]}", "partly reproduced"]
    assert [head[:2] for head in heads if head[:1].isdigit()] == ["1.", "2.", "3.", "4."]
    assert len(marked(ax)) == 7  # without H1
    assert "ViT" in written(ax)
    assert "Vision Transformer" not in written(ax)
    (told,) = [text.get_text() for text in figure.texts]
    assert "untrained twins get there as well" in told.replace("\n", " ")


def test_every_difference_of_the_study_has_a_title():
    assert set(TITLES) == {one.number for one in DIFFERENCES}
