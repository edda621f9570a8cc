"""What README and documentation print can be typed: blocks of Python run, and every command line is read by its own command.

A comment before a block of code says what is to be done with it beside that:

    <!-- run: FLAGS -->       a block of command lines is run as well, with these flags added to each line
    <!-- not run: REASON -->  a block of Python is only read, as it needs what is not here

All blocks of a page share a folder, and those of Python their names, so a page is read from top to bottom.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import wraps
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import tyro
import yaml

from vit_analysis import __main__ as program
from vit_analysis import __version__

ROOT = Path(__file__).parents[1]
FILES = [
    "README.md",
    "CONTRIBUTING.md",
    "figures/README.md",
    "benchmarks/README.md",
    "benchmarks/families.md",
]
PAGES = [*FILES, *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "docs").rglob("*.md")))]

COMMENT = re.compile(r"<!-- (run|not run)(?:: (.*?))? -->")
FENCE = re.compile(r"^( *)```(\w*)$")
LANGUAGES = {"python", "sh", "text", "bibtex"}
EVERYWHERE = ("...", "-q", "-v", "--quiet", "--verbose", "--help")
CALL = re.compile(r"(?:python -m vit_analysis|vit-analysis)\b.*")


class Block(NamedTuple):
    """A block of code of a page, with the line that it begins on, and what its comment says."""

    line: int
    language: str
    text: str
    order: str = ""
    words: str = ""


def blocks(text: str) -> list[Block]:
    """The blocks of a page: fenced, or indented by four spaces after an empty line, which are command lines."""
    found: list[Block] = []
    lines = text.splitlines()
    number, last = 0, ""
    while number < len(lines):
        line = lines[number]
        if fence := FENCE.match(line):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            inside = "\n".join(own.removeprefix(fence[1]) for own in lines[number + 1 : end])
            comment = COMMENT.fullmatch(last.strip())
            found.append(
                Block(
                    number + 1,
                    fence[2],
                    inside,
                    *(part or "" for part in comment.groups()) if comment else (),
                )
            )
            number, last = end, ""
        elif line.startswith("    ") and not lines[number - 1].strip() and not re.match(r"[*\d]", last):
            end = next((n for n in range(number, len(lines)) if not lines[n].startswith("    ")), len(lines))
            found.append(Block(number + 1, "sh", "\n".join(own[4:] for own in lines[number:end])))
            number = end - 1
        elif line.strip() and not line.startswith("  "):
            last = line
        number += 1
    return found


def command_lines(block: Block) -> list[str]:
    """The command lines of a block, without comments; a line that ends with a backslash goes on."""
    joined = block.text.replace("\\\n", " ")
    lines = [shlex.join(shlex.split(line, comments=True)) for line in joined.splitlines()]
    return [line for line in lines if line]


def of_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# A command line is read by its command ---------------------------------------------------------------------------------


def main_of(module: str) -> Any:
    """The function that a command hands its command line to."""
    return import_module(
        "vit_analysis.plot.__main__" if module == "plot" else f"vit_analysis.shell.{module}"
    ).main


def read_by_command(module: str, words: list[str]) -> None:
    """Have the parser of a command read its words, without running it; flags of every command, such as -q, are left out."""
    main = main_of(module)

    @wraps(main)
    def nothing(*_: Any, **__: Any) -> None:
        """Take what was read."""

    tyro.cli(nothing, args=[word for word in words if word not in EVERYWHERE], prog=module)


def of_package(words: list[str]) -> None:
    """Read ``python -m vit_analysis.NAME FLAGS`` or ``python -m vit_analysis NAME FLAGS``, after the -m."""
    name = words[0].removeprefix("vit_analysis").removeprefix(".")
    if not name:
        if len(words) < 2 or words[1] in ("--version", "--help"):
            return
        name, words = words[1], words[1:]
    assert name in program.commands(), f"no command {name}"
    read_by_command(name, words[1:])


def read(line: str) -> None:
    """Check one command line, of any kind that the documentation may print."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    match words:
        case ["python", "-m", module, *rest] if module.startswith("vit_analysis"):
            of_package([module, *rest])
        case ["vit-analysis", *rest]:
            of_package(["vit_analysis", *rest])
        case ["srun", *rest]:
            read(shlex.join(rest))
        case ["torchrun", *_]:
            of_package(words[words.index("-m") + 1 :])
        case ["python", script, *rest] if script.startswith("benchmarks/"):
            # Its flags stand in its own text or in that of what it shares with others.
            texts = [
                (ROOT / name).read_text(encoding="utf-8") for name in (script, "benchmarks/alternating.py")
            ]
            for flag in (word for word in rest if word.startswith("--")):
                name = flag[2:].partition(".")[0]
                assert any(name in text or name.replace("-", "_") in text for text in texts), (
                    f"{script}: no {flag}"
                )
        case ["make", *targets]:
            rules = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in targets:
                assert re.search(rf"^{target}:", rules, re.MULTILINE), f"no target {target}"
        case ["pip", "install", "."] | ["pip", "install", "datasets" | "transformers"]:
            pass
        case ["pip", "install", "--group", group]:
            groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
            assert group in groups
        case ["git", "clone", _] | ["cd", _]:
            pass
        case _:
            pytest.fail(f"nothing reads {line!r}; say here how it is read, or mark the block as text")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_read_by_its_command(page):
    text = of_page(page)
    lines = [line for block in blocks(text) if block.language == "sh" for line in command_lines(block)]
    assert lines or "```sh" not in text, "a block of the shell without a line that could be read"
    for line in lines:
        read(line)
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", prose):
        if CALL.fullmatch(span) and not re.search(r"\b(NAME|COMMAND|X)\b|vit_analysis\.$", span):
            read(span)


