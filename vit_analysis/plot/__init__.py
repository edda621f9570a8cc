"""Pictures: a table and an Axes in, the Axes out; or a table in, a whole Figure out. Nothing is computed, shown or saved here.

The only modules that import matplotlib, and they import nothing else of ours: the table is the seam. `PICTURES` is the figure
of each analysis, by the name in its table's ``attrs``; ``python -m vit_analysis.plot TABLE PICTURE`` draws it again.
"""

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from vit_analysis.plot.attention import attention_distance, head_distances, head_subsets, subset_similarity
from vit_analysis.plot.fields import (
    centre_over_depth,
    field,
    radius_over_depth,
    receptive_field,
    receptive_field_maps,
)
from vit_analysis.plot.heatmaps import cka, heatmap
from vit_analysis.plot.patches import localization, patch_map
from vit_analysis.plot.probes import (
    accuracies,
    accuracy_map,
    entanglement,
    probe,
    probe_tokens,
    soft_nearest_neighbor,
)
from vit_analysis.plot.skips import lesions, over_blocks, skip, token_ratios, without_skip

__all__ = [
    "PICTURES",
    "accuracies",
    "accuracy_map",
    "attention_distance",
    "centre_over_depth",
    "cka",
    "entanglement",
    "field",
    "head_distances",
    "head_subsets",
    "heatmap",
    "lesions",
    "localization",
    "over_blocks",
    "patch_map",
    "probe",
    "probe_tokens",
    "radius_over_depth",
    "receptive_field",
    "receptive_field_maps",
    "skip",
    "soft_nearest_neighbor",
    "subset_similarity",
    "token_ratios",
    "without_skip",
]

PICTURES: Mapping[str, Callable[[pd.DataFrame], Figure]] = {
    "cka": cka,
    "attention_distance": attention_distance,
    "head_subsets": head_subsets,
    "receptive_field": receptive_field,
    "receptive_field_maps": receptive_field_maps,
    "skip": skip,
    "lesions": lesions,
    "lesions_trained": lesions,
    "localization": localization,
    "probe": probe,
    "soft_nearest_neighbor": soft_nearest_neighbor,
}
