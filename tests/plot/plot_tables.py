"""Made-up tables that pictures are drawn from."""

import numpy as np
import pandas as pd


def findings() -> pd.DataFrame:
    """Findings of every kind: of every verdict, of either side, with a size and without, not measured, without an interval."""
    columns = [
        "id",
        "claim",
        "value",
        "low",
        "high",
        "tau",
        "wanted",
        "size",
        "verdict",
        "runs",
        "difference",
    ]
    claim = "Layers of the Vision Transformer are more alike than those of the CNN are, from the first one to the last"
    nan = np.nan
    table = pd.DataFrame(
        [
            ("F1a", claim, 0.3, 0.2, 0.4, 0.0, 1, 0.2, "reproduced", [], 1),
            ("F2a", claim, 0.6, 0.55, 0.65, 0.5, -1, nan, "not reproduced", [], 1),
            ("F5", claim, -0.7, -0.9, -0.5, 0.0, -1, -0.8, "inconclusive", [], 2),
            ("F3e", "No threshold", 0.5, 0.4, 0.6, nan, 0, nan, "inconclusive", [0.5, 0.4], 2),
            (
                "F7a",
                claim,
                2.0,
                1.5,
                2.5,
                1.0,
                1,
                5.0,
                "reproduced, smaller than claimed",
                [2.0, 1.4, -1.0],
                3,
            ),
            ("F8b", "Near", 3.0, 1.0, 5.0, nan, 1, 2.0, "inconclusive", [], 3),
            ("F9a", "Short", 1.0, 1.0, 1.0, 0.0, 1, 0.1, "architectural", [], 4),
            ("F9b", "Short", 0.25, 0.2, 0.3, 0.2, 1, nan, "fragile", [0.25, 0.15], 4),
            ("F12a", "Not measured", nan, nan, nan, 0.0, 1, nan, "not measured", [], 5),
            ("H1", "No interval", 0.5, nan, nan, 0.0, 1, nan, "inconclusive", [], nan),
        ],
        columns=columns,
    )
    table["controls"] = [{"untrained twins": {"value": 0.1}} if name == "F1a" else {} for name in table["id"]]
    images = {"source": "lab", "count": 1760}
    table.attrs.update(analysis="findings", images=images, differences={"1": "partly reproduced"})
    return table


def of_tokens(models: list[str], massive: float = 0.02) -> pd.DataFrame:
    """Statistics of tokens of four layers, of which the last two have massive tokens."""
    rows = [
        {
            "model": model,
            "layer": f"blocks.{layer}",
            "depth": layer / 3,
            "class_cosine": 0.3 if number == 0 else np.nan,
        }
        | {
            "norm": 10.0 + layer,
            "largest": 20.0 if layer < 2 else 500.0,
            "patch_cosine": 0.2 * layer - number / 10,
        }
        | {"effective_rank": 50.0 - layer, "participation": 3.0 + layer}
        | dict.fromkeys(("massive_tokens", "massive_activations"), massive * (layer > 1))
        for number, model in enumerate(models)
        for layer in range(4)
    ]
    table = pd.DataFrame(rows)
    for name in table.columns[3:]:
        table = table.assign(**{f"{name}_low": table[name] - 0.01, f"{name}_high": table[name] + 0.01})
    table.attrs = {"analysis": "tokens", "models": dict.fromkeys(models, "0")}
    return table


def of_frequencies(models: list[str]) -> pd.DataFrame:
    """Log amplitudes of three layers at five frequencies: the first model loses what is fine with depth, others gain it."""
    rows = [
        (
            model,
            f"blocks.{layer}",
            layer / 2,
            step / 4,
            -step * (1 + (layer if number == 0 else 2 - layer) / 4),
        )
        for number, model in enumerate(models)
        for layer in range(3)
        for step in range(5)
    ]
    table = pd.DataFrame(rows, columns=["model", "layer", "depth", "frequency", "log_amplitude"])
    table.attrs = {"analysis": "frequency", "models": dict.fromkeys(models, "0")}
    return table.assign(low=table["log_amplitude"] - 0.1, high=table["log_amplitude"] + 0.1)
