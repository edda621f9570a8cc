"""What a command found, in one or a few lines of plain words, from its table."""

from collections.abc import Callable, Iterator

import pandas as pd

MOST = 4  # models that are told one by one


def cka(table: pd.DataFrame) -> list[str]:
    """How alike the layers of each model are, and which layers of two models are most alike."""
    measure = "CKA" if table.attrs["measure"] == "cka" else str(table.attrs["measure"])

    def within(own: pd.DataFrame) -> float:
        return float(own.loc[own["layer"] != own["other_layer"], "cka"].mean())

    own = table[table["model"] == table["other_model"]]
    lines = [f"mean {measure} of different layers: {_each(own, lambda rows: f'{within(rows):.2f}')}"]
    names = list(dict.fromkeys(table["model"]))
    across = table[table["model"].map(names.index) < table["other_model"].map(names.index)]
    for (model, other), rows in list(across.groupby(["model", "other_model"], sort=False))[: MOST - 1]:
        if rows["cka"].notna().any():
            best = _most(rows, "cka")
            lines.append(
                f"most alike of {model} and {other}: {best['layer']} and {best['other_layer']}, {measure} {best['cka']:.2f}"
            )
    return lines


def robustness(table: pd.DataFrame) -> list[str]:
    """The mean CKA of different layers under each selection of tokens."""
    words = _each(table, lambda rows: ", ".join(f"{row.cka:.2f} {row.tokens}" for row in rows.itertuples()))
    return [f"massive tokens dominate some layers; mean CKA under other choices of tokens: {words}"]


def attention_distance(table: pd.DataFrame) -> list[str]:
    """How far heads look in the first and in the last block."""

    def reach(rows: pd.DataFrame) -> str:
        of_block = rows.groupby("block", sort=False)["distance_px"]
        return " and ".join(
            f"{own.min():.1f} to {own.max():.1f} px in {block}"
            for block, own in list(of_block)[:: max(1, len(of_block) - 1)]
        )

    def spread(rows: pd.DataFrame) -> str:
        own = [
            rows[rows["block"] == block].mean(numeric_only=True)
            for block in dict.fromkeys(rows["block"].iloc[[0, -1]])
        ]
        part = " and ".join(f"{100 * one['entropy'] / one['uniform_entropy']:.0f} %" for one in own)
        told = " and ".join(f"{one['nmi']:.2f}" for one in own)
        return f"{part} of the entropy of uniform attention, mutual information {told}"

    return [
        f"heads look, on average over images, {_each(table, reach)}",
        f"heads of the first and the last block have {_each(table, spread)}",
    ]


def head_subsets(table: pd.DataFrame) -> list[str]:
    """Which heads of the first block are most like the CNN."""
    best = _most(table, "cka")
    return [
        f"most like {best['cnn']} are heads {best['heads']} of {best['vit']}, which look {best['distance_px']:.1f} px far: "
        f"CKA {best['cka']:.2f} with {best['layer']}"
    ]


def receptive_field(table: pd.DataFrame) -> list[str]:
    """The radius of the first and of the last layer's receptive field."""
    stream = table[table["branch"] == "residual"] if (table["branch"] == "residual").any() else table
    return [
        f"radius of the receptive field: {_each(stream, lambda rows: _ends(rows, 'radius_px', '.1f', ' px'))}"
    ]


def skip(table: pd.DataFrame) -> list[str]:
    """How large the skip connection is against its long branch, over blocks."""

    def ratio(rows: pd.DataFrame) -> str:
        middle = rows.groupby("sublayer", sort=False)["norm_ratio"].median()
        return ", ".join(f"{value:.2f} ({sublayer})" for sublayer, value in middle.items())

    return [
        f"norm of the skip connection over that of the long branch, median of blocks: {_each(table, ratio)}"
    ]


