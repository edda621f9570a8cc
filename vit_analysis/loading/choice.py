"""Which of several sets of weights in one file is taken, and how several names are told."""

import re
from collections.abc import Iterable, Mapping

AVERAGED = re.compile(r"(?<![a-z])ema(?![a-z])|shadow|(?<![a-z])swa(?![a-z])|averaged", re.IGNORECASE)
"""An average over training steps comes before what it is an average of, as timm's own loader has it."""
PREFERRED = [
    (re.compile(first), re.compile(other))
    for first, other in (
        (r"encoder_q", r"encoder_k"),  # MoCo v1 and v2
        (r"base_encoder", r"momentum_encoder"),  # MoCo v3
        (r"teacher", r"student"),  # DINO, iBOT, DINOv2
        (r"online", r"target"),  # BYOL
        (r"\btarget_encoder\b", r"\bencoder\b"),  # I-JEPA
        (r"\b(state_dict|model_state_dict)\b", r"\b(model|net|network|weights|params)\b"),
    )
]
"""What the method's own evaluation uses, before what it does not use. Names of places are searched for these."""
NEAR = 0.9  # of the most names that fit: as good a set of weights


def place(names: Mapping[str, int]) -> str | list[str]:
    """The place to take weights from, of places with the number of names that fit there; all of them if it cannot be known.

    Places that fit about as well are decided by `AVERAGED` and `PREFERRED`, then by the number.
    """
    most = max(names.values())
    near = [name for name, count in names.items() if count >= NEAR * most]
    if best := preferred(near):
        return best
    best_of_all = [name for name in near if names[name] == most]
    return best_of_all[0] if len(best_of_all) == 1 else best_of_all


def preferred(places: Iterable[str]) -> str | None:
    """The one of the places that comes before each of the others; None if there is none."""
    places = list(places)
    return next((one for one in places if all(_before(one, other) for other in places if other != one)), None)


def _before(one: str, other: str) -> bool:
    if bool(AVERAGED.search(one)) != bool(AVERAGED.search(other)):
        return bool(AVERAGED.search(one))

    def is_before(a: str, b: str) -> bool:
        return any(first.search(a) and second.search(b) for first, second in PREFERRED)

    return is_before(one, other) and not is_before(other, one)


def first(names: Iterable[str], most: int = 3) -> str:
    """The first few names, with dots if there are more."""
    names = list(names)
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def counted(number: int, what: str) -> str:
    """A number of things, in words.

    Examples:
        >>> counted(2, "tensor")
        '2 tensors'
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
