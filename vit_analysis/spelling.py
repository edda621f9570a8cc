"""Nearest right names, for the end of an error sentence."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 200  # comparing takes time with the square of it


def did_you_mean(name: str, names: Iterable[str], *, most: int = 3) -> str:
    """A sentence that names what ``name`` was probably meant to be, or shows what there is.

    >>> did_you_mean("blocks.1.atn", ["blocks.0.attn", "blocks.1.attn", "head"], most=1)
    "did you mean 'blocks.1.attn'?"
    """
    names, name = list(dict.fromkeys(names)), name[:LONGEST]
    near = get_close_matches(name, names, n=most, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(map(repr, names[:8]))
    return f"there are {shown}{', ...' if len(names) > 8 else ''}" if names else "there is none"
