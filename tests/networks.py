"""Small networks of several codebases and of nobody's, untrained, for tests of what users bring."""

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

SIDE, PATCH, WIDTH, HEADS, CLASSES = 32, 8, 48, 3, 10


def timm_vit(seed: int = 0, **config: Any) -> nn.Module:
    """A Vision Transformer of timm whose weights are all random, biases and norms too."""
    torch.manual_seed(seed)
    size = {"img_size": SIDE, "patch_size": PATCH, "depth": 2, "embed_dim": WIDTH, "num_heads": HEADS}
    module = timm.create_model("vit_tiny_patch16_224", **{**size, "num_classes": CLASSES, **config})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def torchvision_vit(depth: int = 2) -> nn.Module:
    """The same network in torchvision."""
    return torchvision.models.VisionTransformer(
        SIDE, PATCH, depth, HEADS, WIDTH, 4 * WIDTH, num_classes=CLASSES
    ).eval()


def transformers_vit(kind: str = "vit", **config: Any) -> nn.Module:
    """The same network in transformers, or another kind of it."""
    import transformers

    own = transformers.AutoConfig.for_model(
        kind,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        **config,
    )
    torch.manual_seed(0)
    if kind == "vit":
        own.num_labels = CLASSES
        return transformers.ViTForImageClassification(own).eval()
    return transformers.AutoModel.from_config(own).eval()


class Own(nn.Module):
    """A Vision Transformer that nobody published: torch's encoder, with tokens before the patches."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = True, tokens: int = 1, last: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.cut = nn.Conv2d(3, 24, PATCH, PATCH)
        self.extra = nn.Parameter(torch.randn(1, tokens, 24)) if tokens else None
        self.behind = nn.Parameter(torch.randn(1, last, 24)) if last else None
        self.places = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2, 24))
        layer = nn.TransformerEncoderLayer(24, HEADS, 48, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        self.head = nn.Linear(24, CLASSES)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(x).flatten(2).transpose(1, 2) + self.places
        extra = [own.expand(len(x), -1, -1) for own in (self.extra, self.behind) if own is not None]
        x = torch.cat([*extra[: int(self.extra is not None)], x, *extra[int(self.extra is not None) :]], 1)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))
