"""``comit report``: one page that opens offline and obeys nothing that results hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time

import cv2
import numpy as np
import pytest
import resultfiles as rf
from click.testing import CliRunner

from comit.cli import main
from comit.console import Console
from comit.errors import UsageError
from comit.look.report import BINS, summary, write_report
from comit.options import Options
from comit.results import read
from comit.screening import screen

HOSTILE = '"><script>window.obeyed = 1</script><img src=x onerror="window.obeyed = 1">'
NAMES = [HOSTILE, "</script><script>window.obeyed = 1</script>", "=cmd()", "<!--", "&lt;b&gt;"]


def blocks(page: str) -> dict:
    """The blocks of JSON that a page holds, by their id."""
    found = re.findall(
        r'<script type="application/json" id="([^"]*)">(.*?)</script>', page, re.DOTALL
    )
    return {name: json.loads(text) for name, text in found}


def column(page: str, name: str) -> list:
    """A column of a page, as its script reads it."""
    held = blocks(page)
    at = held["data"]["columns"].index(name)
    if f"column{at}" not in held:
        pieces = [v for k, v in held.items() if k.startswith(f"column{at}-")]
        assert all(len(p) == held["data"]["piece"] for p in pieces[:-1])
        return [v for piece in pieces for v in piece]
    stored = held[f"column{at}"]
    if "values" in stored:
        return [stored["values"][i] for i in stored["at"]]
    numbers = np.frombuffer(base64.b64decode(stored["float32"]), "<f4")
    return [None if np.isnan(v) else float(v) for v in numbers]


def shown(page: str) -> dict[int, dict]:
    """The pictures of a page by the number of their row."""
    held = blocks(page)
    return {int(k.removeprefix("picture")): v for k, v in held.items() if k.startswith("picture")}


def decoded(jpeg: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), 0)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "abc":
        rf.draw(folder / f"{name}.png")
    return folder


def written(tmp_path, rows, images, *, metadata=None, **options):
    results = rf.write(tmp_path / "r.parquet", rows, **(metadata or {}))
    made = write_report(results, images, tmp_path / "r.html", **options)
    return made, (tmp_path / "r.html").read_text()


def test_the_first_rows_by_score_have_pictures_and_all_rows_are_in_the_table(tmp_path, pictures):
    rows = [rf.unscored("e", "skipped", "view"), rf.unscored("d", "failed", "truncated")]
    rows += [rf.ok("a", unhealthy=0.1), rf.ok("b", unhealthy=0.9), rf.ok("c", unhealthy=0.5)]
    made, page = written(tmp_path, rows, pictures, top=2)
    assert made.problems == []
    assert column(page, "row_id") == ["b", "c", "a", "d", "e"]
    assert column(page, "score_unhealthy") == pytest.approx([0.9, 0.5, 0.1, None, None])
    assert column(page, "flag_covid") == [True, False, False, None, None]
    assert column(page, "warnings") == [[], [], [], None, None]
    found = shown(page)
    assert sorted(found) == [0, 1]
    assert decoded(found[0]["jpeg"]).shape == (300, 260)
    assert found[0]["lungs"].startswith("M") and found[0]["disease"].startswith("M")


@pytest.mark.parametrize("n", [1, 3, 5, 12])
def test_every_value_is_on_the_page_however_its_column_is_stored(
    tmp_path, pictures, monkeypatch, n
):
    monkeypatch.setattr("comit.look.report.PIECE", 4)
    rows = [
        rf.ok(
            f"{i:02}", unhealthy=1 - i / 20, ward=i % 2, bed=f"bed {i}", weight=i / 3 if i else None
        )
        | {"warnings": ["colour", "child"][: i % 3]}
        for i in range(n)
    ]
    _, page = written(tmp_path, rows, pictures, top=0, extra=["ward", "bed", "weight"])
    for name in ("row_id", "ward", "bed", "warnings", "rows", "status", "view"):
        assert column(page, name) == [r.get(name) for r in rows]
    weights = [v if v is None else float(f"{v:.5g}") for v in (r["weight"] for r in rows)]
    assert column(page, "weight") == weights
    assert column(page, "score_other") == [0.25] * n


def test_what_the_gate_rejected_has_its_picture_and_score(tmp_path, pictures):
    rows = [
        rf.unscored("x", "skipped", "view", score_chest=None),
        rf.unscored("b", "skipped", "not_a_chest", score_chest=0.0625, rows=300, cols=260),
        rf.unscored("d", "failed", "truncated"),
        rf.ok("a", score_chest=0.75),
    ]
    thresholds = json.dumps(rf.THRESHOLDS | {"chest": 0.5})
    metadata = {"comit_thresholds": thresholds}
    made, page = written(tmp_path, rows, pictures, metadata=metadata, top=1)
    assert made.problems == []
    assert column(page, "row_id") == ["a", "d", "b", "x"]
    assert column(page, "score_chest") == [0.75, None, 0.0625, None]
    found = shown(page)
    assert sorted(found) == [0, 2] and set(found[2]) == {"jpeg"}  # a picture without masks
    chest = blocks(page)["data"]["summary"]["histograms"][-1]
    assert (chest["name"], chest["threshold"], chest["above"]) == ("score_chest", 0.5, "kept")
    assert [i for i, k in enumerate(chest["counts"]) if k] == [2, 30]


def test_a_large_picture_is_made_small(tmp_path, pictures):
    rf.draw(pictures / "a.png", 1500, 1200)
    _, page = written(tmp_path, [rf.ok("a", rows=1500, cols=1200)], pictures)
    assert decoded(shown(page)[0]["jpeg"]).shape == (640, 512)


def test_the_summary_counts_rows_and_draws_every_score_once(tmp_path):
    rows = [rf.ok("abcd"[i], unhealthy=s) for i, s in enumerate((0.0, 0.5, 0.81, 1.0))]
    rows += [rf.unscored("e", "failed", "empty"), rf.unscored("f", "skipped", "view")]
    rows[0]["warnings"] = ["colour"]
    rows[1]["flag_covid"] = True
    table = read(rf.write(tmp_path / "r.parquet", rows))
    said = {"model": "tiny", "thresholds": rf.THRESHOLDS}
    found = summary(table, said, {"images_per_second": 5.0, "screened": 4, "seconds": 0.8})
    assert found["rows"] == 6 and found["status"] == {"ok": 4, "failed": 1, "skipped": 1}
    assert found["reasons"] == [("empty", 1), ("view", 1)] and found["warnings"] == [("colour", 1)]
    assert found["flagged"] == {"unhealthy": 2, "covid": 3, "either": 3}
    unhealthy, _, other = found["histograms"]  # of a model without a gate
    assert unhealthy["threshold"] == 0.8 and other["threshold"] is None
    assert sum(unhealthy["counts"]) == 4
    assert [i for i, n in enumerate(unhealthy["counts"]) if n] == [0, BINS // 2, 32, BINS - 1]
    assert found["facts"]["model"] == "tiny" and found["facts"]["throughput"].startswith("5.0 ")


def test_what_results_hold_cannot_end_the_data_it_is_in(tmp_path, pictures):
    rows = [rf.ok(name, name, ward=name) for name in NAMES]
    _, page = written(tmp_path, rows, pictures, top=0, extra=["ward"])
    assert page.count("<script") == page.count("</script>") == len(blocks(page)) + 1
    assert "<img" not in page and page.count("<!--") == 0
    assert set(column(page, "ward")) == set(NAMES)


def test_the_policy_allows_the_one_script_and_no_network(tmp_path, pictures):
    _, page = written(tmp_path, [rf.ok("a")], pictures)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "") and "https:" not in page


def test_pictures_that_are_gone_are_named_and_exit_with_3(tmp_path, pictures):
    results = rf.write(tmp_path / "r.parquet", [rf.ok("a"), rf.ok("gone")])
    words = ["report", results, "--images", pictures, "--out", tmp_path / "r.html"]
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 3 and "gone.png: vanished" in done.stderr
    page = (tmp_path / "r.html").read_text()
    assert column(page, "row_id") == ["a", "gone"] and list(shown(page)) == [0]


def test_results_without_plain_paths_have_a_page_without_pictures(tmp_path, pictures):
    hashed = {"comit_identifiers": "hashed 0f"}
    with pytest.raises(UsageError, match="--top 0"):
        written(tmp_path, [rf.ok("a")], pictures, metadata=hashed)
    _, page = written(tmp_path, [rf.ok("a")], None, metadata=hashed, top=0)
    assert shown(page) == {}


def test_what_is_no_run_report_is_refused(tmp_path, pictures):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json"):
        written(tmp_path, [rf.ok("a")], pictures, run=tmp_path / "run.json")
    with pytest.raises(UsageError, match=r"gone\.json does not exist; comit screen --report"):
        written(tmp_path, [rf.ok("a")], pictures, run=tmp_path / "gone.json")


def test_heat_is_drawn_by_the_model_that_the_results_are_of(tmp_path, pictures, tiny_model, capsys):
    results = tmp_path / "r.parquet"
    screen(pictures, results, Options(model=tiny_model, workers=1), console=Console(quiet=True))
    write_report(results, pictures, tmp_path / "r.html", model=tiny_model)
    page = (tmp_path / "r.html").read_text()
    assert blocks(page)["data"]["heat"] is True and len(shown(page)) == 3
    assert decoded(shown(page)[0]["heat"]).shape == (224, 224)

    write_report(results, pictures, tmp_path / "r.html", console=Console())
    assert blocks((tmp_path / "r.html").read_text())["data"]["heat"] is False
    assert "no heat maps: the results are of tiny" in capsys.readouterr().err

    other = rf.write(tmp_path / "other.parquet", [rf.ok("a")])
    with pytest.raises(UsageError, match="the results are of tiny, which"):
        write_report(other, pictures, tmp_path / "r.html", model=tiny_model)


# -- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, where it is installed."""
    from comit.bench.report import chromium

    try:
        chrome = chromium(tmp_path_factory.mktemp("profile"))
    except UsageError as error:
        pytest.skip(str(error))
    yield chrome
    chrome.quit()


