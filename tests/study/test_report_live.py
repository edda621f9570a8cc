"""The page at work, in Chromium: dialog, filter, sort, downloads, crossed heat maps, the dark, a phone, paper."""

import csv
import io
import json
import re
import time
from pathlib import Path

import chromium
import numpy as np
import pandas as pd
import pytest
from pages import DIFFERENCES, EVIL, LAYERS, PROVENANCE, coarse, findings, places, similarities
from PIL import Image

from vit_analysis.study import differences, report, rules
from vit_analysis.study.claims import CLAIMS
from vit_analysis.study.drawings import DRAWINGS


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "in"
    folder.mkdir()
    report.write(folder / "report.html", places(folder), findings(), DIFFERENCES, PROVENANCE)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.fixture
def tab(browser, written):
    browser.size(1200, 900)
    browser.media()
    browser.open(written)
    yield browser
    assert browser.said() == []
    browser("localStorage.clear()")


def shown_rows(tab) -> list[str]:
    rows = tab(
        "[...document.querySelectorAll('#verdicts tbody tr')].filter(row => row.checkVisibility()).map(row => row.id)"
    )
    ids = {f"finding-{chromium.quoted(name)}": name for name in findings()["id"]}
    return [ids[name] for name in rows]


def choose(tab, control: str, value: str) -> None:
    tab(
        f"(() => {{ const control = document.querySelector({json.dumps(control)}); control.value = {json.dumps(value)};"
        "control.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


# Pictures.


def test_a_picture_opens_large_by_a_click_and_closes_by_escape_with_the_focus_back_on_it(tab):
    assert not tab("document.querySelector('dialog').checkVisibility()")
    tab.click("#figure-2 .enlarge")
    assert tab("document.querySelector('dialog').open")
    assert tab("document.querySelector('dialog img').alt") == "two bars"
    assert tab("document.querySelector('dialog .title').textContent") == "Figure 2: two"
    assert tab("document.querySelector('dialog img').naturalWidth") == 60
    tab.key("Escape")
    assert not tab("document.querySelector('dialog').open")
    assert tab("document.activeElement === document.querySelector('#figure-2 .enlarge')")
    tab("new Promise(done => setTimeout(done, 100))")  # the event of closing comes after it
    assert not tab("Boolean(document.querySelector('dialog img'))")


def test_a_picture_opens_by_key_and_arrows_leaf_through_all(tab):
    tab("document.querySelector('#figure-2 .enlarge').focus()")
    tab.key("Enter")
    title = "document.querySelector('dialog .title').textContent"
    assert tab(title) == "Figure 2: two"
    tab.key("ArrowRight")
    assert tab(title) == "Notes: two"
    tab.key("ArrowRight")  # from the last to the first, which is that of a difference
    assert tab(title) == f"Figure 1: {EVIL}"
    tab.key("ArrowLeft")
    assert tab(title) == "Notes: two"
    tab.click("dialog .close")
    assert not tab("document.querySelector('dialog').open")


def test_a_click_beside_the_picture_closes_it(tab):
    tab.click("#figure-2 .enlarge")
    tab.click_at(3, 3)
    assert not tab("document.querySelector('dialog').open")


# Claims.


def test_claims_are_filtered_by_words_verdict_and_difference(tab):
    everything = findings()["id"].tolist()
    assert shown_rows(tab) == everything
    for verdict in rules.WORDS:
        choose(tab, ".of-verdict", verdict)
        assert shown_rows(tab) == findings().query("verdict == @verdict")["id"].tolist()
    choose(tab, ".of-verdict", "")
    for difference in DIFFERENCES:
        choose(tab, ".of-difference", str(difference.number))
        assert set(shown_rows(tab)) == set(difference.findings) - {"F1b"} | (
            {"F1b"} if difference.number == 3 else set()
        )
    choose(tab, ".of-difference", "")
    choose(tab, ".words", "ARCHITECTURAL f3b")  # every word, in any case
    assert shown_rows(tab) == ["F3b"]
    assert tab("document.querySelector('.found').textContent") == f"1 of {len(everything)} claims"
    choose(tab, ".words", "")
    assert shown_rows(tab) == everything


def test_a_verdict_of_the_first_screen_leads_to_its_claims(tab):
    tab.click(".tally [data-verdict='fragile']")
    assert shown_rows(tab) == ["F2b"]
    assert tab("document.querySelector('.of-verdict').value") == "fragile"


def test_a_link_to_a_claim_that_is_filtered_away_shows_it(tab):
    choose(tab, ".of-verdict", "fragile")
    tab("location.hash = '#finding-F1a'")
    tab("new Promise(done => setTimeout(done, 50))")
    assert shown_rows(tab) == findings()["id"].tolist()


@pytest.mark.parametrize("column", ["id", "value", "p", "verdict"])
def test_claims_are_sorted_by_any_column_both_ways_and_what_has_no_number_comes_last(tab, column):
    table = findings()
    order = {name: number for number, name in enumerate(rules.WORDS)}
    keys = table["verdict"].map(order) if column == "verdict" else table[column]
    head = f"#verdicts th[data-key='{column}']"
    for way, rising in (("ascending", True), ("descending", False)):
        tab.click(f"{head} button")
        assert tab(f"document.querySelector({json.dumps(head)}).getAttribute('aria-sort')") == way
        found = shown_rows(tab)
        if column == "id":  # spaces and signs of a name count less than in Python
            plain = [name for name in found if name.isalnum()]
            assert plain == sorted(plain, reverse=not rising)
            assert len(found) == len(table)
        else:
            values = keys.set_axis(table["id"])[found].to_numpy(float)
            known = values[~np.isnan(values)]
            np.testing.assert_array_equal(known, np.sort(known) if rising else np.sort(known)[::-1])
            assert np.isnan(values[len(known) :]).all()
    assert tab("document.querySelectorAll('[aria-sort]').length") == 1


def test_without_a_script_claims_are_a_plain_table_and_nothing_waits_for_one(browser, written):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(written)
        assert shown_rows(browser) == findings()["id"].tolist()
        hidden = (
            "[...document.querySelectorAll('.controls, .group, .theme')].every(one => !one.checkVisibility())"
        )
        assert browser(hidden)
        assert browser(
            "[...document.querySelectorAll('.still img, .contents a')].every(one => one.checkVisibility())"
        )
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


# Downloads.


def downloaded(tab, button: str, folder: Path) -> tuple[str, list[dict[str, str]]]:
    """What a button saves: the file's name, and its rows."""
    tab.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
    tab.click(button)
    end = time.monotonic() + 20
    while not (files := list(folder.glob("*.csv"))):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    return files[0].name, list(csv.DictReader(io.StringIO(files[0].read_bytes().decode())))


def test_claims_are_saved_as_a_table_that_reads_back(tab, tmp_path):
    name, rows = downloaded(tab, "#verdicts .csv", tmp_path)
    assert name == "claims.csv"
    table = findings()
    assert [row["id"] for row in rows] == table["id"].tolist()
    assert rows[0]["claim"] == EVIL
    for column in ("value", "low", "high", "tau", "p"):
        np.testing.assert_array_equal([float(row[column] or "nan") for row in rows], table[column])
    assert json.loads(rows[0]["runs"]) == [0.2345, 0.3, -0.05]
    assert json.loads(rows[2]["controls"])[EVIL]["verdict"] == "inconclusive"


def test_a_heat_map_is_saved_as_it_is_shown(tab, tmp_path):
    (tmp_path / "one").mkdir()
    _, rows = downloaded(tab, "#figure-1 .csv", tmp_path / "one")
    table = pd.concat([similarities("vit", "vit"), similarities("vit", "resnet")])
    assert [row["other_layer"] for row in rows] == table["other_layer"].tolist()
    np.testing.assert_allclose([float(row["value"] or "nan") for row in rows], table["cka"], atol=0.0005)
    choose(tab, "#figure-1 .view", "1")
    (tmp_path / "two").mkdir()
    name, rows = downloaded(tab, "#figure-1 .csv", tmp_path / "two")
    assert name == "figure-1_coarse.csv"
    assert {row["measure"] for row in rows} == {"rank CKA"}
    np.testing.assert_allclose([float(row["value"]) for row in rows], 2 * [0.11, 0.12, 0.21, 0.22])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "a,b", 'a"b', "a\nb", "plain"])
