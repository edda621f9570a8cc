"""The course notes' five differences between Vision Transformers and CNNs, and the reasons that are given for them. Data only.

Every *because* is an experiment: a model that lacks the reason is trained like its sibling, and a claim says what then has to
be so. Both are added up from the verdicts of their claims (`rules.together`).
"""

from typing import NamedTuple


class Reason(NamedTuple):
    """Why a difference is said to be there, and the experiment that asks whether it is.

    Attributes:
        text: the reason in one sentence.
        said_by: who gives it: the notes, or the paper.
        experiment: what was done to test it.
        findings: ids of the claims that decide it.
        verdict: what the verdicts on those claims add up to.
    """

    text: str
    said_by: str
    experiment: str
    findings: tuple[str, ...]
    verdict: str = "not measured"


class Difference(NamedTuple):
    """One of the five differences, and what was found of it.

    Attributes:
        number: 1 to 5.
        title: the difference in one sentence.
        text: what the notes say, and what the paper says of it.
        picture: id of the drawing that shows it.
        reasons: why it is said to be there, each with its experiment.
        findings: ids of the claims that support it.
        verdict: what the verdicts on those claims add up to.
    """

    number: int
    title: str
    text: str
    picture: str
    reasons: tuple[Reason, ...]
    findings: tuple[str, ...] = ()
    verdict: str = "not measured"


DIFFERENCES = (
    Difference(
        1,
        "Layers of a Vision Transformer are more alike, from shallow to deep",
        "A CNN builds its representation stage by stage. A Vision Transformer sees the whole image from its first layer on and hands "
        "on what it has along its residual stream, so its layers resemble each other more.",
        "1",
        (
            Reason(
                "A Vision Transformer sees the whole image from its first layer on, a convolution only a few pixels.",
                "the notes",
                "lab/vit_local may attend to the 3 x 3 patches around each patch and to the class token only, in every block, and "
                "is trained like lab/vit.",
                ("J1a", "J1b"),
            ),
        ),
    ),
    Difference(
        2,
        "It has global information from its first layers; looking locally there has to be learned from much data",
        "A convolution sees a few pixels. Attention may look anywhere: in the lowest blocks some heads look near and some look far. "
        "With little data the near ones are not learned.",
        "3",
        (
            Reason(
                "Heads of the lowest blocks learn to look near only from much data.",
                "the paper",
                "The same model is trained on less data (figure 4).",
                ("F4a",),
            ),
        ),
    ),
    Difference(
        3,
        "Skip connections matter more in it, for accuracy and for similarity",
        "Most of what a block passes on came along its skip connections. Without those of one block, representations before and "
        "after it have little in common.",
        "8",
        (
            Reason(
                "Skip connections carry the representation from block to block.",
                "the paper",
                "The same model is trained without the skip connections of one block (figure 8).",
                ("F8a", "F8b"),
            ),
        ),
    ),
    Difference(
        4,
        "It keeps the place of things",
        "A token of its last block still resembles its own patch of the image. The notes blame the CNN's downsampling; the paper "
        "shows that average pooling instead of a class token loses the place too (figure 10).",
        "9",
        (
            Reason(
                "A CNN halves its resolution stage by stage; a Vision Transformer cuts the image once.",
                "the notes",
                "lab/resnet_flat cuts the image into the same patches of 4 px and never reduces its resolution again; it is trained "
                "like lab/resnet.",
                ("J4a",),
            ),
            Reason(
                "A head that reads a class token leaves the other tokens where they are; one that reads their average mixes them.",
                "the paper",
                "The same model is trained with average pooling (figure 10); and a ResNet on the same grid, which is read by average "
                "pooling, is compared with it.",
                ("F10", "J4b"),
            ),
        ),
    ),
    Difference(
        5,
        "With much data its middle layers are better, while a CNN's accuracy jumps at its end",
        "A linear probe reads more from the middle of a Vision Transformer trained on much data. In a CNN classes stay entangled "
        "until the last layers, where the soft nearest neighbour loss falls. (That loss is the notes' explanation, not the paper's.)",
        "13b",
        (
            Reason(
                "Good middle layers come with the amount of data.",
                "the paper",
                "The same models are trained on less data (figure 13a).",
                ("F13a",),
            ),
            Reason(
                "A CNN's classes are entangled until its last layers, so its accuracy jumps there.",
                "the notes",
                "The soft nearest neighbour loss is measured layer by layer beside the accuracy of probes.",
                ("S1", "S3"),
            ),
        ),
    ),
)
