import numpy as np
import pandas as pd
import pytest
import timm
import torch
from doubles import Given, oracle_cka
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

from vit_analysis import attention_distance, layers, models, plot
from vit_analysis.attention_distance import HeadSums, Scale, head_distances, head_subsets, measure
from vit_analysis.images import Images, Preprocessing
from vit_analysis.lab import zoo
from vit_analysis.lab.vit import ViT
from vit_analysis.models import Model
from vit_analysis.reading import state
from vit_analysis.reading.capture import Capture, Heads
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid

SIXTY_FOUR = Preprocessing(input_size=(3, 64, 64))
GRIDS = [(7, 32, 115.5, 32.4), (14, 16, 116.5, 16.7), (16, 14, 116.6, 14.7)]
SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
VITS = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "norms of queries and keys": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "registers": ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 4}),
    "no prefix": ("vit_tiny_patch16_224", SMALL | {"class_token": False, "global_pool": "avg"}),
    "rotation": ("eva02_tiny_patch14_224", SMALL),
    "relative bias": ("beit_base_patch16_224", SMALL),
}


def vit(name: str) -> nn.Module:
    architecture, config = VITS[name]
    module = timm.create_model(architecture, **config).eval()
    with torch.no_grad():  # attention that is far from uniform, and a bias that is not zero
        for tap, parameter in module.named_parameters():
            if "qkv.weight" in tap or "q_proj.weight" in tap or "k_proj.weight" in tap:
                parameter.mul_(6)
            if "relative_position_bias" in tap:
                parameter.normal_()
    return module


def images(count: int = 6, batch: int = 3, size: int = 64) -> Given:
    return Given(batch=batch, pixels=torch.randn(count, 3, size, size))


def place(side: int, pixels: float, prefix: int = 0) -> Scale:
    return Scale(Grid(side, side, float(pixels), float(pixels)).distances(), prefix)


def attend(scores: torch.Tensor) -> Heads:
    """Heads whose scores are a given matrix."""
    return Heads(
        scores[None, None], torch.eye(len(scores))[None, None], torch.zeros(1, 1, len(scores), 1), None, 1.0
    )


def unfused(module: nn.Module, pixels: torch.Tensor) -> list[np.ndarray]:
    """Attention of each block as timm itself spells it out: image, head, query, key."""
    seen, handles = [], []
    for block in module.blocks:
        block.attn.fused_attn = False
        hook = block.attn.attn_drop.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].double().numpy())
        )
        handles.append(hook)
    with torch.inference_mode():
        module(pixels)
    for hook in handles:
        hook.remove()
    return seen


def spread(scaled: np.ndarray) -> tuple[float, float]:
    """Mean entropy of the rows of a joint distribution of queries and keys, and its NMI, from the definition."""
    joint = scaled / len(scaled)
    of_query, of_key = joint.sum(1), joint.sum(0)
    mutual = entropy = 0.0
    for query, row in enumerate(joint):
        for key, chance in enumerate(row):
            if chance > 0:
                mutual += chance * np.log(chance / (of_query[query] * of_key[key]))
                entropy -= chance * np.log(chance / of_query[query])
    marginal = [-sum(chance * np.log(chance) for chance in own if chance > 0) for own in (of_query, of_key)]
    return entropy, mutual / np.sqrt(marginal[0] * marginal[1])


