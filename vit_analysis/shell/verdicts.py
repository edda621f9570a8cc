"""What the study found, in lines that fit a terminal: verdicts, the five differences, pictures."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vit_analysis import findings
from vit_analysis.study import rules

MARGIN = "       "  # before each line but the first of what was found


def table(found: pd.DataFrame) -> list[str]:
    """Every claim in a line that fits the terminal: its id, number with interval, verdict, and the beginning of its words."""
    width = shutil.get_terminal_size().columns - len(MARGIN)
    rows = [(str(row.id), findings.in_digits(row) or "-", str(row.verdict)) for row in found.itertuples()]
    wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, claim in zip(rows, found["claim"], strict=True):
        line = "  ".join(f"{cell:{size}}" for cell, size in zip(row, wide, strict=True))
        room = width - len(line) - 2
        said = claim if len(claim) <= room else f"{claim[: max(room - 3, 0)].rstrip()}..."
        lines.append((f"{line}  {said}" if room > 9 else line).rstrip()[:width])
    return lines


def differences(found: pd.DataFrame) -> list[str]:
    """The five differences, and how often each verdict was given."""
    counts = found["verdict"].value_counts()
    notes = [f"note: {note}" for note in found.attrs.get("notes", ())]
    told = [f"{own.number}. {own.title}: {own.verdict}" for own in findings.differences(found)]
    given = ", ".join(f"{counts[word]} {word}" for word in rules.WORDS if word in counts)
    return [*notes, *told, f"{given}, of {len(found)} claims"]


def drawn(pictures: Mapping[str, Path | str]) -> list[str]:
    """How many figures were drawn, and which could not be."""
    there = [path for path in pictures.values() if isinstance(path, Path)]
    missing = [name for name, path in pictures.items() if not isinstance(path, Path)]
    lacking = f"; not drawn, as said above: {', '.join(missing)}" if missing else ""
    where = f" in {there[0].parent}" if len(there) > 1 else f": {there[0]}" if there else ""
    return [f"{len(there)} picture{'' if len(there) == 1 else 's'}{where}{lacking}"]
