"""The names that codebases give to the parts of one Vision Transformer, as a table, with timm's as the first column.

In a name ``#`` is the number of a block and ``*`` is ``weight`` or ``bias``. A tuple is several tensors that make up one, put
together along the first axis; a name that stands there twice holds two of its parts. A name that is not in a column has no
place in that codebase. All tensors are alike but for axes of length one, and for `TRANSPOSED` ones.
"""

from dataclasses import dataclass

Names = dict[str, str | tuple[str, ...]]
TRANSPOSED = ".T"  # at the end of a name: it is stored with its axes exchanged
HEADS = ("head.*", "head_dist.*")  # stand outside the prefix of the transformer itself
# Of shape [1, n, width].
TOKENS = ("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "attn_pool.latent")


def _same(*names: str) -> Names:
    return {name: name for name in names}


@dataclass(frozen=True, eq=False)
class Convention:
    """How a codebase calls the parts of a Vision Transformer.

    Attributes:
        title: whose names they are, as a sentence says it.
        names: timm's name of a part, and theirs.
        inner: prefixes of the transformer itself in a model with a head, without which the head is named.
    """

    title: str
    names: Names
    inner: tuple[str, ...] = ()


TIMM: Names = {
    **_same("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "patch_embed.proj.*"),
    **_same("norm_pre.*", "blocks.#.norm1.*", "blocks.#.attn.qkv.*", "blocks.#.attn.proj.*"),
    **_same("blocks.#.attn.q_norm.*", "blocks.#.attn.k_norm.*", "blocks.#.ls1.gamma", "blocks.#.ls2.gamma"),
    **_same("blocks.#.norm2.*", "blocks.#.mlp.fc1.*", "blocks.#.mlp.fc2.*", "norm.*", "fc_norm.*", *HEADS),
    "attn_pool.latent": "attn_pool.latent",
    "attn_pool.qkv.*": ("attn_pool.q.*", "attn_pool.kv.*", "attn_pool.kv.*"),
    **_same("attn_pool.proj.*", "attn_pool.norm.*", "attn_pool.mlp.fc1.*", "attn_pool.mlp.fc2.*"),
}
META_DINOV2: Names = {
    **TIMM,
    "reg_token": "register_tokens",
    "blocks.#.mlp.fc1.*": "blocks.#.mlp.w12.*",
    "blocks.#.mlp.fc2.*": "blocks.#.mlp.w3.*",
}
META_DINOV2_MLP: Names = {**TIMM, "reg_token": "register_tokens"}
DEIT_III: Names = {**TIMM, "blocks.#.ls1.gamma": "blocks.#.gamma_1", "blocks.#.ls2.gamma": "blocks.#.gamma_2"}
HUGGING_FACE_EMBEDDINGS: Names = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    "norm.*": "layernorm.*",
}
HUGGING_FACE: Names = {  # since 5
    **HUGGING_FACE_EMBEDDINGS,
    "blocks.#.norm1.*": "layers.#.layernorm_before.*",
    "blocks.#.attn.qkv.*": tuple(f"layers.#.attention.{part}_proj.*" for part in "qkv"),
    "blocks.#.attn.proj.*": "layers.#.attention.o_proj.*",
    "blocks.#.norm2.*": "layers.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "layers.#.mlp.fc2.*",
    "head.*": "classifier.*",
}
HUGGING_FACE_4: Names = {
    **HUGGING_FACE_EMBEDDINGS,
    "blocks.#.norm1.*": "encoder.layer.#.layernorm_before.*",
    "blocks.#.attn.qkv.*": tuple(
        f"encoder.layer.#.attention.attention.{part}.*" for part in ("query", "key", "value")
    ),
    "blocks.#.attn.proj.*": "encoder.layer.#.attention.output.dense.*",
    "blocks.#.norm2.*": "encoder.layer.#.layernorm_after.*",
    "blocks.#.mlp.fc1.*": "encoder.layer.#.intermediate.dense.*",
    "blocks.#.mlp.fc2.*": "encoder.layer.#.output.dense.*",
    "head.*": "classifier.*",
}
DISTILLED: Names = {"head.*": "cls_classifier.*", "head_dist.*": "distillation_classifier.*"}
HUGGING_FACE_DINOV2: Names = {  # since 5; its classifier reads twice the width, which timm's cannot
    **HUGGING_FACE_EMBEDDINGS,
    "blocks.#.norm1.*": "encoder.layer.#.norm1.*",
    "blocks.#.attn.qkv.*": tuple(f"encoder.layer.#.attention.{part}_proj.*" for part in "qkv"),
    "blocks.#.attn.proj.*": "encoder.layer.#.attention.o_proj.*",
    "blocks.#.ls1.gamma": "encoder.layer.#.layer_scale1.lambda1",
    "blocks.#.norm2.*": "encoder.layer.#.norm2.*",
    "blocks.#.mlp.fc1.*": "encoder.layer.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "encoder.layer.#.mlp.fc2.*",
    "blocks.#.ls2.gamma": "encoder.layer.#.layer_scale2.lambda1",
}
HUGGING_FACE_4_DINOV2: Names = {
    **HUGGING_FACE_DINOV2,
    "blocks.#.attn.qkv.*": HUGGING_FACE_4["blocks.#.attn.qkv.*"],
    "blocks.#.attn.proj.*": HUGGING_FACE_4["blocks.#.attn.proj.*"],
}
GATED: Names = {  # the feed-forward layer of the giant
    "blocks.#.mlp.fc1.*": ("encoder.layer.#.mlp.gate_proj.*", "encoder.layer.#.mlp.up_proj.*"),
    "blocks.#.mlp.fc2.*": "encoder.layer.#.mlp.down_proj.*",
}
GATED_4: Names = {
    "blocks.#.mlp.fc1.*": "encoder.layer.#.mlp.weights_in.*",
    "blocks.#.mlp.fc2.*": "encoder.layer.#.mlp.weights_out.*",
}
HUGGING_FACE_CLIP: Names = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.*": "embeddings.patch_embedding.*",
    "norm_pre.*": "pre_layrnorm.*",
    "blocks.#.norm1.*": "encoder.layers.#.layer_norm1.*",
    "blocks.#.attn.qkv.*": tuple(f"encoder.layers.#.self_attn.{part}_proj.*" for part in "qkv"),
    "blocks.#.attn.proj.*": "encoder.layers.#.self_attn.out_proj.*",
    "blocks.#.norm2.*": "encoder.layers.#.layer_norm2.*",
    "blocks.#.mlp.fc1.*": "encoder.layers.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "encoder.layers.#.mlp.fc2.*",
    "norm.*": "post_layernorm.*",
    "head.*": "visual_projection.*",
    "attn_pool.latent": "head.probe",
    "attn_pool.qkv.*": ("head.attention.in_proj_*",) * 3,
    "attn_pool.proj.*": "head.attention.out_proj.*",
    "attn_pool.norm.*": "head.layernorm.*",
    "attn_pool.mlp.fc1.*": "head.mlp.fc1.*",
    "attn_pool.mlp.fc2.*": "head.mlp.fc2.*",
}
OPENAI_CLIP: Names = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.*": "conv1.*",
    "norm_pre.*": "ln_pre.*",
    "blocks.#.norm1.*": "transformer.resblocks.#.ln_1.*",
    "blocks.#.attn.qkv.*": "transformer.resblocks.#.attn.in_proj_*",
    "blocks.#.attn.proj.*": "transformer.resblocks.#.attn.out_proj.*",
    "blocks.#.norm2.*": "transformer.resblocks.#.ln_2.*",
    "blocks.#.mlp.fc1.*": "transformer.resblocks.#.mlp.c_fc.*",
    "blocks.#.mlp.fc2.*": "transformer.resblocks.#.mlp.c_proj.*",
    "norm.*": "ln_post.*",
    "head.weight": f"proj{TRANSPOSED}",
}
TORCHVISION: Names = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.*": "conv_proj.*",
    "blocks.#.norm1.*": "encoder.layers.encoder_layer_#.ln_1.*",
    "blocks.#.attn.qkv.*": "encoder.layers.encoder_layer_#.self_attention.in_proj_*",
    "blocks.#.attn.proj.*": "encoder.layers.encoder_layer_#.self_attention.out_proj.*",
    "blocks.#.norm2.*": "encoder.layers.encoder_layer_#.ln_2.*",
    "blocks.#.mlp.fc1.*": "encoder.layers.encoder_layer_#.mlp.0.*",
    "blocks.#.mlp.fc2.*": "encoder.layers.encoder_layer_#.mlp.3.*",
    "norm.*": "encoder.ln.*",
    "head.*": "heads.head.*",
}
TORCHVISION_OLD: Names = {  # up to 0.12
    **TORCHVISION,
    "blocks.#.mlp.fc1.*": "encoder.layers.encoder_layer_#.mlp.linear_1.*",
    "blocks.#.mlp.fc2.*": "encoder.layers.encoder_layer_#.mlp.linear_2.*",
}