def looped(attention: np.ndarray, prefix: int, side: int, patch: float) -> list[float]:
    """The five statistics of one head, token by token, from their definitions."""
    found, told = [], []
    for image in attention:
        scaled = image[prefix:, prefix:] / image[prefix:, prefix:].sum(1, keepdims=True)
        told.append(spread(scaled))
        for query in range(side**2):
            row = image[prefix + query]
            far = [
                patch * np.hypot(query // side - key // side, query % side - key % side)
                for key in range(side**2)
            ]
            raw = sum(weight * pixels for weight, pixels in zip(row[prefix:], far, strict=True))
            found.append((raw / row[prefix:].sum(), row[:prefix].sum(), raw))
    return [*np.mean(found, axis=0).tolist(), *np.mean(told, axis=0).tolist()]


@pytest.mark.parametrize(("side", "pixels", "uniform", "window"), GRIDS)
def test_uniform_identity_and_window_attention_are_what_a_hand_computes(side, pixels, uniform, window):
    scale, count = place(side, pixels), side**2
    assert scale.pixels.mean().item() == pytest.approx(uniform, abs=0.05)
    found = head_distances(attend(torch.zeros(count, count)), scale)[0, 0].tolist()
    assert found == pytest.approx([uniform, 0, uniform, np.log(count), 0], abs=0.05)
    assert found[3:] == pytest.approx([np.log(count), 0], abs=1e-5)
    found = head_distances(attend(1000 * torch.eye(count)), scale)[0, 0].tolist()
    assert found == pytest.approx([0, 0, 0, 0, 1], abs=1e-6)
    near = scale.pixels < 1.5 * pixels
    found = head_distances(attend(torch.where(near, 0.0, -1e4).float()), scale)
    assert found[0, 0, 0].item() == pytest.approx(window, abs=0.05)


def test_pixels_are_those_of_the_input_row_by_row():
    distances = Grid(2, 3, 10.0, 1.0).distances()
    np.testing.assert_allclose(distances[0], [0, 1, 2, 10, 101**0.5, 104**0.5])


@pytest.mark.parametrize("mass", [0.0, 0.25, 0.5, 0.8])
def test_attention_to_the_class_token_is_scaled_away_and_told(mass):
    scale = place(14, 16, prefix=1)
    scores = torch.zeros(197, 197)
    scores[:, 0] = np.log(mass / (1 - mass) * 196) if mass else -1e4
    distance, told, raw, entropy, nmi = head_distances(attend(scores), scale)[0, 0].tolist()
    assert (entropy, nmi) == (pytest.approx(np.log(196), abs=1e-5), pytest.approx(0, abs=1e-5))
    assert (distance, told) == (pytest.approx(116.5, abs=0.05), pytest.approx(mass, abs=1e-5))
    assert raw == pytest.approx(
        116.5 * (1 - mass), abs=0.05
    )  # 87.4, 58.2 and 23.3 px: a global head looks local


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_the_loop_over_the_attention_that_timm_spells_out(name, fused):
    module, given = vit(name), images()
    prefix = module.num_prefix_tokens
    maps, uniform = unfused(module, given.pixels), looped(np.full((1, 16, 16), 1 / 16), 0, 4, 16)[0]
    for block in module.blocks:
        block.attn.fused_attn = fused
    table = measure({"m": module}, given)
    assert {block.attn.fused_attn for block in module.blocks} == {fused}
    assert table["block"].tolist() == ["blocks.0"] * 4 + ["blocks.1"] * 4
    for row in table.itertuples():
        expected = looped(maps[int(row.block[-1])][:, row.head], prefix, 4, 16)
        found = [row.distance_px, row.prefix_mass, row.raw_distance_px, row.entropy, row.nmi]
        assert found == pytest.approx(expected, abs=1e-4)
        assert (row.uniform_px, row.uniform_entropy) == pytest.approx((uniform, np.log(16)))
    assert table["depth"].tolist() == [0.0] * 4 + [1.0] * 4
    assert table["distance_px"].std() > 0.1
    assert table["nmi"].std() > 1e-3


def test_the_lab_vit_agrees_with_its_own_attention_weights():
    module = ViT(img_size=16, patch_size=4, num_classes=3, embed_dim=16, depth=2, num_heads=2).eval()
    given = images(size=16)
    table = measure({"m": module}, given, blocks=[1])
    with Capture(module, ["blocks.1.norm1"]) as run, torch.inference_mode():
        weights = (
            module.blocks[1].attn.attention_weights(run(given.pixels)["blocks.1.norm1"]).double().numpy()
        )
    for row in table.itertuples():
        assert row.distance_px == pytest.approx(looped(weights[:, row.head], 1, 4, 4)[0], abs=1e-4)


def test_a_head_that_looks_at_the_class_token_alone_has_no_distance_yet_no_query_is_lost_for_others():
    scale = place(2, 1, prefix=1)
    scores = torch.zeros(5, 5)
    scores[1, 0] = 1e4  # one query of four
    distance, mass, _, entropy, nmi = head_distances(attend(scores), scale)[0, 0].tolist()
    assert distance == pytest.approx(scale.pixels.mean().item())
    assert (entropy, nmi) == (pytest.approx(np.log(4)), pytest.approx(0, abs=1e-5))
    assert mass == pytest.approx(1 / 4 + 3 / 4 / 5)


def test_pieces_and_half_precision_do_not_matter(monkeypatch):
    query, key, value = torch.randn(3, 5, 4, 17, 8)
    scale = place(4, 16, prefix=1)
    whole = head_distances(Heads(query, key, value, None, 0.4), scale)
    monkeypatch.setattr(attention_distance, "CPU_PIECE", 1)
    torch.testing.assert_close(head_distances(Heads(query, key, value, None, 0.4), scale), whole)
    half = head_distances(Heads(query.bfloat16(), key.bfloat16(), value, None, 0.4), scale)
    torch.testing.assert_close(half[..., 0], whole[..., 0], atol=0.2, rtol=0)
    torch.testing.assert_close(half[..., 3:], whole[..., 3:], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("scores", "entropy", "nmi"),
    [
        (
            torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]),
            0,
            0,
        ),  # all queries on one key: nothing to tell
        (torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), 0, 1),
        (torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), np.log(2) / 2, None),
        (torch.tensor([[0.0, -1e4], [300.0, 300.0 - 1e4]]), 0, 0),
    ],
    ids=["one key", "own key", "between", "far below"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_entropy_and_information_of_few_keys(scores, entropy, nmi, times):
    count = 2 * times
    whole = scores.repeat_interleave(times, 0).repeat_interleave(times, 1)  # each key split into equal ones
    heads = Heads(torch.zeros(1, 1, count, 1), torch.zeros(1, 1, count, 1), None, whole, 1.0)
    found = head_distances(heads, Scale(torch.rand(count, count).double(), 0))[0, 0].tolist()
    assert found[3] == pytest.approx(entropy + np.log(times), abs=1e-5)
    expected = spread(whole.softmax(1).double().numpy())[1] if nmi is None or times > 1 else nmi
    assert found[4] == pytest.approx(0 if np.isnan(expected) else expected, abs=1e-5)


def test_attention_that_half_precision_cannot_hold_is_measured():
    scores = torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16)
    scores[..., 0] = 200
    heads = Heads(scores, torch.eye(16, dtype=torch.bfloat16)[None, None], None, None, 1.0)
    assert head_distances(heads, place(4, 1))[0, 0, 3:].tolist() == pytest.approx([0, 0], abs=1e-6)
    weights = torch.full((1, 2, 4, 4), 0.25)
    weights[:, 1] = torch.eye(4)
    found = head_distances(Heads.of_weights(weights), place(2, 1))[0, :, 3:]
    torch.testing.assert_close(found, torch.tensor([[np.log(4), 0], [0, 1]]).double(), atol=1e-5, rtol=0)


