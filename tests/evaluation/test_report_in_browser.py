"""The report in a real browser: it draws, and no part of it is wider than the window, on a desk and on a phone.

The report has no scripts, so a page around it measures: the report stands in a frame of the wanted width, and the
page writes down how wide its content came out. (The window itself cannot be made as narrow as a phone everywhere.)
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from test_report import SHAPES, full
from test_report_sections import large

from qlassify.evaluation.report import render_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG_WORD = "Donaudampfschifffahrtsgesellschaftskapitaenswitwe" * 4
REPORTS = {
    "77 classes": large,
    "two classes": lambda: full(SHAPES["two classes"], LONG_WORD),
    "multi-label": lambda: full(SHAPES["multi-label"], LONG_WORD),
}
HEIGHT = 900
MEASURE = """<!DOCTYPE html><body style="margin:0">
<iframe id="f" src="report.html" style="border:0; width:{width}px; height:{height}px"></iframe>
<p id="found">nothing</p>
<script>
onload = () => {{
  const page = document.getElementById("f").contentDocument.documentElement;
  document.getElementById("found").textContent = "width " + page.scrollWidth + " height " + page.scrollHeight;
}};
</script>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")]


def browse(folder: Path, *arguments: str) -> str:
    """What the browser prints; it gets a profile of its own."""
    assert BROWSER is not None
    always = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
    command = [BROWSER, *always, f"--user-data-dir={folder / 'profile'}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=REPORTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with ``report.html``, everything that can be unfolded unfolded."""
    text = render_report(REPORTS[request.param]()).replace("<details>", "<details open>")
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(folder: Path, width: int) -> None:
    page = folder / "measure.html"
    page.write_text(MEASURE.format(width=width, height=HEIGHT), encoding="utf-8")
    found = re.search(r"width (\d+) height (\d+)", browse(folder, "--dump-dom", page.as_uri()))
    assert found is not None
    assert int(found[1]) == width
    assert int(found[2]) > HEIGHT, "an empty page is not wide either"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn(folder: Path, scheme: str) -> None:
    picture = folder / "picture.png"
    dark = "--blink-settings=preferredColorScheme=0" if scheme == "dark" else "--blink-settings=preferredColorScheme=1"
    browse(folder, f"--screenshot={picture}", f"--window-size=1280,{HEIGHT}", dark, (folder / "report.html").as_uri())
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1280, HEIGHT)
    import matplotlib.image

    paper = matplotlib.image.imread(picture)[0, 0, :3].mean()
    assert paper < 0.2 if scheme == "dark" else paper > 0.8
