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
from comit.screening import screen

HOSTILE = '"><script>window.obeyed = 1</script><img src=x onerror="window.obeyed = 1">'
NAMES = [HOSTILE, "</script><script>window.obeyed = 1</script>", "=cmd()", "<!--", "&lt;b&gt;"]


def blocks(page: str) -> tuple[dict, dict]:
    """The two blocks of JSON that a page holds."""
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(found[0]), json.loads(found[1])


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
    rows = [rf.ok("a", unhealthy=0.1), rf.ok("b", unhealthy=0.9), rf.ok("c", unhealthy=0.5)]
    rows.append(rf.unscored("d", "failed", "truncated"))
    made, page = written(tmp_path, rows, pictures, top=2)
    data, shown = blocks(page)
    assert made.problems == []
    assert [row[0] for row in data["rows"]] == ["b", "c", "a", "d"]
    assert sorted(shown) == ["0", "1"]
    grey = cv2.imdecode(np.frombuffer(base64.b64decode(shown["0"]["jpeg"]), np.uint8), 0)
    assert grey.shape == (300, 260)
    assert shown["0"]["lungs"].startswith("M") and shown["0"]["disease"].startswith("M")


def test_a_large_picture_is_made_small(tmp_path, pictures):
    rf.draw(pictures / "a.png", 1500, 1200)
    _, page = written(tmp_path, [rf.ok("a", rows=1500, cols=1200)], pictures)
    jpeg = base64.b64decode(blocks(page)[1]["0"]["jpeg"])
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 0).shape == (640, 512)