_INNER = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "vision_model.")
CONVENTIONS = (
    Convention("timm's Vision Transformer", TIMM),
    Convention("Meta's DINOv2", META_DINOV2_MLP),
    Convention("Meta's DINOv2", META_DINOV2),
    Convention("Meta's DeiT III", DEIT_III),
    Convention("Hugging Face's ViT", HUGGING_FACE, _INNER),
    Convention("Hugging Face's ViT (before 5)", HUGGING_FACE_4, _INNER),
    Convention("Hugging Face's DeiT", HUGGING_FACE | DISTILLED, _INNER),
    Convention("Hugging Face's DeiT (before 5)", HUGGING_FACE_4 | DISTILLED, _INNER),
    Convention("Hugging Face's DINOv2", HUGGING_FACE_DINOV2, _INNER),
    Convention("Hugging Face's DINOv2 (before 5)", HUGGING_FACE_4_DINOV2, _INNER),
    Convention("Hugging Face's DINOv2", HUGGING_FACE_DINOV2 | GATED, _INNER),
    Convention("Hugging Face's DINOv2 (before 5)", HUGGING_FACE_4_DINOV2 | GATED_4, _INNER),
    Convention("Hugging Face's CLIP or SigLIP", HUGGING_FACE_CLIP, _INNER),
    Convention("OpenAI's CLIP", OPENAI_CLIP),
    Convention("torchvision's Vision Transformer", TORCHVISION),
    Convention("torchvision's Vision Transformer (up to 0.12)", TORCHVISION_OLD),
)