def test_no_text_is_a_formula_in_a_spreadsheet(tab, text):
    (row,) = csv.reader(
        io.StringIO(
            tab(f"csv([], [[{json.dumps(text)}, -1]]).split('\\r\\n').slice(1).join('\\r\\n')"), newline=""
        )
    )
    assert row == [text if text[0] not in "=+-@" else f"'{text}", "-1"]


# Heat maps.


def hairs(tab, number: int) -> list[str]:
    """Where the lines of the cross of a map are, as shares of its sides."""
    return tab(
        f"(() => {{ const map = document.querySelectorAll('.map')[{number}];"
        "return [map.querySelector('.hair.row').style.bottom, map.querySelector('.hair.column').style.left]; })()"
    )


def told(tab, number: int) -> list[str]:
    return tab(
        f"[...document.querySelectorAll('.map')[{number}].querySelectorAll('output span')].map(line => line.textContent)"
    )


def test_a_cross_marks_the_same_layers_in_the_other_maps_of_a_figure(tab):
    tab("document.querySelectorAll('.map canvas')[1].focus()")
    tab.key("ArrowUp")
    tab.key("ArrowUp")
    tab.key("ArrowRight")
    assert told(tab, 1)[1:] == [f"up: vit {EVIL} (depth 0.67)", "right: resnet layer1.0 (depth 0.50)"]
    # The same layer of the same model upwards; to the right, where the model is another, the layer of the nearest depth.
    assert told(tab, 0)[1:] == [f"up: vit {EVIL} (depth 0.67)", "right: vit blocks.0.attn (depth 0.33)"]
    assert hairs(tab, 1) == ["62.5%", "50%"]
    assert hairs(tab, 0) == ["62.5%", "37.5%"]
    states = "[...document.querySelectorAll('.map output')].map(one => one.getAttribute('aria-live'))"
    assert tab(states) == ["off", "polite"]  # one of them is read aloud


