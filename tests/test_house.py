"""Rules of the house that no tool checks by itself."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_analysis import table

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="needs ruff")
def test_no_name_is_undefined():
    """Shapes are strings of words that ruff takes for names, so it is told not to look; here it does, outside of strings."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=json"]
    folders = [ROOT / name for name in ("vit_analysis", "tests", "benchmarks")]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found  # words of shapes are there
    undefined = []
    for one in found:
        line = Path(one["filename"]).read_text(encoding="utf-8").splitlines()[one["location"]["row"] - 1]
        if line[: one["location"]["column"] - 1].count('"') % 2 == 0:
            undefined.append((one["filename"], one["location"]["row"], one["message"]))
    assert not undefined


def test_what_stands_at_the_top_is_what_a_person_types_or_imports():
    modules = {file.stem for file in (ROOT / "vit_analysis").glob("[!_]*.py")}
    assert len(modules) <= 20
    named = re.findall(r"`(\w+)\.py`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert modules <= set(named)


def test_what_is_in_the_gallery_may_be_made_anew():
    """The commands replace only what they made, and the first one of the README makes the gallery."""
    gallery = [file for file in (ROOT / "figures").rglob("*") if file.suffix in table.MARKS]
    assert ROOT / "figures" / "figure_1.png" in gallery
    others = [str(file) for file in gallery if not table.is_ours(file) and file.name != "README.md"]
    assert not others
