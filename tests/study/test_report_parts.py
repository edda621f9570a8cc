"""What the report is made of: places of figures from evidence, the cast, sentences with links, small pictures of intervals."""

import io
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from made import rows, similarities
from pages import EVIL, findings, places
from pages import similarities as panel_table
from PIL import Image

from vit_analysis import plot, table
from vit_analysis.study import report
from vit_analysis.study.controls import ALL, CONTROLS
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts
from vit_analysis.study.report import cast, images, maps, page, rendering, sections, words

PARTS = Parts(vit=("v",), cnn=("r",), mixer="m")
NAMES = {
    "v": ["patch_embed", "blocks.0.attn", "blocks.0", "blocks.1"],
    "r": ["conv1", "layer1.0", "layer2.0", "layer2.1"],
}
RANDOM = np.random.default_rng(0)


def square(*pair: str, size: int = 4) -> pd.DataFrame:
    names = {model: layers[-size:] for model, layers in NAMES.items()}
    return similarities({pair: RANDOM.uniform(size=(size, size))}, names, low=0.0, high=1.0)


def study(**more: pd.DataFrame) -> Evidence:
    """CKA of both models with themselves and each other, plain and under two controls (the pair turned there)."""
    cka = pd.concat([square("v", "v"), square("r", "r"), square("v", "r")])
    cka.attrs = {
        "images": {"source": "/far/away/photos", "split": "train", "count": 1234},
        **{"models": {"v": "1", "r": "2"}, "layers": "paper", "tokens": "all"},
        "massive": [
            *({"model": "v", "layer": layer, "hsic": share}
              for layer, share in zip(NAMES["v"], (0.9, 0.2, 0.6, np.nan), strict=True)),
            *({"model": "r", "layer": layer, "hsic": 0.1} for layer in NAMES["r"]),
        ],
    }  # fmt: skip
    blocks = [square(*pair, size=2).assign(control=name, measure="cka")
              for name in (ALL, "spatial", "unheard of") for pair in (("v", "v"), ("r", "r"), ("r", "v"))]  # fmt: skip
    controls = pd.concat(blocks, ignore_index=True)
    controls.attrs = {"images": {}}
    return Evidence(Study(PARTS, {"cka": cka, "cka_controls": controls, **more}, {}))


def placed(evidence: Evidence, tmp_path, notes=(), decided=()) -> dict[str, report.Place]:
    drawn = {drawing.id: tmp_path / "a.png" if set(drawing.tables) <= set(evidence.study.tables) and drawing.id in
             ("1", "2", "5", "F", "notes") else "needs what is not there" for drawing in DRAWINGS}  # fmt: skip
    found = pd.DataFrame({"id": list(decided), "figure": list(decided)})
    found.attrs = {"notes": list(notes)}
    return {place.id: place for place in report.places(evidence, drawn, found, "python -m x")}


def test_every_figure_has_a_place_with_a_picture_or_what_it_would_need(tmp_path):
    made = placed(study(), tmp_path)
    assert list(made) == [drawing.id for drawing in DRAWINGS]
    assert made["1"].picture == tmp_path / "a.png"
    assert made["1"].command == "python -m x --only 1"
    assert made["3"].picture is None
    assert made["3"].missing == "This figure: needs what is not there."


def test_a_picture_that_a_page_cannot_hold_is_named(tmp_path):
    drawn = dict.fromkeys((drawing.id for drawing in DRAWINGS), "no") | {"1": tmp_path / "figure_1.pdf"}
    found = pd.DataFrame({"figure": []})
    (place, *_) = report.places(study(), drawn, found, "")
    assert (place.picture, place.missing) == (
        None,
        "It is figure_1.pdf; --format png puts it on this page as well.",
    )
    assert len(place.panels) == 2


@pytest.mark.parametrize("ending", report.EMBEDDED)
def test_a_picture_is_embedded_in_the_size_of_its_inches(tmp_path, ending):
    figure = plot.heatmaps(panel_table("vit", "vit"), panels=[("vit", "vit")])
    table.write_picture(figure, tmp_path / f"a{ending}")
    place = report.Place("1", "a", "b", "c", tmp_path / f"a{ending}", "d")
    made = images.picture(place, tmp_path / f"a{ending}")
    np.testing.assert_allclose(made["width"] / 96, figure.get_figwidth(), rtol=0.06)
    np.testing.assert_allclose(
        made["width"] / made["height"], figure.get_figwidth() / figure.get_figheight(), rtol=0.02
    )
    report.write(tmp_path / "a.html", [place], findings(), [], {})
    assert (
        f'src="data:image/{"svg+xml" if ending == ".svg" else "png"};base64,'
        in (tmp_path / "a.html").read_text()
    )


