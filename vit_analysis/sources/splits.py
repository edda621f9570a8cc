"""Sets of one data set, such as train and val: they are different images, and are never read as one."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vit_analysis.spelling import Refusal

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev")


def mixed(folders: Iterable[str]) -> list[str]:
    """The folders at the top, if all of several are named as such sets are; otherwise none."""
    tops = list(dict.fromkeys(folder.partition("/")[0] for folder in folders))
    return tops if len(tops) > 1 and all(top.lower() in SPLITS for top in tops) else []


def refuse_mixed_shards(paths: Sequence[Path], below: Path, name: str) -> None:
    """Check that shards are not of several sets, by words in their names and in those of the folders below some folder.

    Raises:
        Refusal: they are.
    """
    kinds: dict[str, Path] = {}
    for path in paths:
        words = re.split("[^a-z]+", path.relative_to(below).as_posix().lower())
        kinds.setdefault(next((word for word in words if word in SPLITS), ""), path)
    if len(kinds) > 1 and "" not in kinds:
        own = [
            path.parent / f"*{kind}*{path.suffix}" if kind in path.name.lower() else path.parent
            for kind, path in kinds.items()
        ]
        raise Refusal(
            f"{name!r} holds shards of {' and '.join(kinds)}, which are different sets of images; choose one: "
            f"{' or '.join(map(str, own))}"
        )
