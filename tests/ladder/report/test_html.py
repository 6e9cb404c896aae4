"""The page: it reports what was found, stands alone, and a browser shows it."""

import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from gptladder.ladder.report.html import page, write_html
from gptladder.ladder.report.notebook import ShownClimb, fragment
from gptladder.ladder.results import Climb, Diagnosis, Fault, Finding, Tried, Verdict


def verdict(rung: str = "attention", float64: float = 1e-15, gradient: float = 2e-15, float32: float = 1e-7) -> Verdict:
    return Verdict(
        rung=rung,
        reference="gptladder",
        cases=25,
        float64=float64,
        float32=float32,
        gradient=gradient,
        tolerance64=1e-12,
        tolerance32=5e-6,
        worst=7,
    )


PATTERN = torch.tensor([[[1.0, 0.0], [0.25, 0.75]], [[0.5, 0.5], [math.nan, 0.125]]], dtype=torch.float64)
DIAGNOSIS = Diagnosis(
    mistakes=("causal mask <off> by one",),
    what=("Each position sees the one after it: key > query & more.",),
    fix=("Mask every key > query.",),
    finding=Finding("mine.py:3", "x <y>", ("the scores (line 2)",), "the masked scores"),
    patterns={"the right one": PATTERN, "yours, as <b>mine</b> gives it": PATTERN},
)
RIGHT = Tried("layer-norm", "mine.py:Norm", verdict("layer-norm"), notes=("It was built with eps=1e-05.",))
WRONG = Tried(
    "attention",
    "mine <script>.py:Attention",
    verdict(float64=0.4, gradient=math.inf, float32=math.nan),
    fault=Fault("output", "the output is off by 4.0e-01, where 1e-12 is allowed"),
    diagnosis=DIAGNOSIS,
    smallest={"batch": 1, "seq": 2},
    notes=("A caveat & more.",),
)


@pytest.fixture
def failed(tmp_path: Path) -> str:
    path = tmp_path / "deep" / "report.html"
    write_html(Climb([RIGHT, WRONG], left_out=("the script part was not run",)), path)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def tree(text: str) -> ElementTree.Element:
    """Parse the page as XML, so that a tag that is not closed shows."""
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def first(within: ElementTree.Element, path: str) -> ElementTree.Element:
    found = within.find(path)
    assert found is not None, path
    return found


def words(text: str) -> str:
    return re.sub(r"\s+", " ", " ".join(first(tree(text), "body").itertext()))


def test_it_reports_what_is_wrong_with_caveats_and_notes(failed: str) -> None:
    shown = words(failed)
    for each in (
        "attention: not right yet",
        "mine <script>.py:Attention",
        "causal mask <off> by one",
        "key > query & more.",
        "mine.py:3",
        "A small case that shows it: batch=1 seq=2",
        "yours, as <b>mine</b> gives it",
        "Head 1",
        "A caveat & more.",
        "It was built with eps=1e-05.",
        "the script part was not run",
    ):
        assert each in shown
    assert "Mask every" not in shown  # the fix is given only if it is asked for


def test_what_passed_is_reported_as_right() -> None:
    text = page(Climb([RIGHT]))
    assert "Right: layer-norm" in words(text)
    assert "not right" not in text


def test_what_gave_no_numbers_is_shown_by_its_fault() -> None:
    hung = Tried("mlp", "mine.py:MLP", None, fault=Fault("hang", "no end", "mine.py:3", "while <True>:"))
    text = page(Climb([hung]))
    assert "mlp: not right yet" in words(text)
    section = first(tree(text), ".//section")
    assert [each.text for each in section] == ["mlp", "No end.", "mine.py:3: while <True>:"]
    assert "How far" not in text
    assert "Nothing was tried" in words(page(Climb(refused="there is no file")))


