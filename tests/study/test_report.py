"""The page as text, and in a browser where there is one: Chromium, driven by a script appended to a copy of the page."""

import base64
import hashlib
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import chromium
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from pages import DIFFERENCES, EVIL, LAYERS, PROVENANCE, TAGS, findings, picture, places, similarities, tagged

from vit_analysis.spelling import Refusal
from vit_analysis.study import casts, report, rules
from vit_analysis.study.differences import Difference, Reason
from vit_analysis.study.report import Panel, Place, maps, rendering


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "in"
    folder.mkdir()
    report.write(folder / "report.html", places(folder), findings(), DIFFERENCES, PROVENANCE)
    return folder / "report.html"


class Page(HTMLParser):
    """Every element with its attributes and all text below it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        for place in self.open:
            self.elements[place][2].append(data)

    def all(self, tag: str, name: str = "") -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, " ".join(" ".join(text).split()))
            for found, attributes, text in self.elements
            if found == tag and name in ("", *(attributes.get("class") or "").split())
        ]


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open, "an element is left open"
    return page


@pytest.fixture(scope="module")
def page(written) -> Page:
    return read(written)


def shown(name: str) -> str:
    return " ".join(name.split())


def rows(page: Page) -> list[str]:
    return [text for attributes, text in page.all("tr") if attributes.get("id")]


def cells(page: Page, name: str) -> list[str]:
    """A column of the table of all findings."""
    return [text for attributes, text in page.all("td") if attributes.get("data-name") == name]


def test_the_differences_come_first_then_figures_verdicts_provenance(page):
    sections = [
        attributes["id"] for attributes, _ in page.all("section") if attributes.get("class") != "place"
    ]
    assert sections == ["differences", "figures", "verdicts", "provenance"]
    first, second, _ = (text for _, text in page.all("article"))
    assert "✓ reproduced" in first
    assert "0.234 [0.210, 0.260] expected > 0 training runs 0.234, 0.300, −0.050" in first  # noqa: RUF001
    assert "needs <b>data</b>" in second
    assert "partly <b>" in second


def test_every_figure_has_the_papers_claim_and_what_these_models_show(page):
    sections = [text for attributes, text in page.all("section") if attributes.get("class") == "place"]
    assert [text.split()[:2] for text in sections[:3]] == [["Figure", "1"], ["Figure", "2"], ["Figure", "12"]]
    assert sections[3].startswith("Notes two")
    assert f"The paper {shown(EVIL)}" in sections[0]
    assert f"These models shows {shown(EVIL)}" in sections[0]
    (about, *_) = [text for _, text in page.all("ul", "about")]
    assert about.startswith(f"F1a {shown(EVIL)} 0.234 [0.210, 0.260] expected > 0 training runs")
    assert "✓ reproduced Number: a - b F1b b 0.0500" in about


def test_every_picture_and_canvas_has_a_text_alternative(page):
    images, canvases = page.all("img"), page.all("canvas")
    assert (len(images), len(canvases)) == (3 + 3, 2)  # each difference shows its picture again
    assert [attributes["alt"] for attributes, _ in images] == [EVIL, EVIL, EVIL, EVIL, "two bars", "two bars"]
    for attributes, fallback in canvases:
        assert fallback in shown(attributes["aria-label"])
        assert attributes["tabindex"] == "0"
        assert {"id": attributes["aria-describedby"], "aria-live": "polite"} in [
            a for a, _ in page.all("output")
        ]
    assert (
        "CKA of vit, 4 layers, upwards, with resnet, 3 layers, to the right: 0.00 to 0.92" in canvases[1][1]
    )


def test_what_cannot_be_shown_is_said_on_its_place(page):
    ((_, text),) = page.all("p", "missing")
    assert text == "No picture. Needs <b>JFT-300M</b>, which nobody has."
    (place,) = [text for attributes, text in page.all("section") if attributes.get("id") == "figure-12"]
    assert text in place


def test_the_table_holds_every_finding(page):
    table, found = findings(), rows(page)
    assert len(found) == len(table)
    for text, row in zip(found, table.to_dict("records"), strict=True):
        assert text.startswith(row["id"])
        assert text.endswith(shown(f"{tagged(row['verdict'])} {row['because']}"))
    assert "0.5 0.234 [0.210, 0.260] training runs" in found[0]
    assert "> 0 0 is no difference < 1e-6 ✓ reproduced" in found[0]
    assert "untrained twin: 0.0100 [−0.0200, 0.0400] ? inconclusive" in found[0]  # noqa: RUF001
    assert "c a - b vit 1 control " in found[2]
    assert "nan" not in "".join(found)


def test_there_is_a_finding_of_every_verdict_here():
    assert set(findings()["verdict"]) == set(rules.WORDS)
    assert set(TAGS) == {*rules.WORDS, rules.PARTLY}


def test_a_verdict_is_a_mark_and_its_word_in_a_class_of_its_own(page):
    """Wherever it stands; what is no verdict has no mark, and a class that says so."""
    tags = {(text, attributes["class"]) for attributes, text in page.all("span", "verdict")}
    expected = {(tagged(word), f"verdict {name}") for word, (_, name) in TAGS.items()}
    assert tags == expected | {("partly <b>", "verdict other")}


def test_the_strip_has_a_square_of_its_verdict_for_each_finding(page):
    squares = [
        (text, attributes["class"], attributes["title"])
        for attributes, text in page.all("a")
        if "title" in attributes
    ]
    table = findings().sort_values("verdict", key=lambda words: words.map([*rules.WORDS].index))
    assert squares == [(*TAGS[row.verdict], f"{row.id}: {row.verdict}") for row in table.itertuples()]


def test_the_tally_counts_the_findings_of_each_verdict(tmp_path):
    table = pd.concat([findings(), findings().head(2)])
    report.write(tmp_path / "a.html", [], table, [], {})
    ((_, tally),) = read(tmp_path / "a.html").all("ul", "tally")
    counts = table["verdict"].value_counts()
    assert tally == " ".join(f"{counts[word]} {tagged(word)}" for word in rules.WORDS)


def test_the_page_says_what_each_verdict_means_and_how_they_add_up(page):
    ((_, legend),) = page.all("details", "legend")
    meanings = (f"{tagged(word)} {meaning}." for word, meaning in rules.WORDS.items())
    assert legend == shown(f"What the verdicts mean {' '.join(meanings)}")
    note, _ = page.all("p", "note")
    assert note[1].endswith(rules.ADDING)


def test_the_style_sheet_knows_every_verdict_and_no_other():
    """Unmeasured keeps the grey of all tags; only differences, which have no square, hold in part."""
    style, names = rendering.source(rendering.STYLES), {name for _, name in TAGS.values()}
    assert set(re.findall(r"\.verdict\.([\w-]+)", style)) == names - {"not-measured"}
    assert (
        set(re.findall(r"svg\.bar:?i?s?\(?\.([\w-]+)", style)) | {"reproduced-smaller-than-claimed"} <= names
    )
    assert set(re.findall(r"\.strip \.([\w-]+)", style)) == names - {"partly-reproduced"}


def test_why_stands_beside_a_verdict_wherever_it_is_said(page):
    fragile, adjusted = (shown(why) for why in findings()["because"] if why)
    told = (f"≈ fragile {fragile}", f"? inconclusive {adjusted}")
    (difference,) = [text for _, text in page.all("article") if text.startswith("3")]
    figures = [text for attributes, text in page.all("section") if attributes.get("class") == "place"]
    table = " ".join(rows(page))
    for why, figure in zip(told, (figures[1], figures[3]), strict=True):
        assert why in difference
        assert why in figure
        assert why in table
    assert len(page.all("small", "because")) == 2 * 3


def test_training_runs_stand_beside_the_number_where_there_are_several(page):
    told = [
        text for _, text in page.all("small", "runs")
    ]  # in the difference, at the figure and in the table
    assert told == 3 * ["training runs 0.234, 0.300, −0.050"]  # noqa: RUF001
    listed = told[0]
    assert cells(page, "Measured")[0] == f"0.234 [0.210, 0.260] {listed}"


def test_the_number_of_the_paper_and_whom_models_stand_for_are_beside_what_was_measured(page):
    told = [text for _, text in page.all("small", "printed")]
    assert {*told} == {shown(f"printed 20 to 40 {EVIL} ({EVIL}); here 31.4")}
    assert cells(page, "Measured")[2].endswith(told[0])
    assert [text for _, text in page.all("small", "substitution")] == [shown(f"direction only: {EVIL}")]
    assert cells(page, "Paper")[2].endswith(shown(f"direction only: {EVIL}"))


def test_models_of_a_cast_say_whom_they_stand_for_and_who_is_not_played(tmp_path):
    vit, cnn = (casts.PAPER.members[part][0] for part in ("vit", "cnn"))
    table = findings()
    table.attrs = {
        "parts": {"vit": [[vit.model]], "cnn": [[cnn.model]], "local": []},
        "models": {vit.model: "1"},
    }
    report.write(tmp_path / "a.html", [], table, [], {})
    page = read(tmp_path / "a.html")
    told = cells(page, "In place of")
    assert told == [shown(f"{one.paper}. Here: {one.instead}") for one in (vit, cnn)] + told[2:]
    assert not any(told[2:])  # untrained twins stand for nobody
    lab = [text for _, text in page.all("p", "lab")]
    assert any(shown(casts.PAPER.absent["local"]) in text for text in lab)


def test_a_page_of_no_cast_says_nothing_of_one(page):
    assert not cells(page, "In place of")
    assert "direction only" not in " ".join(text for _, text in page.all("dt"))


def test_a_threshold_says_where_it_is_from(page):
    table = findings()
    expected = [shown(f"{row.threshold} {row.threshold_from}") for row in table.itertuples()]
    assert cells(page, "Expected") == expected


def test_p_is_never_0(page):
    assert cells(page, "p") == ["< 1e-6", "< 1e-6", "0.040", "2e-04", "1.000", "< 1e-6", "–"]  # noqa: RUF001


@pytest.mark.parametrize(
    "column",
    [
        "id",
        "figure",
        "claim",
        "paper",
        "statistic",
        "models",
        "threshold",
        "threshold_from",
        "because",
        "reason",
        "substitution",
    ],
)
def test_every_text_of_a_finding_is_escaped(tmp_path, column):
    unmeasured = findings().tail(1).assign(**{column: EVIL})
    report.write(tmp_path / "a.html", [], unmeasured, [], {})
    page = read(tmp_path / "a.html")
    (row,) = rows(page)
    assert shown(EVIL) in row
    assert len(page.all("script")) == 2  # its own, and the claims as data


def test_no_name_becomes_markup(page, written):
    """Of what was given, nothing but text comes out: the page's own elements are those of harmless names."""
    assert len(page.all("script")) == 1 + 2 + 1  # its own, two heat maps, and the claims
    assert "alert(1)" not in written.read_text().replace("&lt;script&gt;alert(1)", "").replace(
        "\\u003cscript\\u003ealert(1)", ""
    )
    assert not [
        1
        for tag, attributes, _ in page.elements
        for name in attributes
        if name.startswith("on") or name == "style"
    ]
    assert {text for _, text in page.all("b")}.isdisjoint({"JFT-300M", "data"})
    data = [
        json.loads(text)
        for attributes, text in page.all("script")
        if attributes.get("type") == "application/json"
    ]
    assert data[0]["views"][0]["rows"]["layer"][2].split() == EVIL.split()
    assert "\u2028" not in json.dumps(data[0], ensure_ascii=True)


