"""Casts: every name is public, what is said of it is so, and nothing is looked up in a network."""

import importlib.util
import logging
import socket
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_analysis import layers, models
from vit_analysis.lab import zoo
from vit_analysis.makers import of_timm
from vit_analysis.makers.request import Request
from vit_analysis.shell import figures as shell
from vit_analysis.spelling import Refusal
from vit_analysis.study import announced, casts, plans
from vit_analysis.study.announced import Asked
from vit_analysis.study.casts import CASTS, LAB, PAPER, SMALL, Named
from vit_analysis.study.claims import CLAIMS
from vit_analysis.study.parts import LAB_PARTS, Parts
from vit_analysis.typed import Choice, Machine

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "cast.py"
EVERY = [one for cast in CASTS.values() for own in cast.members.values() for one in own]
PHOTOGRAPHS = Choice(source="imagenet/val", limit=1000)
FIRST = "vit_base_patch16_224.augreg_in21k"


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_cast", BENCHMARK)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def asked(parts: Parts = PAPER.parts, **other: object) -> Asked:
    return Asked(**{"parts": parts, "images": PHOTOGRAPHS, "train": PHOTOGRAPHS} | other)


def test_every_name_of_every_cast_is_trained_and_public_or_of_the_lab():
    public = {*timm.list_pretrained(), *(zoo.PREFIX + name for name in zoo.RECIPES)}
    for cast in CASTS.values():
        names = [Request.of(name).name.partition(":")[0] for name in cast.parts.runs()]
        assert {*names} <= public
        assert cast.parts.names("vit")
        assert cast.parts.names("cnn")


def test_every_name_lies_in_a_hub_under_its_own_name():
    for one in EVERY:
        name = one.model.partition(",")[0]
        assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.model)
def test_what_is_said_of_a_member_is_counted(one):
    with torch.device("meta"):  # shapes alone
        network = of_timm.Timm().untrained(Request.of(one.model).name, Request.of(one.model).settings).eval()
        image = torch.zeros(1, 3, 224, 224)
    for part in network.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # whose products are not counted
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        network(image)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert one.parameters == pytest.approx(parameters / 1e6, abs=0.05)
    assert one.gflop == pytest.approx(counted.get_total_flops() / 1e9, rel=0.005)
    assert one.megabytes == pytest.approx(4 * parameters / 1e6, rel=0.01)
    assert of_timm.preprocessing(network).input_size == (3, 224, 224)
    blocks = {
        path.rpartition(".")[0]
        for path, part in network.named_modules()
        if path.endswith((".norm2", ".conv2"))
    }
    assert one.blocks == len(blocks)


def test_models_of_a_part_stand_from_the_smallest_on_and_the_first_are_those_that_claims_are_about():
    for own in PAPER.members.values():
        sizes = [one.parameters for one in own]
        assert sizes == sorted(sizes)
    first = {part: PAPER.members[part][0].paper for part in ("vit", "cnn")}
    assert first == {"vit": "ViT-B/16 of JFT-300M", "cnn": "ResNet50x1 of JFT-300M"}
    for part, own in PAPER.members.items():
        assert [one.model for one in own] == PAPER.parts.names(part)


def test_every_part_of_the_papers_study_is_played_or_it_is_said_why_not():
    played = {part.name for part in fields(Parts) if PAPER.parts.names(part.name)}
    assert played.isdisjoint(PAPER.absent)
    assert played | {*PAPER.absent} == {part.name for part in fields(Parts)}
    assert {*PAPER.members} == played


def test_models_trained_otherwise_are_of_the_architecture_of_the_first():
    kin = PAPER.parts.names("less_data", "other_seed", "tuned")
    assert {name.partition(".")[0] for name in kin} == {PAPER.parts.names("vit")[0].partition(".")[0]}


