import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from vit_analysis import cka, command, skip, table
from vit_analysis.images import Images
from vit_analysis.shell import running
from vit_analysis.spelling import Refusal
from vit_analysis.typed import Machine, Pictures

TWIN = ["lab/vit@random", "--images.limit", "24", "--images.batch", "8", "--layers", "blocks"]


def typed_as(name: str) -> Callable[..., None]:
    """What a command runs when it is typed."""
    return import_module(f"vit_analysis.shell.{name}").main


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
def test_a_mistake_is_one_sentence_and_not_a_traceback(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert forked.ends(forked.start("cka", [*arguments, "--out", "x"], Path("log"))) == running.MISTAKE == 2
    said = Path("log").read_text()
    assert re.search(sentence, said, re.MULTILINE), said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]


def refusing() -> None:
    ending(Refusal("choose other images"))


def without_room() -> None:
    ending(OSError("cannot write out: no space left"))


def gone() -> None:
    ending(ConnectionError("process 1 failed"))


def ending(error: Exception) -> None:
    def fail(*_, **__) -> None:
        raise error

    cka.measure = fail


def faulty() -> None:
    """An exception of numpy that no user could mend, in the middle of the pass."""
    cka._fold = lambda _: np.zeros(2) + np.zeros(3)


def of_a_library() -> None:
    ending(KeyError("height"))


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (refusing, "error: choose other images"),
        (without_room, "error: cannot write out: no space left"),
        (gone, "error: process 1 failed"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, monkeypatch, first, sentence):
    monkeypatch.chdir(tmp_path)
    assert forked.ends(forked.start("cka", TWIN, Path("log"), first)) == running.MISTAKE == 2
    assert Path("log").read_text().splitlines() == [sentence]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (
            faulty,
            [
                "ValueError: operands could not be broadcast together with shapes (2,) (3,) ",
                "in the sums of PairSums of batch 0",
            ],
        ),
        (of_a_library, ["KeyError: 'height'"]),
    ],
)
def test_a_fault_of_ours_shows_where_it_happened_and_what_to_do(tmp_path, monkeypatch, first, last):
    monkeypatch.chdir(tmp_path)
    assert forked.ends(forked.start("cka", TWIN, Path("log"), first)) == running.FAULT == 70
    said = Path("log").read_text().splitlines()
    said = said[said.index("Traceback (most recent call last):") :]  # before it, what the run would do
    assert any(f'{Path(__file__).name}", line' in line for line in said)  # where `first` raised it
    assert said[-1 - len(last) : -1] == last
    assert said[-1] == (
        "this is a fault of vit_analysis and not of yours, in python -m vit_analysis.cka; please report the lines above"
    )
    assert not [line for line in said if line.startswith("error")]
    assert not Path("figures").exists()


def test_a_sentence_has_its_traceback_where_the_environment_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = forked.start("cka", TWIN, Path("log"), refusing, {"VIT_ANALYSIS_TRACEBACK": "1"})
    assert forked.ends(run) == 1
    said = Path("log").read_text()
    assert "Traceback (most recent call last)" in said
    assert "Refusal: choose other images" in said


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