def test_turning_queries_and_keys_together_changes_nothing():
    query, key, value = torch.randn(3, 5, 4, 16, 8)
    turn, _ = torch.linalg.qr(torch.randn(8, 8))
    found = [
        head_distances(Heads(q, k, value, None, 0.4), place(4, 16))
        for q, k in ((query, key), (query @ turn, key @ turn), (query * 2, key / 2))
    ]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=0)


def test_neither_order_nor_batches_of_images_matter_and_sums_merge(tmp_path):
    module, given = vit("plain"), images(20, 4)
    table = measure({"m": module}, given)
    other = measure({"m": module}, Given(batch=7, pixels=given.pixels.flip(0)))
    for name in ("distance_px", "entropy", "nmi"):
        np.testing.assert_allclose(other[name], table[name], rtol=1e-4)
    parts = [
        HeadSums.of_batch(
            batch,
            images=torch.tensor(5.0).double(),
            totals=torch.rand(4, 5).double(),
            places=[["m", "blocks.0", head] for head in range(4)],
        )
        for batch in range(3)
    ]
    torch.testing.assert_close(
        (parts[0] + parts[1] + parts[2]).totals, (parts[2] + (parts[1] + parts[0])).totals
    )
    state.save(tmp_path / "state", {"": parts[0]}, 1)
    restored, done = state.restore(tmp_path / "state", {"": HeadSums}, torch.device("cpu"))
    assert done == 1
    torch.testing.assert_close((restored[""] + parts[1]).totals, (parts[0] + parts[1]).totals)


def test_the_interval_is_that_of_the_mean_over_groups():
    module, given = vit("plain"), images(20, 2)
    table = measure({"m": module}, given)
    parts = [
        measure({"m": module}, Given(batch=2, pixels=given.pixels[at : at + 2])) for at in range(0, 20, 2)
    ]
    for name, ends in (("distance_px", ""), ("entropy", "entropy_"), ("nmi", "nmi_")):
        means = [part[name].to_numpy() for part in parts]
        half = 2.2621572 * np.std(means, axis=0, ddof=1) / 10**0.5  # Student's t with 9 degrees of freedom
        np.testing.assert_allclose(table[f"{ends}high"] - table[name], half, rtol=1e-3)
        np.testing.assert_allclose(table[name] - table[f"{ends}low"], half, rtol=1e-3)
        assert np.stack(table[f"{name}_without"].to_list()).shape == (8, 10)


