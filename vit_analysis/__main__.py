"""The commands of this package: `python -m vit_analysis`, or `vit-analysis`, lists them and calls them.

python -m vit_analysis
python -m vit_analysis cka lab/vit lab/resnet     # the same as python -m vit_analysis.cka lab/vit lab/resnet
"""

import runpy
import sys

from vit_analysis import __version__
from vit_analysis.shell.analyses import ANALYSES, OTHERS
from vit_analysis.spelling import did_you_mean


def commands() -> dict[str, str]:
    """Return what every command does, by its name."""
    return {one.name: f"{one.measures} ({_figures(one.figures)})" for one in ANALYSES} | OTHERS


def _figures(numbers: str) -> str:
    """Name the figures that an analysis makes: ``figures 1, 2``, ``figure 8``, or other words as they are."""
    if not numbers[:1].isalnum():
        return numbers.strip("()")
    return f"figure{'s' if len(numbers) > 1 else ''} {numbers}"


def overview() -> str:
    """The commands, one line each."""
    names = commands()
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {words}" for name, words in names.items()]
    return "\n".join(
        [
            f"vit_analysis {__version__}: the figures of Raghu et al. (NeurIPS 2021) for your models. Commands:",
            *lines,
            "Run python -m vit_analysis.COMMAND; --help says what it takes. Without arguments it runs on the embedded lab.",
        ]
    )


def main() -> None:
    """List the commands, or run the one that is named."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(f"{overview()}\n")
    elif name == "--version":
        sys.stdout.write(f"{__version__}\n")
    elif name in commands():
        del sys.argv[1]
        runpy.run_module(f"vit_analysis.{name}", run_name="__main__", alter_sys=True)
    else:
        sys.stderr.write(f"error: no command {name!r}; {did_you_mean(name, commands())}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
