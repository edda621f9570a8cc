"""How far attention reaches, from queries and keys, without ever holding all of it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from vit_analysis.reading.capture import Heads
from vit_analysis.tensors.similarity import full_float32

# Attention is computed for so many numbers at once, on a CPU mostly one image: half a megabyte stays in a core's cache between
# product, softmax and sums, and the strided queries and keys of one image need no copy. A GPU only has to have the memory.
CPU_PIECE, GPU_PIECE = 2**17, 2**27


class Scale(NamedTuple):
    """Where a model's tokens lie."""

    pixels: Float64[Tensor, "query key"]
    prefix: int


def head_distances(heads: Heads, scale: Scale) -> Float64[Tensor, "image head 3"]:
    """Of each head and image, means over the spatial queries: distance, attention to prefix tokens, distance without scaling.

    A query whose attention to all patches together is 0 in float32 has no distance and is left out of the first mean.
    """
    queries = heads.query[:, :, scale.prefix :]
    pixels = nn.functional.pad(scale.pixels.float(), (scale.prefix, 0))
    shape = queries.shape[1], queries.shape[2], heads.key.shape[2]
    images = max(1, (GPU_PIECE if queries.is_cuda else CPU_PIECE) // math.prod(shape))
    memory = queries.new_empty(min(images, len(queries)), *shape, dtype=torch.float32)
    found = []
    with full_float32(queries.device):
        for start in range(0, len(queries), images):
            part = slice(start, start + images)
            attention = _attention(heads, queries[part], part, memory)
            share = attention[..., scale.prefix :].sum(-1)
            raw = attention.mul_(pixels).sum(-1)
            means = [(raw / share).nanmean(-1), 1 - share.mean(-1), raw.mean(-1)]
            found.append(torch.stack(means, dim=-1).double())
    return torch.cat(found)


def _attention(
    heads: Heads, queries: Float[Tensor, "image head query feature"], part: slice, memory: Tensor
) -> Float32[Tensor, "image head query key"]:
    """Softmax over all keys, in memory that is used again and again: fresh memory costs a third of the time."""
    memory = memory[: len(queries)]
    flat = memory.flatten(0, 1)
    query, key = queries.float().flatten(0, 1), heads.key[part].float().flatten(0, 1)
    torch.baddbmm(flat, query, key.mT, beta=0, alpha=heads.scale, out=flat)
    if heads.bias is not None:
        memory += torch.broadcast_to(heads.bias, (*heads.query.shape[:3], key.shape[1]))[
            part, :, -queries.shape[2] :
        ]
    return torch.softmax(memory, dim=-1, out=memory)
