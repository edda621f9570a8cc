import pytest

from vit_analysis.study.rules import Above, Below, Falling, Near


@pytest.mark.parametrize(
    ("rule", "interval", "verdict"),
    [
        (Above(0.0), (0.2, 0.1, 0.3), "reproduced"),
        (Above(0.0), (-0.2, -0.3, -0.1), "not reproduced"),
        (Above(0.0), (0.1, -0.1, 0.3), "inconclusive"),
        (Above(0.0), (0.2, float("nan"), float("nan")), "inconclusive"),
        (Above(3.0), (2.0, 1.0, 2.5), "not reproduced"),
        (Below(0.5), (0.3, 0.2, 0.4), "reproduced"),
        (Below(0.5), (0.7, 0.6, 0.8), "not reproduced"),
        (Below(0.5), (0.5, 0.4, 0.6), "inconclusive"),
        (Near(2.0, 6.0), (4.0, 3.0, 5.0), "reproduced"),
        (Near(2.0, 6.0), (7.0, 5.9, 8.1), "reproduced"),
        (Near(2.0, 6.0), (9.0, 8.0, 10.0), "not reproduced"),
        (Near(2.0, 6.0), (1.0, 0.5, 1.5), "not reproduced"),
        (Near(2.0, 6.0), (2.0, -1.0, 5.0), "inconclusive"),
        (Falling(), (-0.95, -1.0, -0.9), "reproduced"),
        (Falling(), (-0.85, -1.1, -0.6), "reproduced"),
        (Falling(), (-0.5, -0.7, -0.3), "not reproduced"),
        (Falling(), (-0.9, -1.9, 0.1), "inconclusive"),
        (Falling(), (0.5, 0.2, 0.8), "not reproduced"),
    ],
)
def test_a_verdict_follows_from_the_interval_alone(rule, interval, verdict):
    assert rule.verdict(*interval) == verdict


def test_a_rule_says_what_it_wants_and_whether_the_effect_is_as_large_as_the_words():
    assert str(Above(0.0, 0.1)) == "> 0 (in size: 0.1)"
    assert str(Below(3.0)) == "< 3"
    assert str(Near(2.0, 6.0)) == "> 0, meets [2, 6]"
    assert (Above(0.0, 0.1).in_size(0.2), Above(0.0, 0.1).in_size(0.05), Above(0.0).in_size(0.01)) == (
        True,
        False,
        True,
    )
    assert (Below(0.5, 0.4).in_size(0.45), Below(0.5, 0.4).in_size(0.3)) == (False, True)
    assert (Near(2.0, 6.0).in_size(7.0), Falling().in_size(-0.7)) == (False, False)
