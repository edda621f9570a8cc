"""Vision Transformers of JAX, as google-research and big_vision save them, with timm's names and layouts."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

EMBEDDING = "embedding/kernel"
ROOTS = ("", "opt/target/", "params/", "params/img/")
NAMES = {  # of arrays without what is before them: kernel, scale and bias become weight, weight and bias
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/*": "patch_embed.proj.*",
    "Transformer/encoder_norm/*": "norm.*",
    "head/*": "head.*",
    "MAPHead_0/probe": "attn_pool.latent",
    "MAPHead_0/MultiHeadDotProductAttention_0/out/*": "attn_pool.proj.*",
    "MAPHead_0/MultiHeadDotProductAttention_0/query/*": "attn_pool.q.*",
    "MAPHead_0/LayerNorm_0/*": "attn_pool.norm.*",
    "MAPHead_0/MlpBlock_0/Dense_0/*": "attn_pool.mlp.fc1.*",
    "MAPHead_0/MlpBlock_0/Dense_1/*": "attn_pool.mlp.fc2.*",
    "Transformer/encoderblock_#/LayerNorm_0/*": "blocks.#.norm1.*",
    "Transformer/encoderblock_#/LayerNorm_[12]/*": "blocks.#.norm2.*",
    "Transformer/encoderblock_#/MultiHeadDotProductAttention_[01]/out/*": "blocks.#.attn.proj.*",
    "Transformer/encoderblock_#/MlpBlock_[03]/Dense_0/*": "blocks.#.mlp.fc1.*",
    "Transformer/encoderblock_#/MlpBlock_[03]/Dense_1/*": "blocks.#.mlp.fc2.*",
}
FUSED = {
    "Transformer/encoderblock_#/MultiHeadDotProductAttention_[01]/(query|key|value)/*": "blocks.#.attn.qkv.*",
    "MAPHead_0/MultiHeadDotProductAttention_0/(key|value)/*": "attn_pool.kv.*",
}
ORDER = ("query", "key", "value")
OWN = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def is_known(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are a Vision Transformer's arrays."""
    return any(root + EMBEDDING in tensors for root in ROOTS)


def renamed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with timm's names and layouts, and what was done; names that are not known stay."""
    root = next(root for root in ROOTS if root + EMBEDDING in tensors)
    done: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in _unstacked({k.removeprefix(root): v for k, v in tensors.items()}).items():
        if own := _match(name, NAMES):
            done[own[0]] = _layout(name, value)
        elif own := _match(name, FUSED):
            parts.setdefault(own[0], {})[own[1]] = _layout(name, value)
        else:
            done[name] = value
    for name, several in parts.items():
        done[name] = torch.cat([several[part] for part in ORDER if part in several])
    return done, ("JAX's arrays turned into timm's names and layouts",)


def _unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks that are stacked along the first axis of one array, one by one."""
    single: dict[str, Tensor] = {}
    for name, value in tensors.items():
        before, stacked, after = name.partition("Transformer/encoderblock/")
        if stacked:
            single |= {f"{before}Transformer/encoderblock_{i}/{after}": one for i, one in enumerate(value)}
        else:
            single[name] = value
    return single


def _match(name: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """The own name, and which of query, key and value it is."""
    for theirs, own in names.items():
        pattern = theirs.replace("#", r"(?P<block>\d+)").replace("*", f"(?P<kind>{'|'.join(OWN)})")
        pattern = pattern.replace("(query|key|value)", "(?P<part>query|key|value)")
        if found := re.fullmatch(pattern.replace("(key|value)", "(?P<part>key|value)"), name):
            groups = found.groupdict()
            kind = OWN.get(groups.get("kind") or "", "")
            return own.replace("#", groups.get("block") or "").replace("*", kind), groups.get("part") or ""
    return None


def _layout(name: str, value: Tensor) -> Tensor:
    """As PyTorch lays it out: outputs first. Projections of several heads become one."""
    if re.search(r"/(query|key|value)/kernel$", name):  # [input, head, feature]
        return value.flatten(1).T
    if re.search(r"/(query|key|value)/bias$", name):
        return value.flatten()
    if name.endswith("/out/kernel"):  # [head, feature, output]
        return value.flatten(0, 1).T
    if name.endswith("kernel"):
        return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value