# What other networks' names look like, for the sentence that refuses them: a name and a pattern that only they have.
OTHERS = {
    "lucidrains' vit-pytorch": r"to_patch_embedding\.\d+\.|transformer\.layers\.\d+\.\d+\.",
    "DINOv3": r"storage_tokens|rope_embed",
    "a BEiT or EVA": r"attn\.(q_bias|relative_position_bias)",
    "Hugging Face's ResNet": r"encoder\.stages\.\d+\.layers\.\d+\.layer\.",
    "Hugging Face's Swin Transformer": r"encoder\.layers\.\d+\.blocks\.\d+\.",
    "torchvision's Swin Transformer": r"features\.\d+\.\d+\.attn\.",
    "torchvision's ConvNeXt": r"features\.\d+\.\d+\.block\.\d+\.",
    "a ResNet": r"layer[1-4]\.\d+\.(conv|bn)\d\.",
    "a Swin Transformer": r"layers\.\d+\.blocks\.\d+\.",
    "a ConvNeXt": r"stages\.\d+\.(blocks\.)?\d+\.(conv_dw|dwconv)",
    "an EfficientNet": r"(conv_dw|_depthwise_conv|conv_pwl)\.",
    "a language model": r"word_embeddings|embed_tokens|wte\.",
    "a DenseNet": r"denseblock\d",
    "a VGG": r"^features\.\d+\.(weight|bias)$",
}