def test_blocks_are_chosen_by_number_from_either_end():
    table = measure({"m": vit("plain")}, images(), blocks=[-1])
    assert table["block"].unique().tolist() == ["blocks.1"]
    for number in (0, -2):
        table = measure({"m": vit("plain")}, images(), blocks=[number])
        assert table["block"].unique().tolist() == ["blocks.0"]
    with pytest.raises(Refusal, match="m has blocks 0 to 1, got -3"):
        measure({"m": vit("plain")}, images(), blocks=[-3])
    with pytest.raises(Refusal, match="m has blocks 0 to 1, got 2"):
        measure({"m": vit("plain")}, images(), blocks=[0, 2])


@pytest.mark.parametrize(("count", "depths"), [(1, [0]), (2, [0, 1]), (3, [0, 0.5, 1])])
def test_depth_is_0_at_the_first_block_of_a_model_and_1_at_its_last(count, depths):
    module = timm.create_model("vit_tiny_patch16_224", **SMALL | {"depth": count}).eval()
    assert measure({"m": module}, images(2, 2))["depth"].tolist() == np.repeat(depths, 4).tolist()
    if count > 1:
        chosen = measure({"m": module}, images(2, 2), blocks=[-1])
        assert chosen["depth"].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (timm.create_model("resnet18"), 64, "ResNet has no fixed grid of patches"),
        (
            zoo.build("mixer", zoo.MIXER),
            32,
            "MlpMixer has no fixed grid of patches",
        ),
    ],
    ids=["CNN", "Mixer"],
)
def test_what_has_no_distance_says_why(module, size, message):
    with pytest.raises(Refusal, match=message):
        measure({"m": module.eval()}, images(4, 4, size))


def test_an_attention_that_never_reaches_the_fused_kernel_is_an_error():
    module = vit("plain")
    module.blocks[1].attn.forward = lambda x, **_: x
    with pytest.raises(Refusal, match=r"'blocks.1.attn:heads' did not run"):
        measure({"m": module}, images())


def test_values_that_are_not_finite_are_named():
    module = vit("plain")
    module.blocks[1].attn.qkv.weight.data[0, 0] = torch.nan
    with pytest.raises(Refusal, match=r"blocks.1 of m has values that are not finite in batch 0"):
        measure({"m": module}, images())


@pytest.mark.parametrize("kind", ["bias", "bool", "causal", "gqa"])
def test_heads_hold_masks_and_shared_keys_as_the_kernel_takes_them(kind):
    class Attend(nn.Module):
        def forward(self, x):
            few = x[:, :2] if kind == "gqa" else x
            extra = {
                "bias": {"attn_mask": bias},
                "bool": {"attn_mask": bias > 0},
                "causal": {"is_causal": True},
                "gqa": {"enable_gqa": True, "scale": 0.7},
            }[kind]
            return F.scaled_dot_product_attention(x, few, few, **extra)

    bias, x = torch.randn(6, 6).fill_diagonal_(1), torch.randn(2, 4, 6, 3)
    with Capture(nn.Sequential(Attend()), ["0:heads", "0"], lambda _, seen: seen) as run:
        seen = run(x)
    heads = seen["0:heads"]
    scores = heads.scale * heads.query @ heads.key.mT + (0 if heads.bias is None else heads.bias)
    torch.testing.assert_close(scores.softmax(-1) @ heads.value, seen["0"])
    torch.testing.assert_close(heads.output(), seen["0"])


def test_nothing_is_watched_after_an_error_in_the_model():
    module = vit("plain")
    seen = []
    module.blocks[0].attn.proj = nn.Linear(5, 5)
    with Capture(module, ["blocks.0.attn:heads"], lambda _, heads: seen.append(heads)) as run:
        with pytest.raises(Refusal, match=r"VisionTransformer does not take images of 3 x 64 x 64: .*shape"):
            run(torch.randn(1, 3, 64, 64))
        assert len(seen) == 1
        F.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 4))
    assert len(seen) == 1
    F.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 4))
    assert len(seen) == 1
    assert torch.overrides._get_current_function_mode() is None


def pair(heads: int = 8) -> tuple[Model, Model]:
    module = timm.create_model("vit_tiny_patch16_224", **SMALL | {"num_heads": heads}).eval()
    module.blocks[0].attn.qkv.weight.data.mul_(6)
    cnn = ResNet(Bottleneck, (4, 3, 1, 1), channels=(8, 8, 8, 8)).eval()
    return models.own(module, "vit", preprocessing=SIXTY_FOUR), models.own(
        cnn, "cnn", preprocessing=SIXTY_FOUR
    )


