"""Pictures: a table and an Axes in, the Axes out; or a table in, a whole Figure out. Nothing is computed, shown or saved here.

The only modules that import matplotlib, and they import nothing else of ours: the table is the seam. `PICTURES` is the figure
of each analysis, by the name in its table's ``attrs``, and `LAYOUTS` are all that can be drawn of it;
``python -m vit_analysis.plot TABLE PICTURE`` draws them again, and that command alone reads and writes files.
"""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from vit_analysis.plot.attention import (
    attention_distance,
    attention_spread,
    head_distances,
    head_subsets,
    heads_over_depth,
    subset_similarity,
)
from vit_analysis.plot.depths import by_frequency, finest, frequency, over_depth, tokens
from vit_analysis.plot.entangled import entanglement, soft_nearest_neighbor
from vit_analysis.plot.fields import (
    centre_over_depth,
    field,
    fields,
    radius_over_depth,
    receptive_field,
    receptive_field_maps,
    side_over_depth,
    squares,
)
from vit_analysis.plot.heatmaps import cka, corresponding, heatmap, heatmaps
from vit_analysis.plot.lesioned import lesions, without_skip, without_skips
from vit_analysis.plot.patches import localization, patch_map
from vit_analysis.plot.probes import (
    accuracies,
    accuracy_map,
    accuracy_maps,
    probe,
    probe_tokens,
)
from vit_analysis.plot.skips import (
    cosines,
    norm_ratios,
    over_blocks,
    skip,
    token_norm_ratios,
    token_ratios,
)
from vit_analysis.plot.style import style
from vit_analysis.plot.verdicts import five_differences, verdicts

__all__ = [
    "LAYOUTS",
    "PICTURES",
    "accuracies",
    "accuracy_map",
    "accuracy_maps",
    "attention_distance",
    "attention_spread",
    "by_frequency",
    "centre_over_depth",
    "cka",
    "corresponding",
    "cosines",
    "entanglement",
    "field",
    "fields",
    "finest",
    "five_differences",
    "frequency",
    "head_distances",
    "head_subsets",
    "heads_over_depth",
    "heatmap",
    "heatmaps",
    "lesions",
    "localization",
    "norm_ratios",
    "over_blocks",
    "over_depth",
    "patch_map",
    "probe",
    "probe_tokens",
    "radius_over_depth",
    "receptive_field",
    "receptive_field_maps",
    "side_over_depth",
    "skip",
    "soft_nearest_neighbor",
    "squares",
    "style",
    "subset_similarity",
    "token_norm_ratios",
    "token_ratios",
    "tokens",
    "verdicts",
    "without_skip",
    "without_skips",
]

LAYOUTS: Mapping[str, Mapping[str, Callable[[pd.DataFrame], Figure]]] = {
    "cka": {"cka": cka},
    "cka_controls": {"corresponding": corresponding},
    "attention_distance": {"attention_distance": attention_distance, "attention_spread": attention_spread},
    "head_subsets": {"head_subsets": head_subsets},
    "receptive_field": {"receptive_field": receptive_field, "squares": squares},
    "receptive_field_maps": {
        "receptive_field_maps": receptive_field_maps,
        "after_addition": partial(fields, branch="residual", steps=None),
        "before_addition": partial(fields, branch="long", steps=None),
    },
    "skip": {
        "skip": skip,
        "norm_ratios": norm_ratios,
        "token_norm_ratios": token_norm_ratios,
        "cosines": cosines,
    },
    "lesions": {"lesions": lesions},
    "lesions_trained": {"lesions": lesions},
    "localization": {"localization": localization},
    "probe": {"probe": probe, "probe_tokens": probe_tokens, "accuracy_maps": accuracy_maps},
    "soft_nearest_neighbor": {"soft_nearest_neighbor": soft_nearest_neighbor},
    "tokens": {"tokens": tokens},
    "frequency": {"frequency": frequency},
    "findings": {"verdicts": verdicts, "five_differences": five_differences},
}
"""For each kind of table the pictures that can be drawn of it, by name; the first is the one that its command draws."""

PICTURES: Mapping[str, Callable[[pd.DataFrame], Figure]] = {
    kind: next(iter(layouts.values())) for kind, layouts in LAYOUTS.items()
}
