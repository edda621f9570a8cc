"""Photographs and what was drawn of them, such as masks: they are not read as images of one set, nor as two classes."""

import re
from collections.abc import Iterable, Sequence

from vit_analysis.spelling import Refusal

PHOTOGRAPHS = {
    "image",
    "images",
    "img",
    "imgs",
    "jpegimages",
    "photo",
    "photos",
    "picture",
    "pictures",
    "rgb",
}
DRAWN = (
    *(
        "mask",
        "masks",
        "annotation",
        "annotations",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "segmentationclass",
    ),
    *(
        "segmentationobject",
        "label",
        "labels",
        "gt",
        "groundtruth",
        "ground",
        "depth",
        "depths",
        "trimap",
        "trimaps",
        "edges",
    ),
)
MARK = re.compile(rf"[ _-]+(?:{'|'.join(DRAWN)})$", re.IGNORECASE)


class Pairs:
    """Counts images beside which another one lies that is of the same name but for its ending or for a word as "mask"."""

    def __init__(self) -> None:
        self.images = self.drawn = 0
        self.first: tuple[str, str] | None = None

    def add(self, names: Sequence[str]) -> None:
        """Count those among the images of one folder or tar."""
        seen = dict[str, str]()
        pairs = [(first, name) for name in names if (first := seen.setdefault(_stem(name), name)) != name]
        for stem, name in seen.items():
            if "." in stem or MARK.search(stem):
                folder, slash, own = stem.rpartition("/")
                shorter = (f"{folder}{slash}{own.partition('.')[0]}", MARK.sub("", stem))
                pairs += [(seen[one], name) for one in shorter if one != stem and one in seen][:1]
        self.images += len(names)
        self.drawn += len(pairs)
        self.first = self.first or next(iter(pairs), None)

    def refuse(self, what: str, hint: str) -> None:
        """Check that it is not so for half of the images or more, as by their names a few may be pairs by chance.

        Raises:
            Refusal: it is.
        """
        if self.first is not None and 2 * self.drawn >= self.images - self.drawn:
            one, other = self.first
            raise Refusal(
                f"{one!r} and {other!r} in {what} are several images of one sample, as a photograph and its mask; {hint}"
            )


def refuse_drawn(folders: Iterable[str], what: str) -> None:
    """Check that there are not folders of photographs and, beside them, of masks.

    Raises:
        Refusal: there are.
    """
    beside: dict[str, dict[str, None]] = {}
    for folder in folders:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            beside.setdefault("/".join(parts[:depth]), {})[part] = None
    for own in beside.values():
        photographs = [part for part in own if part.lower() in PHOTOGRAPHS]
        drawn = [part for part in own if set(re.split("[^a-z]+", part.lower())) & set(DRAWN)]
        if photographs and drawn:
            raise Refusal(
                f"{what} holds {photographs[0]!r} and {drawn[0]!r}, which are photographs and what was drawn of them, and not "
                f"two classes; name the folder of those that are meant"
            )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
