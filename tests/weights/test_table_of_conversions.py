"""The square table of docs/weights.md: from each format to each, as measured here."""

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from gptladder import GPT2, GPT2Config
from gptladder.ladder.answers import randomize
from gptladder.weights import (
    WeightsError,
    fold,
    from_bridge,
    from_hf,
    from_hooked_transformer,
    from_nanogpt,
    from_pretrained,
    to_bridge_state_dict,
    to_hf,
    to_hooked_state_dict,
)
from gptladder.weights.convert import Target, convert
from gptladder.weights.files.write import write_folder
from gptladder.weights.layout import from_ours, to_ours
from gptladder.weights.sources import config_to_ours

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
BEGIN, END = "<!-- measured by tests/weights/test_table_of_conversions.py -->\n", "<!-- end -->"

# Of log-probabilities, in float64: the error that the page gives, and that none may exceed.
BOUND = 1e-13


def on_disk(model: GPT2, to: Target) -> GPT2:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "source", config_to_ours(model.config), model.state_dict())
        out = folder / ("ckpt.pt" if to == "nanogpt" else "out")
        convert(folder / "source", out, to=to)
        return from_nanogpt(out) if to == "nanogpt" else from_pretrained(out)


def in_tensorflow(model: GPT2) -> GPT2:
    """By the table of names and layouts alone; with the real package: test_tensorflow.py."""
    again = GPT2(model.config, dtype=torch.float64).eval()
    theirs = dict(from_ours("tensorflow", model.config, model.state_dict()))
    again.load_state_dict(to_ours("tensorflow", model.config, theirs))
    return again


# A model, put into the format and taken out of it.
FORMATS: dict[str, Callable[[GPT2], GPT2]] = {
    "hf": lambda model: from_hf(to_hf(model)),
    "hooked, raw": lambda model: from_hooked_transformer(to_hooked_state_dict(model), model.config),
    "hooked, processed": fold,
    "bridge": lambda model: from_bridge(to_bridge_state_dict(model, conv1d=True), model.config),
    "ours": lambda model: on_disk(model, "ours"),
    "nanogpt": lambda model: on_disk(model, "nanogpt"),
    "tensorflow": in_tensorflow,
}
NOT_WRITTEN = "refused: only read"
NOT_UNDONE = "refused: processing cannot be undone"


@cache
def raw() -> GPT2:
    model = GPT2(GPT2Config(d_model=12, n_layers=2, n_heads=3, d_vocab=31, n_ctx=9, act_fn="gelu"), dtype=torch.float64)
    randomize(model, torch.Generator().manual_seed(0))
    return model.eval()


def source(name: str) -> GPT2:
    """What the format hands over: processed weights as they are, the others with the raw numbers."""
    return FORMATS[name](raw())


@torch.no_grad()
def log_probs(model: GPT2) -> torch.Tensor:
    tokens = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(1))
    return model(tokens).log_softmax(-1)


def same_weights(a: GPT2, b: GPT2) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def measured(here: str, there: str) -> str:
    """One cell."""
    if there == "tensorflow":
        return NOT_WRITTEN
    model = source(here)
    if here == "hooked, processed" and there in ("hooked, raw", "hooked, processed"):
        # The same format; whether the numbers in it are raw is not the format's to say.
        again = FORMATS["hooked, raw"](model)
        assert same_weights(again, model)
        return NOT_UNDONE if there == "hooked, raw" else "bit-exact"
    try:
        again = FORMATS[there](model)
    except WeightsError as error:
        return f"refused: {str(error).rpartition('which ')[2]}"
    if same_weights(again, model):
        return "bit-exact"
    error = (log_probs(again) - log_probs(model)).abs().max().item()
    assert 0 < error < BOUND
    return f"function-exact, {BOUND:.0e}"


def table() -> str:
    lines = [f"| from \\ to | {' | '.join(FORMATS)} |", "|---" * (len(FORMATS) + 1) + "|"]
    lines += [f"| {here} | {' | '.join(measured(here, there) for there in FORMATS)} |" for here in FORMATS]
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table_as_measured() -> None:
    """GPTLADDER_WRITE_DOCS=1 writes it there."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    new = table()
    if os.environ.get("GPTLADDER_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    elif old != new:
        pytest.fail(f"docs/weights.md is out of date; GPTLADDER_WRITE_DOCS=1 writes it anew:\n{new}")
    assert all(cell.strip() for line in new.splitlines() for cell in line.strip("|").split("|"))


def test_a_chain_of_formats_that_hold_the_same_numbers_changes_no_bit() -> None:
    model, names = raw(), [name for name in FORMATS if name != "hooked, processed"]
    for _ in range(3):
        for name in random.Random(0).sample(names, len(names)):
            model = FORMATS[name](model)
    assert same_weights(model, raw())
