"""Puts into the documentation what lies outside docs/: pages and pictures of the repository, docstrings, tables.

Links in every Markdown file are those of the repository, relative to the file, so that they work where it is read as a file.
Here they become links of the site; a link to a file that is no page of it becomes the file's name.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

logger = logging.getLogger("mkdocs.hooks")  # its warnings are errors of `make docs`

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tables and docstrings of this checkout

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "figures/README.md": "gallery.md",
    "figures/findings.md": "findings/lab.md",
    "figures/imagenet/findings.md": "findings/imagenet.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/checkpoints.md": "checkpoints.md",
    "benchmarks/families.md": "families.md",
}
"""Files of the repository that are pages of the site, under the site's names for them."""
FLOORS = {
    "What a person imports": ["models", "images", "layers", "plot", "table", "spelling"],
    "Analyses": [],  # filled from the list of analyses
    "Commands": ["figures", "findings", "train", "command", "typed", "shell"],
    "The study": ["study"],
    "The machine": ["reading"],
    "Mathematics": ["tensors"],
    "Images": ["sources"],
    "Networks": ["anatomy", "makers", "loading"],
    "The lab": ["lab"],
}
"""Chapters of the reference; a package's modules follow it."""
LINK = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<to>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(
    r"(^ *```.*?^ *```$|`[^`\n]*\]\([^`\n]*`)", re.MULTILINE | re.DOTALL
)  # what may look like a link in it
ELSEWHERE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="https?://[^"]*"')
MADE = re.compile(r"<!-- made: (\w+) -->")


# The files of the site -----------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Add the reference, a page per module, to the contents."""
    reference = [{title: [_page(name) for name in names]} for title, names in chapters().items()]
    config["nav"].append({"Reference": reference})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside docs/, and a page for every module."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in sorted((ROOT / "figures").rglob("*.png")):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    for names in chapters().values():
        for name in names:
            title = name.removeprefix("vit_analysis.")
            text = f"---\ntitle: {title}\n---\n\n::: {name}\n"
            files.append(File.generated(config, _page(name), content=text))
    return files


@cache
def chapters() -> dict[str, list[str]]:
    """The public modules of the package by chapter, each by its full name."""
    from vit_analysis.shell.analyses import ANALYSES

    tops = FLOORS | {"Analyses": [analysis.name for analysis in ANALYSES]}
    package = ROOT / "vit_analysis"
    there = {
        file.stem
        for file in package.glob("[!_.]*")
        if file.suffix == ".py" or (file / "__init__.py").is_file()
    }
    for left in sorted(there - {top for names in tops.values() for top in names}):
        logger.warning(
            "no chapter of the reference has vit_analysis.%s; name it in FLOORS of docs/hooks.py", left
        )
    return {title: [name for top in names for name in _modules(top)] for title, names in tops.items()}


def _modules(top: str) -> Iterable[str]:
    """A module, or a package and its modules; those whose name begins with an underscore are not public."""
    package = ROOT / "vit_analysis"
    if (package / f"{top}.py").is_file():
        return [f"vit_analysis.{top}"]
    files = sorted((package / top).rglob("*.py"), key=lambda file: (file.parent, file.name))
    public = [file.parent if file.name == "__init__.py" else file.with_suffix("") for file in files]
    names = [".".join(file.relative_to(ROOT).parts) for file in public if not file.name.startswith("_")]
    return sorted(names)


def _page(name: str) -> str:
    return f"reference/{name.removeprefix('vit_analysis.')}.md"


# The text of a page --------------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Put in what is made of the package, and turn the repository's links into the site's."""
    markdown = MADE.sub(lambda found: TABLES[found[1]](), markdown)
    source = page.file.abs_src_path
    if source is None:  # a page of the reference
        return markdown
    folder, here = Path(source).parent, os.path.dirname(page.file.src_uri)  # noqa: PTH120
    parts = CODE.split(markdown)  # every second one is code
    return "".join(
        part if number % 2 else LINK.sub(lambda found: _link(found, folder, here), part)
        for number, part in enumerate(parts)
    )


