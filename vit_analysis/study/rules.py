"""From numbers to words: what a claim has to be, and the verdict that a reviewer would let stand. All rules are here.

A rule says on which side of its threshold a number and its interval lie. `judge` makes a verdict of that and of everything
else that is known of the claim; `together` adds the verdicts of several claims up. The same numbers always get the same words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

REPRODUCED, SMALLER = "reproduced", "reproduced, smaller than claimed"
ARCHITECTURAL, FRAGILE = "architectural", "fragile"
REFUTED, OPEN, UNKNOWN = "not reproduced", "inconclusive", "not measured"
PARTLY = "partly reproduced"

WORDS: Mapping[str, str] = {
    REPRODUCED: "the number lies beyond its threshold with its whole interval, also after adjusting p, where it has one, for the number "
    "of claims (Holm); it stays there under every control and second measure that must not matter, and in every training run where "
    "there are several; untrained twins, where they were asked and the claim is not about the architecture, do not get as far; and it "
    "is as large as the paper's words, where these say how large",
    SMALLER: "the same, but smaller than the paper's words",
    ARCHITECTURAL: "the same, but the untrained twins get there as well, at least half as far beyond the threshold, so that most of it "
    "need not have been learned; their number stands beside it",
    FRAGILE: "beyond the threshold, or on its other side, with its whole interval, but a control, a second measure or a training run "
    "that must not matter takes that away; which, stands beside it",
    REFUTED: "the number lies on the other side of its threshold with its whole interval",
    OPEN: "the interval holds the threshold, p is above 0.05 after adjusting, what the claim rests on is not reproduced, or a claim "
    "about training is not decided alike by two training runs or more",
    UNKNOWN: "it needs models, images or labels that are not there; it says which",
}
"""What each verdict means."""
ADDING = (
    "Of the claims of a difference that were measured: reproduced where all are reproduced, or architectural beside at least one "
    "that is reproduced; partly reproduced where at least one is reproduced. Where none is: architectural where all are that, fragile "
    "where all are fragile or architectural, not reproduced where all are not reproduced or architectural; else inconclusive."
)
"""How the verdicts of several claims add up to that of a difference."""
LEVEL = 0.05  # of p, adjusted
HALF = 0.5  # of the effect: what untrained twins have of it is the architecture's


@dataclass(frozen=True)
class Above:
    """Reproduced where the interval lies above the threshold; `size` is the effect that would match the paper's words."""

    threshold: float
    size: float | None = None

    def __str__(self) -> str:
        return f"> {self.threshold:g}" + (f" (in size: {self.size:g})" if self.size is not None else "")

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        del value
        return REPRODUCED if low > self.threshold else REFUTED if high < self.threshold else OPEN

    def in_size(self, value: float) -> bool:
        """Return whether the effect is as large as the paper's words suggest."""
        return self.size is None or value >= self.size


@dataclass(frozen=True)
class Below:
    """Reproduced where the interval lies below the threshold."""

    threshold: float
    size: float | None = None

    def __str__(self) -> str:
        return f"< {self.threshold:g}" + (f" (in size: {self.size:g})" if self.size is not None else "")

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        return Above(-self.threshold).side(-value, -high, -low)

    def in_size(self, value: float) -> bool:
        """Return whether the effect is as large as the paper's words suggest."""
        return self.size is None or value <= self.size


@dataclass(frozen=True)
class Near:
    """Reproduced where the interval lies above 0 and meets [low, high] around the paper's number; the threshold is 0."""

    low: float
    high: float
    threshold: float = math.nan  # two numbers decide, so that a p against one says nothing of this

    def __str__(self) -> str:
        return f"> 0, meets [{self.low:g}, {self.high:g}]"

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        del value
        if low > 0 and low <= self.high and high >= self.low:
            return REPRODUCED
        return REFUTED if high < self.low or low > self.high else OPEN

    def in_size(self, value: float) -> bool:
        """Return whether the effect is not smaller than around the paper's number."""
        return value >= self.low


@dataclass(frozen=True)
class Within:
    """Reproduced where the interval of a difference lies inside [-most, most]: alike, and not only not shown to differ."""

    most: float
    threshold: float = math.nan  # a p against one number says nothing of this

    def __str__(self) -> str:
        return f"within {self.most:g} of 0"

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        del value
        if low > -self.most and high < self.most:
            return REPRODUCED
        return REFUTED if low > self.most or high < -self.most else OPEN

    def in_size(self, value: float) -> bool:
        """Return whether the number itself lies inside."""
        return abs(value) <= self.most


