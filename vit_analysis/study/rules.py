"""What a number has to be for a claim to be reproduced: rules over a value and its 95 % interval.

Reproduced, not reproduced, or inconclusive where the interval holds the threshold. A rule never looks at anything else, so the
same numbers always get the same verdict.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Above:
    """Reproduced where the interval lies above the threshold; `size` is the effect that would match the paper's words."""

    threshold: float
    size: float | None = None

    def __str__(self) -> str:
        return f"> {self.threshold:g}" + (f" (in size: {self.size:g})" if self.size is not None else "")

    def verdict(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        del value
        return (
            "reproduced"
            if low > self.threshold
            else "not reproduced"
            if high < self.threshold
            else "inconclusive"
        )

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

    def verdict(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        return Above(-self.threshold).verdict(-value, -high, -low)

    def in_size(self, value: float) -> bool:
        """Return whether the effect is as large as the paper's words suggest."""
        return self.size is None or value <= self.size


@dataclass(frozen=True)
class Near:
    """Reproduced where the interval lies above 0 and meets [low, high] around the paper's number; the threshold is 0."""

    low: float
    high: float
    threshold: float = 0.0

    def __str__(self) -> str:
        return f"> 0, meets [{self.low:g}, {self.high:g}]"

    def verdict(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        if low > 0 and low <= self.high and high >= self.low:
            return "reproduced"
        return (
            "not reproduced" if high < self.low or low > self.high else Above(0.0).verdict(value, low, high)
        )

    def in_size(self, value: float) -> bool:
        """Return whether the value itself lies in [low, high]."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Falling:
    """A rank correlation: reproduced where it is at most -0.8 and its interval lies below 0."""

    threshold: float = 0.0

    def __str__(self) -> str:
        return "< 0 and <= -0.8"

    def verdict(self, value: float, low: float, high: float) -> str:
        """Return ``reproduced``, ``not reproduced`` or ``inconclusive``."""
        if high < 0 and value <= -0.8:
            return "reproduced"
        return "not reproduced" if low > 0 or low > -0.8 else "inconclusive"

    def in_size(self, value: float) -> bool:
        """Return whether it falls as clearly as in the paper."""
        return value <= -0.8


Rule = Above | Below | Near | Falling
