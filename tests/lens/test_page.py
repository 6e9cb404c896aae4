"""The page of ``gptladder look``: its numbers are the model's, hostile tokens do no harm, and a browser draws it."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from gptladder import GPT2
from gptladder.lens import Look, direct_logit_attribution, logit_lens, look
from gptladder.tokenizer import BPETokenizer

TEXT = "one two one</script>"


@pytest.fixture
def made(text_model: GPT2, reader: BPETokenizer) -> Look:
    return look(text_model, TEXT, tokenizer=reader, name="mine")


def test_surprise_and_next_tokens_are_the_models(text_model: GPT2, made: Look) -> None:
    log_probs = text_model(made.prompt.tokens)[0].double().log_softmax(-1).detach()
    tokens = made.prompt.tokens[0].tolist()
    assert made.data["surprise"][0] is None
    for i in range(1, len(tokens)):
        assert made.data["surprise"][i] == pytest.approx(-log_probs[i - 1, tokens[i]].item(), abs=1e-3)
    for position, best in enumerate(made.data["top"]):
        assert best[0][1] == pytest.approx(log_probs[position].max().exp().item(), abs=1e-5)
        assert len(best) == 10
    assert made.data["following"][:-1] == list(TEXT[1:])


def test_patterns_come_back_from_their_bytes(text_model: GPT2, made: Look) -> None:
    n = len(TEXT)
    packed = torch.frombuffer(bytearray(base64.b64decode(made.data["patterns"])), dtype=torch.uint8)
    packed = packed.view(4, n * (n + 1) // 2)
    _, cache = text_model.run_with_cache(made.prompt.tokens)
    for head in range(4):
        pattern = cache["pattern", head // 2][0, head % 2]
        rows = [packed[head, q * (q + 1) // 2 : q * (q + 1) // 2 + q + 1].double() / 255 for q in range(n)]
        for query, row in enumerate(rows):
            assert (row.square() - pattern[query, : query + 1]).abs().max() < 0.005


def test_the_lens_and_the_parts_are_those_of_the_functions(text_model: GPT2, made: Look) -> None:
    logits = logit_lens(text_model, made.prompt.tokens).values
    for row, stage in zip(made.data["lens"], logits, strict=True):
        assert row["prob"] == pytest.approx(stage.double().softmax(-1).amax(-1).tolist(), abs=1e-3)
    last = len(TEXT) - 1
    answer = int(logits[-1, last].argmax())
    alone = direct_logit_attribution(text_model, made.prompt.tokens, answer).values[:, last]
    mean = torch.stack(
        [direct_logit_attribution(text_model, made.prompt.tokens, token).values[:, last] for token in range(257)]
    ).mean(0)
    found = [part[last] for part in made.data["parts"].values()]
    assert found == pytest.approx((alone - mean).tolist(), abs=2e-3)


def test_hostile_text_does_not_leave_its_place(made: Look, tmp_path: Path) -> None:
    page = made.html(tmp_path / "page.html")
    assert page.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["tokens"] == list(TEXT)
    assert "http" not in page.replace("http-equiv", "")


def test_a_notebook_and_a_terminal_show_it(made: Look) -> None:
    assert 'sandbox="allow-scripts"' in made._repr_html_()
    assert "20 tokens by mine" in repr(made)


def test_one_token_is_enough(text_model: GPT2) -> None:
    page = look(text_model, [65])
    assert page.data["surprise"] == [None]
    assert "1 tokens by this model" in repr(page)


def test_a_text_whose_page_would_be_slow_to_open_is_refused(monkeypatch: pytest.MonkeyPatch, text_model: GPT2) -> None:
    monkeypatch.setattr("gptladder.lens.page._LARGEST_PAGE", 3000)
    assert len(look(text_model, [65] * 32).data["patterns"]) == 2816
    with pytest.raises(ValueError, match=r"34 tokens in 2 layers of 2 heads .* 0 MB.* give at most 33 tokens.*--large"):
        look(text_model, [65] * 34)
    assert len(look(text_model, [65] * 34, large=True).data["patterns"]) == 3176


def test_numbers_that_are_not_finite_are_refused(text_model: GPT2) -> None:
    with torch.no_grad():
        text_model.embed.W_E[65] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        look(text_model, [65, 66])


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(browser() is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "flags"), [(1200, []), (390, ["--blink-settings=preferredColorScheme=0"])])
def test_a_browser_draws_it(made: Look, tmp_path: Path, width: int, flags: list[str]) -> None:
    made.html(tmp_path / "page.html")
    command: list[Any] = [
        browser(),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--window-size={width},1600", "--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0", *flags),
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr  # an error or a refused request would stand there
    drawn = done.stdout
    assert drawn.count("<canvas") == 5  # four heads, and the chosen one
    assert drawn.count("<tr>") == 1 + 5 + 1 + 2  # the lens and its head, the parts and theirs
    assert re.search(r'attends to "[^"]*"', drawn)