@pytest.mark.parametrize("name", ["paper", "small", "lab"])
def test_a_cast_plays_every_part_but_those_that_the_user_names(name):
    assert casts.parts(name, Parts()) == CASTS[name].parts
    own = casts.parts(name, Parts(cnn=("resnet18",), gap="mine"))
    assert own.names("cnn") == ["resnet18"]
    assert own.gap == "mine"
    assert own.vit == CASTS[name].parts.vit
    assert own.tuned == CASTS[name].parts.tuned


def test_without_a_cast_the_users_models_are_alone_and_without_models_the_lab_plays():
    assert casts.parts("", Parts()) == LAB_PARTS
    assert casts.parts("", Parts(vit=("a",))) == Parts(vit=("a",))
    assert casts.named("") is LAB


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("papr", "'paper'"),
        ("PAPER", "'paper'"),
        ("smal", "'small'"),
        ("labs", "'lab'"),
        ("x", "there are 'lab'"),
    ],
)
def test_an_unknown_cast_names_the_nearest(wrong, right):
    for ask in (casts.named, Named, lambda name: casts.parts(name, Parts())):
        with pytest.raises(Refusal, match=f"--cast '{wrong}': no such cast; .*{right}"):
            ask(wrong)


def test_a_substitution_says_whom_models_stand_for_and_what_can_be_compared():
    large = "vit_large_patch16_224.augreg_in21k"
    assert (
        casts.substitution([large], [], of_training=False)
        == f"{casts.COMPARABLE}: {large} for ViT-L/16 of JFT-300M"
    )
    assert casts.substitution([large], [], of_training=True).startswith(f"{casts.DIRECTION}: ")
    gap = PAPER.parts.names("gap")[0]  # of another size
    assert casts.substitution([large, gap], [], of_training=False).startswith(f"{casts.DIRECTION}: ")
    mixed = casts.substitution([large, "mine"], [], of_training=False)
    assert mixed.startswith(f"{casts.DIRECTION}: ")
    assert mixed.endswith("mine, of no cast")
    assert casts.substitution([large], ["why"], of_training=False) == f"{casts.NOBODY}: why"


@pytest.mark.parametrize("name", ["lab/vit", "resnet18", f"{FIRST}@random", f"{FIRST}@mine.safetensors"])
def test_a_model_of_no_cast_and_an_untrained_one_stand_for_nobody(name):
    assert casts.substitution([name], [], of_training=False) == ""
    assert casts.absent([name], []) == {}


def test_what_nobody_plays_is_said_of_what_is_not_played():
    assert {*casts.absent([FIRST], ["local", "vit"])} == {*PAPER.absent} - {"local"}


def test_numbers_that_go_with_the_amount_of_data_are_compared_in_direction_only():
    """Section 10 of our sheet of the paper: figures 4, 12 and 13a with substitutes test the direction."""
    of_training = {claim.id for claim in CLAIMS if claim.of_training}
    assert {"F4a", "F4b", "F8b", "F11a", "F12a", "F12c", "F13a"} <= of_training


@pytest.mark.usefixtures("_no_network")
def test_what_is_said_before_a_run_names_every_substitution_and_asks_no_network():
    told = "\n".join(announced.lines(PAPER, asked(), 100.0))
    for one in (own for several in PAPER.members.values() for own in several):
        assert f"{one.model} for {one.paper}. Here: {one.instead}" in told
    for part, why in PAPER.absent.items():
        assert f"{part}: {why}" in told
    assert "11 checkpoints of 7.7 GB" in told
    assert "right to a factor of 2 or 3" in told
    assert "drawings" not in told
    scenes = announced.lines(PAPER, asked(images=Choice()), 100.0)
    assert "say --images.source" in scenes[-1]


@pytest.mark.usefixtures("_no_network")
def test_what_lies_in_the_cache_is_not_downloaded(monkeypatch):
    known = casts.members(PAPER.parts.names())
    assert announced.download(known).startswith("11 checkpoints of 7.7 GB")
    first = timm.get_pretrained_cfg(FIRST).hf_hub_id
    monkeypatch.setattr(of_timm, "try_to_load_from_cache", lambda repo, _: "there" if repo == first else None)
    assert announced.download(known).startswith("7.3 GB; 11 checkpoints of 7.7 GB")
    monkeypatch.setattr(of_timm, "try_to_load_from_cache", lambda *_: "there")
    assert announced.download(known).startswith("0 GB")


