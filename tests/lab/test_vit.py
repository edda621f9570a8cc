"""The six tests the notes' listing would have failed or passed for the wrong reason, and parity with timm's model."""

import pytest
import torch
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_analysis.lab import zoo
from vit_analysis.lab.vit import LAB, NOTES, Attention, Block, PatchEmbedding, ResidualAdd, ViT
from vit_analysis.spelling import Refusal

SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 3}


class AttentionOfTheNotes(nn.Module):
    """As printed: without batch_first, with projections that nothing uses."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(embed_dim=width, num_heads=heads)
        self.q = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.att(x, x, x)[0]


def make(*, broken: bool = False, **changes) -> ViT:
    torch.manual_seed(0)
    model = ViT(**(SMALL | changes)).eval()
    if broken:
        for block in model.blocks:
            block.attn = AttentionOfTheNotes(SMALL["embed_dim"], SMALL["num_heads"])
    return model


def images(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def leaks_between_images(model: ViT) -> bool:
    """t1, of all tokens: the logits of the broken model are constant and would pass."""
    batch = images()
    return not torch.allclose(model.forward_features(batch)[:1], model.forward_features(batch[:1]), atol=1e-5)


def sees_the_image(model: ViT) -> bool:
    """t2."""
    first, second = model(images(2))
    return not torch.allclose(first, second, atol=1e-5)


def patches_seen_by_the_class_token(model: ViT) -> int:
    """t3: patches with a gradient of the class token after one block."""
    tokens = torch.randn(2, 17, 24, requires_grad=True)
    model.blocks[0](tokens)[0, 0].square().sum().backward()
    return int((tokens.grad[0, 1:].abs().sum(dim=1) > 0).sum())


def parameters_without_gradient(model: ViT) -> list[str]:
    """t4."""
    model(images()).square().sum().backward()
    return [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_an_image_does_not_depend_on_its_batch() -> None:
    assert not leaks_between_images(make())
    assert leaks_between_images(make(broken=True))


def test_the_logits_depend_on_the_image() -> None:
    assert sees_the_image(make())
    assert not sees_the_image(make(broken=True))


def test_the_class_token_sees_every_patch_after_one_block() -> None:
    assert patches_seen_by_the_class_token(make()) == 16
    assert patches_seen_by_the_class_token(make(broken=True)) == 0


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_every_parameter_learns(pool: str) -> None:
    assert parameters_without_gradient(make(pool=pool)) == []


def test_unused_projections_of_the_notes_are_found() -> None:
    dead = parameters_without_gradient(make(broken=True))
    assert "blocks.0.attn.q.weight" in dead
    assert "patch_embed.proj.weight" in dead


def test_what_a_hook_kept_is_what_the_branch_gave() -> None:
    """t5: the notes' `x += res` wrote the sum into the tensor that the hook kept."""
    model, kept = make(), {}
    block = model.blocks[1]
    for name in ("attn", "mlp"):
        getattr(block, name).register_forward_hook(lambda _, __, out, name=name: kept.__setitem__(name, out))
    block.register_forward_hook(lambda _, given, out: kept.update(entered=given[0], left=out))
    model(images())
    torch.testing.assert_close(kept["entered"] + kept["attn"] + kept["mlp"], kept["left"])


def test_residual_add_leaves_its_input_alone() -> None:
    x = torch.ones(1, 1, 2)
    assert torch.equal(ResidualAdd(nn.Identity())(x), 2 * torch.ones(1, 1, 2))
    assert torch.equal(x, torch.ones(1, 1, 2))


def test_attention_weights_are_per_head_and_sum_to_one() -> None:
    """t6: the notes' attention had a key axis as long as the batch."""
    torch.manual_seed(0)
    attention, tokens = Attention(24, 3), torch.randn(2, 7, 24)
    weights = attention.attention_weights(tokens)
    assert weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 7))
    heads = rearrange(attention.queries_keys_values(tokens)[2], "i h t f -> i h t f")
    mixed = attention.proj(rearrange(weights @ heads, "i h t f -> i t (h f)"))
    torch.testing.assert_close(mixed, attention(tokens))
    assert AttentionOfTheNotes(24, 3).att(tokens, tokens, tokens)[1].shape == (7, 2, 2)


def test_local_attention_reaches_the_neighbours_and_the_class_token_alone() -> None:
    """A change of one patch moves the nine patches around it and the class token in block 0, and no other."""
    torch.manual_seed(0)
    config = {"img_size": 24, "patch_size": 4, "num_classes": 3, "embed_dim": 12, "depth": 2, "num_heads": 2}
    model, pixels = ViT(**config, reach=1), torch.randn(1, 3, 24, 24)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    model(pixels)
    pixels[:, :, 4:8, 12:16] += 1  # row 1, column 3 of the grid
    model(pixels)
    moved = (seen[0] - seen[1]).abs().amax(dim=-1)[0] > 1e-6
    expected = {(row, column) for row in (0, 1, 2) for column in (2, 3, 4)}
    assert moved[0]
    assert {divmod(place, 6) for place in moved[1:].nonzero().flatten().tolist()} == expected
    weights = model.blocks[0].attn.attention_weights(torch.randn(1, 37, 12))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 2, 37))
    assert (weights[0, 0, 1] > 0).sum() == 5  # a corner: 2 x 2 patches and the class token
    assert (weights[0, 0, 0] > 0).all()