def test_a_large_picture_takes_less_room_and_looks_the_same(tmp_path):
    steps = np.linspace(0, 255, 900)
    noise = RANDOM.integers(0, 9, size=(600, 900))
    pixels = np.stack([noise + 240 * (steps > 128), steps + 0 * noise, 255 - steps + 0 * noise], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert len(data) > images.LARGE
    smaller = images.lean(data)
    assert len(smaller) < 0.9 * len(data)
    with Image.open(io.BytesIO(smaller)) as after:
        assert (
            np.abs(np.asarray(after.convert("RGB")).astype(int) - pixels.astype(np.uint8)).mean() < 255 / 20
        )
    small = data[: images.LARGE - 1]
    assert images.lean(small) is small  # not even looked at


def test_a_heat_map_can_be_switched_to_every_control_that_all_its_panels_have(tmp_path):
    one, two = (placed(study(), tmp_path)[name].panels for name in ("1", "2"))
    assert [panel.models for panel in one] == [("v", "v"), ("r", "r")]
    spatial = next(own.words for own in CONTROLS if own.name == "spatial")
    expected = ["all sublayers, as in the paper", "block outputs only", f"blocks: {spatial}"]
    assert [list(panel.views) for panel in (*one, *two)] == [expected] * 3
    assert all(len(maps.heatmap(panel)["data"]["views"]) == 3 for panel in (*one, *two))


def test_a_pair_that_was_measured_the_other_way_round_is_turned():
    table = square("r", "v")
    turned = sections.between(table, "v", "r")
    assert turned is not None
    found = turned.set_index(["layer", "other_layer"])["cka"]
    for row in table.itertuples():
        assert found[row.other_layer, row.layer] == row.cka
    assert list(found.index) == [(v, r) for v in NAMES["v"] for r in NAMES["r"]]
    assert turned["depth"].iloc[-4:].tolist() == [1.0] * 4
    assert sections.between(table, "v", "m") is None


def test_what_no_claim_decides_is_told_in_numbers_and_what_one_decides_is_left_to_it(tmp_path):
    evidence = study()
    told = placed(evidence, tmp_path)["1"].shows
    for model in "vr":
        own = evidence.table("cka").query(
            "model == @model and other_model == @model and layer != other_layer"
        )
        assert f"{model}: CKA of different layers is {own['cka'].mean():.2f} on average" in told
    assert placed(evidence, tmp_path, decided=["1"])["1"].shows == ""


def test_a_figure_says_on_what_it_was_measured_without_the_path(tmp_path):
    assert placed(study(), tmp_path)["1"].images == "1,234 images of photos (train)"


def test_massive_tokens_are_told_at_the_figures_of_the_models_that_have_them(tmp_path):
    made = placed(study(), tmp_path)
    (warning,) = made["1"].warnings
    assert warning.startswith(
        "v: in 2 of 4 layers a few tokens with very large values (massive tokens) make up more than half"
    )
    normalized = study()
    normalized.study.tables["cka"].attrs["tokens"] = "normalized"
    assert placed(normalized, tmp_path)["1"].warnings == []


def test_notes_on_a_model_stand_at_the_figures_that_show_it(tmp_path):
    notes = ["v is a weak control: say", "v@random is a weak control: say", "of all models"]
    evidence = study()
    evidence.study.tables["cka"].attrs["massive"] = []
    assert placed(evidence, tmp_path, notes)["1"].warnings == ["v is a weak control: say."]


def test_a_substitution_is_named_where_the_title_does_not_say_it(tmp_path):
    subsets = rows(("vit", "distance_px"), ("v", 13.24), ("v", 13.61))
    probe = rows(("model", "target"), ("v", "shape"), ("v", "texture"), ("v", "position"))
    made = placed(study(head_subsets=subsets, probe=probe), tmp_path)
    assert made["5"].warnings == [
        "The paper's subsets of heads differ widely in how far they look. Mean distances here: v from 13.2 to 13.6 px."
    ]
    (told,) = made["F"].warnings
    assert "CIFAR-10 and CIFAR-100" in told
    assert told.endswith("texture, position in place of shape.")


def test_blocks_and_stages_begin_where_their_names_change():
    (panel,) = (report.Panel(pair, {"": square(*pair)}) for pair in [("v", "r")])
    view = maps.heatmap(panel)["data"]["views"][0]
    assert (view["rows"]["blocks"], view["rows"]["stages"]) == ([1, 3], [])
    assert (view["columns"]["blocks"], view["columns"]["stages"]) == ([1, 2, 3], [1, 2])


# The cast.


def test_every_part_has_its_role_in_words():
    assert set(cast.ROLES) == {field.name for field in fields(Parts)}


def test_the_cast_says_of_lab_models_what_they_are_and_learned():
    parts = {"vit": [["lab/vit", "lab/vit:1"]], "cnn": [["lab/resnet"]], "no_skip": [["lab/vit_no_skip_middle"]],
             "less_data": [["lab/vit_small_data"]]}  # fmt: skip
    vit, resnet, lesioned, less, twin = cast.cast(parts, {"lab/vit@random": "0"})
    assert (vit.letter, vit.role, vit.runs) == ("V", "Vision Transformer", ["lab/vit", "lab/vit:1"])
    assert vit.what == "ViT, 907 k parameters"
    assert vit.learned.startswith("320,000 pictures, none twice; 95.7, ")
    assert (resnet.letter, resnet.what) == ("R", "ResNet, 711 k parameters")
    assert lesioned.what == "ViT, 907 k parameters, no_skip 4"
    assert less.learned.startswith("4,096 pictures, 320,000 times in all; 67.1 % right")
    assert (twin.name, twin.role, twin.learned) == (
        "lab/vit@random",
        "V: the same network, untrained",
        "nothing",
    )
    told = cast.the_lab([vit])
    assert "pictures of 32 px" in told
    assert "10 shapes" in told
    assert cast.the_lab([]) == ""


def test_of_other_models_the_cast_says_what_their_names_tell_and_invents_nothing():
    parts = {"vit": [["vit_tiny_patch16_224"], ["vit_tiny_patch16_224@gone/file.pt"]], "cnn": [["no such model"]],
             "tuned": [[EVIL]], "a_new_part": [["transformers/nobody/nothing"]]}  # fmt: skip
    vit, second, unknown, evil, new = cast.cast(parts, {})
    assert vit.what == "VisionTransformer, 5.7 M parameters"
    assert (second.letter, second.role) == ("", "another Vision Transformer")
    assert second.what == "VisionTransformer, about 5.7 M parameters"
    assert unknown.what == evil.what == new.what == ""
    assert vit.learned == ""
    assert new.role == "a new part"


def test_names_of_a_paper_stand_in_the_cast_and_in_captions(tmp_path):
    table = findings()
    table.attrs = {"parts": {"vit": [["vit"]], "cnn": [["resnet"]]}, "models": {"vit": "", "resnet": ""}}
    report.write(tmp_path / "a.html", places(tmp_path), table, [], {}, {"vit": "ViT-<b>", "resnet": "R-50"})
    text = (tmp_path / "a.html").read_text()
    assert "measured again on\n<b>ViT-&lt;b&gt;</b> (V) and <b>R-50</b> (R)" in text
    assert "<figcaption>ViT-&lt;b&gt; and R-50</figcaption>" in text
    assert "<small>vit</small>" in text  # as tables call it
    assert "ViT-<b>" not in text


# Sentences and numbers.


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("mean(M of V) - M", 'mean(<abbr title="&lt;m&gt;">M</abbr> of V) - <abbr title="&lt;m&gt;">M</abbr>'),
        ("as in figure 8 or Figure B.1.", 'as in <a href="#figure-8">figure 8</a> or <a href="#figure-B.1">Figure B.1</a>.'),
        ("figure 9 is not here", "figure 9 is not here"),
        ("F1a - F1a of twins, not F1ab", '<a href="#finding-F1a">F1a</a> - <a href="#finding-F1a">F1a</a> of twins, not F1ab'),
        ("<i>M</i>", '&lt;i&gt;<abbr title="&lt;m&gt;">M</abbr>&lt;/i&gt;'),
        (EVIL, str(words.escape(EVIL))),
    ],
)  # fmt: skip
def test_figures_claims_and_letters_of_a_sentence_are_linked_and_the_rest_is_escaped(sentence, expected):
    assert str(words.linked(sentence, ["8", "B.1"], ["F1a"], {"M": "<m>"})) == expected