def test_a_notebook_shows_the_verdict_the_line_and_the_patterns() -> None:
    climbed = ShownClimb([WRONG])
    found = climbed._repr_html_()
    assert found == fragment(climbed)
    assert "attention: not right yet" in found
    assert "mine.py:3" in found
    assert found.count("<figure>") == 4
    assert "\nbody {" not in found  # the rest of the notebook keeps its own style
    assert repr(climbed) == (
        "<Climb: attention: mine <script>.py:Attention is wrong: causal mask <off> by one (mine.py:3)>"
    )


def test_errors_stand_on_a_log_scale_beside_what_is_allowed(failed: str) -> None:
    marks = tree(failed).findall(".//svg[@class='chart']/g")
    assert len(marks) == 6
    at = [float(first(mark, "circle").attrib["cx"]) for mark in marks]
    limits = [float(mark.findall("line")[1].attrib["x1"]) for mark in marks]
    assert ["over" in mark.attrib["class"] for mark in marks] == [False, False, False, True, True, True]
    assert [x > limit for x, limit in zip(at, limits, strict=True)] == [False, False, False, True, True, True]
    # A factor of ten is the same distance everywhere; what is infinite or no number is at the right end.
    assert at[1] - at[0] == pytest.approx((at[2] - at[0]) / 8 * math.log10(2), abs=0.1)
    assert at[4] == at[5] > at[3]
    assert "gradients, float64: inf, at most 1e-12" in "".join(marks[4].itertext())


def test_every_weight_of_the_patterns_is_shown_impossible_ones_marked(failed: str) -> None:
    figures = tree(failed).findall(".//figure")
    assert len(figures) == 4
    shown = [[text.text for text in figure.findall(".//text")] for figure in figures]
    assert shown == [["1.00", "0", ".25", ".75"]] * 2 + [[".50", ".50", "NaN", ".12"]] * 2
    wrong = [["wrong" in cell.attrib["class"] for cell in figure.findall(".//rect")] for figure in figures]
    assert wrong == [[False] * 4] * 2 + [[False, True, True, False]] * 2


def test_it_loads_nothing_and_runs_nothing(failed: str) -> None:
    class Look(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list) -> None:
            assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base"), tag
            for name, value in attrs:
                assert name not in ("src", "href", "srcset", "action"), (tag, name)
                assert not name.startswith("on"), (tag, name)
                assert "url(" not in (value or "")
            self.found.append(tag)

    look = Look()
    look.feed(failed)
    assert {"html", "svg", "table", "section"} <= set(look.found)
    assert "http:" not in failed
    assert "https:" not in failed
    assert "@import" not in failed
    assert "url(" not in failed
    assert "default-src 'none'" in failed


def browser() -> str | None:
    """A headless browser: the one that GPTLADDER_BROWSER names, or the first that is installed."""
    named = os.environ.get("GPTLADDER_BROWSER")
    known = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
    return named or next((found for name in known if (found := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium here; GPTLADDER_BROWSER can name one")
@pytest.mark.parametrize(("width", "dark"), [(1000, False), (380, False), (1000, True)])
def test_a_browser_shows_it_in_any_width_light_and_dark(failed: str, tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "deep" / "report.html"
    # The browser itself reports the layout, through a script that the report does not have.
    probe = (
        "<script>addEventListener('load',()=>{const wide=document.documentElement.scrollWidth,"
        "seen=getComputedStyle(document.body).backgroundColor,"
        "svg=[...document.querySelectorAll('svg')].every(s=>s.getBoundingClientRect().width>60);"
        "document.body.setAttribute('data-seen',[wide<=innerWidth,seen,svg].join('|'))})</script></body>"
    )
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    look = tmp_path / "look.html"
    look.write_text(policy.sub("", page.read_text()).replace("</body>", probe))
    run = subprocess.run(
        [
            str(browser()),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1600",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            "--dump-dom",
            look.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = re.search(r'data-seen="([^"]*)"', run.stdout)
    assert seen is not None
    fits, background, drawn = seen[1].split("|")
    assert (fits, drawn) == ("true", "true")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