def lesions(table: pd.DataFrame) -> list[str]:
    """The block whose skip connections are needed most."""

    def worst(rows: pd.DataFrame) -> str:
        row = _most(rows, "drop")
        return f"{row['drop']:.1%} at {row['block']}, {rows['drop'].median():.1%} at the median block"

    what = "agreement with the intact model" if (table["reference"] != "labels").all() else "accuracy"
    return [f"{what} lost without the skip connections of one block: {_each(table, worst)}"]


def lesions_trained(table: pd.DataFrame) -> list[str]:
    """The accuracy that each model trained without some skip connections lacks."""
    words = _each(table, lambda rows: f"{rows['drop'].iloc[0]:.1%} without {rows['block'].iloc[0]}'s")
    return [f"accuracy lost by training without them: {words}"]


def localization(summary: pd.DataFrame) -> list[str]:
    """How many tokens are most like their own patch."""
    rows = summary[summary["statistic"] == "near_hit_rate"]

    def hits(own: pd.DataFrame) -> str:
        return ", ".join(
            f"{row.value:.0%} in {row.layer} (by chance {row.chance:.0%})" for row in own.itertuples()
        )

    return [f"tokens most like their own patch of the image or one beside it: {_each(rows, hits)}"]


def probe(table: pd.DataFrame) -> list[str]:
    """The best layer of each model for the first target."""
    target = table["target"].iloc[0]
    mean = (
        table[table["target"] == target].groupby(["model", "layer", "tokens"], sort=False)["accuracy"].mean()
    )

    def best(rows: pd.DataFrame) -> str:
        row = _most(rows, "accuracy")
        return f"{row['accuracy']:.1%} from {row['layer']} ({row['tokens']})"

    return [f"best linear probe of {target}: {_each(mean.reset_index(), best)}"]


def soft_nearest_neighbor(table: pd.DataFrame) -> list[str]:
    """The loss of the first and of the last layer."""
    tokens = "" if table.attrs["tokens"] == "all" else f", {table.attrs['tokens']} tokens"
    words = _each(table, lambda rows: _ends(rows, "loss", ".2f"))
    return [f"soft nearest neighbour loss (0 where classes are separated{tokens}): {words}"]


def tokens(table: pd.DataFrame) -> list[str]:
    """Where there are massive tokens, and over how many directions tokens spread."""

    def massive(rows: pd.DataFrame) -> str:
        share = rows["massive_tokens"]
        first = rows.loc[share > 0, "layer"]
        return f"{share.max():.1%} of the tokens, from {first.iloc[0]} on" if len(first) else "none"

    ranks = _each(table, lambda rows: _ends(rows, "effective_rank", ".1f"))
    return [f"massive tokens: {_each(table, massive)}", f"effective rank of an image's tokens: {ranks}"]


def frequency(table: pd.DataFrame) -> list[str]:
    """The log amplitude of the finest pattern in the first and in the last layer."""
    finest = table[table["frequency"] == 1]
    words = _each(finest, lambda rows: _ends(rows, "log_amplitude", ".2f"))
    return [f"log amplitude of the finest pattern, relative to frequency 0: {words}"]


def _most(rows: pd.DataFrame, column: str) -> pd.Series:
    """The row in which a column is largest."""
    return rows.iloc[int(rows[column].fillna(float("-inf")).to_numpy().argmax())]


def _ends(rows: pd.DataFrame, column: str, digits: str, unit: str = "") -> str:
    """A column's value in the first and in the last row, with their layers."""
    ends = [rows.iloc[0], rows.iloc[-1]][: len(rows)]
    return ", ".join(f"{row[column]:{digits}}{unit} in {row['layer']}" for row in ends)


def _each(table: pd.DataFrame, words: Callable[[pd.DataFrame], str]) -> str:
    """Words for each model, of the first few by name; where a table names none it has nothing to tell."""

    def told() -> Iterator[str]:
        for model, rows in list(table.groupby("model", sort=False))[:MOST]:
            yield f"{model} {words(rows)}"

    left = table["model"].nunique() - MOST
    return "; ".join(told()) + (f"; {left} more in the table" if left > 0 else "")
