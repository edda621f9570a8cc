"""Temporary changes leave a model as it was."""

import pytest
import timm
import torch
from torch import nn

from vit_analysis.reading.intervene import evaluating


class Caching(nn.Linear):
    """Keeps, while it does not train, what it makes of its weights: `train` is where that is made and dropped."""

    cached: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "Caching":
        super().train(mode)
        self.cached = None if mode else self.weight.detach().clone()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight if self.cached is None else self.cached)


def test_a_mode_comes_back_through_train_so_that_what_depends_on_it_is_right():
    model = nn.Sequential(Caching(3, 3), nn.Dropout()).train()
    with evaluating(model):
        assert model[0].cached is not None
    with torch.no_grad():
        model[0].weight.add_(1)  # training goes on
    x = torch.randn(2, 3)
    torch.testing.assert_close(model.eval()(x), nn.functional.linear(x, model[0].weight))


@pytest.mark.parametrize("frozen", ["", "0", "1", "1.0"])
def test_every_module_gets_its_own_mode_back(frozen):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), Caching(3, 3))).train()
    model.get_submodule(frozen).eval()
    before = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_model_that_evaluates_is_not_touched():
    model = nn.Sequential(Caching(3, 3)).eval()
    cached = model[0].cached
    with evaluating(model):
        pass
    assert model[0].cached is cached


def test_a_tiny_vit_that_goes_on_training_is_what_its_weights_say():
    """timm's attention of LeViT and TinyViT keeps its biases of evaluation; training on must not leave the old ones."""
    torch.manual_seed(0)
    settings = {
        "embed_dims": (16, 16, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "num_classes": 3,
    }
    model = timm.create_model("tiny_vit_5m_224", **settings).train()
    x = torch.randn(1, 3, 224, 224)
    with evaluating(model), torch.no_grad():
        model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = timm.create_model("tiny_vit_5m_224", **settings)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), fresh.eval()(x))
