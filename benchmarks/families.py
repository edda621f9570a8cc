"""Every analysis on one small member of each of many families, untrained: a table, or why there is none.

Of timm's families, torchvision's and transformers'.

    python benchmarks/families.py                          # all of them; writes benchmarks/families.md
    python benchmarks/families.py --only vit swin xcit     # these, printed

Families that get the same tables stand in one row first, then each with its reasons.

"yes" is a table that the analysis was willing to give, "in part" one of those blocks whose skip connections are known (a
warning names the rest); `tests/test_families.py` compares such tables with what hooks and hands compute. Scenes are few and
small, as nothing here depends on what is in them. An error of a kind that no user should see has its name in capitals, and the
run then ends with status 1.
"""

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock

from vit_analysis import models
from vit_analysis.images import Images
from vit_analysis.probe import Shots
from vit_analysis.shell.analyses import ANALYSES, Analysis
from vit_analysis.spelling import Refusal

HERE = Path(__file__).parent
SCENES = Images(limit=8, batch=4)
FEW = Images(limit=4, batch=4)
POOL = Images(limit=400, batch=32, seed=1)


@dataclass(frozen=True)
class Family:
    """One member of a family by its name and settings, and the size of its images where it takes any."""

    name: str
    size: int | None = None
    config: tuple[tuple[str, Any], ...] = ()

    def make(self) -> models.Model:
        """The untrained model, with the preprocessing that it has for a user."""
        config = dict(self.config)
        if "/" in self.name:
            settings = "".join(f",{key}={value}" for key, value in config.items())
            own = models.load(f"{self.name}{settings}@random", device="cpu")
            size = self.size or own.preprocessing.input_size[1]
            return replace(
                own, name=self.name, preprocessing=replace(own.preprocessing, input_size=(3, size, size))
            )
        if self.size:
            config["pretrained_cfg_overlay"] = {"input_size": (3, self.size, self.size)}
        torch.manual_seed(0)
        module = timm.create_model(self.name, pretrained=False, **config).eval()
        return models.named({self.name: module})[self.name]


def sized(name: str, size: int, **config: Any) -> Family:
    """A member that is built for one size of image."""
    return Family(name, size, tuple({"img_size": size, **config}.items()))


def free(name: str, size: int = 64, **config: Any) -> Family:
    """A member that takes images of any size."""
    return Family(name, size, tuple(config.items()))


SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}


def sized_there(name: str, size: int = 64, **more: Any) -> Family:
    """A small Vision Transformer of transformers, built for one size of image; a setting None is left out."""
    config = {**SMALL, "image_size": size, **more}
    settings = {key: value for key, value in config.items() if value is not None}
    return Family(f"transformers/{name}", size, tuple(settings.items()))


