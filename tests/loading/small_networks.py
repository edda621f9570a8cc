"""Small untrained networks of several codebases, all of whose weights matter, and what they compute."""

from functools import partial

import timm
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from vit_analysis.loading.conventions import renamed
from vit_analysis.loading.fitting import fit

SIZE = 32
TIMM = {
    "img_size": SIZE,
    "patch_size": 8,
    "depth": 2,
    "num_heads": 3,
    "embed_dim": 48,
    "mlp_ratio": 2,
    "num_classes": 5,
}
HUGGING_FACE = {
    "image_size": SIZE,
    "patch_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "hidden_size": 48,
    "layer_norm_eps": 1e-6,
}


def scattered(module: nn.Module) -> nn.Module:
    """The module in evaluation mode with random values in every parameter and buffer, so that none is as initialised."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.uniform_(0.05, 0.4)
                value.mul_(torch.randint(0, 2, value.shape) * 2 - 1 if value.ndim > 1 else 1)
    return module.eval()


def vit(name: str = "vit_base_patch16_224", **config) -> nn.Module:
    return scattered(timm.create_model(name, **TIMM | config))


def torchvision_vit(**config) -> nn.Module:
    own = {
        "image_size": SIZE,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 3,
        "hidden_dim": 48,
        "mlp_dim": 96,
    }
    norm = partial(nn.LayerNorm, eps=1e-6)
    return scattered(VisionTransformer(**own | {"num_classes": 5, "norm_layer": norm} | config))


def hugging_face(kind: str, model: str, **config) -> nn.Module:
    """One of transformers' models, such as ("ViT", "ForImageClassification")."""
    widths = {"mlp_ratio": 2} if kind.startswith("Dinov2") else {"intermediate_size": 96}
    settings = getattr(transformers, f"{kind}Config")(**HUGGING_FACE | widths | config)
    return scattered(getattr(transformers, kind + model)(settings))


def resnet(name: str = "resnet10t", **config) -> nn.Module:
    return scattered(timm.create_model(name, **{"num_classes": 5} | config))


def computed(module: nn.Module) -> Tensor:
    """What the module makes of a fixed batch of images: all tokens where there is no head, else logits or embeddings."""
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = module(images)
    if isinstance(got, Tensor):
        return got
    kinds = ("image_embeds", "logits", "pooler_output", "last_hidden_state")
    return next(value for kind in kinds if (value := getattr(got, kind, None)) is not None)


def loaded(module: nn.Module, tensors: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """The module with the tensors, and what was said of them."""
    found = renamed(tensors, module)
    return module, [*found.said, *fit(module, found.tensors, "file.pth")]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """They compute the same, and something that depends on the images."""
    expected = computed(one)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(computed(other), expected, atol=1e-4, rtol=1e-4)