def test_a_misspelt_flag_is_found():
    with pytest.raises(SystemExit):
        read("python -m vit_analysis.cka lab/vit --imagse.limit 64")
    with pytest.raises(AssertionError, match="no command"):
        read("python -m vit_analysis.ckaa lab/vit")
    with pytest.raises(AssertionError, match="no --round"):
        read("python benchmarks/study.py --round-trips 3")
    with pytest.raises(pytest.fail.Exception, match="nothing reads"):
        read("rm -r runs")


# Blocks are run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if "```" in of_page(page)])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(of_page(page)):
        assert block.language in LANGUAGES, (
            f"{page}:{block.line}: a block is one of {LANGUAGES}, got {block.language!r}"
        )
        where = f"{page}:{block.line}"
        if block.language == "python":
            code = "\n" * block.line + block.text  # so that a traceback names the page's lines
            tree = ast.parse(code, where)
            if block.order != "not run":
                exec(compile(tree, where, "exec"), names)
        elif block.language == "sh" and block.order == "run":
            for line in command_lines(block):
                run([*shlex.split(line), *shlex.split(block.words)], where)


def run(words: list[str], where: str) -> None:
    """Run a command line of ours in a process of its own."""
    assert words[0] == "python", f"{where}: only python is run, not {words[0]}"
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words[1:]], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}: {shlex.join(words)}\n{done.stderr}"


def test_blocks_are_found_with_their_comments():
    fences = (
        "<!-- run: --images.limit 64 -->\n\n```sh\npython -m x\n```\n* b\n\n    no code\n\n```text\n1\n```\n"
    )
    text = f"a\n\n    make test\n\n{fences}"
    assert [(one.language, one.text, one.order, one.words) for one in blocks(text)] == [
        ("sh", "make test", "", ""),
        ("sh", "python -m x", "run", "--images.limit 64"),
        ("text", "1", "", ""),
    ]


# Links of the repository and of the site ---------------------------------------------------------------------------------