FAMILIES: dict[str, Family] = {
    # Vision Transformers and their kin
    "vit": sized("vit_tiny_patch16_224", 64),
    "vit, registers": sized("vit_small_patch14_reg4_dinov2", 56, depth=4),
    "vit, average pooling": sized("vit_base_patch16_siglip_gap_224", 64, depth=3),
    "vit, attention pooling": sized("vit_base_patch16_siglip_224", 64, depth=3),
    "vit, parallel blocks": sized("vit_tiny_patch16_224", 64, depth=4, block_fn=ParallelThingsBlock),
    "vit, hybrid": sized("vit_tiny_r_s16_p8_224", 64),
    "deit, distilled": sized("deit_tiny_distilled_patch16_224", 64),
    "deit3": sized("deit3_small_patch16_224", 64, depth=4),
    "eva02": sized("eva02_tiny_patch14_224", 56),
    "dinov3": sized("vit_small_patch16_dinov3", 64, depth=4),
    "beit": sized("beit_base_patch16_224", 64, depth=3),
    "flexivit": sized("flexivit_small", 64, depth=4),
    "samvit": sized("samvit_base_patch16_224", 64, depth=3),
    "cait": sized("cait_xxs24_224", 64),
    "xcit": sized("xcit_nano_12_p16_224", 64),
    "convit": sized("convit_tiny", 64),
    "tnt": sized("tnt_s_patch16_224", 64, depth=4),
    "crossvit": free("crossvit_tiny_240", 240),
    "pit": sized("pit_ti_224", 64),
    "volo": sized("volo_d1_224", 64),
    "levit": free("levit_128s", 224),
    "hiera": sized("hiera_tiny_224", 64),
    "mvitv2": sized("mvitv2_tiny", 64),
    "naflexvit": free("naflexvit_base_patch16_gap", 64, depth=3),
    "vitamin": sized("vitamin_small_224", 64),
    # windows, pyramids, hybrids
    "swin": sized("swin_tiny_patch4_window7_224", 56),
    "swinv2": sized("swinv2_tiny_window8_256", 64),
    "swinv2 (cr)": sized("swinv2_cr_tiny_224", 64),
    "maxvit": sized("maxvit_rmlp_pico_rw_256", 64),
    "coatnet": sized("coatnet_nano_rw_224", 64),
    "twins": sized("twins_svt_small", 64),
    "pvt_v2": free("pvt_v2_b0"),
    "nest": sized("nest_tiny", 64),
    "gcvit": sized("gcvit_xxtiny", 64),
    "davit": free("davit_tiny"),
    "focalnet": free("focalnet_tiny_srf"),
    "coat": sized("coat_lite_tiny", 64),
    "visformer": sized("visformer_tiny", 64),
    "tiny_vit": free("tiny_vit_5m_224", 224),
    "edgenext": free("edgenext_xx_small"),
    "efficientformer": free("efficientformer_l1", 224),
    "efficientformerv2": free("efficientformerv2_s0", 224),
    "efficientvit": free("efficientvit_b0"),
    "fastvit": free("fastvit_t8"),
    "mobilevit": free("mobilevit_xxs"),
    "nextvit": free("nextvit_small"),
    "swiftformer": free("swiftformer_xs"),
    # neither attention nor a plain CNN
    "mixer": sized("mixer_s32_224", 64),
    "gmlp": sized("gmlp_ti16_224", 64),
    "resmlp": sized("resmlp_12_224", 64),
    "poolformer": free("poolformer_s12"),
    "caformer": free("caformer_s18"),
    "mambaout": free("mambaout_femto"),
    "sequencer2d": sized("sequencer2d_s", 64),
    # CNNs
    "resnet": free("resnet50"),
    "seresnet": free("seresnet18"),
    "resnetv2": free("resnetv2_50"),
    "resnest": free("resnest14d"),
    "res2net": free("res2net50_26w_4s"),
    "skresnet": free("skresnet18"),
    "regnet": free("regnety_002"),
    "convnext": free("convnext_atto"),
    "convnextv2": free("convnextv2_atto"),
    "convmixer": free("convmixer_768_32", 56),
    "inception_next": free("inception_next_atto"),
    "efficientnet": free("efficientnet_b0"),
    "mobilenetv3": free("mobilenetv3_small_050"),
    "mobilenetv4": free("mobilenetv4_conv_small_050"),
    "ghostnet": free("ghostnet_050"),
    "rexnet": free("rexnet_100"),
    "nfnet": free("nfnet_l0"),
    "repvit": free("repvit_m0_9"),
    "repvgg": free("repvgg_a0"),
    "densenet": free("densenet121"),
    "vgg": free("vgg11"),
    "inception": free("inception_v3", 96),
    "dla": free("dla46_c"),
    "hrnet": free("hrnet_w18_small"),
    "cspnet": free("cspresnet50"),
    "xception": free("xception41"),
    "hgnetv2": free("hgnetv2_b0"),
}

