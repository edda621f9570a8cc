"""Tables as evidence: any statistic of them with its interval, from the values without each group of images that they carry.

A statistic is a function of an `Evidence`. Evaluated once on all and once without each group it is jackknifed, whatever it
computes and of however many tables: tables of the same images lose the same images at once, and shared errors cancel.
Probes also vary with their examples; draws of examples are groups of their own, and the two variances add up.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from vit_analysis.spelling import Refusal
from vit_analysis.study.parts import Parts, parts_wanted
from vit_analysis.table import WITHOUT, code_of_pictures

DRAW = "draw"


class Study(NamedTuple):
    """The material of figures and findings.

    Attributes:
        parts: the models by the part they play, under the names that tables use.
        tables: the tables, by name.
        missing: why a table is not there, by its name.
    """

    parts: Parts
    tables: dict[str, pd.DataFrame]
    missing: dict[str, str]

    def made_of(self, *more: str) -> str:
        """Return a digest of the tables, the parts, the code and whatever else is named; empty where a table has no key."""
        keys = {name: own.attrs.get("key") for name, own in self.tables.items()}
        if not all(keys.values()):
            return ""
        facts = [keys, repr(self.parts), self.missing, code_of_pictures(), *more]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class Matrix(NamedTuple):
    """CKA of the layers of one model (rows) with those of another (columns)."""

    values: Float64[np.ndarray, "row column"]
    layers: list[str]
    depth: Float64[np.ndarray, " row"]
    other_depth: Float64[np.ndarray, " column"]


class _Frame(NamedTuple):
    """The edges of a matrix of two models' layers, which do not depend on images."""

    layers: list[str]
    depth: np.ndarray
    other_depth: np.ndarray


