"""What lies in notebooks/: executed, legible, small, free of anyone's paths, with links that lead somewhere.

That they run is the matter of `make notebooks`; their claims are assertions in their own cells.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST = 1_500_000  # bytes
LEGIBLE = 100  # dots per inch
PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|mnt|private)/")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def written(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


def test_every_cell_was_run_in_order_and_none_failed(path: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(path) if output["output_type"] == "error"]


def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < MOST


def test_its_outputs_name_no_path_of_a_machine(path: Path) -> None:
    texts = [
        "".join(text)
        for output in outputs(path)
        for text in (output.get("text", []), *output.get("data", {}).values())
        if not isinstance(text, dict)
    ]
    assert not [text[:200] for text in texts if PATHS.search(text)]


def test_its_pictures_are_legible(path: Path) -> None:
    source = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    assert [int(dots) >= LEGIBLE for dots in re.findall(r'print_figure_kwargs = \{"dpi": (\d+)', source)] == [
        True
    ]
    pictures = [
        output["data"]["image/png"] for output in outputs(path) if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_it_claims_only_what_it_asserts(path: Path) -> None:
    """A notebook without assertions cannot be wrong, whatever its prose says."""
    assert sum("assert" in "".join(cell["source"]) for cell in cells(path, "code")) >= 4


def test_exercises_have_answers_that_are_folded(path: Path) -> None:
    text = written(path)
    exercises = text.count("**Exercise ")
    assert exercises >= 2
    assert text.count("<details><summary>Answer</summary>") == text.count("</details>") == exercises


def test_its_links_lead_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", written(path)) if "://" not in link]
    assert not [link for link in links if not (FOLDER / link).exists()]
