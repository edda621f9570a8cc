"""The command ``probe``: what a linear classifier can read from each layer."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(limit=2000),  # noqa: B008  (frozen)
    train: Choice = Choice(limit=100_000, seed=1),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("blocks",),
    tokens: tuple[str, ...] = ("cls", "mean", "mean_spatial"),
    shots: int | None = None,
    draws: int = 5,
    out: Path = Path("figures/probe"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Accuracy of linear probes, layer by layer (figures 11, 13, D.4 and F.* of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images the probes are judged on.
        train: which images the probes' examples are chosen from.
        layers: blocks, paper, or glob patterns over module paths such as 'blocks.*.attn'.
        tokens: cls, mean, mean_spatial, each (every spatial token on its own), or the number of one.
        shots: examples per class; by default 10 as in the paper, and 100 of the lab's scenes, which are free.
        draws: number of independent choices of examples; their spread is the band in the picture.
        out: path of the results without ending; .parquet and .png, or what --format says, are added, and before them _tokens,
            and _maps of each token.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, plot, probe
    from vit_analysis.images import Images
    from vit_analysis.shell import told

    command.ready(out, "_tokens", "_maps", pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    count = shots or (probe.FREE_SHOTS if train.endless else probe.FEW_SHOTS)
    examples = probe.Shots(Images.of(train), count, draws)
    table = probe.measure(loaded, images, examples, layers=single(layers), tokens=tokens, state=out)
    command.write(table, out)
    command.draw(table, out, plot.probe, pictures)
    if set(tokens) != {"cls"}:
        command.draw(table, command.beside(out, "_tokens"), plot.probe_tokens, pictures)
    if "each" in tokens:
        command.draw(table, command.beside(out, "_maps"), plot.accuracy_maps, pictures)
    command.tell(told.probe(table))