def test_subsets_of_heads_are_compared_as_their_concatenation_from_local_to_global():
    (vit, cnn), given = pair(), images(16, 8)
    table = head_subsets(vit, cnn, given)
    assert table["layer"].unique().tolist() == ["layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1"]
    assert table["subset"].nunique() == 8 - 4 + 1
    alone = measure([vit], given, blocks=[0])["distance_px"].to_numpy()
    with Capture(vit.module, ["blocks.0.attn.proj:in"]) as run, torch.inference_mode():
        mixed = run(given.pixels)["blocks.0.attn.proj:in"].unflatten(-1, (8, 4))
    with Capture(cnn.module, ["layer1.2"]) as run, torch.inference_mode():
        unit = run(given.pixels)["layer1.2"]
    for row in table[table["layer"] == "layer1.2"].itertuples():
        heads = [int(head) for head in row.heads.split(",")]
        assert sorted(np.argsort(alone)[row.subset : row.subset + 4]) == heads
        assert row.distance_px == pytest.approx(alone[heads].mean(), rel=1e-5)
        expected = oracle_cka(mixed[:, :, heads].split(8), unit.split(8))
        assert row.cka == pytest.approx(expected, abs=1e-4)
    assert table["distance_px"].groupby(table["layer"]).is_monotonic_increasing.all()
    assert (set(table["vit"]), set(table["cnn"]), table.attrs["heads"]) == ({"vit"}, {"cnn"}, 8)


def test_subsets_of_several_pairs_stand_one_below_the_other(monkeypatch):
    def one(vit: Model, cnn: Model, images: Given, state: None) -> pd.DataFrame:
        del images, state
        made = pd.DataFrame({"vit": [vit.name], "cnn": [cnn.name]})
        made.attrs = {"models": {vit.name: vit.digest, cnn.name: cnn.digest}, "images": {"source": "a"}}
        return made

    monkeypatch.setattr(attention_distance, "head_subsets", one)
    a, b, c, d = (Model(name, nn.Identity(), SIXTY_FOUR, f"of {name}") for name in "abcd")
    table = attention_distance.all_subsets([a, b], [c, d], images())
    assert list(zip(table["vit"], table["cnn"], strict=True)) == [
        ("a", "c"),
        ("a", "d"),
        ("b", "c"),
        ("b", "d"),
    ]
    assert table.attrs == {"models": {name: f"of {name}" for name in "abcd"}, "images": {"source": "a"}}


@pytest.mark.parametrize(("heads", "size", "count"), [(2, 1, 2), (4, 2, 3), (8, 4, 5)])
def test_a_subset_is_four_heads_or_half_of_fewer_than_eight(heads, size, count):
    table = head_subsets(*pair(heads), images(8, 8))
    assert {len(row.split(",")) for row in table["heads"]} == {size}
    assert table["subset"].nunique() == count
    assert table.attrs["heads"] == heads


def test_the_lab_by_default_and_pictures_on_one_scale():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    given = Images(limit=24, batch=8)
    table = measure(loaded[:1], given)
    assert [*sorted(table.columns, key=lambda name: name.endswith("_without"))] == [
        *(
            "model",
            "block",
            "head",
            "depth",
            "distance_px",
            "low",
            "high",
            "uniform_px",
            "prefix_mass",
            "raw_distance_px",
            "raw_low",
            "raw_high",
            "entropy",
            "entropy_low",
            "entropy_high",
            "uniform_entropy",
            "nmi",
            "nmi_low",
            "nmi_high",
            "distance_px_without",
            "raw_distance_px_without",
            "entropy_without",
            "nmi_without",
        )
    ]
    assert len(table) == 8 * 6
    assert table.attrs["models"] == {loaded[0].name: loaded[0].digest}
    figure = plot.attention_distance(table)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    places = (
        "first block (blocks.0)",
        "second block (blocks.1)",
        "last block but one (blocks.6)",
        "last block (blocks.7)",
    )
    assert list(lines) == [*places, "uniform attention"]
    own = table.loc[table["block"] == "blocks.6", "distance_px"]
    shares = np.sort(own) / table["uniform_px"].iloc[0]
    np.testing.assert_allclose(lines["last block but one (blocks.6)"].get_ydata(), shares)
    subsets = head_subsets(*loaded, given)
    assert layers.lower_units(loaded[1].module) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert [line.get_label() for line in plot.head_subsets(subsets).axes[0].lines] == list(
        subsets["layer"].unique()
    )