class Page:
    """A report as somebody sees it, on a screen of so many pixels."""

    def __init__(self, browser, path, size=(1280, 800), theme="light"):
        browser.get_log("browser")
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())
        self._browser = browser
        assert self("return document.documentElement.dataset.ready")

    def __call__(self, script, *arguments):
        return self._browser.execute_script(script, *arguments)

    def press(self, *keys):
        for key in keys:
            self._browser.find_element("id", "scroll").send_keys(key)

    def click(self, name):
        self._browser.find_element("id", name).click()

    def choose(self, menu, value):
        self(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            menu,
            value,
        )

    def names(self):
        return self("return [...document.querySelectorAll('#rows > *')].map(r => r.title)")

    def text(self, name):
        return self("return document.getElementById(arguments[0]).innerText", name)

    def style(self, selector, name):
        return self(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
            selector,
            name,
        )

    def facts(self):
        texts = self("return [...document.querySelectorAll('#facts > *')].map(e => e.textContent)")
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def problems(self):
        return self._browser.get_log("browser")


@pytest.fixture
def page(browser, tmp_path, pictures):
    def opened(rows, size=(1280, 800), theme="light", **options):
        written(tmp_path, rows, pictures, **options)
        return Page(browser, tmp_path / "r.html", size, theme)

    return opened