def test_links_lead_to_places_and_names_are_unique(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes, _ in page.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert "finding-F 4/<b>" in map(unquote, ids)
    named = [attributes["aria-labelledby"] for attributes, _ in page.all("section")]
    assert set(named) <= set(ids)


def test_the_page_allows_its_own_style_and_script_and_nothing_else(page, written):
    source = written.read_text(encoding="utf-8")
    (policy,) = [
        a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for name in ("style", "script"):
        (inline,) = re.findall(f"<{name}>(.*?)</{name}>", source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    for _, attributes, _ in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))


def test_provenance_stands_at_the_end(page):
    terms = [text for _, text in page.all("dt")]
    assert terms[len(rules.WORDS) :][:2] == ["command", "models"]  # after the words of the legend
    (place,) = [text for attributes, text in page.all("section") if attributes["id"] == "provenance"]
    for fact in ("python -m vit_analysis.figures --out '<b>'", "38a303d68e47a22a", "root none", "torch 2.6"):
        assert fact in place
    assert (
        f"measured again on {shown(EVIL)} (V) and resnet (R) with 1 more model."
        in page.all("p", "lead")[0][1]
    )


def test_heat_maps_are_sent_in_thousandths(page):
    data = [
        json.loads(text)
        for attributes, text in page.all("script")
        if attributes.get("type") == "application/json"
    ]
    table = similarities("vit", "resnet")
    for side in ("cka", "low", "high"):
        sent = np.frombuffer(base64.b64decode(data[1]["views"][0][side]), dtype="<i2")
        np.testing.assert_array_equal(sent == -32768, table[side].isna())
        np.testing.assert_allclose(sent[sent != -32768] / 1000, table[side].dropna(), atol=0.0005)
    wide = np.frombuffer(base64.b64decode(maps.thousandths(np.array([1e9, -1e9, np.inf]))), dtype="<i2")
    assert wide.tolist() == [32767, -32767, 32767]


def test_colours_are_those_of_the_pictures():
    (block,) = re.findall(r"const MAGMA =(.*?);", rendering.source(rendering.SCRIPTS), re.DOTALL)
    colours = np.frombuffer(
        bytes.fromhex("".join(re.findall(r"[0-9a-f]{8,}", block))), dtype=np.uint8
    ).reshape(256, 3)
    expected = mpl.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    assert np.abs(colours.astype(int) - expected).max() <= 1  # how matplotlib rounds has changed


def test_the_same_study_gives_the_same_page_and_a_failed_one_leaves_it(tmp_path):
    path = tmp_path / "in" / "report.html"
    path.parent.mkdir()
    drawn = places(path.parent)
    report.write(path, drawn, findings(), DIFFERENCES, PROVENANCE)
    before = path.read_bytes()
    report.write(path, drawn, findings(), DIFFERENCES, PROVENANCE)
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        report.write(path, [replace(drawn[0], picture=tmp_path / "c.png")], findings(), [], {})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"picture": "b.png"}, FileNotFoundError, r"no picture .*b.png for figure 1; did you mean 'a.png'"),
        ({"picture": "text.png"}, ValueError, "text.png, the picture of figure 1, is neither a PNG nor an SVG"),
        ({"picture": None}, ValueError, "figure 1 has no picture and does not say why"),
        ({"panels": (Panel(("vit", "vit"), {"": pd.concat([similarities("vit", "vit"), similarities("vit", "resnet")])}),)},
         ValueError, "heat map 'vit' must be one model with one model"),
        ({"panels": (Panel(("a", "vit"), {"": similarities("vit", "vit").iloc[::-1].iloc[[1, 0, *range(2, 16)]]}),)},
         ValueError, "rows of heat map 'a and vit' must stand as `cka.measure` makes them"),
        ({"panels": (Panel(("vit", "vit"), {"": similarities("vit", "vit").rename(columns={"depth": "dept"})}),)},
         Refusal, "no column 'depth'; did you mean 'dept'"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_shown_is_refused(tmp_path, change, kind, message):
    (tmp_path / "text.png").write_text("no picture")
    if isinstance(change.get("picture"), str):
        change = {"picture": tmp_path / change["picture"]}
    place = replace(Place("1", "a", "b", "c", picture(tmp_path), "d"), **change)
    with pytest.raises(kind, match=message) as caught:
        report.write(tmp_path / "report.html", [place], findings(), [], {})
    assert caught.type is kind  # what a user cannot mend is no Refusal, which is a ValueError too


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"verdict": "reproducd"}, ValueError, "no verdict 'reproducd'; did you mean 'reproduced'"),
        ({"verdict": "partial"}, ValueError, "no verdict 'partial'"),
        ({"controls": "{}"}, ValueError, "controls of F1a must be a mapping of names to numbers, found str"),
    ],
)
def test_findings_that_are_none_are_refused(tmp_path, change, kind, message):
    with pytest.raises(kind, match=message) as caught:
        report.write(tmp_path / "report.html", [], findings().head(1).assign(**change), [], {})
    assert caught.type is kind