def test_local_attention_is_the_same_fused_or_not_and_keeps_the_names_of_the_weights() -> None:
    torch.manual_seed(0)
    config = {"img_size": 24, "patch_size": 4, "num_classes": 3, "embed_dim": 12, "depth": 2, "num_heads": 2}
    model, pixels = ViT(**config, reach=1), torch.randn(2, 3, 24, 24)
    assert model.state_dict().keys() == ViT(**config).state_dict().keys()
    fused = model(pixels)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(model(pixels), fused)


def test_the_flat_resnet_keeps_the_grid_of_its_patches() -> None:
    model, shapes = zoo.build("flat_resnet", zoo.RESNET), []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 8, 8), (32, 8, 8), (64, 8, 8), (128, 8, 8)]


def test_attention_is_the_same_fused_or_not() -> None:
    torch.manual_seed(0)
    attention, tokens = Attention(24, 3), torch.randn(2, 7, 24)
    fused = attention(tokens)
    attention.fused_attn = False
    torch.testing.assert_close(attention(tokens), fused)


def as_timm(state: dict[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    order = "feature (p1 p2 c) -> feature c p1 p2"
    weight = rearrange(state["patch_embed.proj.weight"], order, p1=patch, p2=patch)
    return state | {"patch_embed.proj.weight": weight}


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_timm_gives_the_same_logits_at_the_same_paths(pool: str) -> None:
    own = make(pool=pool)
    kind = {"global_pool": "avg", "class_token": False, "fc_norm": False} if pool == "avg" else {}
    timms = VisionTransformer(**SMALL, **kind).eval()
    timms.load_state_dict(as_timm(own.state_dict(), 4))
    torch.testing.assert_close(own(images()), timms(images()), atol=1e-5, rtol=1e-5)

    places = ["norm1", "attn", "attn.q_norm", "attn.k_norm", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2"]
    paths = [
        "patch_embed",
        "blocks.0",
        "blocks.1",
        *(f"blocks.1.{place}" for place in places),
        "norm",
        "head",
    ]
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    for model in (own, timms):
        for path in paths:
            model.get_submodule(path).register_forward_hook(
                lambda _, __, out, path=path: seen[path].append(out)
            )
        model(images())
    for path, (ours, theirs) in seen.items():
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=path)


@pytest.mark.parametrize("attribute", ["num_prefix_tokens", "embed_dim", "num_classes"])
def test_attributes_are_those_of_timm(attribute: str) -> None:
    assert getattr(make(), attribute) == getattr(VisionTransformer(**SMALL), attribute)


def test_geometry_is_that_of_timm() -> None:
    own, timms = make(), VisionTransformer(**SMALL)
    for name in ("grid_size", "patch_size", "num_patches"):
        assert getattr(own.patch_embed, name) == getattr(timms.patch_embed, name)
    for name in ("num_heads", "head_dim", "scale"):
        assert getattr(own.blocks[0].attn, name) == getattr(timms.blocks[0].attn, name)


def test_patches_are_cut_row_by_row() -> None:
    embed = PatchEmbedding(8, 4, 3, 48)
    nn.init.eye_(embed.proj.weight)
    nn.init.zeros_(embed.proj.bias)
    image = torch.randn(1, 3, 8, 8)
    corner = image[0, :, :4, 4:]  # the second token: first row of patches, second column
    torch.testing.assert_close(embed(image)[0, 1], rearrange(corner, "c p1 p2 -> (p1 p2 c)"))


def test_a_block_without_skips_forgets_its_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 24)
    kept, lost = Block(24, 3, 96), Block(24, 3, 96, skip=False)
    lost.load_state_dict(kept.state_dict())
    torch.testing.assert_close(lost(x), lost.mlp(lost.norm2(lost.attn(lost.norm1(x)))))
    middle = x + kept.attn(kept.norm1(x))
    torch.testing.assert_close(kept(x), middle + kept.mlp(kept.norm2(middle)))


def test_no_skip_names_one_block() -> None:
    assert [block.skip for block in make(depth=3, no_skip=1).blocks] == [True, False, True]
    with pytest.raises(Refusal, match="no_skip names a block from 0 to 1, got 2"):
        make(no_skip=2)


def test_configurations() -> None:
    notes = ViT(**NOTES)
    assert notes.patch_embed.num_patches == 1296
    assert notes(torch.randn(1, 3, 144, 144)).shape == (1, 37)
    assert {module.p for module in notes.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert ViT(**LAB)(images(size=32)).shape == (3, 10)
    assert make(pool="avg").num_prefix_tokens == 0


def test_dropout_is_only_for_training() -> None:
    model = make(dropout=0.5)
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.allclose(model(images()), model(images()))


def test_it_can_learn_what_the_broken_one_cannot() -> None:
    """Sixteen images of two classes; the notes' model stays at chance, ln 2."""
    labels = torch.arange(16) % 2
    for broken, low, high in ((False, 0.0, 0.1), (True, 0.68, 1.0)):
        model = make(num_classes=2, broken=broken)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(images(16)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert low <= loss.item() <= high


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"img_size": 18},
            "18 px does not divide into patches of 4 px; the nearest sizes that do are 16 and 20",
        ),
        ({"num_heads": 5}, "width 24 does not divide into 5 heads; the nearest number that fits is 4"),
        ({"pool": "max"}, "pool is 'cls' or 'avg', got 'max'"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        make(**changes)


def test_an_image_of_another_size_is_refused() -> None:
    """The notes' `[:, : n + 1]` gave smaller images the positions of another grid, silently."""
    with pytest.raises(
        Refusal, match=r"got images of 8 x 8 px.*built for 16 x 16: resize.*ViT\(img_size=8\)"
    ):
        make()(images(size=8))