ROWS = [
    rf.unscored("e", "skipped", "anatomy"),
    rf.ok("a", unhealthy=0.1, view="PA"),
    rf.ok("b", unhealthy=0.9, view="AP"),
    rf.ok("c", unhealthy=0.5, view="PA"),
    rf.unscored("d", "failed", "truncated"),
]


@pytest.mark.browser
def test_the_page_opens_on_the_highest_score_and_says_what_it_is_not_for(page):
    p = page(ROWS)
    assert p.names() == ["b.png", "c.png", "a.png", "d.png", "e.png"]
    assert p.facts()["path"] == "b.png" and p.facts()["flag_unhealthy"] == "yes"
    assert "RESEARCH USE ONLY" in p("return document.querySelector('header').innerText")
    assert p("return document.querySelectorAll('#stage image, #stage path').length") == 3
    assert p.problems() == []


@pytest.mark.browser
def test_keys_page_through_and_switch_layers(page):
    from selenium.webdriver.common.keys import Keys

    p = page(ROWS)
    for keys, expected in [("j", "c"), ("j", "a"), ("k", "c"), (Keys.END, "e"), (Keys.HOME, "b")]:
        p.press(keys)
        assert p.facts()["path"] == f"{expected}.png"
    p.press(Keys.END)
    assert "skipped" in p.text("stage")
    for key, layer in {"l": "lungs", "d": "disease"}.items():
        p.press(Keys.HOME, key)
        assert p.style(f"#stage path.{layer}", "display") == "none"
        p.press(key)
        assert p.style(f"#stage path.{layer}", "display") != "none"
    assert p.style("#stage path.disease", "fill") == "none"  # an outline hides nothing
    p.press("h")  # without a heat map the outlines are filled
    assert p.style("#stage path.disease", "fill") != "none"
    p.press("i")
    assert p.style("#stage image", "filter") == "invert(1)"


