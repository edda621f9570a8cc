"""From what is said of images to numbers of classes."""

import numpy as np
import pytest
from pictures import parquet, read_all, table, tar

from vit_analysis.images import Images
from vit_analysis.sources.labels import of_codes
from vit_analysis.spelling import Refusal

NUMBERED = {
    "numbers": ([3, 1, 0], ["0", "1", "3"], [2, 1, 0]),
    "years": (["2001", "1984", "2001"], ["1984", "2001"], [1, 0, 1]),
    "from 1": (["2", "1", "10"], ["1", "2", "10"], [1, 0, 2]),
    "large": ([100_001, 5, 2**64 - 1], ["5", "100001", str(2**64 - 1)], [1, 0, 2]),
    "texts of digits": (["007", "7", "10"], ["007", "7", "10"], [0, 1, 2]),
    "zeros before": (["02", "01", "10"], ["01", "02", "10"], [1, 0, 2]),
    "a sign": (["+1", "1", "2"], ["1", "2", "+1"], [2, 0, 1]),
    "words": (["n10", "n9", "10"], ["10", "n9", "n10"], [2, 1, 0]),
    "very long": (["9" * 9000, "1" * 9000], ["1" * 9000, "9" * 9000], [1, 0]),
}


@pytest.mark.parametrize(("said", "names", "labels"), NUMBERED.values(), ids=NUMBERED)
def test_values_that_occur_are_numbered(said, names, labels):
    values = list(dict.fromkeys(said))
    own = of_codes(np.array([values.index(value) for value in said]), [*values, "of no image"], "x")
    assert (sorted(own.names), own.names[own.labels[0]]) == (sorted(names), str(said[0]))
    assert [own.names[label] for label in own.labels] == [str(value) for value in said]
    assert (own.names, own.labels.tolist()) == (names, labels)


def test_names_that_are_known_keep_their_gaps():
    own = of_codes(np.array([0, 1, 0]), [2, 0], "x", ["a", "b", "c"])
    assert (own.names, own.labels.tolist()) == (["a", "b", "c"], [2, 0, 2])
    with pytest.raises(Refusal, match="class 3, and 3 classes at most"):
        of_codes(np.array([0]), [3], "x", ["a", "b", "c"])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_years_are_as_many_classes_as_there_are_years(tmp_path, kind):
    years = ["1984", "2001", "1984"]
    if kind == "tar":
        files = {
            f"{n}.{end}": own for n, year in enumerate(years) for end, own in {"png": n, "cls": year}.items()
        }
        path = tar(tmp_path / "x.tar", files)
    else:
        path = parquet(tmp_path / "x.parquet", table({"image": range(3), "label": years}))
    images = Images(str(path), workers=0)
    assert images.classes == ["1984", "2001"]
    assert read_all(images) == {0: (0, 0), 1: (1, 1), 2: (2, 0)}


def test_numbers_too_large_for_torch_are_classes_too(tmp_path):
    labels = np.array([2**64 - 1, 0, 2**63], dtype=np.uint64)
    path = parquet(tmp_path / "x.parquet", table({"image": range(3), "label": labels}))
    images = Images(str(path), workers=0)
    assert images.classes == ["0", str(2**63), str(2**64 - 1)]
    assert images.truth(range(3))["class"].tolist() == [2, 0, 1]
