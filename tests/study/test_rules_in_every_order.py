"""Every rule in every order of value, bounds and thresholds, equalities included, and every verdict from all that is known.

What has to come out is said again in sentences about which numbers lie where, with no helper of the code. The number itself
decides nothing but for a rank correlation, which has to be clear; a rule without a sentence is an error.
"""

import math
from itertools import pairwise, product
from typing import get_args

import pytest

from vit_analysis.study import rules
from vit_analysis.study.claims import CLAIMS
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
    Rule,
    Within,
    aim,
    judge,
    together,
)

NAN = math.nan
# By rule: one of its kind, the numbers that matter to it, when it is for the claim (which counts first), and when against it.
SAID: dict[type, tuple[Rule, tuple[float, ...], str, str]] = {
    Above: (Above(2.0), (2.0,), "low > 2", "high < 2"),
    Below: (Below(2.0), (2.0,), "high < 2", "low > 2"),
    Near: (Near(2.0, 6.0), (0.0, 2.0, 6.0), "0 < low <= 6 and high >= 2", "high < 2 or low > 6"),
    Within: (Within(3.0), (-3.0, 3.0), "-3 < low and high < 3", "low > 3 or high < -3"),
    Falling: (Falling(), (-0.8, 0.0), "value <= -0.8 and high < 0", "low > -0.8"),
    Described: (Described(), (0.0,), "False", "False"),
}


def places(numbers: tuple[float, ...]) -> list[float]:
    """Each number, and one below, between and above them."""
    ends = (numbers[0] - 0.5, *numbers, numbers[-1] + 0.5)
    return sorted({*ends, *((a + b) / 2 for a, b in pairwise(ends))})


def test_every_rule_has_a_sentence():
    assert set(SAID) == set(get_args(Rule)) >= {type(claim.rule) for claim in CLAIMS}


@pytest.mark.parametrize("kind", SAID)
def test_a_rule_says_what_its_sentence_says_in_every_order(kind):
    rule, numbers, good, bad = SAID[kind]
    for_it, against = (eval(f"lambda value, low, high: {words}") for words in (good, bad))
    tried = 0
    for low, value, high in product(places(numbers), repeat=3):
        if low <= value <= high:
            expected = (
                REPRODUCED if for_it(value, low, high) else REFUTED if against(value, low, high) else OPEN
            )
            assert rule.side(value, low, high) == expected, (value, low, high)
            tried += 1
        assert rule.side(value, NAN, NAN) == OPEN
    assert tried >= 10


@pytest.mark.parametrize(
    ("rule", "yes", "no"),
    [
        (Above(0.0, 0.3), (0.3, 0.4), (0.2, -1.0)),
        (Above(0.0, 0.0), (0.0, 0.1), (-0.1,)),
        (Above(0.0), (0.0, -9.0), ()),
        (Below(0.5, 0.3), (0.3, 0.2), (0.4,)),
        (Below(0.5), (9.0,), ()),
        (Near(2.0, 6.0), (2.0, 6.0, 9.0), (1.9,)),
        (Within(3.0), (3.0, -3.0, 0.0), (3.1, -3.1)),
        (Falling(), (-0.8, -1.0), (-0.7, 0.9)),
        (Described(), (-9.0, 9.0), ()),
    ],
)
def test_a_size_is_reached_at_the_size(rule, yes, no):
    assert all(rule.in_size(value) for value in yes)
    assert not any(rule.in_size(value) for value in no)


def test_a_rule_tells_its_direction_and_size_and_has_a_threshold_where_one_number_decides():
    told = {
        Above(1.0, 0.3): (1, 0.3),
        Above(1.0): (1, NAN),
        Below(1.0, 0.3): (-1, 0.3),
        Below(1.0): (-1, NAN),
        Near(2.0, 6.0): (1, 2.0),
        Falling(): (-1, -0.8),
        Within(3.0): (0, NAN),
        Described(): (0, NAN),
    }
    for rule, expected in told.items():
        assert aim(rule) == pytest.approx(expected, nan_ok=True), rule
    decided = {type(rule): rule.threshold for rule in told}
    assert (decided[Above], decided[Below], decided[Falling]) == (1, 1, 0)
    assert all(math.isnan(decided[kind]) for kind in (Near, Within, Described))


# From sides to verdicts --------------------------------------------------------------------------------------------------

SIDES = (REPRODUCED, REFUTED, OPEN)
RUNS = ((), (REPRODUCED,), (REFUTED,), (OPEN,), (REPRODUCED, OPEN), (REFUTED, REPRODUCED))


def verdict(known: Known) -> str:
    """What WORDS says, word by word, in the order of what forbids more."""
    for_it = known.side == REPRODUCED
    undecided = (
        known.side == OPEN,
        known.p >= 0.05,
        for_it and any(own == REPRODUCED for own in known.null),
        known.of_training and (not known.runs or any(run != known.side for run in known.runs)),
    )
    if any(undecided):
        return OPEN
    others = [*known.turning.values(), *known.runs]
    if any(own != REPRODUCED for own in others) if for_it else any(own == REPRODUCED for own in others):
        return FRAGILE
    if not for_it:
        return REFUTED
    if any(word not in (REPRODUCED, SMALLER) for word in known.rests_on.values()):
        return OPEN
    twins = known.untrained == REPRODUCED and known.untrained_share >= 0.5
    if twins and not known.of_architecture:
        return ARCHITECTURAL
    return REPRODUCED if known.in_size else SMALLER


def test_every_combination_of_what_is_known_has_the_verdict_that_the_words_say():
    tried = 0
    for side, p, turning, null, runs, of_training, rests in product(
        SIDES,
        (NAN, 0.049, 0.05, 0.051),
        ({}, {"a": REPRODUCED}, {"a": REPRODUCED, "b": OPEN}, {"a": REFUTED}),
        ((), (REPRODUCED,), (REFUTED, OPEN)),
        RUNS,
        (False, True),
        ({}, {"A": REPRODUCED, "B": SMALLER}, {"A": REPRODUCED, "B": FRAGILE}),
    ):
        known = Known(side, p, True, turning, null, runs, of_training, rests_on=rests)
        assert judge(known)[0] == verdict(known), known
        tried += 1
    for untrained, share, of_architecture, in_size in product(
        (None, *SIDES), (0.0, 0.49, 0.5, 0.51, 2.0), (False, True), (False, True)
    ):
        known = Known(
            REPRODUCED,
            in_size=in_size,
            untrained=untrained,
            untrained_share=share,
            of_architecture=of_architecture,
        )
        assert judge(known)[0] == verdict(known), known
        tried += 1
    assert tried > 5000


def whole(verdicts: tuple[str, ...]) -> str:
    """What ADDING says."""
    found = [REPRODUCED if word == SMALLER else word for word in verdicts if word != UNKNOWN]
    if not found:
        return UNKNOWN
    if REPRODUCED in found:
        return REPRODUCED if all(word in (REPRODUCED, ARCHITECTURAL) for word in found) else PARTLY
    if all(word == ARCHITECTURAL for word in found):
        return ARCHITECTURAL
    if all(word in (FRAGILE, ARCHITECTURAL) for word in found):
        return FRAGILE
    if all(word in (REFUTED, ARCHITECTURAL) for word in found):
        return REFUTED
    return OPEN


def test_up_to_four_verdicts_add_up_in_any_order_to_what_the_words_say():
    for count in range(5):
        for verdicts in product([word for word in rules.WORDS if word != PARTLY], repeat=count):
            assert together(verdicts) == whole(verdicts), verdicts
