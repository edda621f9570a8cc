"""Glob patterns over module paths: ``*`` stays within a path component, ``**`` crosses them."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from vit_analysis.anatomy.places import Tap
from vit_analysis.spelling import did_you_mean


def matching(paths: Sequence[str], pattern: str) -> list[Tap]:
    """The taps that a pattern names, in order of definition."""
    wanted = Tap.of(pattern)
    if wanted.at == "heads":
        return []  # heads are no tensor; only `attention_distance` reads them
    parts = wanted.path.split(".")
    if not any(sign in pattern for sign in "*?["):
        return [wanted] if wanted.path in paths else []
    # One ** means the same as several in a row, each of which would multiply the ways to match.
    parts = [part for place, part in enumerate(parts) if part != "**" or parts[place - 1 : place] != ["**"]]
    return [Tap(path, wanted.at) for path in paths if _match_parts(path.split("."), parts)]


def nearest(pattern: str, names: Sequence[str]) -> str:
    """The nearest right names; for a pattern with signs, patterns."""
    if not any(sign in pattern for sign in "*?["):
        return did_you_mean(pattern, names)
    general = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    return did_you_mean(pattern, [*general, *names])


def _match_parts(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_parts(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _match_parts(path[1:], pattern[1:])