def test_the_cache_is_that_of_the_hub(tmp_path, monkeypatch):
    """A snapshot as huggingface_hub lays it out."""
    snapshot = tmp_path / f"models--timm--{FIRST}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    ask = of_timm.try_to_load_from_cache
    monkeypatch.setattr(
        of_timm, "try_to_load_from_cache", lambda repo, file: ask(repo, file, cache_dir=tmp_path)
    )
    assert not of_timm.cached(FIRST)
    (snapshot / "model.safetensors").touch()
    assert of_timm.cached(FIRST)
    assert of_timm.cached(f"{FIRST},img_size=64")
    assert not of_timm.cached("resnet50.tv_in1k")
    assert not of_timm.cached("no_such_model")


def test_the_work_of_a_study_goes_with_its_images_and_its_tables():
    every, more = (
        sum(announced.work(asked(images=Choice(source="a", limit=n))).values()) for n in (1000, 3000)
    )
    members = casts.members(PAPER.parts.names())
    twice = [*PAPER.parts.names("vit")[:1], *PAPER.parts.names("cnn")[:1]]  # with their untrained twins
    once = sum(one.gflop for one in members.values()) + sum(members[name].gflop for name in twice)
    assert more - every == pytest.approx(2000 * once)
    only = sum(announced.work(asked(wanted=["cka"])).values())
    assert only == pytest.approx(1000 * once)
    for table in ("probe", "probe_tokens", "lesions", "receptive_field_maps"):
        assert only < sum(announced.work(asked(wanted=["cka", table])).values()) < every
    assert announced.work(asked(Parts(vit=("mine",)))) == {}


PLAYED = (
    "vit",
    "cnn",
    "gap",
    "less_data",
    "other_seed",
    "no_skip",
    "mixer",
    "tuned",
    "local",
    "flat",
    "cnn_less_data",
)


@pytest.mark.parametrize("limit", [1000, None])
@pytest.mark.parametrize(
    "wanted", ["cka", "probe", "probe_tokens", "lesions", "receptive_field", "receptive_field_maps"]
)
def test_the_work_of_a_model_is_its_passes_over_images_examples_blocks_and_fields(wanted, limit):
    """By model: every image once, its twin too if it is the first of its kind, and what a table asks for besides."""
    whole = asked(images=Choice(source="a", limit=limit), wanted=[wanted])
    found, count = announced.work(whole), limit or 50_000
    role = {name: part for part in reversed(PLAYED) for name in PAPER.parts.names(part)}
    assert found.keys() == role.keys()
    first = {PAPER.parts.names("vit")[0], PAPER.parts.names("cnn")[0]}
    for name, one in casts.members(role).items():
        part, more = role[name], 0.0
        steps = 2 * one.blocks if part == "vit" else one.blocks  # attention and MLP, or a unit
        field = plans.FIELDS * (1 + announced.FIELD * plans.CHANNELS * steps)
        if wanted == "probe" and part in ("vit", "cnn", "gap", "less_data", "cnn_less_data"):
            more = 6 * 1000 * plans.FEW
        elif wanted == "probe_tokens" and part in ("vit", "cnn", "gap"):
            more = 4 * 1000 * plans.FEW
        elif wanted == "lesions" and part in ("vit", "cnn"):
            more = plans.LESIONED * (1 + announced.LESION * one.blocks)
        elif wanted.startswith("receptive_field") and part in ("vit", "cnn"):
            more = field + field * (name in first)
        assert found[name] == pytest.approx(one.gflop * (count + count * (name in first) + more)), name


def test_examples_without_end_cost_no_pass():
    scenes = asked(train=Choice(), wanted=["probe"])
    assert announced.work(scenes) == announced.work(asked(wanted=["cka"]))


