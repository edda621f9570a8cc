"""What a command loads before it knows what was typed."""

import subprocess
import sys

import pytest

from vit_analysis import __version__
from vit_analysis.__main__ import commands

HEAVY = {"torch", "timm", "pandas", "numpy", "scipy", "matplotlib", "transformers", "torchvision", "PIL"}
# What runs as a program, and says in the end what it has loaded.
LOADED = """
import runpy, sys
name, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write("\\nLOADED " + " ".join(sys.modules))
"""


def typed(name: str, *arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    call = [sys.executable, "-c", LOADED, f"vit_analysis.{name}" if name else "vit_analysis", *arguments]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    said, _, loaded = ran.stderr.rpartition("\nLOADED ")
    return subprocess.CompletedProcess(call, ran.returncode, ran.stdout, said), set(loaded.split())


every_command = pytest.mark.parametrize("name", commands())


@every_command
def test_help_loads_nothing_heavy(name):
    ran, loaded = typed(name, "--help")
    assert ran.returncode == 0, ran.stderr
    assert "--help" in ran.stdout
    assert "--verbose" in ran.stdout
    assert "--quiet" in ran.stdout
    assert loaded & HEAVY <= ({"pandas", "numpy", "matplotlib", "PIL"} if name == "plot" else set())


@every_command
def test_a_typo_loads_nothing_heavy(name):
    needed = {"train": ["lab/vit"], "plot": ["a.parquet", "a.png"]}
    ran, loaded = typed(name, *needed.get(name, []), "--devise", "cpu")
    assert ran.returncode == 2
    assert "--devise" in ran.stdout + ran.stderr
    assert loaded & HEAVY <= ({"pandas", "numpy", "matplotlib", "PIL"} if name == "plot" else set())


@pytest.mark.parametrize("name", ["", "cka", "train", "plot", "figures"])
def test_every_command_tells_its_version_whatever_else_it_needs(name):
    ran, loaded = typed(name, "--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split()[-1] == __version__
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [([], 0, "Commands:"), (["ckaa"], 2, "did you mean 'cka'"), (["cka", "--devise"], 2, "--devise")],
    ids=str,
)
def test_the_list_of_commands_and_a_misspelt_one_load_nothing_heavy(arguments, status, said):
    ran, loaded = typed("", *arguments)
    assert ran.returncode == status
    assert said in ran.stdout + ran.stderr
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images.limit", "0"], "images.limit must be at least 1, got 0"),
        (["-v", "-q"], "opposites"),
        (["--format", "bmp"], "bmp"),
        (["--width", "0"], "--width is in inches, from 1 to 100, got 0"),
        (["--names", "ViT"], "--names takes MODEL=NAME, as in lab/vit=ViT, got 'ViT'"),
        (["--names", "lab/vit="], "got 'lab/vit='"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_said_before_anything_heavy_is_loaded(arguments, said):
    ran, loaded = typed("skip", *arguments)
    assert ran.returncode == 2
    told = " ".join((ran.stdout + ran.stderr).replace("│", " ").split())
    assert said in told
    assert "Traceback" not in told
    assert not loaded & HEAVY


def test_a_command_loads_its_analysis_once():
    """Run as a program, a module hands over before it defines anything, so that no class of it is there twice."""
    code = "import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('vit_analysis.cka', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"vit_analysis {__version__}\n")
