"""Write the oldest versions that pyproject.toml promises as constraints for pip: `make oldest` installs and tests them."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints(project: Path = PROJECT) -> list[str]:
    """Each dependency at its lower bound, such as ``torch==2.6``."""
    wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [re.sub(r"\s*>=\s*", "==", one) for one in wanted]


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints()) + "\n")
