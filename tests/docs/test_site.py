"""The documentation site: it builds strictly, every public name has an entry, and no page fetches anything."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gptladder.assembly
import gptladder.components
import gptladder.ladder
import gptladder.lens
import gptladder.sampling
import gptladder.tokenizer
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


PACKAGES = [
    gptladder.assembly,
    gptladder.components,
    gptladder.ladder,
    gptladder.lens,
    gptladder.sampling,
    gptladder.tokenizer,
    gptladder.weights,
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__.split(".")[-1])
def test_every_public_name_has_an_entry(site: Path, package: ModuleType) -> None:
    page = (site / "api" / f"{package.__name__.split('.')[-1]}.html").read_text(encoding="utf-8")
    entries = {entry.rpartition(".")[2] for entry in re.findall(r'id="(gptladder[\w.]+)"', page)}
    missing = {name for name in package.__all__ if name not in entries}
    assert missing <= {"TypeCheckError"}  # jaxtyping's own


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__.split(".")[-1])
def test_every_public_class_and_function_has_an_example_on_its_page(site: Path, package: ModuleType) -> None:
    page = (site / "api" / f"{package.__name__.split('.')[-1]}.html").read_text(encoding="utf-8")
    assert "&gt;&gt;&gt;" in page


def test_training_has_its_function_and_its_options(site: Path) -> None:
    page = (site / "api" / "training.html").read_text(encoding="utf-8")
    for name in ("run.train", "presets.TrainConfig", "presets.OptimConfig", "data.config.DataConfig"):
        assert f'id="gptladder.training.{name}"' in page, name


def test_each_notebook_has_a_page_with_its_outputs(site: Path) -> None:
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = (site / f"tutorial-{notebook.stem}.html").read_text(encoding="utf-8")
        pictures = sum(
            "image/png" in output.get("data", {})
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            for output in cell.get("outputs", [])
        )
        assert page.count(f'src="{notebook.stem}-') + page.count(f"src={notebook.stem}-") == pictures


@pytest.mark.parametrize("user", ["students", "researchers", "engineers", "your-own-text"])
def test_each_user_has_a_page_that_leads_to_a_tutorial(site: Path, user: str) -> None:
    assert re.search(r"href=\"?tutorial-\w+\.html", (site / f"for-{user}.html").read_text(encoding="utf-8"))


def test_every_picture_of_a_page_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for target in re.findall(r"<img[^>]*\ssrc=\"?([^\s\">]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


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
