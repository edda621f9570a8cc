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
