"""One network in three codebases, with the same weights: every analysis says the same of it."""

from functools import cache

import networks
import numpy as np
import pandas as pd
import pytest
import torch

from vit_analysis import models
from vit_analysis.images import Images, Preprocessing
from vit_analysis.layers import representation
from vit_analysis.loading import fitting
from vit_analysis.loading.conventions import renamed
from vit_analysis.probe import Shots
from vit_analysis.shell.analyses import ANALYSES, Analysis

MAKERS = {"torchvision": networks.torchvision_vit, "transformers": networks.transformers_vit}
POOL = Images(limit=400, batch=50, seed=1)


@cache
def network(codebase: str) -> torch.nn.Module:
    module = networks.timm_vit()
    if codebase == "timm":
        return module
    other = MAKERS[codebase]()
    fitting.fit(other, renamed(module.state_dict(), other).tensors, "timm's weights")
    return other


@cache
def table(analysis: Analysis, codebase: str) -> pd.DataFrame:
    pixels = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = {
        "receptive_field": {"images": pixels[:4], "channels": 4},
        "probe": {"images": Images(limit=100, batch=50), "shots": Shots(POOL, 2, 2)},
        "soft_nearest_neighbor": {"images": Images(limit=400, batch=100)},
    }
    model = models.own(network(codebase), "vit", preprocessing=Preprocessing((3, 32, 32), crop_pct=1.0))
    return analysis.module.measure(model, **{"images": pixels} | own.get(analysis.name, {}))


def test_it_is_the_same_network():
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network("timm")(pixels)
        torch.testing.assert_close(network("torchvision")(pixels), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network("transformers")(pixels).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("codebase", MAKERS)
@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.name)
def test_every_analysis_says_the_same_in_every_codebase(analysis, codebase):
    expected, found = table(analysis, "timm"), table(analysis, codebase)
    assert list(found) == list(expected)
    assert len(found) == len(expected)
    for column in expected.select_dtypes("number"):
        np.testing.assert_allclose(found[column], expected[column], atol=1e-4, rtol=1e-4, err_msg=column)


@pytest.mark.parametrize("codebase", MAKERS)
def test_what_the_head_reads_is_known(codebase):
    assert representation(network(codebase)) == representation(network("timm")) == "cls"


def test_heads_are_read_where_the_softmax_is_spelt_out_and_the_setting_comes_back():
    eager = networks.transformers_vit(attn_implementation="eager")
    eager.load_state_dict(network("transformers").state_dict())
    eager.config._attn_implementation = "eager"
    distance = next(one for one in ANALYSES if one.name == "attention_distance")
    pixels = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = distance.module.measure({"vit": eager}, pixels)
    np.testing.assert_allclose(
        found["distance_px"], table(distance, "timm")["distance_px"], rtol=1e-4, atol=1e-4
    )
    assert eager.config._attn_implementation == "eager"
    assert torch.backends.mha.get_fastpath_enabled()