class Evidence:
    """The material of statistics: parts and tables, whole or without one group.

    Args:
        study: parts, tables, and why others are missing.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.parts: Parts = study.parts
        self.left_out: tuple[str, int] | None = None
        self.weighted: tuple[str, np.ndarray] | None = None
        self.asked: set[str] = set()
        """The parts whose models a statistic has asked for."""
        self.used: set[str] = set()
        """Those models themselves."""
        self._tables = {name: _plain(table) for name, table in study.tables.items()}
        self._sources_of: dict[str, list[str]] = {}
        self._without: dict[str, dict[str, np.ndarray]] = {}
        # Shared with the evidence without each group: the rows are the same, and so is all that does not depend on images.
        self._places: dict[tuple[Any, ...], np.ndarray] = {}
        self._rows: dict[tuple[Any, ...], pd.DataFrame] = {}
        self._frames: dict[tuple[Any, ...], _Frame] = {}

    def one(self, part: str) -> str:
        """The first model of a part.

        Raises:
            Refusal: there is none.
        """
        first, *_ = self._those_of(part)
        self.used.add(first)
        return first

    def all(self, part: str, least: int = 1) -> list[str]:
        """The models of a part.

        Raises:
            Refusal: they are fewer than ``least``.
        """
        found = self._those_of(part, least)
        self.used.update(found)
        return found

    def _those_of(self, part: str, least: int = 1) -> list[str]:
        self.asked.add(part)
        found = self.parts.names(part)
        if len(found) < least:
            raise Refusal(f"needs {f'{least} times ' if least > 1 else ''}{parts_wanted(part)}")
        return found

    def further(self) -> Iterator["Evidence"]:
        """Yield the evidence of every further training run: the second run of each model that has one, then the third ..."""
        for parts in self.parts.each_run()[1:]:
            other = copy(self)
            other.parts, other.asked, other.used = parts, set(), set()
            yield other

    def table(self, name: str) -> pd.DataFrame:
        """A whole table, with its provenance.

        Raises:
            Refusal: there is no such table; it says why.
        """
        if name not in self.study.tables:
            raise Refusal(self.study.missing.get(name, f"needs the table {name!r}"))
        return self.study.tables[name]

    def rows(self, name: str, **where: str) -> pd.DataFrame:
        """The rows of a table in which columns have these values.

        Raises:
            Refusal: there is no such table, or no such row in it.
        """
        key = (name, *sorted(where.items()))
        places = self._found(key)
        if key not in self._rows:
            self._rows[key] = self._tables[name].iloc[places]
        rows = self._rows[key]
        if self.weighted is not None and self.weighted[0] in self._sources(name):
            return rows.assign(**self._reweighted(name, places))
        if self.left_out is None or self.left_out[0] not in self._sources(name):
            return rows
        source, group = self.left_out
        if source == DRAW:
            return rows[rows[DRAW] != group]
        return rows.assign(**{column: own[places, group] for column, own in self._replicates(name).items()})

    def first(self, name: str, column: str, **where: str) -> str:
        """The value of a column in the first row of a table in which other columns have these values.

        Raises:
            Refusal: there is no such table, or no such row in it.
        """
        places = self._found((name, *sorted(where.items())))
        return str(self._tables[name][column].iloc[places[0]])

    def _found(self, key: tuple[Any, ...]) -> np.ndarray:
        """The places of rows in a table, by its name and the values of columns.

        Raises:
            Refusal: there is no such table, or no such row in it.
        """
        name, *where = key
        if key not in self._places:
            self.table(name)
            table = self._tables[name]
            found = np.ones(len(table), dtype=bool)
            for column, value in where:
                found &= self._equal(name, column, value)
            self._places[key] = np.flatnonzero(found)
        if not len(self._places[key]):
            raise Refusal(f"{name} holds nothing of {', '.join(value for _, value in where)}")
        return self._places[key]

    def _equal(self, name: str, column: str, value: str) -> np.ndarray:
        """Return whether each row of a table has this value in a column."""
        key = (name, column, "==", value)
        if key not in self._places:
            self._places[key] = (self._tables[name][column] == value).to_numpy()
        return self._places[key]

    def _values(self, name: str, column: str, places: np.ndarray) -> np.ndarray:
        """A column of some rows, with what is left out or drawn again taken into account."""
        if self.weighted is not None and self.weighted[0] in self._sources(name):
            return self._weighed(name, column, places)
        if self.left_out is not None and self.left_out[0] in self._sources(name):
            return self._replicates(name)[column][places, self.left_out[1]]
        return self._tables[name][column].to_numpy(dtype=float)[places]

    def cka(self, model: str, other: str, table: str = "cka", **where: str) -> Matrix:
        """CKA of the layers of two models; layers that are constant over images have none and are left out.

        Args:
            model: model of the rows.
            other: model of the columns.
            table: name of the table.
            where: values that other columns of the table must have.

        Raises:
            Refusal: the table does not compare them, or no layer is left.
        """
        key = (table, ("model", model), ("other_model", other), *sorted(where.items()))
        places = self._found(key)
        if key not in self._frames:
            rows = self._tables[table].iloc[places]
            layers = list(dict.fromkeys(rows["layer"]))
            across = len(rows) // len(layers)
            depths = (rows[name].to_numpy(dtype=float) for name in ("depth", "other_depth"))
            self._frames[key] = _Frame(layers, next(depths)[::across], next(depths)[:across])
        layers, depth, other_depth = self._frames[key]
        values = self._values(table, "cka", places).reshape(len(layers), -1)
        down, across_ = (~np.isnan(values).all(axis=axis) for axis in (1, 0))
        if not down.any():
            raise Refusal(f"all layers of {model} or of {other} are constant over images")
        kept = [layer for layer, defined in zip(layers, down, strict=True) if defined]
        return Matrix(values[down][:, across_], kept, depth[down], other_depth[across_])

    def without(self, tables: Collection[str]) -> Iterator[list["Evidence"]]:
        """For each source of variation of these tables, the evidence without each of its groups."""
        sources = dict.fromkeys(source for name in tables for source in self._sources(name))
        for source in sources:
            counts = [self._groups(name, source) for name in tables if source in self._sources(name)]
            yield [self._leaving_out(source, group) for group in range(min(counts))]

    def resampled(self, tables: Collection[str], draws: int, seed: int = 0) -> Iterator["Evidence"]:
        """Yield the evidence with whole groups of images drawn again with replacement, so many times.

        A column is then its value plus, for each group, its influence times how much more often than once the group was drawn:
        exact for means, and for smooth columns as good as the jackknife. No image is ever twice in a Gram matrix.
        """
        source = next(own for name in tables for own in self._sources(name) if own != DRAW)
        groups = min(self._groups(name, source) for name in tables if source in self._sources(name))
        generator = np.random.default_rng(seed)
        for _ in range(draws if groups > 1 else 0):
            other = copy(self)
            other.weighted = source, np.bincount(generator.integers(groups, size=groups), minlength=groups)
            yield other

    def changed(
        self,
        changes: Mapping[str, pd.DataFrame],
        *,
        parts: Mapping[str, Any] | None = None,
        tables: Collection[str] | None = None,
    ) -> "Evidence":
        """Return the evidence with other tables or parts; if `tables` is given, it keeps only the tables named."""
        own = {**self.study.tables, **changes}
        kept = own if tables is None else {name: own[name] for name in tables}
        return Evidence(Study(replace(self.parts, **(parts or {})), kept, self.study.missing))

    def _leaving_out(self, source: str, group: int) -> "Evidence":
        other = copy(self)
        other.left_out = source, group
        return other

    def _reweighted(self, name: str, places: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of some rows with groups counted as often as they were drawn."""
        return {column: self._weighed(name, column, places) for column in self._replicates(name)}

    def _weighed(self, name: str, column: str, places: np.ndarray) -> np.ndarray:
        assert self.weighted is not None
        counts = self.weighted[1]
        more = (counts - 1) * (len(counts) - 1) / len(counts)
        value = self._tables[name][column].to_numpy(dtype=float)[places]
        return value + (value[:, None] - self._replicates(name)[column][places, : len(counts)]) @ more

    def _sources(self, name: str) -> list[str]:
        if name not in self._tables:
            return []
        if name not in self._sources_of:
            table = self.study.tables[name]
            draws = [DRAW] if DRAW in table else []
            self._sources_of[name] = [json.dumps(table.attrs.get("images")), *draws]
        return self._sources_of[name]

    def _groups(self, name: str, source: str) -> int:
        if source == DRAW:
            return int(self._tables[name][DRAW].nunique())
        return min((own.shape[1] for own in self._replicates(name).values()), default=0)

    def _replicates(self, name: str) -> dict[str, np.ndarray]:
        """The values of each column without each group of images, by column."""
        if name not in self._without:
            table = self.study.tables[name]
            self._without[name] = {
                str(column).removesuffix(WITHOUT): np.stack(table[column].to_list()).astype(float)
                for column in table
                if str(column).endswith(WITHOUT)
            }
        return self._without[name]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """A table without its `WITHOUT` columns, and without ``attrs``, which pandas copies at every step."""
    plain = pd.DataFrame(table, columns=[column for column in table if not str(column).endswith(WITHOUT)])
    plain.attrs = {}
    return plain