def test_the_summary_counts_rows_and_draws_every_score_once():
    rows = [rf.ok("a", unhealthy=s) for s in (0.0, 0.5, 0.81, 1.0)]
    rows += [rf.unscored("b", "failed", "empty"), rf.unscored("c", "skipped", "view")]
    rows = [dict.fromkeys(rf.ok("x")) | {"reason": None} | row for row in rows]
    rows[0]["warnings"] = ["colour"]
    said = {"model": "tiny", "thresholds": rf.THRESHOLDS}
    found = summary(rows, said, {"images_per_second": 5.0, "screened": 4, "seconds": 0.8})
    assert found["rows"] == 6 and found["status"] == {"ok": 4, "failed": 1, "skipped": 1}
    assert found["reasons"] == [("empty", 1), ("view", 1)] and found["warnings"] == [("colour", 1)]
    assert found["flagged"] == {"unhealthy": 2, "covid": 2}
    unhealthy, _, other = found["histograms"]
    assert unhealthy["threshold"] == 0.8 and other["threshold"] is None
    assert sum(unhealthy["counts"]) == 4
    assert [i for i, n in enumerate(unhealthy["counts"]) if n] == [0, BINS // 2, 32, BINS - 1]
    assert found["facts"]["model"] == "tiny" and found["facts"]["throughput"].startswith("5.0 ")


def test_what_results_hold_cannot_end_the_data_it_is_in(tmp_path, pictures):
    rows = [rf.ok(name, name, ward=name) for name in NAMES]
    _, page = written(tmp_path, rows, pictures, top=0, extra=["ward"])
    assert page.count("<script") == 3 and page.count("</script>") == 3
    assert "<img" not in page and "<!--" not in page
    data, _ = blocks(page)
    assert {row[data["columns"].index("ward")] for row in data["rows"]} == set(NAMES)


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
    data, shown = blocks((tmp_path / "r.html").read_text())
    assert len(data["rows"]) == 2 and len(shown) == 1


def test_results_without_plain_paths_have_a_page_without_pictures(tmp_path, pictures):
    hashed = {"comit_identifiers": "hashed 0f"}
    with pytest.raises(UsageError, match="--top 0"):
        written(tmp_path, [rf.ok("a")], pictures, metadata=hashed)
    _, page = written(tmp_path, [rf.ok("a")], None, metadata=hashed, top=0)
    assert blocks(page)[1] == {}


def test_what_is_no_run_report_is_refused(tmp_path, pictures):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json"):
        written(tmp_path, [rf.ok("a")], pictures, run=tmp_path / "run.json")


def test_heat_is_drawn_by_the_model_that_the_results_are_of(tmp_path, pictures, tiny_model, capsys):
    results = tmp_path / "r.parquet"
    screen(pictures, results, Options(model=tiny_model, workers=1), console=Console(quiet=True))
    write_report(results, pictures, tmp_path / "r.html", model=tiny_model)
    data, shown = blocks((tmp_path / "r.html").read_text())
    assert data["heat"] is True and len(shown) == 3
    heat = cv2.imdecode(np.frombuffer(base64.b64decode(shown["0"]["heat"]), np.uint8), 0)
    assert heat.shape == (224, 224)

    write_report(results, pictures, tmp_path / "r.html", console=Console())
    assert blocks((tmp_path / "r.html").read_text())[0]["heat"] is False
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
    """A report as somebody sees it."""

    def __init__(self, browser, path):
        browser.get_log("browser")
        browser.get(path.as_uri())
        self._browser = browser
        assert self("return document.documentElement.dataset.ready")

    def __call__(self, script, *arguments):
        return self._browser.execute_script(script, *arguments)

    def press(self, *keys):
        for key in keys:
            self._browser.find_element("id", "scroll").send_keys(key)

    def choose(self, menu, value):
        self(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            menu,
            value,
        )

    def names(self):
        return self("return [...document.querySelectorAll('#rows .row')].map(r => r.title)")

    def facts(self):
        texts = self("return [...document.querySelectorAll('#facts > *')].map(e => e.textContent)")
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def problems(self):
        return self._browser.get_log("browser")


@pytest.fixture
def page(browser, tmp_path, pictures):
    def opened(rows, **options):
        written(tmp_path, rows, pictures, **options)
        return Page(browser, tmp_path / "r.html")

    return opened


ROWS = [
    rf.ok("a", unhealthy=0.1, view="PA"),
    rf.ok("b", unhealthy=0.9, view="AP"),
    rf.ok("c", unhealthy=0.5, view="PA"),
    rf.unscored("d", "failed", "truncated"),
    rf.unscored("e", "skipped", "anatomy"),
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
    assert "skipped" in p("return document.getElementById('stage').innerText")
    for key, layer in {"l": "lungs", "d": "disease"}.items():
        p.press(Keys.HOME, key)
        assert (
            p(f"return getComputedStyle(document.querySelector('path.{layer}')).display") == "none"
        )
        p.press(key)
        assert (
            p(f"return getComputedStyle(document.querySelector('path.{layer}')).display") != "none"
        )
    p.press("h")  # without a heat map the outlines are filled
    assert p("return getComputedStyle(document.querySelector('path.disease')).fill") == "none"
    p.press("i")
    assert (
        p("return getComputedStyle(document.querySelector('#stage image')).filter") == "invert(1)"
    )


@pytest.mark.browser
def test_filters_leave_what_is_asked_for(page):
    p = page(ROWS)
    for menu, value, expected in [
        ("flag", "flag_unhealthy", "b"),
        ("flag", "none", "ca"),
        ("viewed", "PA", "ca"),
        ("status", "failed", "d"),
        ("reason", "anatomy", "e"),
    ]:
        p.choose(menu, value)
        assert p.names() == [f"{n}.png" for n in expected]
        p.choose(menu, "" if menu == "flag" else "*")
    p("const t = document.getElementById('text'); t.value = 'TRUNC'; t.oninput()")
    deadline = time.monotonic() + 10  # it waits for the end of typing
    while p.names() != ["d.png"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert p.names() == ["d.png"]


@pytest.mark.browser
def test_names_and_tags_are_shown_and_not_obeyed(page):
    p = page([rf.ok(n, n, ward=n, unhealthy=0.5) for n in NAMES], top=0, extra=["ward"])
    assert p.names() == NAMES
    for name in NAMES:
        assert p.facts()["ward"] == p.facts()["path"] == name
        p.press("j")
    assert p("return window.obeyed") is None
    assert p("return [...document.querySelectorAll('img, script')].map(e => e.tagName)") == [
        *["SCRIPT"] * 3  # data, pictures and the page's own
    ]


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
