"""The one list of analyses, and the command that lists and calls them all."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import vit_analysis
from vit_analysis import __main__ as commands
from vit_analysis import plot
from vit_analysis.images import Images, given
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.typed import Choice, single

PACKAGE = Path(vit_analysis.__file__).parent
README = Path(__file__).parents[1] / "README.md"

every_analysis = pytest.mark.parametrize("analysis", ANALYSES, ids=lambda one: one.name)


@every_analysis
def test_every_analysis_measures_plans_and_is_a_command(analysis):
    module = analysis.module
    plan = getattr(module, "plan", None) or module.plan_with_maps
    for function in (module.measure, plan):
        assert list(inspect.signature(function).parameters)[1:2] == ["images"]
    assert next(iter(inspect.signature(module.measure).parameters)) == "models"
    assert inspect.signature(module.measure).parameters["state"].default is None
    for parameter in inspect.signature(analysis.command).parameters.values():
        assert parameter.default is not inspect.Parameter.empty  # without an argument it runs on the lab


@every_analysis
def test_a_command_and_its_analysis_have_the_same_options_and_defaults(analysis):
    """Both are declared, as a command must not import its analysis before it knows what was typed."""
    typed, own = (inspect.signature(one).parameters for one in (analysis.command, analysis.module.measure))
    names = {"by": "measure"}
    both = {option: names.get(option, option) for option in typed if names.get(option, option) in own}
    assert {"models", "images"} <= both.keys()
    assert {"layers", "tokens", "channels", "first"} & own.keys() <= set(both.values())
    for option, name in both.items():
        said, default = typed[option].default, own[name].default
        if default is inspect.Parameter.empty or name in ("models", "blocks", "shots"):
            continue  # a command's own: the lab's models; none and all are one; a number of shots
        said = single(said) if name == "layers" else said
        assert (vars(said) if isinstance(said, Choice) else said) == (
            vars(default) if isinstance(default, Choice) else default
        ), option


def test_images_that_are_typed_are_those_that_python_takes():
    options = {field.name: field.default for field in fields(Choice)}
    assert options == {field.name: field.default for field in fields(Images)}
    assert given(Choice(limit=7, seed=3)) == Images(limit=7, seed=3)


def test_names_of_analyses_and_of_their_tables_are_their_own():
    names = [analysis.name for analysis in ANALYSES]
    kinds = [kind for analysis in ANALYSES for kind in analysis.tables]
    assert len(set(names)) == len(names)
    assert len(set(kinds)) == len(kinds)
    assert all(analysis.tables[0] == analysis.name for analysis in ANALYSES)


def test_every_kind_of_table_has_a_picture_and_every_picture_a_table():
    of_the_study = {"cka_controls", "findings"}
    assert set(plot.PICTURES) == {kind for analysis in ANALYSES for kind in analysis.tables} | of_the_study


def test_the_readme_names_every_analysis_with_its_figures():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: (figures, words) for name, figures, words in rows}
    assert list(told)[: len(ANALYSES)] == [analysis.name for analysis in ANALYSES]
    for analysis in ANALYSES:
        assert told[analysis.name] == (analysis.figures, analysis.measures)


# The list of commands ------------------------------------------------------------------------------------------------


def called(*arguments: str, program: tuple[str, ...] = ("-m", "vit_analysis")) -> subprocess.CompletedProcess:
    call = [sys.executable, *program, *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)


def test_everything_that_runs_is_a_command():
    runs = [path for path in PACKAGE.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")]
    files = {path.relative_to(PACKAGE).with_suffix("") for path in runs}
    names = {".".join(file.parent.parts if file.name == "__main__" else file.parts) for file in files}
    assert names - {""} == set(commands.commands())


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)], ids=" ".join)
def test_commands_are_listed_with_what_they_do(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vit-analysis", *arguments])
    commands.main()
    said = capsys.readouterr().out
    assert f"vit_analysis {vit_analysis.__version__}" in said
    assert "((" not in said
    for name, words in commands.commands().items():
        assert re.search(rf"^  {name} +{re.escape(words)}$", said, re.MULTILINE), name
    for analysis in ANALYSES:
        assert analysis.measures in commands.commands()[analysis.name]
        assert analysis.figures.strip("()") in commands.commands()[analysis.name]


def test_listing_commands_imports_nothing_heavy():
    code = "import sys; from vit_analysis.__main__ import main; main(); print(*sys.modules)"
    ran = called(program=("-c", code))
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint({"torch", "timm", "numpy", "pandas", "matplotlib", "tyro"})
    assert {name for name in loaded if name.startswith("vit_analysis.")} == {
        *(
            "vit_analysis.__main__",
            "vit_analysis.shell",
            "vit_analysis.shell.analyses",
            "vit_analysis.spelling",
        )
    }


def test_the_version_is_that_of_the_package():
    ran = called("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{vit_analysis.__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "near"), [("attention", "attention_distance"), ("figure", "figures"), ("ckaa", "cka")]
)
def test_a_typo_gets_the_nearest_command(name, near):
    ran = called(name)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(rf"error: no command '{name}'; did you mean '{near}'.*\?\n", ran.stderr)


def test_a_command_is_called_as_if_by_itself():
    both = called("plot", "--help"), called("--help", program=("-m", "vit_analysis.plot"))
    assert [(ran.returncode, ran.stdout, ran.stderr) for ran in both] == 2 * [(0, both[1].stdout, "")]
    assert "Draw a table again" in both[0].stdout
