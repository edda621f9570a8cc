"""Which part plays which role, codebase by codebase: a table to read and to add a row to.

timm's names are those of most networks: what has them is read so, whoever wrote it.
"""

from dataclasses import replace

from vit_analysis.anatomy.roles import Block, Network, Unit

_RESIDUAL = ("norm1", "norm2")

# Attention in windows returns windows and not images: what it adds is read instead.
_WINDOWS = Block(
    needs=(*_RESIDUAL, "attn", "window_size", "drop_path1"),
    mixing=("drop_path1",),
    mixing_added=("drop_path1",),
    mlp_added=("drop_path2", "ls2", "mlp"),
    windows="attn",
)

BLOCKS = (
    # timm: Swin v2, whose attention is a cosine and computes its softmax itself
    replace(_WINDOWS, needs=(*_WINDOWS.needs, "attn.logit_scale", "attn.attn_drop"), heads="attn.attn_drop"),
    # timm: Swin, SAM
    _WINDOWS,
    # timm: Vision Transformers and their kin; the lab's
    Block(
        needs=(*_RESIDUAL, "attn"),
        mixing_added=("drop_path1", "ls1", "attn"),
        mlp_added=("drop_path2", "ls2", "mlp"),
    ),
    # timm: MLP-Mixer
    Block(
        needs=(*_RESIDUAL, "mlp_tokens"),
        mixing=("mlp_tokens.act",),
        heads="",
        mixing_added=(),
        hidden=("mlp_channels.act",),
        mlp_added=(),
        name="token mixing",
    ),
    # torchvision: its attention is torch's, which calls the projection at its end without a module
    Block(
        needs=("ln_1", "self_attention", "ln_2", "mlp"),
        norm1="ln_1",
        mixing=("dropout",),
        heads="self_attention",
        mixing_added=("dropout",),
        norm2="ln_2",
        hidden=("mlp.1",),
    ),
    # torch.nn.TransformerEncoderLayer with its norms first
    Block(
        needs=(*_RESIDUAL, "self_attn", "linear1", "linear2"),
        mixing=("dropout1",),
        heads="self_attn",
        mixing_added=("dropout1",),
        hidden=("dropout",),
        mlp_added=("dropout2",),
    ),
    # transformers 5: Swin
    Block(
        needs=("layernorm_before", "attention.o_proj", "layernorm_after", "mlp", "window_size"),
        norm1="layernorm_before",
        mixing=("drop_path",),
        heads="attention",
        mixing_added=("drop_path",),
        norm2="layernorm_after",
        hidden=("mlp.activation_fn",),
        windows="attention",
    ),
    # transformers 5: ViT, DeiT
    Block(
        needs=("layernorm_before", "attention.o_proj", "layernorm_after", "mlp"),
        norm1="layernorm_before",
        mixing=("attention.o_proj",),
        heads="attention",
        mixing_added=("attention.o_proj",),
        norm2="layernorm_after",
        hidden=("mlp.activation_fn",),
    ),
    # transformers 4: ViT, DeiT; the second half ends with a module that also adds
    Block(
        needs=(
            "layernorm_before",
            "attention.output.dense",
            "layernorm_after",
            "intermediate",
            "output.dense",
        ),
        norm1="layernorm_before",
        mixing=("attention.output.dense",),
        heads="attention",
        mixing_added=("attention.output.dense",),
        norm2="layernorm_after",
        hidden=("intermediate.intermediate_act_fn",),
        mlp_added=("output.dense",),
    ),
    # transformers: DINOv2, with registers too
    Block(
        needs=(*_RESIDUAL, "attention", "layer_scale1", "layer_scale2"),
        mixing=("attention.o_proj", "attention.output.dense"),
        heads="attention",
        mixing_added=("layer_scale1",),
        hidden=("mlp.activation_fn", "mlp.activation"),
        mlp_added=("layer_scale2",),
    ),
    # transformers: CLIP, SigLIP
    Block(
        needs=("layer_norm1", "self_attn.out_proj", "layer_norm2", "mlp"),
        norm1="layer_norm1",
        mixing=("self_attn.out_proj",),
        heads="self_attn",
        mixing_added=("self_attn.out_proj",),
        norm2="layer_norm2",
        hidden=("mlp.activation_fn",),
    ),
)

UNIT = Unit(
    long=("drop_path", "se", "bn3", "norm3", "conv3", "bn2", "norm2", "conv2"),
    shortcut=("downsample", "shortcut"),
    activation=("act3", "act2", "relu"),
)

NETWORKS = (
    # torchvision
    Network("conv_proj", "conv_proj", ("class_token",), "encoder.ln", "cls"),
    # transformers: ViT, DeiT, DINOv2
    Network(
        "embeddings.patch_embeddings",
        "embeddings.patch_embeddings.projection",
        ("embeddings.cls_token", "embeddings.distillation_token", "embeddings.register_tokens"),
        "layernorm",
        "cls",
    ),
    # transformers: I-JEPA, without a class token
    Network("embeddings.patch_embeddings", "embeddings.patch_embeddings.projection", (), "layernorm", "mean"),
    # transformers: DINOv3
    Network(
        "embeddings.patch_embeddings",
        "embeddings.patch_embeddings",
        ("embeddings.cls_token", "embeddings.register_tokens"),
        "norm",
        "cls",
    ),
    # transformers: CLIP
    Network(
        "embeddings.patch_embedding",
        "embeddings.patch_embedding",
        ("embeddings.class_embedding",),
        "post_layernorm",
        "cls",
    ),
    # transformers: SigLIP, whose head attends to all tokens
    Network("embeddings.patch_embedding", "embeddings.patch_embedding", (), "post_layernorm", "mean"),
)
"""A network is of the first row of which it has the patches and, if there are any, the first of the prefix tokens."""

# Modules of other networks that stand before their first block, and are shown.
ENTRANCES = ("patch_embed", "stem", "conv_stem", "conv1", "bn1")
# Blocks are numbered 0, 1 ...; a RegNet's are b1 ... or block1-0 ..., a DenseNet's denselayer1 ...
NUMBERED = r"(b|block\d+-|denselayer|encoder_layer_)?\d+"
