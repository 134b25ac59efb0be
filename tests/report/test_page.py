"""report.html as Chromium shows it: on a phone, on a desk, in the dark, and where a link leads."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.plots import png
from core.plots.figure import Points, Series
from core.report import document
from core.report.page import page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONG = "x" * 200
MEASURE = """<script>onload=()=>setTimeout(()=>{
const one=s=>document.querySelector(s),image=one("img"),closed=one("details"),open=closed.open;
const sideways=document.documentElement.scrollWidth-document.documentElement.clientWidth;
location.hash=one("nav a:last-child[href='#all-of-it']").hash;
setTimeout(()=>parent.postMessage(JSON.stringify({sideways,open,opened:closed.open,
drawn:[image.naturalWidth,image.naturalHeight],shown:image.clientWidth,
text:+getComputedStyle(one("p")).fontSize.slice(0,-2),
back:getComputedStyle(document.body).backgroundColor}),"*"),50)},50)</script>"""
FRAME = """<body style="margin:0"><pre id="said"></pre>
<script>onmessage=e=>said.textContent=e.data</script>
<iframe src="report.html" style="border:0;width:{width}px;height:800px"></iframe>"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with one section to open, a wide table, a word that no line holds, a figure."""
    made = tmp_path_factory.mktemp("page")
    points = Points("a", ("1", "2"), np.array([1.0, 2]), np.array([1.0, 2]), np.zeros(2, np.bool_))
    drawn = Series("A title", "x", "y", (points,), note="a note")
    png.write(drawn, made / "wide.png")
    parts = [
        document.heading("Report", 1),
        document.text(f"A word: {LONG}"),
        document.heading("Results"),
        document.table([f"column {i}" for i in range(30)], [["a value"] * 30]),
        document.picture("wide.png", "A title"),
        document.heading("All of it"),
        document.text("In detail."),
    ]
    narrow = {"wide.png": png.narrow([drawn])}
    text = page("report", document.markdown(parts), made, ["All of it"], narrow)
    (made / "report.html").write_text(text.replace("</body>", f"{MEASURE}</body>"))
    return made


def seen(folder: Path, width: int, *more: str) -> dict[str, Any]:
    """What the page measures of itself in a frame of so many pixels."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            *more,
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert said, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(said[1]))
    return found


def test_on_a_phone_nothing_is_wider_than_it_and_figures_are_drawn_for_it(folder: Path) -> None:
    phone = seen(folder, 390)
    assert phone["sideways"] == 0
    assert phone["drawn"] == [round(png.NARROW[0] * png.NARROW_DPI), 608]
    assert 340 <= phone["shown"] <= 390
    ticks_px = 10 / 72 * phone["shown"] / png.NARROW[0]  # 10 points: matplotlib's own size
    assert ticks_px >= 11
    assert phone["text"] == 16


def test_on_a_desk_figures_are_large_and_a_link_opens_a_closed_section(folder: Path) -> None:
    desk = seen(folder, 1200)
    assert desk["sideways"] == 0
    assert desk["drawn"] == [960, 648]
    assert (desk["open"], desk["opened"]) == (False, True)
    assert desk["back"] == "rgb(255, 255, 255)"


def test_in_the_dark_the_page_is_dark(folder: Path) -> None:
    assert seen(folder, 390, "--blink-settings=preferredColorScheme=0")["back"] == "rgb(15, 19, 23)"