def test_letters_are_explained_where_the_cast_knows_them():
    assert set(page.page([], findings(), [], {})["letters"]) == {"V", "R", "M"}
    nobody = findings()
    nobody.attrs = {}
    assert page.page([], nobody, [], {})["letters"] == {}


def test_the_small_picture_of_an_interval_has_everything_in_order_and_inside():
    own = words.interval({"value": 2.0, "low": 1.0, "high": np.inf, "tau": 0.0, "runs": [1.5, 3.0]})
    assert own is not None
    assert (
        0
        < own["tau"]
        < own["low"]
        < own["runs"][0]
        < own["value"]
        < own["runs"][1]
        < own["low"] + own["width"]
        == 100
    )
    assert words.interval({"value": np.nan, "low": 0.0, "high": 1.0, "tau": 0.0, "runs": []}) is None
    bare = words.interval({"value": 2.0, "low": np.nan, "high": np.nan, "tau": np.nan, "runs": []})
    assert bare == {"value": 50.0, "low": 50.0, "width": 0.0, "tau": None, "runs": []}


def test_what_a_template_forgets_is_an_error():
    with pytest.raises(Exception, match="'models' is undefined"):
        rendering.rendered({"rows": [], "figures": [], "letters": {}, "cast": []})


def test_a_picture_is_drawn_in_no_style_of_the_report(tmp_path):
    """Names hold while the page is made, and not after it."""
    report.write(tmp_path / "a.html", [], findings(), [], {}, {"vit": "ViT"})
    assert plot.heatmap(panel_table("vit", "vit")).get_xlabel().startswith("vit")