def test_missing_columns_and_findings_name_the_nearest(tmp_path):
    for name, wrong in (("threshold", "treshold"), ("because", "becuase"), ("runs", "run")):
        with pytest.raises(Refusal, match=f"no column '{name}'; did you mean '{wrong}'"):
            report.write(tmp_path / "a.html", [], findings().rename(columns={name: wrong}), [], {})
    broken = Difference(1, "a", "b", "1", (), ("F1b",), "reproduced")
    with pytest.raises(KeyError, match="difference 1 rests on 'F1b'; did you mean 'F1a'"):
        report.write(tmp_path / "a.html", [], findings().head(1), [broken], {})
    reason = Reason("a", "b", "c", ("F1b",))
    with pytest.raises(KeyError, match="a reason of difference 1 rests on 'F1b'; did you mean 'F1a'"):
        report.write(
            tmp_path / "a.html", [], findings().head(1), [broken._replace(findings=(), reasons=(reason,))], {}
        )


# In the browser.

WATCH = """
window.faults = [];
addEventListener("error", event => faults.push(`${event.message || event.target.outerHTML}`), true);
addEventListener("securitypolicyviolation", event => faults.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
ACT = """
const canvases = [...document.querySelectorAll("canvas")];
const read = canvas => [...canvas.closest("figure").querySelectorAll("output span")].map(line => line.textContent);
const points = CELLS.map(([map, row, column]) => {
  const canvas = canvases[map];
  canvas.scrollIntoView({block: "center"});
  const box = canvas.getBoundingClientRect();
  const clientX = box.left + (column + 0.5) * box.width / canvas.width;
  const clientY = box.bottom - (row + 0.5) * box.height / canvas.height;
  const move = new PointerEvent("pointermove", {clientX, clientY, bubbles: true});
  document.elementFromPoint(clientX, clientY).dispatchEvent(move);
  const cursor = canvas.nextElementSibling.getBoundingClientRect();
  const pixel = canvas.getContext("2d").getImageData(column, canvas.height - 1 - row, 1, 1).data;
  const off = [cursor.left + cursor.width / 2 - clientX, cursor.top + cursor.height / 2 - clientY];
  return {text: read(canvas), pixel: [...pixel], off};
});
const canvas = canvases[1];
const steps = KEYS.map(([key, shiftKey]) => {
  if (key === "focus") canvas.focus();
  else document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, shiftKey, bubbles: true, cancelable: true}));
  return read(canvas);
});
const rows = [...document.querySelectorAll("#verdicts tbody tr")].map(row => [...row.cells].map(cell => cell.innerText));
const tags = [...document.querySelectorAll("main .verdict")].filter(tag => tag.checkVisibility());
const outside = tags.filter(tag => {
  const place = tag.parentElement.getBoundingClientRect();
  return tag.getBoundingClientRect().right > place.right + 1;
}).map(tag => tag.textContent);
const result = document.createElement("pre");
result.id = "result";
addEventListener("load", () => setTimeout(() => {
  const loaded = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"));
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  const found = {points, steps, rows, outside, faults, loaded, broken, wide};
  result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(result);
}, 50));
"""
CELLS = [[1, 0, 0], [1, 3, 2], [1, 2, 1], [1, 1, 2], [0, 3, 0]]
KEYS = [
    ["focus", False], ["ArrowRight", False], ["ArrowUp", False], ["ArrowDown", True], ["End", False],
    ["ArrowRight", False], ["PageUp", False], ["Home", False], ["a", False],
]  # fmt: skip


def opened(path: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's elements as Chromium leaves them, and what it wrote to its console."""
    command = [
        chromium.program(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}",
    ]
    command += ["--virtual-time-budget=5000", *flags, "--dump-dom", path.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def probed(source: str) -> str:
    """The page with a watch at its start and a test at its end, which its policy allows by their hashes."""
    act = ACT.replace("CELLS", json.dumps(CELLS)).replace("KEYS", json.dumps(KEYS))
    for script in (WATCH, act):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        source = source.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return source.replace("<title>", f"<script>{WATCH}</script><title>", 1).replace(
        "</body>", f"<script>{act}</script></body>"
    )


@pytest.fixture(scope="module", params=["1200,900", "500,900"], ids=["desk", "phone"])
def seen(written, tmp_path_factory, request) -> dict:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "probed.html").write_text(probed(written.read_text(encoding="utf-8")), encoding="utf-8")
    elements, console = opened(folder / "probed.html", folder / "profile", f"--window-size={request.param}")
    found = re.search(r'<pre id="result">([^<]+)</pre>', elements)
    assert found, f"the test script did not reach its end: {console}"
    return json.loads(base64.b64decode(found.group(1)))