def _link(found: re.Match[str], folder: Path, here: str) -> str:
    """A link of the site in the place of one of the repository."""
    to = found["to"]
    if not to or ":" in to:  # within the page, or to another site
        return found[0]
    target = (folder / to).resolve()
    if not target.exists():
        return found[0]  # a mistake, of which mkdocs warns
    uri = _uri(target)
    if uri is None:
        name = target.relative_to(ROOT).as_posix()
        words = found["words"].strip("`/")
        return f"`{name}`" if name.endswith(words) else f"{found['words']} (`{name}`)"
    way = os.path.relpath(uri, here or ".")
    return f"{found['picture']}[{found['words']}]({way}{found['anchor'] or ''})"


def _uri(target: Path) -> str | None:
    """Where a file of the repository is in the site; None if it is not there."""
    name = target.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if target.suffix == ".png" and name.startswith("figures/"):
        return name
    if target.suffix == ".md" and name.startswith("docs/"):
        return name.removeprefix("docs/")
    return None


def on_post_page(output: str, page: Any, config: Any) -> str:  # noqa: ARG001
    """Warn of a page that loads anything from another site: it has to be whole without a network."""
    for found in ELSEWHERE.findall(output):
        logger.warning("%s loads from another site: %s", page.file.src_uri, found)
    return output


# Tables that the package itself makes ----------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _verdicts() -> str:
    from vit_analysis.study import rules

    return _table(["verdict", "when"], [[f"**{word}**", text] for word, text in rules.WORDS.items()])


def _adding() -> str:
    from vit_analysis.study import rules

    return rules.ADDING


def _controls() -> str:
    from vit_analysis.study.controls import CONTROLS

    def duty(control: Any) -> str:
        if control.of_nothing:
            return "no finding may hold under it"
        return "a finding has to hold under it" if control.turning else "shown beside the number"

    return _table(
        ["control", "name in tables", "what it is for"],
        [[control.words, f"`{control.name}`", duty(control)] for control in CONTROLS],
    )


def _selections() -> str:
    from vit_analysis.tensors.tokens import SELECTIONS

    return _table(
        ["`--tokens`", "what is compared"],
        [[f"`{name}`", _first(function)] for name, function in SELECTIONS.items()],
    )


def _first(documented: Any) -> str:
    """The first sentence of a docstring."""
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split())


def _claims() -> str:
    from vit_analysis.study.claims import CLAIMS

    return _table(
        ["id", "figure", "claim", "what the paper says", "number", "wanted"],
        [
            [
                claim.id,
                claim.figure,
                claim.claim,
                claim.paper,
                claim.statistic,
                f"{claim.rule}; {claim.origin}",
            ]
            for claim in CLAIMS
        ],
    )


def _differences() -> str:
    """The five differences: what is said, the claims that decide it, the reasons and their experiments."""
    from vit_analysis.study.claims import CLAIMS
    from vit_analysis.study.differences import DIFFERENCES

    known = {claim.id: claim for claim in CLAIMS}
    lines: list[str] = []
    for one in DIFFERENCES:
        lines += [
            f"## {one.number}. {one.title}",
            "",
            one.text,
            "",
            f"Figure {one.picture} shows it. It is decided by:",
            "",
        ]
        lines += [f"* **{claim.id}**: {claim.claim}." for claim in CLAIMS if claim.difference == one.number]
        for reason in one.reasons:
            decided = "; ".join(
                f"**{name}**: {known[name].claim}" for name in reason.findings if name in known
            )
            lines += [
                "",
                f"*The reason that is given by {reason.said_by}:* {reason.text}",
                "",
                f"*The experiment:* {reason.experiment} "
                + (f"It is decided by {decided}." if decided else ""),
            ]
        lines.append("")
    return "\n".join(lines)


def _layouts() -> str:
    from vit_analysis.plot import LAYOUTS

    return _table(
        ["kind of table", "layouts"],
        [[f"`{kind}`", ", ".join(f"`{name}`" for name in layouts)] for kind, layouts in LAYOUTS.items()],
    )


TABLES: dict[str, Callable[[], str]] = {
    "verdicts": _verdicts,
    "adding": _adding,
    "controls": _controls,
    "selections": _selections,
    "claims": _claims,
    "differences": _differences,
    "layouts": _layouts,
}
"""What `<!-- made: NAME -->` in a page becomes."""
