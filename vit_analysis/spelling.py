"""How a user's mistake is told: the error that becomes a sentence, and the nearest right names for its end."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 200  # comparing takes time with the square of it


class Refusal(ValueError):  # noqa: N818  (it is no error of ours)
    """Something that the user can mend, or that does not apply to these models or images; the message says which and how.

    It is the only exception of this package that is shown as a sentence, or as the reason why a figure is missing. Any other
    exception, a plain ValueError too, is a fault of ours and shows where it happened.
    """


def did_you_mean(name: str, names: Iterable[str], *, most: int = 3) -> str:
    """A sentence that names what ``name`` was probably meant to be, or shows what there is.

    Examples:
        >>> did_you_mean("blocks.1.atn", ["blocks.0.attn", "blocks.1.attn", "head"], most=1)
        "did you mean 'blocks.1.attn'?"
    """
    names, name = list(dict.fromkeys(names)), name[:LONGEST]
    near = get_close_matches(name, names, n=most, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(map(repr, names[:8]))
    return f"there are {shown}{', ...' if len(names) > 8 else ''}" if names else "there is none"
