"""The Vision Transformer of the course notes, corrected, with timm's names of layers.

The parts are those of the notes: `PatchEmbedding`, `Attention`, `PreNorm`, `FeedForward`, `ResidualAdd`, `ViT`.
As printed there, the model ignores its image: `nn.MultiheadAttention` without `batch_first=True` lets every token
attend to the same token of the other images, so the class token never sees a patch and the logits are a constant.
That and the rest of its faults are mended here; `tests/lab/test_vit.py` holds the six tests that would have shown them.

Modules live at the paths timm gives them (`blocks.3.attn.qkv`, `blocks.3.mlp.act`, `norm`, `head` ...), so what
reads timm's `VisionTransformer` reads this one, and the weights of one fit the other (the patch embedding after
the reordering described in `PatchEmbedding`). For that `PreNorm` and `ResidualAdd`, which own no parameters, are plain
callables rather than modules: they say how a block is composed and add nothing to a path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vit_analysis.spelling import Refusal

Images = Float[Tensor, "image channel row column"]
Tokens = Float[Tensor, "image token feature"]

NOTES: dict[str, Any] = {
    "img_size": 144,
    "patch_size": 4,
    "num_classes": 37,
    "embed_dim": 32,
    "depth": 6,
    "num_heads": 2,
    "dropout": 0.1,
}
"""The configuration of the notes."""
LAB: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 8,
    "num_heads": 6,
}
"""The configuration of the lab's Vision Transformers."""


