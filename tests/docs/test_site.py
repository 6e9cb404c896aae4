"""The documentation site: it builds strictly, every public name has an entry, and no page fetches anything."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptladder.components
import gptladder.sampling
import gptladder.weights

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings_handlers") is None,
    reason="the extra [docs] is not installed",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In a copy: tests that run at the same time must not share build/.
    copy = tmp_path_factory.mktemp("checkout") / "gptladder"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    for command in (["docs/site/gather.py"], ["-m", "mkdocs", "build", "--strict", "--quiet"]):
        done = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site" / "html"


@pytest.mark.parametrize("package", [gptladder.components, gptladder.sampling, gptladder.weights])
def test_every_public_name_has_an_entry(site: Path, package: object) -> None:
    name = package.__name__  # pyright: ignore[reportAttributeAccessIssue]
    page = (site / "api" / f"{name.split('.')[-1]}.html").read_text(encoding="utf-8")
    public = package.__all__  # pyright: ignore[reportAttributeAccessIssue]
    entries = set(re.findall(r'id="(gptladder[\w.]+)"', page))
    missing = {each for each in public if f"{name}.{each}" not in entries}
    # The error is jaxtyping's own; the module named stream hides the function from the site's reader.
    assert missing <= {"TypeCheckError", "stream"}


def test_axes_are_shown_without_the_sizes_of_the_check(site: Path) -> None:
    page = (site / "api" / "components.html").read_text(encoding="utf-8")
    assert "batch query_pos d_model" in re.sub("<[^>]*>", "", page)
    assert "{self." not in page


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 14
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:[^\s\">]+)", text)
        fetched += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preload|icon)[^>]*href=\"?(https?:[^\s\">]+)", text)
        assert not fetched, page.name


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for target in re.findall(r'href="?([^\s">#]+\.html)', page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:", "/")):
                assert (page.parent / target).resolve().exists(), f"{page.name} -> {target}"
