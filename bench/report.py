"""How long the page of ``comit report`` takes to open in Chromium and to answer a key."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from comit.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SWITCHES = (
    "headless",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1280,800",
)
# A key, and the time since navigation began once the frame that shows its effect is painted.
PRESS = """
const [key, done] = arguments, pressed = performance.now();
dispatchEvent(new KeyboardEvent("keydown", {key}));
requestAnimationFrame(() => requestAnimationFrame(() => done([pressed, performance.now()])));
"""


@dataclass(frozen=True)
class Opening:
    """One opening of a page by a browser that had nothing in memory of it."""

    rows: int
    megabytes: float
    ready_s: float  # from navigation to the end of the page's script
    interactive_s: float  # from navigation to the painted answer to the first key
    end_key_ms: float  # from the key End to the painted last row


def measure(results: Path, images: Path | None, rows: int, top: int, repeat: int) -> list[Opening]:
    """Opens a report of ``rows`` rows, those of ``results`` in turn, ``repeat`` times.

    Rows again have paths and UIDs of their own and half the score, so pictures are of the first
    ones. Raises UsageError, MissingExtra without selenium.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from comit.look.report import write_report
    from comit.results import SCORES, UIDS, read

    table = read(results)
    if not len(table):
        raise UsageError(f"{results} has no rows")
    many = table.take(list(islice(cycle(range(len(table))), rows)))
    ids = pa.array([f"{i:032}" for i in range(rows)])
    again = pa.array([i >= len(table) for i in range(rows)])
    changed = {
        "row_id": ids,
        "path": pc.if_else(
            again, pc.binary_join_element_wise(ids, many["path"], "/"), many["path"]
        ),
        **{
            n: pc.if_else(again, pc.multiply(many[n], pa.scalar(0.5, "float32")), many[n])
            for n in SCORES
        },
        **{
            n: pc.if_else(again, pc.binary_join_element_wise(many[n], ids, "."), many[n])
            for n in UIDS
        },
    }
    for name, column in changed.items():
        many = many.set_column(many.schema.get_field_index(name), name, column)
    found = []
    with tempfile.TemporaryDirectory(prefix="comit-bench-") as folder:
        file, page = Path(folder) / "many.parquet", Path(folder) / "report.html"
        pq.write_table(many, file)
        write_report(file, images, page, top=top)
        for number in range(repeat):
            browser = chromium(Path(folder) / f"profile{number}")
            try:
                browser.get(page.as_uri())
                ready = browser.execute_script("return document.documentElement.dataset.ready")
                _, shown = browser.execute_async_script(PRESS, "j")
                pressed, ended = browser.execute_async_script(PRESS, "End")
            finally:
                browser.quit()
            size = page.stat().st_size / 1e6
            times = float(ready) / 1000, shown / 1000, ended - pressed
            found.append(Opening(rows, round(size, 1), *(round(t, 3) for t in times)))
    return found


def chromium(profile: Path) -> Chrome:
    """Chromium without a window, with a profile of its own, through its own chromedriver.

    Raises MissingExtra without selenium, UsageError without either program.
    """
    try:
        from selenium import webdriver
    except ImportError as error:
        raise MissingExtra("opening a page", "test") from error
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise UsageError("opening a page needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (*SWITCHES, f"user-data-dir={profile}"):
        options.add_argument(f"--{switch}")
    if os.geteuid() == 0:  # Chromium's sandbox does not run as root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))