def test_a_switch_shows_another_measure_at_the_same_depth(tab):
    tab("document.querySelectorAll('.map canvas')[1].focus()")
    tab.key("ArrowUp")
    tab.key("ArrowUp")
    tab.key("ArrowUp")
    choose(tab, "#figure-1 .view", "1")
    table = coarse("vit", "resnet")
    assert tab("[...document.querySelectorAll('.map canvas')].map(one => [one.width, one.height])") == [
        [2, 2],
        [2, 2],
    ]
    assert told(tab, 1)[0].startswith(f"rank CKA {table['cka'].iloc[2]:.3f} [")
    assert told(tab, 1)[1:] == ["up: vit blocks.1 (depth 1.00)", "right: resnet conv1 (depth 0.00)"]
    assert tab("document.querySelector('.scale .measure').textContent") == "rank CKA"
    assert "coarse" in tab("document.querySelectorAll('.map canvas')[1].getAttribute('aria-label')")
    choose(tab, "#figure-1 .view", "0")
    assert told(tab, 1)[0].startswith("CKA 0.896 [")


def test_axes_have_depths_blocks_and_stages(tab):
    one, two = "document.querySelectorAll('.map')[0]", "document.querySelectorAll('.map')[1]"
    assert tab(f"[...{one}.querySelectorAll('.below span')].map(one => one.textContent)") == [
        "0",
        "0.25",
        "0.5",
        "0.75",
        "1",
    ]
    assert tab(f"[...{two}.querySelectorAll('.below .block')].map(one => one.style.left)") == [
        "33.3333%",
        "66.6667%",
    ]
    assert tab(f"[...{two}.querySelectorAll('.stage.column')].map(one => one.style.left)") == [
        "33.3333%",
        "66.6667%",
    ]
    assert tab(f"{one}.querySelectorAll('.stage').length") == 0  # a Vision Transformer has none


def test_what_is_told_never_moves_what_is_pointed_at(tab):
    tab.size(360, 800)
    place = "document.querySelectorAll('.map canvas')[1].getBoundingClientRect().top + scrollY"
    before = tab(place)
    tab("document.querySelectorAll('.map canvas')[1].focus()")
    assert tab(place) == before


# Looks.

COLOURS = (
    "(() => { const look = getComputedStyle(document.body); return [look.backgroundColor, look.color]; })()"
)


def brightness(colour: str) -> float:
    return float(np.mean([float(number) for number in re.findall(r"[\d.]+", colour)[:3]]))


def test_the_page_is_dark_where_the_system_is_and_where_the_reader_wishes(tab, written):
    paper, ink = map(brightness, tab(COLOURS))
    assert paper > 240 > 60 > ink
    tab.media(prefers_color_scheme="dark")
    paper, ink = map(brightness, tab(COLOURS))
    assert ink > 200 > 40 > paper
    tab.click(".theme")  # light again, against the system
    assert brightness(tab(COLOURS)[0]) > 240
    assert tab("document.querySelector('.theme').getAttribute('aria-pressed')") == "false"
    tab.media()
    tab.click(".theme")
    assert brightness(tab(COLOURS)[0]) < 40
    tab.open(written)
    assert brightness(tab(COLOURS)[0]) < 40  # the choice is kept


CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = one => { for (; one; one = one.parentElement) { const own = rgb(getComputedStyle(one).backgroundColor);
    if (own[3] === 255) return own; } };
  return [...document.querySelectorAll(".verdict, .strip a, p, td, small, dd, summary, h3, .letter, .warning")]
    .filter(one => one.checkVisibility() && one.textContent.trim()).map(one => {
      const [a, b] = [light(rgb(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), one.className + " " + one.textContent.slice(0, 30)]; });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_on_its_ground(tab, scheme):
    """Contrast of at least 4.5 (WCAG AA)."""
    tab.media(prefers_color_scheme=scheme)
    found = tab(CONTRASTS)
    assert len(found) > 50
    assert [one for one in found if one[0] < 4.5] == []


def test_a_phone_needs_no_scrolling_sideways_and_contents_are_folded(tab, written):
    tab.size(360, 760, phone=True)
    tab.open(written)
    assert tab("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    beyond = "[...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && !one.closest('.skip')"
    assert (
        tab(f"{beyond} && one.getBoundingClientRect().right > 361).map(one => one.outerHTML.slice(0, 80))")
        == []
    )
    assert not tab("document.querySelector('.contents').open")
    assert not tab("document.querySelector('.contents a').checkVisibility()")
    tab.size(1200, 900)
    assert tab("new Promise(done => setTimeout(() => done(document.querySelector('.contents').open), 100))")


def test_the_contents_lead_to_every_difference_and_figure(tab):
    links = tab("[...document.querySelectorAll('.contents a')].map(link => link.getAttribute('href'))")
    assert links == ["#differences", "#difference-1", "#difference-2", "#difference-3", "#figures", "#figure-1", "#figure-2",
                     "#figure-12", "#figure-notes", "#verdicts", "#provenance"]  # fmt: skip
    assert tab(
        "[...document.querySelectorAll('.contents a')].every(link => document.getElementById(link.hash.slice(1)))"
    )


def test_the_first_screen_says_what_this_is_who_is_who_and_what_came_out(tab):
    for one in (".lead", ".tally", ".legend dl", ".cast"):
        top = tab(f"document.querySelector({json.dumps(one)}).getBoundingClientRect().top")
        assert 0 <= top < 900, one


def test_warnings_are_on_the_page_and_not_in_what_is_folded(tab):
    told = tab(
        "[...document.querySelectorAll('.place .warning')].filter(one => one.checkVisibility()).map(one => one.textContent)"
    )
    assert told == [f"beware of {EVIL}"]
    assert tab("document.querySelector('.place .warning').closest('details')") is None


def test_paper_has_pictures_and_claims_and_no_controls(tab):
    tab.media("print", prefers_color_scheme="dark")  # even where the system is dark
    assert brightness(tab(COLOURS)[0]) > 240
    shown = "document.querySelector({}).checkVisibility()"
    for hidden in (".contents", ".theme", ".controls", ".group", ".command"):
        assert not tab(shown.format(json.dumps(hidden)))
    for there in (".still img", ".findings", ".cast", ".legend dl", "#provenance dl"):
        assert tab(shown.format(json.dumps(there)))
    tab.media()
    pages = chromium.pages(tab.printed())
    assert 2 <= pages <= 6


def test_a_whole_study_prints_on_fewer_than_20_pages(tab, tmp_path):
    """As many claims and figures as the registry has, with pictures as large as usual."""
    Image.new("RGB", (1600, 900), "navy").save(tmp_path / "a.png")
    drawn = [
        report.Place(one.id, one.title, one.claim, "", tmp_path / "a.png", one.alternative)
        for one in DRAWINGS
    ]
    usual = findings().iloc[0].to_dict()
    rows = [
        usual
        | {name: getattr(one, name) for name in ("id", "figure", "claim", "paper", "statistic", "difference")}
        for one in CLAIMS
    ]
    table = pd.DataFrame(rows).assign(
        threshold_from="0 is no difference; the size is proposed here", because="because of it"
    )
    own = [
        one._replace(findings=tuple(c.id for c in CLAIMS if c.difference == one.number))
        for one in differences.DIFFERENCES
    ]
    report.write(tmp_path / "a.html", drawn, table, own, PROVENANCE)
    tab.open(tmp_path / "a.html")
    assert chromium.pages(tab.printed()) < 20


def test_layers_of_the_page_are_those_of_its_maps():
    assert EVIL in LAYERS["vit"]  # else the tests of names above could not fail