def test_work_without_a_choice_of_tables_is_that_of_all():
    every = ["cka", "probe", "probe_tokens", "lesions", "receptive_field"]
    assert announced.work(asked()) == announced.work(asked(wanted=every))


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        (0.0001, "1 min"),
        (0.5, "30 min"),
        (0.99, "59 min"),
        (1.0, "1 hour"),
        (1.04, "1 hour"),
        (1.1, "1.1 hours"),
        (12.34, "12 hours"),
    ],
)
def test_a_time_is_told_in_minutes_below_an_hour(hours, told, monkeypatch):
    monkeypatch.setattr(
        announced, "work", lambda _: {"a": 3600 * 50 * hours / 4, "b": 3600 * 50 * hours * 3 / 4}
    )
    (line,) = (line for line in announced.lines(PAPER, asked(), 50.0) if line.startswith("time:"))
    assert f" about {told}, right to" in line
    assert "at 50 GFLOP/s" in line


def test_half_the_rate_takes_twice_the_time():
    slow, fast = (
        next(line for line in announced.lines(PAPER, asked(), rate) if line.startswith("time:"))
        for rate in (50.0, 100.0)
    )
    hours = [float(line.split()[2]) for line in (slow, fast)]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.05)


def test_a_model_of_the_users_own_is_told_and_what_was_chosen_beside_the_casts():
    own = casts.parts("paper", Parts(vit=("mine",)))
    told = "\n".join(announced.lines(PAPER, asked(own), 100.0))
    assert "yours:   mine" in told
    assert f"still chosen beside {FIRST}" in told
    assert "without mine" in told
    assert "still chosen" not in "\n".join(
        announced.lines(PAPER, asked(casts.parts("paper", Parts(mixer="mine"))), 100.0)
    )


def test_nothing_is_said_of_the_lab(monkeypatch, caplog):
    monkeypatch.setattr(announced, "measured", lambda _: pytest.fail("it was measured"))
    with caplog.at_level(logging.INFO, "vit_analysis"):
        announced.say(LAB, asked(LAB.parts), "cpu")
    assert not caplog.records


def test_the_rate_of_this_machine_is_measured():
    assert announced.measured("cpu") > 0
    model = models.load(announced.YARDSTICK, device="cpu")
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        for block in model.module.blocks:
            block.attn.fused_attn = False
        model.module(torch.zeros(1, 3, 224, 224))
    own = counted.get_total_flops() / 1e9
    assert own == pytest.approx(announced.ITS_GFLOP, rel=0.01)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.model)
def test_every_member_loads_untrained_at_small_size(benchmark, one):
    model = models.load(benchmark.small(one.model), device="cpu")
    assert layers.blocks(model) if "mixer" not in one.model else True
    rows, columns = model.preprocessing.input_size[1:]
    with torch.inference_mode():
        assert model.module(torch.zeros(1, 3, rows, columns)).isfinite().all()


def test_figures_of_the_papers_cast_are_drawn_untrained_at_small_size(benchmark, tmp_path, monkeypatch):
    """The command, with every Vision Transformer of the cast; `benchmarks/cast.py` runs the whole study."""
    monkeypatch.setattr(announced, "measured", lambda _: 50.0)
    parts = PAPER.parts.change(lambda name: benchmark.small(name) if name.startswith("vit") else None)
    own = {part: getattr(parts, part) for part in ("vit", "less_data", "tuned", "other_seed")}
    shell.main(
        cast=Named("paper"), parts=Parts(**own), only=("3", "4", "C.6"),
        images=Choice(limit=32, batch=16), out=tmp_path, machine=Machine("cpu"),
    )  # fmt: skip
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "figure_3.png",
        "figure_4.png",
        "figure_C.6.png",
    }


def test_small_is_a_pair():
    assert len(SMALL.parts.names()) == 2
    assert sum(one.megabytes for own in SMALL.members.values() for one in own) < 150
