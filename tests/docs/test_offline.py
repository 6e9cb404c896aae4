"""The pages that the project makes ask no other host for anything: a browser opens them and logs what it requests."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.lens import logit_lens, look

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def requested(page: Path, folder: Path) -> set[str]:
    """Open a page with every host unknown, and return the addresses that were asked for."""
    log = folder / "net.json"
    subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *(
                "--disable-component-update",
                "--disable-sync",
                "--disable-domain-reliability",
                "--no-default-browser-check",
            ),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"),
            *("--virtual-time-budget=2000", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    # What the browser itself asks for (its updates) has no page as its initiator.
    started = [event.get("params", {}) for event in events]
    addresses = {each.get("url", "") for each in started if each.get("initiator", "not an origin") != "not an origin"}
    return {address for address in addresses if address.startswith(("http:", "https:", "ws:", "wss:"))}


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(d_model=16, n_layers=2, n_heads=2, d_vocab=257, n_ctx=64)).eval()


def test_the_log_shows_a_request(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="https://example.org/x.png">')
    assert requested(page, tmp_path) == {"https://example.org/x.png"}


def test_the_page_of_look_requests_nothing(model: GPT2, tmp_path: Path) -> None:
    look(model, [72, 105, 33]).html(tmp_path / "look.html")
    assert requested(tmp_path / "look.html", tmp_path) == set()


def test_a_heat_map_requests_nothing(model: GPT2, tmp_path: Path) -> None:
    logit_lens(model, [72, 105, 33]).html(tmp_path / "lens.html")
    assert requested(tmp_path / "lens.html", tmp_path) == set()