def test_it_opens_as_it_is_without_an_error(written, tmp_path):
    elements, console = opened(written, tmp_path)
    assert console == []
    assert '<html lang="en" class="live">' in elements  # its script was allowed and ran


def test_nothing_fails_and_nothing_is_loaded(seen):
    assert seen["faults"] == []
    assert seen["loaded"] == []
    assert seen["broken"] == 0
    assert not seen["wide"]


def test_the_pointer_tells_layers_value_and_interval(seen):
    texts = [point["text"] for point in seen["points"]]
    assert texts[0] == [
        "CKA −0.004 [−0.024, 0.196]",  # noqa: RUF001
        "up: vit patch_embed (depth 0.00)",
        "right: resnet conv1 (depth 0.00)",
    ]
    assert texts[1][0] == "CKA 0.916 [0.896, 1.116]"
    assert texts[1][1:] == ["up: vit blocks.1 (depth 1.00)", "right: resnet layer2.0 (depth 1.00)"]
    assert texts[2][1] == f"up: vit {EVIL} (depth 0.67)"
    assert texts[4][1:] == ["up: vit blocks.1 (depth 1.00)", "right: vit patch_embed (depth 0.00)"]
    np.testing.assert_allclose([point["off"] for point in seen["points"]], 0, atol=1)


