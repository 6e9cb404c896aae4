"""A layer that keeps something from one call to the next: the line that keeps it."""

from pathlib import Path

import pytest

from gptladder.ladder import climb
from gptladder.ladder.results import Finding, Tried

_FILE = """import math
import torch
from torch import nn


class Memory:
    def __init__(self):
        self.last = None


class Attention(nn.Module):
    count = 0

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.register_buffer("tril", torch.ones(config.block_size, config.block_size).tril())
        self.cache = None
        self.memory = Memory()
        self.calls = 0

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).chunk(3, -1))
        mask = torch.ones(T, T).tril()
        KEEPS
        scores = q @ k.mT / math.sqrt(C // self.n_head)
        weights = scores.masked_fill(mask == 0, -math.inf).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        return self.c_proj(out)
"""
# What forward keeps; the first line with a comment is that which is to be found.
_KEEPS = {
    "a tensor": """
        if self.cache is not None and self.cache.shape == v.shape:
            v = self.cache
        self.cache = v  # here""",
    "two tensors": """
        if self.cache is not None and len(self.cache[0]) == B:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.cache, (k, v)))
            mask = torch.ones(T, k.shape[2]).tril(k.shape[2] - T)
        self.cache = k, v  # here""",
    "a counter": """
        v = v * (1 + self.calls)
        self.calls += 1  # here""",
    "a mask": """
        if self.cache is None:
            self.cache = mask  # here
        mask = self.cache""",
    "in an object": """
        if self.memory.last is not None and self.memory.last.shape == k.shape:
            k = self.memory.last
        self.memory.last = k  # here""",
    "in a buffer": """
        mask = mask * self.tril[:T, :T]
        self.tril[:, 1:] = 0  # here""",
    "a new attribute": """
        q = q + getattr(self, "before", 0.0)
        self.before = float(x.sum())  # here""",
}


_DEFAULT = """
        v = v + (seen[-1] if seen else 0.0)
        seen.append(1.0)"""


def _written(tmp_path: Path, keeps: str) -> tuple[str, str]:
    source = _FILE.replace("\n        KEEPS", keeps)
    (tmp_path / "mine.py").write_text(source)
    line = next((i for i, each in enumerate(source.splitlines(), 1) if "# here" in each), 0)
    return str(tmp_path / "mine.py"), f"mine.py:{line}"


def _tried(source: str) -> Tried:
    return climb(source, cases=3).rungs[0]


def _found(tried: Tried) -> Finding:
    assert tried.diagnosis is not None
    assert tried.diagnosis.finding is not None
    return tried.diagnosis.finding


@pytest.mark.parametrize("what", _KEEPS)
def test_line_that_keeps_something_is_found(what: str, tmp_path: Path) -> None:
    file, line = _written(tmp_path, _KEEPS[what])
    tried = _tried(file)
    assert tried.fault is not None
    assert tried.fault.kind == "state"
    assert str(_found(tried).at).endswith(line)
    assert "before the first call, the second call is right" in str(tried)


def test_every_block_keeps_its_own_and_one_line_is_shown(tmp_path: Path) -> None:
    file, line = _written(tmp_path, _KEEPS["a tensor"])
    norms = "self.ln_1 = nn.LayerNorm(config.n_embd); self.ln_2 = nn.LayerNorm(config.n_embd)"
    mlp = (
        "self.fc = nn.Linear(config.n_embd, 4 * config.n_embd); self.proj = nn.Linear(4 * config.n_embd, config.n_embd)"
    )
    block = f"""

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        {norms}
        self.attn = Attention(config)
        {mlp}

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.proj(nn.functional.gelu(self.fc(self.ln_2(x)), approximate="tanh"))
"""
    Path(file).write_text(Path(file).read_text() + block)
    found = _found(_tried(f"{file}:Block"))
    assert str(found.at).endswith(line)
    assert found.wrong == "`self.cache`, which goes from one call into the next"


def test_no_line_keeps_what_cannot_be_put_back(tmp_path: Path) -> None:
    file, _ = _written(tmp_path, _DEFAULT)
    Path(file).write_text(Path(file).read_text().replace("def forward(self, x)", "def forward(self, x, seen=[])"))
    tried = _tried(file)
    assert tried.fault is not None
    assert "the second call is right" not in str(tried)


def test_what_changes_and_makes_no_difference_is_not_blamed(tmp_path: Path) -> None:
    file, line = _written(tmp_path, _KEEPS["a tensor"] + "\n        self.calls += 1")
    found = _found(_tried(file))
    assert found.wrong == "`self.cache`, which goes from one call into the next"
    assert str(found.at).endswith(line)
