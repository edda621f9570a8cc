"""Findings in words for readers: Markdown, LaTeX for a paper, and a flat table for a spreadsheet."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vit_analysis.study import casts, rules
from vit_analysis.study.differences import Difference
from vit_analysis.table import NESTED

SPECIAL: Mapping[str, str] = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
}
"""What LaTeX reads as something else than the sign itself."""
COLUMNS = r" & Claim & Number [95\,\% interval] & Wanted & $p$ (Holm) & Verdict \\"
HEAD = rf"""% Findings, made by vit_analysis.
% The preamble needs \usepackage[T1]{{fontenc}} and \usepackage{{array,booktabs,longtable}}.
\begingroup
\footnotesize
\setlength{{\tabcolsep}}{{3pt}}
\newcolumntype{{F}}[1]{{>{{\raggedright\arraybackslash}}p{{#1\linewidth}}}}
\begin{{longtable}}{{@{{}}lF{{0.27}}F{{0.17}}F{{0.12}}lF{{0.2}}@{{}}}}
\caption{{CAPTION}}\label{{tab:findings}}\\
\toprule
{COLUMNS}
\midrule
\endfirsthead
\toprule
{COLUMNS}
\midrule
\endhead
\bottomrule
\endfoot
"""
FOOT = r"""\end{longtable}
\endgroup
"""
FIRST = ("id", "figure", "claim", "paper", "statistic", "value", "low", "high", "p", "verdict", "because")
"""The first columns of the flat table, by which it is known again."""


HEADS = (
    *(
        "id",
        "figure",
        "claim",
        "the paper",
        "its number",
        "the same here",
        "statistic",
        "number",
        "training runs",
        "wanted",
    ),
    *("p (Holm)", "verdict", "controls"),
)
SUBSTITUTION = "substitution"  # the last column, where a model is of a cast
RIGHT = {"the same here": "--:", "number": "--:", "training runs": "--:", "p (Holm)": "--:"}


def _of_whom(found: pd.DataFrame) -> str:
    """Say who plays V and R, and how many models there are besides."""
    parts, models = found.attrs.get("parts", {}), list(found.attrs.get("models", {}))
    main = {letter: parts[part][0][0] for letter, part in (("V", "vit"), ("R", "cnn")) if parts.get(part)}
    if not main:
        return f"Of {', '.join(models)}."
    more = len(set(models) - set(main.values()))
    told = " and ".join(f"{model} ({letter})" for letter, model in main.items())
    return f"Of {told}, with {more} more {'model' if more == 1 else 'models'}, training runs and untrained twins included."


def in_digits(row: Any) -> str:
    """The value and its interval, to three significant digits; empty where there is no value."""
    if math.isnan(row.value):
        return ""
    return f"{row.value:.3g}" + ("" if math.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]")


def printed(row: Mapping[str, Any]) -> str:
    """The number that the paper, or whoever makes the claim, prints; empty where none is printed."""
    if math.isnan(row["paper_low"]):
        return ""
    least, most = f"{row['paper_low']:g}", f"{row['paper_high']:g}"
    return f"{least if least == most else f'{least} to {most}'} {row['paper_unit']}"


def here(row: Mapping[str, Any]) -> str:
    """The same number of these models, to three significant digits; empty where none is printed."""
    if math.isnan(row["paper_low"]):
        return ""
    return "not measured" if math.isnan(row["here"]) else f"{row['here']:.3g}"


def _stand_ins(found: pd.DataFrame) -> list[str]:
    """The models that stand for others of the paper, and what may be compared, as lines of Markdown; none without such."""
    models = casts.members(found.attrs.get("models", {}))
    if not models:
        return []
    lines = ["## Who stands for whom", "", "| model | in the paper | substituted |", "|---|---|---|"]
    lines += [f"| {name} | {one.paper} | {one.instead} |" for name, one in models.items()]
    lines += ["", *(f"* **{word}**: {meaning}." for word, meaning in casts.MEANINGS.items()), ""]
    return lines


def markdown(found: pd.DataFrame, differences: Sequence[Difference]) -> str:
    """The five differences, then every claim, as Markdown."""
    lines = [
        "# Findings",
        "",
        "<!-- made by vit_analysis -->",
        "",
        _of_whom(found),
        "",
    ]
    lines += [line for note in found.attrs.get("notes", ()) for line in (f"*{note}.*", "")]
    lines += [counts(found), ""]
    lines += ["## The five differences", "", rules.ADDING, ""]
    for difference in differences:
        own = found[found["id"].isin(difference.findings)]
        told = "; ".join(f"{row.id} {in_digits(row)} {row.verdict}" for row in own.itertuples())
        lines += [f"{difference.number}. **{difference.title}**: {difference.verdict}. {told}.", ""]
    lines += _stand_ins(found)
    lines += ["## What the verdicts mean", ""]
    lines += [f"* **{word}**: {meaning}." for word, meaning in rules.WORDS.items()]
    lines += ["", "## Every claim", ""]
    replaced = any(found["substitution"])
    heads = [*HEADS, *([SUBSTITUTION] if replaced else [])]
    lines += [f"| {' | '.join(heads)} |", f"|{'|'.join(RIGHT.get(name, '---') for name in heads)}|"]
    lines += [_markdown_row(row, replaced=replaced) for row in found.itertuples()]
    return "\n".join([*lines, ""])


def counts(found: pd.DataFrame) -> str:
    """How many claims have which verdict, in a sentence."""
    held = found["verdict"].value_counts()
    return f"{'; '.join(f'{held[word]} {word}' for word in rules.WORDS if word in held)}."


def _markdown_row(row: Any, *, replaced: bool) -> str:
    why = _why(row)
    verdict = f"**{row.verdict}**" + (f": {why}" if why else "")
    controls = "; ".join(f"{name} {own['value']:.3g}" for name, own in row.controls.items())
    beside = f"{told} ({row.paper_of})" if (told := printed(row._asdict())) else ""
    said = (row.id, row.figure, row.claim, row.paper, beside, here(row._asdict()), row.statistic)
    wanted = f"{row.threshold} ({row.threshold_from})"
    runs = ", ".join(f"{value:.3g}" for value in row.runs)
    cells = [*said, in_digits(row), runs, wanted, _p(row.p), verdict, controls]
    cells += [row.substitution] if replaced else []
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _why(row: Any) -> str:
    return "; ".join(text for text in (row.because, row.reason) if text)


def _p(p: float) -> str:
    return "" if math.isnan(p) else "< 1e-6" if p < 1e-6 else f"{p:.1g}"


def latex(found: pd.DataFrame, differences: Sequence[Difference]) -> str:
    """Every claim by the difference that it is about, as a table of LaTeX of the packages booktabs and longtable."""
    parts = found.attrs.get("parts", {})
    names = dict.fromkeys(runs[0] for members in parts.values() for runs in members)
    caption = f"Verdicts on {', '.join(names or found.attrs.get('models', {}))}: {counts(found)}"
    groups = [(f"{one.number}. {one.title}", one.verdict, one.findings) for one in differences]
    of_one = {name for _, _, findings in groups for name in findings}
    groups.append(("Others", "", tuple(name for name in found["id"] if name not in of_one)))
    blocks = []
    for title, verdict, findings in groups:
        own = found[found["id"].isin(findings)]
        if len(own):
            told = rf"\textbf{{{escaped(title)}}}" + (f": {escaped(verdict)}" if verdict else "")
            head = rf"\multicolumn{{6}}{{@{{}}F{{0.98}}@{{}}}}{{{told}}} \\*"
            blocks.append("\n".join([head, *(_latex_row(row) for row in own.itertuples())]))
    return HEAD.replace("CAPTION", escaped(caption)) + "\n\\addlinespace\n".join(blocks) + "\n" + FOOT


def _latex_row(row: Any) -> str:
    why = _why(row)
    verdict = f"{row.verdict}: {why}" if why else str(row.verdict)
    verdict += f" (substitution: {row.substitution.partition(':')[0]})" if row.substitution else ""
    own = row._asdict()
    number = in_digits(row) + (f" (printed: {told}; here {here(own)})" if (told := printed(own)) else "")
    number, wanted = (text.strip().replace("-", "\N{MINUS SIGN}") for text in (number, str(row.threshold)))
    cells = [escaped(str(cell)) for cell in (row.id, row.claim, number, wanted, _p(row.p), verdict)]
    return " & ".join(cells).replace("\N{MINUS SIGN}", "$-$") + r" \\"


def escaped(text: str) -> str:
    r"""A text that LaTeX prints as it is; line breaks and control characters are blanks.

    >>> escaped("100 % of a_b{c} --no-skip")
    '100 \\% of a\\_b\\{c\\} -{}-no-skip'
    """
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    signs = "".join(SPECIAL.get(sign, sign) for sign in plain)
    return re.sub("-(?=-)", "-{}", signs)  # two would be joined to a dash


def flat(found: pd.DataFrame) -> str:
    """A row per claim as comma-separated values, numbers at full precision; controls and training runs are JSON."""
    nested = {name: found[name].map(json.dumps) for name in NESTED}
    names = [*FIRST, *(str(name) for name in found if name not in FIRST)]
    return str(found.assign(**nested)[names].to_csv(index=False, lineterminator="\n"))
