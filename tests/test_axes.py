"""Every analysis on images and grids that are not square: rows and columns exchanged in all is exchanged in the table.

Whoever reads a grid column by column, or takes a height for a width, gets other tokens and other distances of the exchanged
images; and whoever counts tokens from another place gets others where tokens stand before the spatial ones.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from doubles import Layers, oracle_cka

from vit_analysis import localization, models, probe, skip, tokens
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.images import Preprocessing
from vit_analysis.probe import Reader
from vit_analysis.reading.capture import Capture
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.tensors.tokens import Layout

ROWS, COLUMNS = tiny.GRID


@cache
def table(kind: str, *, turned: bool) -> pd.DataFrame:
    return tiny.TABLES[kind](tiny.made(24, 6, turned=turned))


def upright(number: str, grid: tuple[int, int], prefix: int = 0) -> str:
    """The number that a token has in upright images, from that in turned ones whose grid has these rows and columns."""
    if not number.isdigit() or int(number) < prefix:
        return number
    row, column = divmod(int(number) - prefix, grid[1])
    return str(prefix + column * grid[0] + row)


def of_localization(own: pd.DataFrame) -> pd.DataFrame:
    names = {
        f"{what}_{one}": f"{what}_{other}"
        for what in ("token", "patch")
        for one, other in (("row", "col"), ("col", "row"))
    }
    own = own.rename(columns=names)
    across = own.groupby("model")["token_col"].transform("max") + 1
    own["token"] = own["token_row"] * across + own["token_col"]
    return own.sort_values(["model", "token", "patch_row", "patch_col"], ascending=[False, True, True, True])


def of_probe(own: pd.DataFrame) -> pd.DataFrame:
    grids = {name: tuple(grid) for name, grid in own.attrs["grids"].items()}
    assert grids == {"v": (COLUMNS, ROWS), "r": (3, 4)}
    own["tokens"] = [
        upright(token, grids[model]) for model, token in zip(own["model"], own["tokens"], strict=True)
    ]
    return own


def of_skip(own: pd.DataFrame) -> pd.DataFrame:
    own["token"] = [upright(token, (COLUMNS, ROWS), tiny.PREFIX) for token in own["token"]]
    return own


def of_maps(own: pd.DataFrame) -> pd.DataFrame:
    own["map"] = [
        np.reshape(values, (rows, columns)).T.ravel()
        for values, rows, columns in zip(own["map"], own["rows"], own["columns"], strict=True)
    ]
    return own.rename(columns={"rows": "columns", "columns": "rows"})


TURNED: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "localization": of_localization,
    "probe": of_probe,
    "skip": of_skip,
    "receptive_field_maps": of_maps,
}
"""By kind of table: the table of turned images as that of upright ones; others must be the same as they are."""
WITHOUT_PLACES = {
    "lesions_trained"
}  # similarities and accuracies of whole layers of a network for square images alone
TOLERANCE = 1e-4  # of float32: 1e-5 is enough on one machine
NAMES = (
    "model",
    "layer",
    "block",
    "sublayer",
    "step",
    "branch",
    "token",
    "tokens",
    "target",
    "draw",
    "frequency",
    "heads",
    "subset",
)


@pytest.mark.parametrize("kind", sorted({kind for one in ANALYSES for kind in one.tables} - WITHOUT_PLACES))
def test_with_rows_and_columns_exchanged_everywhere_so_is_the_table(kind):
    own = table(kind, turned=False)
    other = TURNED.get(kind, lambda same: same)(table(kind, turned=True).copy())
    keys = [name for name in NAMES if name in own]
    own, other = (one.sort_values(keys, kind="stable").reset_index(drop=True) for one in (own, other))
    for name in own:
        one, two = own[name], other[name]
        if one.dtype == object and not isinstance(one.iloc[0], str):
            one, two = (np.concatenate([np.ravel(value) for value in values]) for values in (one, two))
        if pd.api.types.is_numeric_dtype(one):
            scale = np.nanmax(np.abs(one), initial=0)
            assert np.isclose(two, one, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True).all(), name
        else:
            assert list(two) == list(one), name


def test_a_table_of_localization_is_the_cka_of_each_token_with_each_patch():
    own = tiny.made(24, 12)
    found = localization.measure(own.vit, own.images, layers="blocks.2").set_index(
        ["token_row", "token_col", "patch_row", "patch_col"]
    )
    with Capture(own.vit.module, ["blocks.2"]) as run, torch.no_grad():
        (values,) = run(own.images.pixels).values()
    assert len(found) == (ROWS * COLUMNS) ** 2
    height, width = tiny.PATCH
    for row, column, down, across in product(range(ROWS), range(COLUMNS), repeat=2):
        cut = own.images.pixels[
            :, :, down * height : (down + 1) * height, across * width : (across + 1) * width
        ]
        token = values[:, tiny.PREFIX + COLUMNS * row + column]
        expected = oracle_cka(token.split(12), cut.split(12))
        line = found.loc[row, column, down, across]
        assert line["cka"] == pytest.approx(expected, abs=1e-4)
        assert line["token"] == COLUMNS * row + column


# Tokens before the spatial ones ------------------------------------------------------------------------------------------


def spatial_and_more(prefix: int) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    spatial = torch.randn(5, ROWS * COLUMNS, 7, generator=torch.Generator().manual_seed(0))
    more = 3 * torch.randn(5, prefix, 7, generator=torch.Generator().manual_seed(1))
    return (
        spatial,
        torch.cat([more, spatial], 1),
        Layout(spatial=ROWS * COLUMNS, prefix=prefix, grid=tiny.GRID),
    )


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_token_that_is_probed_is_the_same_patch_whatever_stands_before(prefix):
    spatial, every, layout = spatial_and_more(prefix)
    names = ("0", "4", "5", probe.EACH, "mean", "mean_spatial", "cls")
    found = Reader(names, layout)(every)
    assert {name for name in found if name.isdigit()} == {str(number) for number in range(ROWS * COLUMNS)}
    for number in range(ROWS * COLUMNS):
        assert torch.equal(found[str(number)], spatial[:, number])
    torch.testing.assert_close(found["mean"], every.mean(1))
    assert ("mean_spatial" in found) == (prefix > 0)
    if prefix:
        torch.testing.assert_close(found["mean_spatial"], spatial.mean(1))
    assert "cls" not in found  # these are registers
    assert Reader(("4", "6", "7"), layout)(every).keys() == {"4"}  # there are no more
    if prefix:  # and nothing is read of spatial tokens where there are none
        assert Reader(names, layout)(every[:, :prefix]).keys() == {"mean"}
    assert torch.equal(Reader(("4",), layout)(every)["4"], spatial[:, 4])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_token_whose_ratio_is_told_is_counted_from_the_first_of_all(prefix):
    spatial, every, layout = spatial_and_more(prefix)
    long = every.flip(1) + 1
    names, totals, counts = skip.ratios(every, long, layout, 99)
    assert names == ["spatial", *map(str, range(prefix + ROWS * COLUMNS))]
    for number in range(prefix + ROWS * COLUMNS):
        ratio = every[:, number].norm(dim=-1) / long[:, number].norm(dim=-1)
        assert float(totals[1 + number, skip.MEANS.index("norm_ratio")]) == pytest.approx(
            float(ratio.sum()), rel=1e-5
        )
    mean = (spatial.norm(dim=-1) / long[:, prefix:].norm(dim=-1)).mean(1).sum()
    assert float(totals[0, 0]) == pytest.approx(float(mean), rel=1e-5)
    assert float(counts[0].sum()) == 5 * ROWS * COLUMNS
    assert skip.ratios(every, long, layout, 3)[0] == ["spatial", "0", "1", "2"]


def test_statistics_of_spatial_tokens_do_not_depend_on_what_stands_before():
    spatial, every, _ = spatial_and_more(2)
    module = Layers(alone=lambda x: spatial[: len(x)], beside=lambda x: every[: len(x)])
    anatomy = Anatomy(prefix=2, class_token=True, spatial=ROWS * COLUMNS)
    known = models.own(module, "m", preprocessing=Preprocessing(), anatomy=anatomy)
    found = tokens.measure(known, tiny.images(5, 5), layers=["alone", "beside"])
    for name in (*tokens.MEANS, *tokens.SHARES):
        one, other = found[name]
        if name == "class_cosine":
            near = torch.cosine_similarity(every[:, :1], spatial, dim=-1).mean()
            assert np.isnan(one)
            assert other == pytest.approx(float(near), abs=1e-6)
        else:
            assert other == pytest.approx(one), name
