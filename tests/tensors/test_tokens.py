import pytest
import torch

from vit_analysis.tensors import tokens
from vit_analysis.tensors.tokens import SELECTIONS, Layout

VIT = Layout(spatial=9, prefix=2, class_token=True)


def test_prefix_tokens_are_dropped_where_there_are_some():
    assert tokens.spatial(torch.randn(4, 11, 8), VIT).shape == (4, 9, 8)
    assert tokens.spatial(torch.randn(4, 9, 8), VIT).shape == (4, 9, 8)  # a patch embedding, before they join


def test_the_class_token_is_the_first_and_absent_before_it_joins():
    x = torch.randn(4, 11, 8)
    torch.testing.assert_close(tokens.class_token(x, VIT), x[:, 0])
    assert tokens.class_token(torch.randn(4, 9, 8), VIT) is None
    assert tokens.class_token(x, Layout(spatial=9, prefix=2, class_token=False)) is None  # registers alone
    assert tokens.class_token(torch.randn(4, 8, 3, 3), VIT).shape == (4, 8, 3, 3)


@pytest.mark.parametrize("name", list(SELECTIONS))
@pytest.mark.parametrize("shape", [(6, 11, 8), (6, 8, 3, 3), (6, 8)])
def test_every_selection_takes_tokens_maps_and_vectors(name, shape):
    chosen = SELECTIONS[name](torch.randn(shape), VIT)
    assert chosen is not None
    assert len(chosen) == 6


def test_a_map_is_the_same_tokens_either_way_round():
    x = torch.randn(2, 8, 3, 5)
    expected = tokens.as_tokens(x, Layout())
    assert expected.shape == (2, 15, 8)
    torch.testing.assert_close(expected[1, 7], x[1, :, 1, 2])
    torch.testing.assert_close(tokens.as_tokens(x.permute(0, 2, 3, 1), Layout(channels_last=True)), expected)


def test_means_and_norms_are_over_the_right_axes():
    x = torch.randn(2, 11, 8)
    torch.testing.assert_close(tokens.mean(x, VIT), x.sum(1) / 11)
    torch.testing.assert_close(tokens.normalized(x, VIT).square().sum(-1), torch.ones(2, 11))
    standard = tokens.standardized(x, VIT)
    torch.testing.assert_close(standard.mean(-1), torch.zeros(2, 11), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.square().mean(-1), torch.ones(2, 11), atol=1e-3, rtol=0)


def test_massive_tokens_are_found_and_replaced_by_ordinary_ones_of_their_place():
    x = torch.randn(8, 11, 16)
    x[3, 5] = 1000
    x[0, 2] = -500
    found = tokens.massive(x.norm(dim=-1))
    assert found.nonzero().tolist() == [[0, 2], [3, 5]]
    mended = tokens.inliers(x, VIT)
    torch.testing.assert_close(mended[3, 5], x[[0, 1, 2, 4, 5, 6, 7], 5].mean(0))
    torch.testing.assert_close(mended[~found], x[~found])
    assert not tokens.massive(torch.randn(8, 11, 16).norm(dim=-1)).any()
