"""Sets of one data set, such as train and val: they are different images, and are never read as one."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vit_analysis.spelling import Refusal

LEARN, CHECK, TEST, EVAL, MORE = "train", "val", "test", "eval", "extra"
# Words that name a set, and which one; those of the last kind do so only beside another.
SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), LEARN),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), CHECK),
    **dict.fromkeys(("test", "testing", "testset", "holdout"), TEST),
    **{
        "eval": EVAL,
        "extra": MORE,
        "unlabeled": "unlabeled",
        "unlabelled": "unlabeled",
        "unsupervised": "unlabeled",
    },
}
WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")


def mixed(paths: Iterable[str]) -> dict[str, str]:
    """Different sets that parts of paths at one depth are named after: for each word the path up to it; none if it is one set.

    A part may hold other words, which have to be the same (``seg_train`` and ``seg_test``, but not the classes ``test_tube``
    and ``bullet_train``), unless all parts at that depth name sets.
    """
    depths: list[
        dict[str, str]
    ] = []  # for each depth, what its parts are called and the first path up to each
    for path in dict.fromkeys(paths):
        parts = path.split("/") if path else []
        for depth, part in enumerate(parts):
            if depth == len(depths):
                depths.append({})
            depths[depth].setdefault(part, "/".join(parts[: depth + 1]))
    return next((found for parts in depths if (found := _sets(parts))), {})


def _sets(parts: dict[str, str]) -> dict[str, str]:
    named: dict[str, dict[str, str]] = {}  # by the other words
    count = 0
    for part, path in parts.items():
        words = [word.lower() for word in WORD.findall(part)]
        word = next((word for word in words if word in SPLITS), None)
        if word is not None:
            named.setdefault(" ".join(own for own in words if own != word), {}).setdefault(word, path)
            count += 1
    every = {word: path for own in named.values() for word, path in own.items()}
    alike = any(_several(own) for own in named.values())
    return every if alike or (count == len(parts) and _several(every)) else {}


def _several(words: Iterable[str]) -> bool:
    """Return whether words name different sets."""
    kinds = {SPLITS[word] for word in words}
    return len(kinds) > 1 and bool(kinds & {LEARN, CHECK, TEST, EVAL})


def refuse_mixed_shards(paths: Sequence[Path], below: Path, name: str) -> None:
    """Check that shards are not of several sets, by words in their names and in those of the folders below some folder.

    Raises:
        Refusal: they are.
    """
    inner = {path.relative_to(below).with_suffix("").as_posix(): path for path in paths}
    if sets := mixed(inner):
        own = [
            path.parent / f"*{word}*{path.suffix}" if (path := inner.get(start)) else below / start
            for word, start in sets.items()
        ]
        raise Refusal(
            f"{name!r} holds shards of {' and '.join(sets)}, which are different sets of images; choose one: "
            f"{' or '.join(map(str, own))}"
        )
