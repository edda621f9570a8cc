"""The command ``soft_nearest_neighbor``: how entangled classes are in each layer."""

from pathlib import Path
from typing import Annotated

import tyro

from vit_analysis.typed import Choice, Machine, Pictures, Selection, single


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Choice = Choice(limit=4000, batch=160),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("blocks",),
    tokens: Selection = "all",
    target: str | None = None,
    out: Path = Path("figures/soft_nearest_neighbor"),
    pictures: Annotated[Pictures, tyro.conf.arg(name="")] = Pictures(),  # noqa: B008  (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008  (frozen)
) -> None:
    """Soft nearest neighbour loss of each layer: high where classes are entangled, 0 where they are separated.

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to choose from; a batch of 160 has ten classes of 16 images.
        layers: blocks, paper, or glob patterns over module paths such as 'blocks.*.attn'.
        tokens: which values of a layer of tokens are compared.
        target: which labels are used; for scenes shape, texture or position.
        out: path of the results without ending; .parquet and .png, or what --format says, are added, and where massive tokens
            dominate the same for normalized tokens, with _normalized in the name.
        pictures: how pictures are written.
        machine: where models run, and how precisely.
    """
    from vit_analysis import command, plot
    from vit_analysis import soft_nearest_neighbor as entanglement
    from vit_analysis.shell import told

    command.ready(out, "_normalized", pictures=pictures)
    loaded = command.loaded(models, machine, pictures)
    table = entanglement.measure(
        loaded, images, layers=single(layers), tokens=tokens, target=target, state=out
    )
    command.write(table, out)
    command.draw(table, out, plot.soft_nearest_neighbor, pictures)
    found = told.soft_nearest_neighbor(table)
    if entanglement.dominated(table):
        robust = command.beside(out, "_normalized")
        again = entanglement.measure(
            loaded, images, layers=single(layers), tokens="normalized", target=target, state=robust
        )
        command.write(again, robust)
        command.draw(again, robust, plot.soft_nearest_neighbor, pictures)
        found += told.soft_nearest_neighbor(again)
    command.tell(found)
