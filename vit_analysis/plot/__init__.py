"""Pictures: a table and an Axes in, the Axes out; or a table in, a whole Figure out. Nothing is computed, shown or saved here.

The only modules that import matplotlib, and they import nothing else of ours: the table is the seam. `PICTURES` is the figure
of each analysis, by the name in its table's ``attrs``; ``python -m vit_analysis.plot TABLE PICTURE`` draws it again, and that
command alone reads and writes files.
"""

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from vit_analysis.plot.attention import attention_distance, head_distances, head_subsets, subset_similarity
from vit_analysis.plot.entangled import entanglement, soft_nearest_neighbor
from vit_analysis.plot.fields import (
    centre_over_depth,
    field,
    fields,
    radius_over_depth,
    receptive_field,
    receptive_field_maps,
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
    "PICTURES",
    "accuracies",
    "accuracy_map",
    "accuracy_maps",
    "attention_distance",
    "centre_over_depth",
    "cka",
    "corresponding",
    "cosines",
    "entanglement",
    "field",
    "fields",
    "five_differences",
    "head_distances",
    "head_subsets",
    "heatmap",
    "heatmaps",
    "lesions",
    "localization",
    "norm_ratios",
    "over_blocks",
    "patch_map",
    "probe",
    "probe_tokens",
    "radius_over_depth",
    "receptive_field",
    "receptive_field_maps",
    "skip",
    "soft_nearest_neighbor",
    "style",
    "subset_similarity",
    "token_norm_ratios",
    "token_ratios",
    "verdicts",
    "without_skip",
    "without_skips",
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