@pytest.mark.browser
def test_the_heat_map_is_shown_when_it_is_asked_for(browser, tmp_path, pictures, tiny_model):
    results = tmp_path / "r.parquet"
    screen(pictures, results, Options(model=tiny_model, workers=1), console=Console(quiet=True))
    write_report(results, pictures, tmp_path / "r.html", model=tiny_model)
    p = Page(browser, tmp_path / "r.html")
    for selector in ("#stage image.heat", "#ramp"):
        assert p.style(selector, "display") == "none"
    p.press("h")
    for selector in ("#stage image.heat", "#ramp"):
        assert p.style(selector, "display") != "none"


@pytest.mark.browser
def test_filters_leave_what_is_asked_for(page):
    p = page(ROWS)
    for tab, expected in [
        ("flagged", "b"),
        ("unhealthy", "b"),
        ("clear", "ca"),
        ("failed", "d"),
        ("skipped", "e"),
        ("all", "bcade"),
    ]:
        p.click(f"tab-{tab}")
        assert p.names() == [f"{n}.png" for n in expected]
        assert p.text("count") == f"{len(expected)} of 5 rows"
    for menu, value, expected in [("viewed", "PA", "ca"), ("reason", "anatomy", "e")]:
        p.choose(menu, value)
        assert p.names() == [f"{n}.png" for n in expected]
        p.choose(menu, "*")
    p("const t = document.getElementById('text'); t.value = 'TRUNC'; t.oninput()")
    deadline = time.monotonic() + 10  # it waits for the end of typing
    while p.names() != ["d.png"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert p.names() == ["d.png"]


@pytest.mark.browser
def test_another_order_is_chosen_by_heading_or_menu(page):
    p = page(ROWS)
    p("[...document.querySelectorAll('#head button')].find(b => b.innerText == 'file').click()")
    assert p.names() == [f"{n}.png" for n in "abcde"]
    p.choose("sort", "score_covid")
    assert p.names() == [f"{n}.png" for n in "bcade"]
    p.choose("sort", "score_covid")  # once more is the other way round; no score stays last
    assert p.names() == [f"{n}.png" for n in "acbde"]


@pytest.mark.browser
def test_many_pictures_are_looked_at_at_once(page):
    p = page(ROWS)
    p.press("g")
    assert p.names() == ["b.png", "c.png", "a.png"]  # the rows that have one
    assert p.text("count") == "3 pictures, of 5 rows"
    assert p("return document.querySelectorAll('#rows svg path.lungs').length") == 3
    assert not p("return document.getElementById('view').checkVisibility()")
    p.press("j", "\ue007")  # Enter
    assert p("return document.getElementById('view').checkVisibility()")
    assert p.facts()["path"] == "c.png"
    p.press("\ue00c")  # Esc
    assert not p("return document.getElementById('view').checkVisibility()")
    p.click("tab-failed")
    assert p.names() == [] and "no picture" in p.text("none")


@pytest.mark.browser
def test_the_gates_decision_is_told_in_list_picture_and_row(page):
    thresholds = json.dumps(rf.THRESHOLDS | {"chest": 0.5})
    rows = [
        rf.unscored("b", "skipped", "not_a_chest", score_chest=0.0625, rows=300, cols=260),
        rf.ok("a", score_chest=0.75),
    ]
    p = page(rows, metadata={"comit_thresholds": thresholds})
    assert "not_a_chest 0.063" in p.text("rows")
    p.press("j")
    assert "0.063" in p.text("gauges") and "threshold 0.500" in p.text("gauges")
    assert p.facts()["reason"].startswith("not_a_chest: by its picture not")
    assert p("return document.querySelectorAll('#stage image').length") == 1
    p.press("g")
    assert p.names() == ["a.png", "b.png"] and "not_a_chest 0.063" in p.text("rows")


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 390, 610, 768, 1400])
def test_nothing_is_cut_off_on_a_screen_of_any_width(page, width):
    wide = (
        "return [...document.querySelectorAll('header *, #bar *, #rows *, #view *, #overview *')]"
        ".filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 99))"
    )
    long = rf.ok("long/" * 30, "ward/" * 20 + "a" * 200 + ".png", unhealthy=0.95)
    p = page([*ROWS, long], size=(width, 800))
    assert p("return document.documentElement.scrollWidth") <= width
    p("document.getElementById('summary').open = true; document.body.classList.add('filters')")
    assert p(wide) == []
    p("as(true)")
    assert p(wide) == []
    p("as(false); select(0); show(true)")
    assert p("return document.getElementById('view').checkVisibility()") and p(wide) == []
    assert p("return document.getElementById('rows').checkVisibility()") == (width >= 900)