TORCHVISION = {
    "alexnet": free("torchvision/alexnet"),
    "convnext": free("torchvision/convnext_tiny"),
    "densenet": free("torchvision/densenet121"),
    "efficientnet": free("torchvision/efficientnet_b0"),
    "efficientnetv2": free("torchvision/efficientnet_v2_s"),
    "googlenet": free("torchvision/googlenet"),
    "inception": free("torchvision/inception_v3", 96),
    "maxvit": free("torchvision/maxvit_t", 224),
    "mnasnet": free("torchvision/mnasnet0_5"),
    "mobilenetv2": free("torchvision/mobilenet_v2"),
    "mobilenetv3": free("torchvision/mobilenet_v3_small"),
    "regnet": free("torchvision/regnet_y_400mf"),
    "resnet": free("torchvision/resnet18"),
    "resnet, bottleneck": free("torchvision/resnet50"),
    "resnext": free("torchvision/resnext50_32x4d"),
    "shufflenet": free("torchvision/shufflenet_v2_x0_5"),
    "squeezenet": free("torchvision/squeezenet1_0"),
    "swin": free("torchvision/swin_t"),
    "swinv2": free("torchvision/swin_v2_t"),
    "vgg": free("torchvision/vgg11"),
    "vit": free("torchvision/vit_b_32", 64, image_size=64),
}
TRANSFORMERS = {
    "beit": sized_there("beit"),
    "bit": free("transformers/bit"),
    "clip": sized_there("clip"),
    "convnext": free("transformers/convnext"),
    "cvt": free("transformers/cvt"),
    "data2vec": sized_there("data2vec-vision"),
    "deit": sized_there("deit"),
    "dinov2": sized_there("dinov2", intermediate_size=None),
    "dinov2, registers": sized_there("dinov2_with_registers", intermediate_size=None, num_register_tokens=4),
    "dinov3": sized_there("dinov3_vit"),
    "efficientnet": free("transformers/efficientnet"),
    "focalnet": free("transformers/focalnet"),
    "hiera": free("transformers/hiera", 224),
    "ijepa": sized_there("ijepa"),
    "levit": free("transformers/levit", 224),
    "mobilenetv2": free("transformers/mobilenet_v2"),
    "mobilevit": free("transformers/mobilevit"),
    "poolformer": free("transformers/poolformer"),
    "pvt": free("transformers/pvt", 224),
    "regnet": free("transformers/regnet"),
    "resnet": free("transformers/resnet"),
    "segformer": free("transformers/segformer"),
    "siglip": sized_there("siglip"),
    "swin": free("transformers/swin", 224),
    "swinv2": free("transformers/swinv2", 224),
    "vit": sized_there("vit"),
    "vit, masked (mae)": sized_there("vit_mae"),
    "vit, masked (msn)": sized_there("vit_msn"),
}
FAMILIES |= {f"torchvision: {name}": family for name, family in TORCHVISION.items()}
FAMILIES |= {f"transformers: {name}": family for name, family in TRANSFORMERS.items()}

TABLES = ("yes", "in part")
WARNINGS: list[str] = []


