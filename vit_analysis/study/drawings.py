"""The figures of the paper, one by one: what each is drawn from, how, and what the paper says with it, in our own words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vit_analysis import plot
from vit_analysis.study import draw
from vit_analysis.study.draw import Panels
from vit_analysis.study.evidence import Evidence


@dataclass(frozen=True)
class Drawing:
    """A figure of the paper.

    Attributes:
        id: its number in the paper, with a second word where we draw several.
        title: what it shows, in few words.
        claim: what the paper says with it.
        tables: names of the tables that it is drawn from.
        draw: function from the evidence to a matplotlib Figure; a `Refusal` says what it would need.
        alternative: what it looks like, for those who cannot see it.
        panels: for heat maps, function from the evidence to the pairs of models that are compared.
    """

    id: str
    title: str
    claim: str
    tables: tuple[str, ...]
    draw: Callable[[Evidence], Any]
    alternative: str
    panels: Callable[[Evidence], Panels] | None = None


def _squares(panels: Callable[[Evidence], Panels]) -> Callable[[Evidence], Any]:
    return lambda e: plot.heatmaps(e.table("cka"), panels=panels(e))


def _heatmaps(
    id: str, title: str, claim: str, panels: Callable[[Evidence], Panels], alternative: str
) -> Drawing:
    return Drawing(id, title, claim, ("cka",), _squares(panels), alternative, panels)


DRAWINGS = (
    _heatmaps(
        "1", "Similarity of all layers within a model",
        "Layers of a Vision Transformer resemble each other from the lowest to the highest, in a grid; those of a ResNet fall into "
        "a lower and a higher part.",
        draw.itself("vit", "cnn"), "Square heat maps of CKA, one per model; both axes are layers from input to output.",
    ),
    _heatmaps(
        "1 untrained", "The same before training (a control that the paper does not show)",
        "Not in the paper. A residual stream alone makes layers alike, so trained and untrained belong side by side.",
        draw.twins, "Square heat maps of CKA of the untrained twins; both axes are layers from input to output.",
    ),
    _heatmaps(
        "1 local", "The same without global attention (an experiment that the paper does not show)",
        "Not in the paper. The notes say that layers are alike because each sees the whole image; here one model may attend to near "
        "patches and the class token only.",
        draw.confined, "Square heat maps of CKA of a Vision Transformer, of one that attends to near patches alone, and of a CNN.",
    ),
    _heatmaps(
        "2", "Similarity of layers across models",
        "The lower half of a ResNet resembles about the lowest quarter of a Vision Transformer, its upper half the next third; the "
        "last third of the Vision Transformer resembles no layer of it.",
        draw.first_pair, "Heat map of CKA: layers of the CNN from left to right, of the Vision Transformer from bottom to top.",
    ),
    Drawing(
        "3", "How far heads look",
        "In the lowest blocks some heads look near and others far; in the highest all look far.",
        ("attention_distance",), draw.reach("vit"),
        "Lines of mean attention distance of the sorted heads in units of uniform attention's, for the two lowest and highest blocks.",
    ),
    Drawing(
        "4", "How far heads look after training on less data",
        "Without enough data the lowest blocks do not learn to look near.",
        ("attention_distance",), draw.reach("less_data"),
        "Lines of mean attention distance of the sorted heads, as in figure 3, of models trained on less data.",
    ),
    Drawing(
        "5", "Heads that look near resemble lower ResNet layers most",
        "The farther a subset of heads of the first block looks, the less it resembles the lower units of a ResNet. To tell, subsets "
        "have to look differently far, and there have to be eight of them; where not, the picture says so.",
        ("head_subsets",), lambda e: plot.head_subsets(e.table("head_subsets")),
        "Lines of CKA with each lower unit of the CNN, falling or not with the mean distance of the subset of heads; a box says where "
        "this cannot be told.",
    ),
    Drawing(
        "6", "Effective receptive fields",
        "Lower layers of a Vision Transformer see more than those of a ResNet, whose fields grow layer by layer; the own patch stays "
        "prominent because of skip connections.",
        ("receptive_field_maps",), draw.fields(lambda e: e.parts.names("vit", "cnn"), "residual", 5),
        "Maps of the mean gradient of the centre position with respect to the image, five steps of each model; circles show the radius.",
    ),
    Drawing(
        "7", "What skip connections carry",
        "The class token is carried along in the first half and rewritten in the second, spatial tokens the other way round; ratios "
        "are higher than in a ResNet throughout.",
        ("skip",), draw.of("skip", plot.norm_ratios, "vit", "cnn"),
        "Left, a heat map of the norm ratio by token and block; right, lines of it over blocks by kind of token, of MLPs and attentions.",
    ),
    Drawing(
        "8", "Similarity in models trained without the skip connections of one block",
        "Before and after the block without skip connections representations have little in common.",
        ("cka", "lesions_trained"), draw.without_skips,
        "Square heat maps of CKA: the intact model, then one per model trained without the skip connections of one block, "
        "which lines mark.",
        draw.itself("vit", "no_skip"),
    ),
    Drawing(
        "8 accuracy", "What training without them costs",
        "A middle block without skip connections costs 4 % of accuracy.",
        ("lesions_trained",), draw.of("lesions_trained", plot.lesions, "no_skip"),
        "Left, points of accuracy lost by block; right, similarity across the block, with and without its skip connections.",
    ),
    Drawing(
        "8 lesions", "What removing them from a trained model costs",
        "Not in the paper, and not to be compared with its 4 %: a trained model was never asked to do without.",
        ("lesions",), draw.of("lesions", plot.lesions, "vit", "cnn"),
        "Accuracy, and similarity across the block, of trained models with one block's skip connections removed.",
    ),
    Drawing(
        "9", "What part of the image a token resembles",
        "Tokens of the last block of a Vision Transformer resemble their own patch, those at the edge also other edges; a ResNet's "
        "positions much less.",
        ("localization",), draw.places("localization", "vit", "cnn"),
        "Heat maps over the patches of the image on one scale, one per token: CKA of the token with each patch; its own is outlined.",
    ),
    Drawing(
        "9 flat", "The same without downsampling (an experiment that the paper does not show)",
        "Not in the paper. The notes say that a ResNet loses the place because it downsamples; here one does not.",
        ("localization",), draw.places("localization", "vit", "cnn", "flat"),
        "Heat maps over the patches of the image, one per token, of a Vision Transformer, a CNN, and one without downsampling.",
    ),
    Drawing(
        "10", "The same with average pooling instead of a class token",
        "Trained with average pooling a Vision Transformer loses much of the place.",
        ("localization",), draw.places("localization", "vit", "gap"),
        "Heat maps over the patches of the image, one per token, of models with a class token and with average pooling.",
    ),
    Drawing(
        "11", "What single tokens and pooled tokens say",
        "Single tokens say much at the end where the head reads their average, little where it reads the class token; each model read "
        "as its own head does, they are alike.",
        ("probe_tokens",), draw.of("probe_tokens", plot.probe_tokens, "vit", "gap", "cnn"),
        "Lines of the accuracy of linear probes over depth: single tokens on average, and a panel of representations per model.",
    ),
    Drawing(
        "12", "How much data a layer needs to be what it is with much",
        "Lower layers are nearly the same with 3 % of the data (the caption says 10 %), higher ones need far more.",
        ("cka_controls",), draw.less_data,
        "Lines of CKA of each block with the same block of the model trained on all data, from light to dark; the ceiling is dashed.",
    ),
    Drawing(
        "13a", "Linear probes: more data",
        "With more data even middle layers are far better, by 30 points.",
        ("probe",), draw.more_data,
        "Lines of the accuracy of linear probes over depth, of models trained on more and on less data; below, how many points more.",
    ),
    Drawing(
        "13b", "Linear probes: architectures",
        "Larger Vision Transformers have much better middle layers than ResNets.",
        ("probe",), draw.architectures,
        "Lines of the accuracy of linear probes over depth, of Vision Transformers and CNNs; below, by how many points the first leads.",
    ),
    Drawing(
        "notes", "Soft nearest neighbour loss",
        "The notes, after Frosst et al. (2019), not the paper: in a CNN classes stay entangled until the last layers, where the loss "
        "falls and accuracy jumps.",
        ("soft_nearest_neighbor",), draw.entangled,
        "Lines of the loss over depth, with the best temperature, the same of normalized tokens, and with a fixed one.",
    ),
    _heatmaps(
        "B.1", "Similarity of more pairs",
        "60 of the lowest layers of a ResNet-50 are like about 25 of a ViT-B/32; 100 of a ResNet-152 like 30 of a ViT-H/14.",
        draw.further_pairs, "Heat maps of CKA of further models and pairs.",
    ),
    Drawing(
        "C.1", "Receptive fields of all sublayers",
        "The full version of figure 6.",
        ("receptive_field_maps",), draw.fields(lambda e: [e.one("vit")], "residual", None),
        "Maps of the mean gradient of the centre position, rows of attentions above rows of MLPs; circles show the radius.",
    ),
    Drawing(
        "C.2", "Receptive fields of all units of a CNN",
        "The full version of figure 6.",
        ("receptive_field_maps",), draw.fields(lambda e: [e.one("cnn")], "residual", None),
        "Maps of the mean gradient of the centre position, a row per stage of the CNN; circles show the radius.",
    ),
    Drawing(
        "C.3", "Receptive fields of a larger Vision Transformer",
        "As figure C.1.",
        ("receptive_field_maps",), draw.fields(draw.second("vit"), "residual", None),
        "Maps of the mean gradient of the centre position, every sublayer.",
    ),
    Drawing(
        "C.4", "Receptive fields before the skip connection is added",
        "Later attentions alone are not dominated by their own patch; in a ResNet the difference is small.",
        ("receptive_field_maps",), draw.attentions_alone,
        "Maps of the mean gradient of the centre position of the long branch alone, every attention and every unit.",
    ),
    Drawing(
        "C.5", "How far heads of a small model look, with more and with less data",
        "ViT-B/32 looks near in its lowest blocks with either.",
        ("attention_distance",), draw.reach("vit", "less_data"),
        "Lines of mean attention distance of the sorted heads, of models trained on more and on less data.",
    ),
    Drawing(
        "C.6", "How far heads look before fine-tuning",
        "As after it.",
        ("attention_distance",), draw.reach("vit", "tuned"),
        "Lines of mean attention distance of the sorted heads, before and after fine-tuning.",
    ),
    Drawing(
        "D.1", "Places in the last two blocks of a larger Vision Transformer",
        "Well localised in both.",
        ("localization", "localization_penultimate"), draw.last_two,
        "Heat maps over the patches of the image, one per token of the last two blocks.",
    ),
    Drawing(
        "D.2", "Places in the block before the last",
        "Localised there too.",
        ("localization_penultimate",), draw.places("localization_penultimate", "vit"),
        "Heat maps over the patches of the image, one per token of the block before the last.",
    ),
    Drawing(
        "D.3", "Places in earlier units of a CNN",
        "Better than in the last one, and still worse than in a Vision Transformer.",
        ("localization_units",), draw.of("localization_units", plot.localization, "cnn"),
        "Heat maps over the patches of the image, one per position of the unit in the middle and of the first of the last stage.",
    ),
    Drawing(
        "D.4", "What single tokens say, where they lie",
        "At the end 57 to 58 % anywhere with average pooling, 6 to 10 % with a class token.",
        ("probe_tokens",), draw.of("probe_tokens", plot.accuracy_maps, "vit", "gap", "cnn"),
        "Heat maps of the accuracy of a probe on each token, where it lies, in five layers of each model.",
    ),
    Drawing(
        "E.1", "Norm ratios of all tokens",
        "As figure 7, for MLPs and attentions by themselves.",
        ("skip",), draw.of("skip", plot.token_norm_ratios, "vit"),
        "Heat maps of the norm ratio by token and block, of MLPs and of attentions; dots mark massive tokens beyond the scale.",
    ),
    Drawing(
        "E.2", "Cosine of what goes on with what skipped",
        "Outputs of later blocks are very similar to what their skip connections carry.",
        ("skip",), draw.of("skip", plot.cosines, "vit", "cnn"),
        "Lines of the mean cosine of a block's output with what its skip connection carried, over blocks.",
    ),
    Drawing(
        "F", "Linear probes of other classes of the same images (the paper: of CIFAR)",
        "In the paper the same holds of CIFAR-10 and CIFAR-100. Here other classes of the images of figure 13 are in their place: of "
        "the lab's scenes the texture and the position of the shape.",
        ("probe",), draw.other_tasks,
        "Lines of the accuracy of linear probes over depth, one panel per task.",
    ),
    Drawing(
        "G.1", "What fine-tuning changes",
        "The first four or five layers are well preserved, on most data sets.",
        ("cka_controls",), draw.fine_tuned,
        "Line of CKA of each block before and after fine-tuning.",
    ),
    Drawing(
        "G.2", "Similarity of two Vision Transformers (the paper: of two sizes)",
        "Shown without a claim, in the paper for pairs of a ViT-B/32, a ViT-L/16 and a ViT-H/14. Where a study has one size, as in the "
        "lab, a class token and average pooling are compared in their place: two models of one size.",
        ("cka",), draw.sizes, "Heat maps of CKA of pairs of Vision Transformers.", draw.two_vits,
    ),
    _heatmaps(
        "H.1", "Similarity within an MLP-Mixer",
        "Distinct blocks: a small early one and a larger later one, whatever the size.",
        draw.itself("mixer"), "Square heat map of CKA of the Mixer's layers.",
    ),
    _heatmaps(
        "H.2", "An MLP-Mixer with a Vision Transformer and with a CNN",
        "Overall more like the Vision Transformer.",
        draw.mixed, "Heat maps of CKA of the Mixer with each.",
    ),
    Drawing(
        "tokens", "Beyond the paper: norms, massive tokens and ranks",
        "Not in the paper. In large Vision Transformers a few tokens have norms far above all others from about a third of the depth on "
        "and hold global information (Darcet et al. 2024); a similarity of such layers is a similarity of these tokens.",
        ("tokens",), lambda e: plot.tokens(draw.of_models(e.table("tokens"), [e.one("vit"), *e.parts.twins()[:1]])),
        "Lines over depth: norms, share of massive tokens, cosines and ranks of tokens, trained and untrained.",
    ),
    Drawing(
        "frequency", "Beyond the paper: how fine feature maps are",
        "Not in the paper. Attention damps high frequencies, convolutions raise them (Park and Kim 2022).",
        ("frequency",),
        lambda e: plot.frequency(draw.of_models(e.table("frequency"), [*e.parts.names("vit", "cnn"), *e.parts.twins()])),
        "Lines of log amplitude by frequency, one per layer, and of the finest pattern over depth, trained and untrained.",
    ),
    Drawing(
        "entropy", "Beyond the paper: how spread attention is, and how alike for all queries",
        "Not in the paper. Entropy says over how many patches a head spreads its attention; mutual information of queries and keys is 0 "
        "where every query attends to the same patches (Park et al. 2023).",
        ("attention_distance",),
        lambda e: plot.attention_spread(
            draw.of_models(e.table("attention_distance"), [e.one("vit"), *e.parts.twins()[:1]])
        ),
        "Points for heads and lines for their means over depth: distance, entropy and mutual information, trained and untrained.",
    ),
    Drawing(
        "squares", "Beyond the paper: squares that hold shares of a receptive field",
        "Not in the paper. The smallest centred square that holds a share of log10(x + 1) of the contribution scores, as tables of "
        "effective receptive fields report it (Ding et al. 2022).",
        ("receptive_field",),
        lambda e: plot.squares(draw.of_models(e.table("receptive_field"), e.parts.names("vit", "cnn"))),
        "Side of the square over depth, a panel for each share.",
    ),
)  # fmt: skip