class PatchEmbedding(nn.Module):
    """Cuts an image into squares and maps each linearly to a token.

    A patch is flattened in the order row, column, channel. timm's convolution reads channel, row, column: its
    weight is `rearrange(proj.weight, "feature (p1 p2 c) -> feature c p1 p2", ...)`.
    """

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        if image_size % patch_size:
            below = image_size // patch_size * patch_size
            raise Refusal(
                f"an image of {image_size} px does not divide into patches of {patch_size} px; "
                f"the nearest sizes that do are {below or patch_size} and {below + patch_size}"
            )
        self.img_size = (image_size, image_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (image_size // patch_size, image_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Linear(patch_size * patch_size * channels, width)

    def forward(self, x: Images) -> Tokens:
        """Return one token per patch, row by row from the top left."""
        if x.shape[-2:] != self.img_size:
            raise Refusal(
                f"got images of {x.shape[-2]} x {x.shape[-1]} px, this model was built for "
                f"{self.img_size[0]} x {self.img_size[1]}: resize them, or build ViT(img_size={x.shape[-1]})"
            )
        p1, p2 = self.patch_size
        return self.proj(rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p1, p2=p2))


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k' / sqrt(head_dim)) v in each head, then one projection of them all.

    `fused_attn` means what it means in timm: one fused kernel, or every step by itself and open to hooks. `mask` says
    which query may attend to which key; None lets every token attend to every token.
    """

    mask: Tensor | None

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        mask: Bool[Tensor, "query key"] | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            raise Refusal(
                f"width {width} does not divide into {heads} heads; "
                f"the nearest number that fits is {min(divisors, key=lambda n: abs(n - heads))}"
            )
        self.num_heads = heads
        self.head_dim = width // heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tokens) -> Tokens:
        """Mix the tokens of every image: each token attends to those of its own image."""
        q, k, v = self.queries_keys_values(x)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=self.mask, dropout_p=dropout, scale=self.scale
            )
        else:
            mixed = self.attn_drop(self.softmax(q, k)) @ v
        return self.proj_drop(
            self.proj(rearrange(mixed, "image head token feature -> image token (head feature)"))
        )

    def attention_weights(self, x: Tokens) -> Float[Tensor, "image head query key"]:
        """Return how much each query attends to each key, per head; the rows sum to 1. `x` is what `forward` takes."""
        q, k, _ = self.queries_keys_values(x)
        return self.softmax(q, k)

    def softmax(self, q: Tensor, k: Tensor) -> Float[Tensor, "image head query key"]:
        """Softmax of the scaled products of queries and keys; 0 where the mask forbids."""
        products = self.scale * q @ k.mT
        if self.mask is not None:
            products = products.masked_fill(~self.mask, -torch.inf)
        return products.softmax(dim=-1)

    def queries_keys_values(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the tokens, each [image, head, token, feature]."""
        q, k, v = rearrange(
            self.qkv(x),
            "image token (three head feature) -> three image head token feature",
            three=3,
            head=self.num_heads,
        )
        return self.q_norm(q), self.k_norm(k), v


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token on its own."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tokens) -> Tokens:
        """Map every token to a token of the same width."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


@dataclass(frozen=True)
class PreNorm:
    """A function that applies `fn` to the normalised tokens."""

    norm: Callable[[Tensor], Tensor]
    fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tokens) -> Tokens:
        """Return fn(norm(x))."""
        return self.fn(self.norm(x))


@dataclass(frozen=True)
class ResidualAdd:
    """A function that applies `fn` and adds a skip connection around it."""

    fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tokens) -> Tokens:
        """Return x + fn(x) in a new tensor: `fn(x)` may be what a hook has kept, or `x` itself."""
        return x + self.fn(x)


class Block(nn.Module):
    """Attention, then feed-forward, each after a LayerNorm and, unless `skip` is false, beside a skip connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        *,
        skip: bool = True,
        mask: Bool[Tensor, "query key"] | None = None,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout, mask)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden, dropout)

    def forward(self, x: Tokens) -> Tokens:
        """Apply attention, then feed-forward."""
        for branch in (PreNorm(self.norm1, self.attn), PreNorm(self.norm2, self.mlp)):
            x = ResidualAdd(branch)(x) if self.skip else branch(x)
        return x


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al., ICLR 2021): images to the logits of their classes.

    `pool="cls"` classifies by a class token, `"avg"` by the mean over all tokens and then has no class token.
    `no_skip` names a block that has no skip connections, as in figure 8 of Raghu et al. `reach` limits the attention of
    every block to patches at most so many rows and columns away, and to the class token, which attends to all; None
    lets every patch attend to every other. The other arguments are called as timm's `VisionTransformer` calls them.
    """

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        in_chans: int = 3,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        pool: str = "cls",
        no_skip: int | None = None,
        reach: int | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("cls", "avg"):
            raise Refusal(f"pool is 'cls' or 'avg', got {pool!r}")
        if no_skip is not None and not 0 <= no_skip < depth:
            raise Refusal(f"no_skip names a block from 0 to {depth - 1}, got {no_skip}")
        self.embed_dim = self.num_features = embed_dim
        self.num_classes = num_classes
        self.pool = pool
        self.num_prefix_tokens = int(pool == "cls")
        self.patch_embed = PatchEmbedding(img_size, patch_size, in_chans, embed_dim)
        tokens = self.num_prefix_tokens + self.patch_embed.num_patches
        rows, columns = self.patch_embed.grid_size
        mask = None if reach is None else neighbours(rows, columns, reach, self.num_prefix_tokens)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if pool == "cls" else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, mlp_ratio * embed_dim, dropout, skip=i != no_skip, mask=mask)
                for i in range(depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.initialize()

    def initialize(self) -> None:
        """Initialise as the authors do (vision_transformer of google-research), but with a head that is not zero.

        Position embeddings start small compared with patch embeddings, a class token at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not let decay."""
        return {"pos_embed", "cls_token"}

    def forward(self, x: Images) -> Float[Tensor, "image class"]:
        """Return the logits of every image."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Images) -> Tokens:
        """All tokens after the last LayerNorm, the class token first."""
        x = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([repeat(self.cls_token, "1 1 feature -> image 1 feature", image=len(x)), x], dim=1)
        return self.norm(self.blocks(self.pos_drop(x + self.pos_embed)))

    def forward_head(self, x: Tokens) -> Float[Tensor, "image class"]:
        """Return the logits of every image from the tokens of `forward_features`."""
        return self.head(x[:, 0] if self.pool == "cls" else x.mean(dim=1))


def neighbours(rows: int, columns: int, reach: int, prefix: int) -> Bool[Tensor, "query key"]:
    """Return the mask of local attention: which token may attend to which.

    A patch attends to the patches at most `reach` rows and columns away, itself among them, and to the `prefix` tokens that
    come first; these attend to every token.
    """
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    near = ((row[:, None] - row).abs() <= reach) & ((column[:, None] - column).abs() <= reach)
    return F.pad(near, (prefix, 0, prefix, 0), value=True)
