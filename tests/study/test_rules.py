"""From numbers to words: each rule, each verdict, and what may not contradict what."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_analysis.study import rules
from vit_analysis.study.rules import (
    ARCHITECTURAL,
    FRAGILE,
    OPEN,
    PARTLY,
    REFUTED,
    REPRODUCED,
    SMALLER,
    UNKNOWN,
    Above,
    Below,
    Described,
    Falling,
    Known,
    Near,
    Within,
    judge,
    together,
)

SIDES = (REPRODUCED, REFUTED, OPEN)


@pytest.mark.parametrize(
    ("rule", "interval", "side"),
    [
        (Above(0.0), (0.2, 0.1, 0.3), REPRODUCED),
        (Above(0.0), (-0.2, -0.3, -0.1), REFUTED),
        (Above(0.0), (0.1, -0.1, 0.3), OPEN),
        (Above(0.0), (0.2, float("nan"), float("nan")), OPEN),
        (Above(3.0), (2.0, 1.0, 2.5), REFUTED),
        (Below(0.5), (0.3, 0.2, 0.4), REPRODUCED),
        (Below(0.5), (0.7, 0.6, 0.8), REFUTED),
        (Below(0.5), (0.5, 0.4, 0.6), OPEN),
        (Near(2.0, 6.0), (4.0, 3.0, 5.0), REPRODUCED),
        (Near(2.0, 6.0), (7.0, 5.9, 8.1), REPRODUCED),
        (Near(2.0, 6.0), (9.0, 8.0, 10.0), REFUTED),
        (Near(2.0, 6.0), (1.0, 0.5, 1.5), REFUTED),
        (Near(2.0, 6.0), (2.0, -1.0, 5.0), OPEN),
        (Near(2.0, 6.0), (-3.0, -4.0, -2.0), REFUTED),
        (Within(3.0), (1.0, -1.0, 2.9), REPRODUCED),
        (Within(3.0), (-5.0, -6.0, -3.5), REFUTED),
        (Within(3.0), (0.5, -4.0, 5.0), OPEN),  # not shown to differ is not shown to be alike
        (Within(3.0), (0.5, float("nan"), float("nan")), OPEN),
        (Falling(), (-0.95, -1.0, -0.9), REPRODUCED),
        (Falling(), (-0.85, -1.1, -0.6), REPRODUCED),
        (Falling(), (-0.5, -0.7, -0.3), REFUTED),
        (Falling(), (-0.9, -1.9, 0.1), OPEN),
        (Falling(), (0.5, 0.2, 0.8), REFUTED),
        (Described(), (28.0, 20.0, 30.0), OPEN),
    ],
)
def test_the_side_follows_from_the_interval_alone(rule, interval, side):
    assert rule.side(*interval) == side


def test_a_rule_says_what_it_wants_and_whether_the_effect_is_as_large_as_the_words():
    assert str(Above(0.0, 0.1)) == "> 0 (in size: 0.1)"
    assert str(Below(3.0)) == "< 3"
    assert str(Near(2.0, 6.0)) == "> 0, meets [2, 6]"
    assert str(Within(3.0)) == "within 3 of 0"
    assert [Above(0.0, 0.1).in_size(value) for value in (0.2, 0.05)] == [True, False]
    assert Above(0.0).in_size(0.01)
    assert [Below(0.5, 0.4).in_size(value) for value in (0.45, 0.3)] == [False, True]
    assert (Near(2.0, 6.0).in_size(1.0), Falling().in_size(-0.7), Within(3.0).in_size(-4.0)) == (False,) * 3
    assert Near(2.0, 6.0).in_size(7.0)


@pytest.mark.parametrize(
    ("known", "word", "because"),
    [
        (Known(REPRODUCED), REPRODUCED, ""),
        (Known(REPRODUCED, p=0.01, turning={"a": REPRODUCED}, runs=(REPRODUCED,)), REPRODUCED, ""),
        (Known(REPRODUCED, in_size=False), SMALLER, ""),
        (Known(REPRODUCED, untrained=REPRODUCED), ARCHITECTURAL, ""),
        (Known(REPRODUCED, untrained=REFUTED), REPRODUCED, ""),
        (Known(REPRODUCED, untrained=REPRODUCED, untrained_share=0.5), ARCHITECTURAL, ""),
        (Known(REPRODUCED, untrained=REPRODUCED, untrained_share=0.4), REPRODUCED, ""),
        (Known(REPRODUCED, in_size=False, untrained=REPRODUCED, untrained_share=0.4), SMALLER, ""),
        (Known(REPRODUCED, untrained=REPRODUCED, of_architecture=True), REPRODUCED, ""),
        (Known(REPRODUCED, turning={"a": REFUTED, "b": REPRODUCED}), FRAGILE, "reproduced, but not under: a"),
        (
            Known(REPRODUCED, turning={"a": OPEN, "b": OPEN}),
            FRAGILE,
            "reproduced, but not under: a; b",
        ),
        (Known(REFUTED, turning={"a": REPRODUCED}), FRAGILE, "not reproduced, but it is under: a"),
        (Known(REFUTED, turning={"a": OPEN}), REFUTED, ""),
        (Known(REPRODUCED, runs=(REPRODUCED, OPEN)), FRAGILE, "reproduced, but not in every training run"),
        (
            Known(REFUTED, runs=(REFUTED, REPRODUCED)),
            FRAGILE,
            "not reproduced, but it is in another training run",
        ),
        (Known(REFUTED, untrained=REPRODUCED), REFUTED, ""),
        (Known(OPEN, turning={"a": REPRODUCED}), OPEN, ""),
        (Known(REPRODUCED, p=0.2), OPEN, "p is 0.2 after adjusting for the number of claims"),
        (Known(REFUTED, p=0.2), OPEN, "p is 0.2 after adjusting for the number of claims"),
        (Known(REPRODUCED, p=math.nan), REPRODUCED, ""),
        (Known(REPRODUCED, null=(REPRODUCED,)), OPEN, "images that do not belong together give it as well"),
        (Known(REPRODUCED, null=(OPEN, REFUTED)), REPRODUCED, ""),
        (Known(REPRODUCED, rests_on={"A": SMALLER}), REPRODUCED, ""),
        (Known(REPRODUCED, rests_on={"A": REFUTED, "B": OPEN}), OPEN, "says nothing without A and B"),
        (Known(REPRODUCED, of_training=True), OPEN, "reproduced in one training run, which cannot tell"),
        (Known(REPRODUCED, of_training=True, runs=(REPRODUCED, REPRODUCED)), REPRODUCED, ""),
        (Known(REFUTED, of_training=True, runs=(REFUTED,)), REFUTED, ""),
        (
            Known(REPRODUCED, of_training=True, runs=(REPRODUCED, REFUTED)),
            OPEN,
            "training runs do not agree",
        ),
        (Known(REFUTED, of_training=True, runs=(OPEN,)), OPEN, "training runs do not agree"),
    ],
)
def test_each_verdict_and_why(known, word, because):
    assert judge(known) == (word, because)


side = st.sampled_from(SIDES)
known = st.fixed_dictionaries(
    {
        "side": side,
        "p": st.one_of(st.just(math.nan), st.floats(0, 1)),
        "in_size": st.booleans(),
        "turning": st.dictionaries(st.sampled_from("abc"), side),
        "null": st.lists(side, max_size=2),
        "runs": st.lists(side, max_size=3),
        "of_training": st.booleans(),
        "untrained": st.one_of(st.none(), side),
        "untrained_share": st.floats(0, 2),
        "of_architecture": st.booleans(),
        "rests_on": st.dictionaries(st.sampled_from("AB"), st.sampled_from(list(rules.WORDS))),
    }
)


@given(known)
def test_no_verdict_contradicts_what_is_known(facts):
    known = Known(**facts)
    word, because = judge(known)
    assert word in rules.WORDS
    if word in (REPRODUCED, SMALLER, ARCHITECTURAL):
        assert known.side == REPRODUCED
        assert not known.p >= rules.LEVEL
        assert set(known.turning.values()) | set(known.runs) <= {REPRODUCED}
        assert REPRODUCED not in known.null
    if word == REPRODUCED:
        assert known.in_size
        assert known.of_architecture or known.untrained != REPRODUCED or known.untrained_share < rules.HALF
    if word == REFUTED:
        assert known.side == REFUTED
        assert not known.p >= rules.LEVEL
        assert REPRODUCED not in {*known.turning.values(), *known.runs}
    if known.of_training and word != OPEN:
        assert len(known.runs) >= 1
    if word == FRAGILE:
        assert because


@given(known, st.sampled_from("xyz"), side)
def test_a_further_control_never_makes_a_verdict_stronger(facts, name, further):
    known = Known(**facts)
    order = {FRAGILE: 0, OPEN: 0, REFUTED: 1, ARCHITECTURAL: 1, SMALLER: 1, REPRODUCED: 1}
    more = Known(**{**facts, "turning": {**facts["turning"], name: further}})
    assert order[judge(more)[0]] <= order[judge(known)[0]]


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([REPRODUCED, REPRODUCED, UNKNOWN], REPRODUCED),
        ([REPRODUCED, SMALLER], REPRODUCED),
        ([REPRODUCED, ARCHITECTURAL], REPRODUCED),
        ([REPRODUCED, REFUTED], PARTLY),
        ([REPRODUCED, OPEN], PARTLY),
        ([REPRODUCED, FRAGILE], PARTLY),
        ([ARCHITECTURAL, ARCHITECTURAL], ARCHITECTURAL),
        ([ARCHITECTURAL, FRAGILE], FRAGILE),
        ([ARCHITECTURAL, REFUTED], REFUTED),
        ([ARCHITECTURAL, REFUTED, REFUTED, REFUTED], REFUTED),
        ([FRAGILE, REFUTED], OPEN),
        ([FRAGILE, OPEN], OPEN),
        ([ARCHITECTURAL, OPEN], OPEN),
        ([REFUTED, REFUTED], REFUTED),
        ([REFUTED, OPEN], OPEN),
        ([OPEN], OPEN),
        ([UNKNOWN], UNKNOWN),
        ([], UNKNOWN),
    ],
)
def test_what_several_claims_add_up_to(verdicts, whole):
    assert together(verdicts) == whole


@given(st.lists(st.sampled_from(list(rules.WORDS))))
def test_a_difference_is_reproduced_only_by_a_claim_that_is(verdicts):
    if not {REPRODUCED, SMALLER} & set(verdicts):
        assert together(verdicts) not in (REPRODUCED, PARTLY)