def test_what_appeared_meanwhile_is_put_aside_and_nothing_is_lost(tmp_path, monkeypatch):
    """Tables and pictures of a user, a broken table, a folder; not the table that the same command wrote before."""
    monkeypatch.setattr(sys, "argv", ["cka.py", "lab/vit"])
    rows = table.with_provenance(pd.DataFrame({"cka": [0.5]}), "cka")
    (tmp_path / "a.parquet").write_text("no table")
    (tmp_path / "a.png").write_text("no picture")
    for _ in range(2):
        command.write(rows, tmp_path / "a")
        command.draw(rows, tmp_path / "a", lambda _: Figure())
    (tmp_path / "b.parquet").mkdir()
    command.write(rows, tmp_path / "b")
    names = {"a.parquet", "a.png", "a.1.parquet", "a.1.png", "b.parquet", "b.1.parquet"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tmp_path / "a.1.parquet").read_text() == "no table"
    assert (tmp_path / "a.1.png").read_text() == "no picture"
    monkeypatch.setattr(sys, "argv", ["cka.py", "lab/resnet"])
    command.write(rows, tmp_path / "a")
    assert table.facts(tmp_path / "a.2.parquet")["command"].endswith("lab/vit")
    assert table.facts(tmp_path / "a.parquet")["command"].endswith("lab/resnet")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", r"--out '.' is a folder; --out NAME writes NAME.parquet and NAME.png"),
        (".", r"--out '.' is a folder; --out NAME writes"),
        ("..", r"--out '..' is a folder; --out ../NAME writes ../NAME.parquet and ../NAME.png"),
        ("/", r"--out '/' is a folder; --out /NAME writes /NAME.parquet"),
        ("q/", r"--out 'q/' is a folder; --out q/NAME writes q/NAME.parquet and q/NAME.png"),
        ("q/.", r"--out 'q/.' is a folder; --out q/NAME writes"),
        ("q/..", r"--out 'q/..' is a folder; --out q/../NAME writes"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_folder_as_the_name_of_results_is_refused(tmp_path, monkeypatch, out, said, joined):
    monkeypatch.chdir(tmp_path)
    typed = [f"--out={out}"] if joined else ["--out", out]
    monkeypatch.setattr(sys, "argv", ["skip.py", "lab/vit", "--out", "first", *typed])
    with pytest.raises(Refusal, match=re.escape(said)):
        command.ready(Path(out))
    monkeypatch.setattr(command, "load_all", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(Refusal, match="is a folder"):
        typed_as("cka")(out=Path(out))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "main",
    [typed_as("cka"), typed_as("skip"), typed_as("probe"), typed_as("findings")],
    ids=lambda one: one.__module__.rpartition(".")[2],
)
@pytest.mark.parametrize(
    ("there", "out", "said"),
    [
        ("a.parquet", "a", "cannot write a.parquet: a folder of that name is there"),
        ("a/b", "a/b/..", "is a folder"),
    ],
)
def test_folders_where_results_will_be_are_found_before_the_run(
    tmp_path, monkeypatch, main, there, out, said
):
    monkeypatch.chdir(tmp_path)
    Path(there).mkdir(parents=True)
    with pytest.raises((Refusal, OSError), match=re.escape(said)):
        main(out=Path(out), images=Images(source="nowhere"))
    assert {str(path) for path in Path().rglob("*")} == {there, there.split("/")[0]}


@pytest.mark.parametrize("name", ["findings.md", "report.html", "figure_7.png", "skip.parquet"])
def test_folders_where_figures_will_be_are_found_before_the_run(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=rf"cannot write .*{name}: a folder of that name is there"):
        typed_as("figures")(out=tmp_path, images=Images(source="nowhere"))


@pytest.mark.parametrize("name", ["a" * 236, "a" * 250, "a" * 300, "a" * 200 + "ä" * 15], ids=len)
@pytest.mark.parametrize(
    "main",
    [typed_as("cka"), typed_as("probe"), typed_as("soft_nearest_neighbor")],
    ids=lambda one: one.__module__.rpartition(".")[2],
)
def test_a_name_too_long_for_what_is_written_meanwhile_is_found_before_the_run(tmp_path, main, name):
    """Names of files have at most 255 bytes; that of the sums of a pass has up to 28 more than that of the results."""
    with pytest.raises(OSError, match=r"cannot write .*: File name too long"):
        main(out=tmp_path / name, images=Images(source="nowhere"))
    assert not list(tmp_path.iterdir())


def test_a_name_that_just_fits_does(tmp_path):
    command.ready(tmp_path / ("a" * (255 - len(command.MEANWHILE))))
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_needed_is_found_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/b/a.parquet: Not a directory"):
        command.ready(tmp_path / "file" / "b" / "a")


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

    monkeypatch.setattr(running.ctypes, "CDLL", lambda _: Library)
    monkeypatch.setattr(running.sys, "platform", "linux")
    for name in [name for name in running.os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VIT_ANALYSIS_PLAIN", "1")
    running.keep_memory()
    assert calls == []
    monkeypatch.delenv("VIT_ANALYSIS_PLAIN")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")  # which stays as it is
    running.keep_memory()
    assert calls == [(-3, 2**30), (-1, 2**31 - 1)]
    assert running.os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    running.keep_memory()
    assert len(calls) == 2


# Pictures, and how much is said --------------------------------------------------------------------------------------


def test_a_picture_is_written_in_every_format_with_the_names_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["skip.py"])
    pictures = Pictures(format=("png", "svg", "svg"), width=3.0, names=("lab/vit@random=ViT, untrained",))
    typed_as("skip")(
        ("lab/vit@random",),
        images=Images(limit=8, batch=4),
        out=tmp_path / "a",
        pictures=pictures,
        machine=Machine("cpu"),
    )
    assert {file.name for file in tmp_path.iterdir()} == {"a.parquet", "a.png", "a.svg"}
    drawing = (tmp_path / "a.svg").read_text()
    assert "ViT, untrained" in drawing
    assert "lab/vit" not in drawing
    points = float(re.search(r'width="([\d.]+)pt"', drawing)[1])
    assert points == pytest.approx(3.0 * 72, rel=0.02)


def test_files_of_every_format_are_looked_at_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_all", lambda *_, **__: pytest.fail("it began"))
    (tmp_path / "a.pdf").write_text("a user's own")
    pictures = Pictures(format=("png", "pdf"))
    with pytest.raises(Refusal, match=r"a.pdf' is there and was not made by vit_analysis"):
        typed_as("skip")(out=tmp_path / "a", pictures=pictures)
    (tmp_path / "figure_1.pdf").write_text("a user's own")
    with pytest.raises(Refusal, match=r"figure_1.pdf' is there and was not made"):
        typed_as("figures")(out=tmp_path, only=("1",), pictures=pictures)


def test_a_name_for_a_model_that_is_not_drawn_is_refused_before_the_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(skip, "measure", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(Refusal, match=r"--names: no model is called 'lab/vitt'; did you mean 'lab/vit"):
        typed_as("skip")(("lab/vit@random",), out=tmp_path / "a", pictures=Pictures(names=("lab/vitt=ViT",)))


@pytest.mark.parametrize("flag", ["-q", "-v", None])
def test_how_much_is_said_is_up_to_the_user(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    arguments = [*TWIN, "--out", "x", *([flag] if flag else [])]
    assert forked.ends(forked.start("cka", arguments, Path("log"))) == 0
    said = Path("log").read_text()
    assert re.search(r"^found: mean CKA of different layers: lab/vit@random \d", said, re.MULTILINE)
    assert said.splitlines()[-1].startswith("found: ")
    assert ("models:  lab/vit@random (ViT" in said) == (flag != "-q")
    assert ("cka of lab/vit@random: done, 24 images" in said) == (flag != "-q")
    assert ("preprocessing" in said) == (flag == "-v")
    assert "_without" not in said
