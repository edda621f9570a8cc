import re
import subprocess
import sys

import numpy as np
import pytest

from vit_analysis import command, table

TWIN = ["lab/vit@random", "--images.limit", "24", "--images.batch", "8", "--layers", "blocks"]


def analysis(*arguments: str, program: tuple[str, ...] = ("-m",)) -> subprocess.CompletedProcess:
    call = [sys.executable, *program, "vit_analysis.cka", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)


def test_a_command_writes_a_table_with_its_command_line_and_a_picture(tmp_path):
    ran = analysis(*TWIN, "--out", str(tmp_path / "a" / "first.try"))
    assert ran.returncode == 0, ran.stderr
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"first.try.parquet", "first.try.png"}
    written = table.read(tmp_path / "a" / "first.try.parquet")
    assert written.attrs["command"].startswith("python -m vit_analysis.cka lab/vit@random --images.limit 24")
    assert len(written) == 64
    assert "Traceback" not in ran.stderr
    assert "it/s" not in ran.stderr  # no progress bar but in a terminal


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lab/vitt"], r"^error: no lab model 'lab/vitt'; did you mean 'lab/vit'"),
        (
            [*TWIN[:1], "--layers", "blocks.*.atn"],
            r"^error: no layer of lab/vit@random matches 'blocks.\*.atn'; did you mean",
        ),
        ([*TWIN[:1], "--images.source", "nowhere"], r"^error: no images at 'nowhere'"),
        ([*TWIN[:1], "--images.limit", "0"], r"images.limit must be at least 1, got 0"),
        ([*TWIN[:1], "--layer", "blocks"], r"--layers"),
    ],
)
def test_a_mistake_is_one_sentence_and_not_a_traceback(arguments, sentence, tmp_path):
    ran = analysis(*arguments, "--out", str(tmp_path / "x"))
    assert ran.returncode == 2
    said = ran.stderr + ran.stdout
    assert re.search(sentence, said, re.MULTILINE), said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_two_processes_give_the_table_of_one(tmp_path):
    one = analysis(*TWIN, "--out", str(tmp_path / "one"))
    two = analysis(
        *TWIN,
        "--out",
        str(tmp_path / "two"),
        program=("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"),
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    tables = [table.read(tmp_path / f"{name}.parquet") for name in ("one", "two")]
    for column in ("cka", "low", "high"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], atol=1e-12)
    assert list(tables[0]["layer"]) == list(tables[1]["layer"])


def test_names_with_dots_keep_them(tmp_path):
    assert command.beside(tmp_path / "v1.2", ".png") == tmp_path / "v1.2.png"


def test_the_package_imports_nothing():
    code = "import sys; before = set(sys.modules); import vit_analysis; print(len(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) <= 2


def test_the_allocator_is_left_alone_where_the_environment_says_so(monkeypatch):
    calls = []

    class Library:
        @staticmethod
        def mallopt(parameter, size):
            calls.append((parameter.value, size.value))

    monkeypatch.setattr(command.ctypes, "CDLL", lambda _: Library)
    monkeypatch.setattr(command.sys, "platform", "linux")
    for name in [name for name in command.os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VIT_ANALYSIS_PLAIN", "1")
    command.keep_memory()
    assert calls == []
    monkeypatch.delenv("VIT_ANALYSIS_PLAIN")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")  # which stays as it is
    command.keep_memory()
    assert calls == [(-3, 2**30), (-1, 2**31 - 1)]
    assert command.os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    command.keep_memory()
    assert len(calls) == 2