@pytest.mark.browser
def test_on_a_phone_the_way_back_leads_to_the_list(page):
    p = page(ROWS, size=(390, 800))
    assert not p("return document.getElementById('view').checkVisibility()")
    p("document.querySelectorAll('#rows > *')[1].click()")
    assert p.facts()["path"] == "c.png"
    p("history.back()")
    deadline = time.monotonic() + 10
    seen = "return document.getElementById('scroll').checkVisibility()"
    while not p(seen) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert p(seen) and p.names()[1] == "c.png"


@pytest.mark.browser
def test_the_page_is_light_or_dark_as_the_system_is(page):
    def brightness(p):
        return sum(map(int, re.findall(r"\d+", p.style("body", "backgroundColor"))[:3])) / 3

    assert brightness(page(ROWS)) > 200
    assert brightness(page(ROWS, theme="dark")) < 50


@pytest.mark.browser
def test_all_of_it_is_printed_and_in_the_light(page, browser):
    rows = [rf.ok(f"{i:04}", unhealthy=0.7 - i / 10_000) for i in range(1200)]
    rows += [rf.unscored("d", "failed", "truncated"), rf.ok("a", unhealthy=0.9)]
    p = page(rows, top=1, theme="dark")
    p("dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert p.style("body", "backgroundColor") == "rgb(255, 255, 255)"
    printed = p(
        "return [...document.querySelectorAll('#print tbody tr')].map(r => r.cells[0].innerText)"
    )
    assert printed == ["a.png", *(f"{i:04}.png" for i in range(999)), "d.png"]
    assert "201 more rows" in p.text("print") and "truncated" in p.text("print")
    assert p("return document.querySelectorAll('#print svg path.lungs').length") == 1
    assert "failed 1" in p.text("counts") and "model" in p.text("overview")
    assert not p("return document.querySelector('main').checkVisibility()")
    assert p("return document.body.scrollHeight > innerHeight")  # it is not cut to the screen
    p("dispatchEvent(new Event('afterprint'))")
    assert p.text("print") == ""


@pytest.mark.browser
def test_names_and_tags_are_shown_and_not_obeyed(page):
    p = page([rf.ok(n, n, ward=n, unhealthy=0.5) for n in NAMES], top=0, extra=["ward"])
    assert p.names() == NAMES
    for name in NAMES:
        assert p.facts()["ward"] == p.facts()["path"] == name
        p.press("j")
    p("dispatchEvent(new Event('beforeprint'))")
    assert p("return window.obeyed") is None
    assert p("return document.querySelectorAll('img, iframe, a').length") == 0
    scripts = p("return [...document.scripts].map(s => s.type)")
    assert scripts[-1] == "" and set(scripts[:-1]) == {"application/json"}


@pytest.mark.browser
def test_a_script_that_gets_in_is_not_run_and_nothing_is_fetched(page):
    p = page(ROWS)
    p(
        "const s = document.createElement('script'); s.textContent = 'window.obeyed = 1';"
        "document.body.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)"
    )
    assert p("return window.obeyed") is None
    refused = [entry["message"] for entry in p.problems()]
    assert any("script-src" in m for m in refused) and any("img-src" in m for m in refused)


@pytest.mark.browser
def test_ten_thousand_rows_are_a_list_of_those_in_sight(page):
    from selenium.webdriver.common.keys import Keys

    p = page([rf.ok(f"{i:05}", unhealthy=i / 10_000) for i in range(10_000)], top=0)
    assert len(p.names()) < 60 and p.names()[0] == "09999.png"
    p.press(Keys.END)
    assert p.facts()["path"] == "00000.png"
    assert len(p.names()) < 60 and p.names()[-1] == "00000.png"