@pytest.fixture
def hooks():
    """The hooks of the documentation."""
    pytest.importorskip("mkdocs")
    spec = spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "here", "link", "expected"),
    [
        (
            "docs/how_to/models.md",
            "how_to/models.md",
            "[m](../../benchmarks/checkpoints.md#a)",
            "[m](../checkpoints.md#a)",
        ),
        ("docs/how_to/cost.md", "how_to/cost.md", "[c](cluster.md)", "[c](cluster.md)"),
        ("README.md", "index.md", "[`q`](docs/quick_start.md)", "[`q`](quick_start.md)"),
        ("README.md", "index.md", "![p](figures/figure_1.png)", "![p](figures/figure_1.png)"),
        ("figures/README.md", "gallery.md", "![p](figure_1.png)", "![p](figures/figure_1.png)"),
        ("figures/README.md", "gallery.md", "[f](imagenet/findings.md)", "[f](findings/imagenet.md)"),
        ("benchmarks/README.md", "benchmarks.md", "[cka.py](cka.py)", "`benchmarks/cka.py`"),
        (
            "README.md",
            "index.md",
            "[rules](vit_analysis/study/rules.py)",
            "rules (`vit_analysis/study/rules.py`)",
        ),
        ("README.md", "index.md", "[a](#first-run)", "[a](#first-run)"),
        ("README.md", "index.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("README.md", "index.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # of which mkdocs warns
        ("README.md", "index.md", "`[a](docs/lab.md)`", "`[a](docs/lab.md)`"),
        ("README.md", "index.md", "```text\n[a](docs/lab.md)\n```", "```text\n[a](docs/lab.md)\n```"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(hooks, page, here, link, expected):
    file = SimpleNamespace(abs_src_path=str(ROOT / page), src_uri=here)
    assert hooks.on_page_markdown(link, SimpleNamespace(file=file), {}, None) == expected


def test_every_public_module_has_a_page_of_the_reference(hooks, caplog):
    names = [name for chapter in hooks.chapters().values() for name in chapter]
    assert not caplog.records
    assert len(set(names)) == len(names)
    files = (ROOT / "vit_analysis").rglob("*.py")
    paths = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    public = {".".join(parts).removesuffix(".__init__") for parts in paths if parts[-1] != "__main__"}
    assert set(names) == public - {"vit_analysis"}


def test_a_page_that_loads_from_another_site_is_told(hooks, caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    hooks.on_post_page('<a href="https://arxiv.org"></a><script src="own.js"></script>', page, {})
    assert not caplog.records
    hooks.on_post_page('<script src="https://example.org/a.js"></script>', page, {})
    assert "a.md loads from another site" in caplog.text


# The rest --------------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_contents():
    """One that is not is a page that nobody finds; what comes from elsewhere stands in docs/hooks.py."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- (?:.*: )?(\S+\.md)$", contents, re.MULTILINE))
    hooks = (ROOT / "docs" / "hooks.py").read_text(encoding="utf-8")
    elsewhere = set(re.findall(r'^    "\S+\.md": "(\S+\.md)",$', hooks, re.MULTILINE))
    own = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert named == own | elsewhere
    assert not own & elsewhere


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_repository_leads_to_a_file(page):
    """The site's links are checked where it is built; these are the files', as they are read in a repository."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]+`", "", of_page(page), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text)
    broken = [to for to in links if ":" not in to and not ((ROOT / page).parent / to).exists()]
    assert not broken


def test_the_citation_is_of_this_version():
    """Keys and types as the schema 1.2.0 of citation-file-format has them, and nothing that is not known, such as a DOI."""
    own = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(own)
    allowed = {
        "cff-version",
        "message",
        "type",
        "title",
        "authors",
        "version",
        "license",
        "keywords",
        "references",
    }
    assert set(own) <= allowed
    assert (own["cff-version"], own["type"], own["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert own["version"] == __version__
    (paper,) = own["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert [type(paper[name]) for name in ("volume", "start", "end", "year")] == [int] * 4
    names = [person["family-names"] for person in paper["authors"]]
    readme = of_page("README.md")
    assert all(name in readme for name in names)
    assert paper["url"] in readme
