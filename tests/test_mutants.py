"""The run that puts faults into modules: that its faults are faults, that no function is left out, that answers are kept."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from vit_analysis.shell.analyses import ANALYSES

ROOT = Path(__file__).parents[1]
SOURCE = b'''"""Words: 1 < 2, low."""

LIMIT = 3


def first(low: float, high: float, rows: list[int], *, whole: bool = True) -> float:
    """More words: max(low, high)."""
    if low < 0.5 and not whole:
        raise ValueError(f"{low + 1} is below {high - 1}")
    return max(low, high) + rows[-1] * x.mean(dim=1).T


def second(\xc3\xa9: int) -> tuple[int, int]:
    return \xc3\xa9 - 1, rearrange(\xc3\xa9, "image (row col) -> image (row col)")
'''


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


def test_faults_of_every_kind_are_found_and_words_are_left_alone(mutants):
    found = {(one.before, one.after) for one in mutants.mutants(SOURCE, "m")}
    assert {
        ("low < 0.5", "(low <= 0.5)"),
        ("low < 0.5", "(low > 0.5)"),
        ("0.5", "0.75"),
        ("low", "high"),
        ("not whole", "whole"),
        ("low < 0.5 and not whole", "(low < 0.5 or not whole)"),
        ("max", "min"),
        ("1", "2"),
        ("1", "0"),
        ("-1", "(-2)"),
        ("x.mean", "x.sum"),
        ("x.mean(dim=1).T", "x.mean(dim=1)"),
        ("True", "False"),
        ("é - 1", "(é + 1)"),
        ('"image (row col) -> image (row col)"', "'image (row col) -> image (col row)'"),
    } <= found
    for before, _ in found:
        assert before not in ("3", '"""Words: 1 < 2, low."""')
        assert not before.startswith(("low + 1", "high - 1", "f"))


def test_a_fault_changes_what_it_says_and_the_rest_stays(mutants):
    for one in mutants.mutants(SOURCE, "m"):
        new = one.applied(SOURCE)
        ast.parse(new)
        assert new != SOURCE
        assert new.startswith(SOURCE[: one.start])
        assert new.endswith(SOURCE[one.end :])
        assert SOURCE[one.start : one.end].decode() == one.before


def test_every_module_can_have_faults_that_can_be_read(mutants):
    for name in ("study/rules", "frequency"):
        source = (ROOT / "vit_analysis" / f"{name}.py").read_bytes()
        found = mutants.mutants(source, name)
        assert len(found) > 60
        assert len({one.id for one in found}) == len(found)
        for one in found[::7]:
            ast.parse(one.applied(source))


def test_a_sample_leaves_no_function_out_and_is_the_same_for_the_same_seed(mutants):
    found = mutants.mutants(SOURCE, "m")
    assert {one.function for one in mutants.sample(found, 2, 0)} == {"first", "second"}
    assert mutants.sample(found, 9, 1) == mutants.sample(found, 9, 1) != mutants.sample(found, 9, 2)
    assert len(mutants.sample(found, 10**6, 0)) == len(found)


def test_every_module_that_decides_something_has_tests_that_are_there(mutants):
    package = ROOT / "vit_analysis"
    deep = [str(file.relative_to(package).with_suffix("")) for file in package.glob("*/*.py")]
    chosen = [name for name in deep if name.split("/")[0] in ("tensors", "reading", "study")]
    chosen += [one.name for one in ANALYSES] + ["images", "models", "layers"]
    for name in (name for name in chosen if not name.endswith("__init__")):
        files = mutants.tests_of(name)
        assert files, name
        assert not [file for file in files if not (ROOT / "tests" / file).is_file()], name


def test_answers_are_kept_judged_and_told(mutants, tmp_path):
    kept = tmp_path / "kept.jsonl"
    source = (ROOT / "vit_analysis" / "skip.py").read_bytes()
    one, other, third, *_ = mutants.mutants(source, "skip")
    for fault, answer in ((one, "noticed"), (other, "survived"), (third, "survived")):
        mutants.add(kept, id=fault.id, **vars(fault), answer=answer, by="", seconds=1.0)
    mutants.add(kept, id=other.id, word="equivalent", why="nothing changes")
    found = mutants.answers(kept)
    assert found[other.id]["answer"] == "survived"
    assert found[other.id]["word"] == "equivalent"
    told = mutants.table(kept)
    assert "| skip | 3 | 1 | 1 | 0 | 0 | 1 |" in told
    assert f"| {other.id} |" in told
    assert "equivalent: nothing changes" in told
    assert f"| {one.id} |" not in told
    lines = [
        json.loads(line) | {"source": "another"} for line in kept.read_text(encoding="utf-8").splitlines()
    ]
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "| skip |" not in mutants.table(kept)  # of a module that is another now


def test_what_noticed_a_fault_is_read_from_what_pytest_says(mutants):
    assert mutants._failed("F\nFAILED tests/a.py::test_b[c] - X\n1 failed") == "tests/a.py::test_b[c]"
    assert mutants._failed("ERROR tests/a.py\n1 error") == "tests/a.py"
    assert mutants._failed("boom\nlast line\n") == "last line"
    assert mutants._failed("") == ""
