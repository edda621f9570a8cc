"""The roles that parts of a network play: what `families` says of known networks, and what anyone can say of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vit_analysis.tensors.tokens import Grid


@dataclass(frozen=True)
class Block:
    """The parts of one kind of transformer block, as paths within it; of several the first that is there counts.

    The stream goes z, then z + attention(norm1(z)), then that plus mlp(norm2(of it)). What a block has not got is left out.

    Attributes:
        needs: parts or attributes that tell this kind of block from others.
        norm1: the norm before the attention.
        mixing: what is shown as the attention's output (figure 1).
        heads: the module that calls `scaled_dot_product_attention`, or, in an attention that computes its softmax itself, the
            dropout that is given the weights.
        mixing_added: what the attention adds to the stream: the last module before the addition.
        norm2: the norm before the MLP; what it is given is the stream between attention and MLP.
        hidden: the MLP's activation function.
        mlp_added: what the MLP adds to the stream.
        name: what the first half is called.
        windows: the module that is given windows of the map instead of images; empty where there is none.
    """

    needs: tuple[str, ...]
    norm1: str = "norm1"
    mixing: tuple[str, ...] = ("attn",)
    heads: str = "attn"
    mixing_added: tuple[str, ...] = ("attn",)
    norm2: str = "norm2"
    hidden: tuple[str, ...] = ("mlp.act",)
    mlp_added: tuple[str, ...] = ("mlp",)
    name: str = "attention"
    windows: str = ""


@dataclass(frozen=True)
class Unit:
    """The parts of a convolutional block, as paths within it; of several the first that is there counts.

    Attributes:
        long: the end of its long branch.
        shortcut: the projection on its skip connection; where there is none, that is what the block is given.
        activation: the module between the addition and the block's output; where there is none, there is none.
    """

    long: tuple[str, ...]
    shortcut: tuple[str, ...] = ()
    activation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """The paths at which one codebase keeps the parts of a Vision Transformer that lie outside its blocks.

    Attributes:
        embedding: the module whose output is the embedded patches.
        patches: the convolution that cuts the image into patches.
        prefix: parameters that hold the tokens put before those of patches; the class token is the first of them.
        norm: the norm after the last block.
        reads: what the head reads, as probes name it: ``cls``, ``mean``, ``mean_spatial``; empty for something else.
    """

    embedding: str
    patches: str
    prefix: tuple[str, ...]
    norm: str
    reads: str


@dataclass(frozen=True)
class Anatomy:
    """What is known of one network; None is not known, and whatever depends on it is refused.

    `layers` finds it for the networks of `families`. For a module of your own, say what is not found:

        models.own(module, "mine", anatomy=Anatomy(prefix=1, class_token=True, grid=Grid(14, 14, 16, 16)))

    Attributes:
        base: path of the network within the module, where that is a wrapper of it.
        blocks: paths of its blocks, in order of execution; None finds numbered composite modules.
        kinds: kinds of transformer block; of several that fit the first counts.
        unit: the parts of blocks of any other kind.
        entrances: paths of the modules before the first block that are shown (``paper``).
        norm: path of the norm after the last block; empty where there is none.
        prefix: number of tokens before the spatial ones: class token, distillation token, registers.
        class_token: whether the first of them is a class token.
        grid: where spatial tokens lie in the input.
        tokens: rows and columns of the spatial tokens; those of `grid` where that is known.
        spatial: number of the spatial tokens, where their rows and columns are not known.
        channels_last: whether maps are image x row x column x channel.
        counted: whether the tokens were counted at the first block, so that another number of them is something else.
        reads: the representation that the network's own head reads: ``cls``, ``mean`` or ``mean_spatial``.
    """

    base: str | None = None
    blocks: tuple[str, ...] | None = None
    kinds: tuple[Block, ...] | None = None
    unit: Unit | None = None
    entrances: tuple[str, ...] | None = None
    norm: str | None = None
    prefix: int | None = None
    class_token: bool | None = None
    grid: Grid | None = None
    tokens: tuple[int, int] | None = None
    spatial: int | None = None
    channels_last: bool | None = None
    counted: bool | None = None
    reads: str | None = None

    def known(self) -> Mapping[str, Any]:
        """What is known, by role."""
        own = {part.name: getattr(self, part.name) for part in fields(self)}
        return {role: value for role, value in own.items() if value is not None}

    def with_told(self, told: "Anatomy") -> "Anatomy":
        """This anatomy, and where more or something else is told, that."""
        return replace(self, **told.known())