def test_undefined_cells_are_grey_and_say_so(seen):
    point = seen["points"][3]
    assert point["text"][0].startswith("CKA undefined")
    assert point["text"][1:] == ["up: vit blocks.0.attn (depth 0.33)", "right: resnet layer2.0 (depth 1.00)"]
    assert point["pixel"] == [191, 191, 191, 255]


def test_cells_have_the_colours_of_matplotlib(seen):
    for point, value in zip(seen["points"][:3], (-0.004, 0.916, 0.606), strict=True):
        expected = np.array(mpl.colormaps["magma"](max(value, 0.0), bytes=True), dtype=int)
        assert np.abs(np.array(point["pixel"]) - expected).max() <= 1


def test_arrow_keys_move_the_cursor_and_stop_at_the_edge(seen):
    left = [3, 0]  # where the cross left it that followed the pointer in the other map
    places = [left, [3, 1], [3, 1], [0, 1], [0, 2], [0, 2], [3, 2], [3, 0], [3, 0]]
    for text, (row, column) in zip(seen["steps"], places, strict=True):
        assert text[1].startswith(f"up: vit {LAYERS['vit'][row]} (")
        assert text[2].startswith(f"right: resnet {LAYERS['resnet'][column]} (")


def test_the_verdicts_on_screen_are_those_of_the_findings(seen):
    table = findings()
    assert [row[0].split("\n")[0].strip() for row in seen["rows"]] == table["id"].tolist()
    told = [shown(f"{tagged(row.verdict)} {row.because}") for row in table.itertuples()]
    assert [shown(row[-1]) for row in seen["rows"]] == told
    told = f"−12.3 [−13.1, −11.2] printed 20 to 40 {EVIL} ({EVIL}); here 31.4"  # noqa: RUF001
    assert shown(seen["rows"][2][3]) == shown(told)
    assert seen["rows"][6][3] == "needs <b>data</b>"


def test_no_verdict_sticks_out_of_its_place(seen):
    assert seen["outside"] == []