@dataclass(frozen=True)
class Falling:
    """A rank correlation: reproduced where it is at most -0.8 and its interval lies below 0."""

    threshold: float = 0.0

    def __str__(self) -> str:
        return "< 0 and <= -0.8"

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        if high < 0 and value <= -0.8:
            return REPRODUCED
        return REFUTED if low > -0.8 else OPEN

    def in_size(self, value: float) -> bool:
        """Return whether it falls as clearly as in the paper."""
        return value <= -0.8


@dataclass(frozen=True)
class Described:
    """A number that the paper does not give and no threshold decides."""

    threshold: float = math.nan

    def __str__(self) -> str:
        return "no threshold"

    def side(self, value: float, low: float, high: float) -> str:
        """Return ``inconclusive``."""
        del value, low, high
        return OPEN

    def in_size(self, value: float) -> bool:
        """Return True: there is no size to reach."""
        del value
        return True


Rule = Above | Below | Near | Within | Falling | Described


def aim(rule: Rule) -> tuple[int, float]:
    """The direction that a rule wants a number to go (1 up, -1 down, 0 neither), and what is as large as the paper says.

    The size is NaN where the paper does not say how large.
    """
    match rule:
        case Above(size=size):
            return 1, math.nan if size is None else size
        case Below(size=size):
            return -1, math.nan if size is None else size
        case Near(low=low):
            return 1, low
        case Falling():
            return -1, -0.8
        case _:
            return 0, math.nan


@dataclass(frozen=True)
class Known:
    """All that is known of a claim: the side of its threshold that it lies on, and the side under everything else.

    Attributes:
        side: of the claim itself.
        p: adjusted; NaN where it has none.
        in_size: whether it is as large as the paper's words, in every training run.
        turning: side under each control and second measure that must not matter, by their words.
        null: sides where what is compared has nothing in common, so that whatever holds there is no finding.
        runs: side in each further training run.
        of_training: whether it compares models by how they were trained, so that the training run is its unit.
        untrained: side of the untrained twins; None where they were not, or cannot be, asked.
        untrained_share: how far they get beyond the threshold, as a share of how far the trained models get.
        of_architecture: whether the claim is about the architecture, so that untrained twins should meet it.
        rests_on: verdicts of the claims without which this one says nothing, by id.
    """

    side: str
    p: float = math.nan
    in_size: bool = True
    turning: Mapping[str, str] = field(default_factory=dict)
    null: Sequence[str] = ()
    runs: Sequence[str] = ()
    of_training: bool = False
    untrained: str | None = None
    untrained_share: float = 1.0
    of_architecture: bool = False
    rests_on: Mapping[str, str] = field(default_factory=dict)


def judge(known: Known) -> tuple[str, str]:
    """Return the verdict on a claim, and why where the word alone does not say it."""
    side = known.side
    if side == OPEN:
        return OPEN, ""
    if known.p >= LEVEL:
        return OPEN, f"p is {known.p:.2g} after adjusting for the number of claims"
    if side == REPRODUCED and REPRODUCED in known.null:
        return OPEN, "images that do not belong together give it as well"
    if known.of_training and set(known.runs) != {side}:
        return (
            OPEN,
            "training runs do not agree" if known.runs else f"{side} in one training run, which cannot tell",
        )
    turned = [words for words, other in known.turning.items() if turns(side, other)]
    if turned:
        return (
            FRAGILE,
            f"{side}, {'but not' if side == REPRODUCED else 'but it is'} under: {'; '.join(turned)}",
        )
    if any(turns(side, other) for other in known.runs):
        return (
            FRAGILE,
            f"{side}, but {'not in every' if side == REPRODUCED else 'it is in another'} training run",
        )
    if side == REFUTED:
        return REFUTED, ""
    if without := [name for name, word in known.rests_on.items() if word not in (REPRODUCED, SMALLER)]:
        return OPEN, f"says nothing without {' and '.join(without)}"
    as_far = known.untrained == REPRODUCED and known.untrained_share >= HALF
    if as_far and not known.of_architecture:
        return ARCHITECTURAL, ""
    return (REPRODUCED, "") if known.in_size else (SMALLER, "")


def turns(side: str, other: str) -> bool:
    """Return whether what holds does not hold here: what is reproduced has to stay so, what is not may not become so."""
    return other != REPRODUCED if side == REPRODUCED else other == REPRODUCED


def together(verdicts: Sequence[str]) -> str:
    """Return what the verdicts of several claims add up to, as `ADDING` says."""
    measured = [verdict for verdict in verdicts if verdict != UNKNOWN]
    found = {REPRODUCED if verdict == SMALLER else verdict for verdict in measured}
    if not found:
        return UNKNOWN
    if REPRODUCED in found:
        return REPRODUCED if found <= {REPRODUCED, ARCHITECTURAL} else PARTLY
    for word in (ARCHITECTURAL, FRAGILE, REFUTED):
        if found <= {word, ARCHITECTURAL}:
            return word
    return OPEN