class Kept(logging.Handler):
    """Warnings are looked at and not shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        WARNINGS.append(record.getMessage())


def pairs() -> Images:
    """16 scenes of each of two shapes."""
    shape = POOL.truth(POOL.order)["shape"]
    return POOL.only([number for kind in (0, 1) for number in (shape == kind).nonzero()[:16, 0].tolist()])


def measured(analysis: Analysis, model: models.Model) -> pd.DataFrame:
    """The table of an analysis, with no more images than it needs."""
    needs: dict[str, dict[str, Any]] = {
        "receptive_field": {"images": FEW, "channels": 1},
        "lesions": {"images": FEW},
        "probe": {"images": Images(limit=8, batch=8), "shots": Shots(POOL, 1, 1)},
        "soft_nearest_neighbor": {"images": pairs()},
    }
    return analysis.module.measure(model, **{"images": SCENES} | needs.get(analysis.name, {}))


def answer(family: Family, only: Sequence[Analysis] = ANALYSES) -> dict[str, str]:
    """By the name of an analysis: "yes", "in part", or the sentence."""
    try:
        model = family.make()
    except (Refusal, OSError) as error:
        return {analysis.name: f"not made: {error}" for analysis in only}
    answers = {}
    for analysis in only:
        try:
            told = len(WARNINGS)
            table = measured(analysis, model)
            partly = any("skip connections, if any, are not known" in said for said in WARNINGS[told:])
            answers[analysis.name] = ("in part" if partly else "yes") if len(table) else "AN EMPTY TABLE"
        except (Refusal, OSError) as error:
            answers[analysis.name] = str(error)
        except Exception as error:  # what no user should see
            answers[analysis.name] = f"{type(error).__name__.upper()}: {error}"
    return answers


def in_general(said: str, family: str) -> str:
    """A sentence without what is the model's own: its names, its layers, its numbers."""
    name = FAMILIES[family].name
    said = re.sub(r"('[^']+'(, | and \d+ more)*)+", "LAYER", said.replace(name, "MODEL"))
    said = re.sub(r"[\w.]+:heads", "LAYER", said)
    said = re.sub(r"\b\d[\d,]*( x \d+)*\b", "N", said)
    return re.sub(r"^\w+(?= has no)|(?<=connections of )\w+|(?<=forward pass of )\w+", "MODEL", said)


def grouped(answers: dict[str, dict[str, str]]) -> list[str]:
    """Families that get the same tables, one row for all; most tables first."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for family, own in answers.items():
        rows.setdefault(tuple(said if said in TABLES else "" for said in own.values()), []).append(family)
    names = list(next(iter(answers.values())))
    ordered = sorted(rows, key=lambda row: -sum(said != "" for said in row))
    return [
        f"| families | {' | '.join(names)} |",
        f"|---|{':-:|' * len(names)}",
        *(f"| {'; '.join(rows[row])} | {' | '.join(row)} |" for row in ordered),
    ]


def markdown(answers: dict[str, dict[str, str]], seconds: float) -> str:
    """Families by analyses, sentences as footnotes, in general."""
    notes: dict[str, int] = {}
    names = list(next(iter(answers.values())))
    lines = [f"| family | model | {' | '.join(names)} |", f"|---|---|{':-:|' * len(names)}"]
    for family, exact in answers.items():
        own = {name: in_general(said, family) for name, said in exact.items()}
        cells = [
            said if said in TABLES else f"[{notes.setdefault(said, len(notes) + 1)}]" for said in own.values()
        ]
        lines.append(f"| {family} | `{FAMILIES[family].name}` | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {said}" for said, number in notes.items())]
    head = (
        f"{len(answers)} families, {len(answers) * len(names)} answers, "
        f"{sum(said == 'yes' for own in answers.values() for said in own.values())} of them tables; "
        f"{seconds / 60:.0f} minutes on one thread (torch {torch.__version__}, timm {timm.__version__}).\n"
    )
    return "\n".join([head, *grouped(answers), "\nFamily by family, and why:\n", *lines, ""])


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [analysis.name for analysis in ANALYSES]
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--analyses", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logger = logging.getLogger("vit_analysis")
    logger.addHandler(Kept())
    logger.propagate = False
    asked = [analysis for analysis in ANALYSES if analysis.name in arguments.analyses]
    start, answers = time.monotonic(), {}
    for family in arguments.only:
        before = time.monotonic()
        answers[family] = answer(FAMILIES[family], asked)
        told = {name: said for name, said in answers[family].items() if said != "yes"}
        print(f"{family} ({time.monotonic() - before:.0f} s): {told or 'yes'}", file=sys.stderr, flush=True)
    table = markdown(answers, time.monotonic() - start)
    print(table)
    if arguments.out or arguments.only == list(FAMILIES):
        (arguments.out or HERE / "families.md").write_text(f"# Families of networks\n\n{table}")
    if any(said.partition(":")[0].isupper() for own in answers.values() for said in own.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
