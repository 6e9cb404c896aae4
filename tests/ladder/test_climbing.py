"""Climbing: layers found in a file and tried in order, as far as the first that is wrong; the forms of the report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from rich.text import Text
from torch import Tensor

from gptladder.cli import main
from gptladder.ladder import Climb, climb
from gptladder.ladder.candidate.source import load
from gptladder.ladder.report.terminal import climb_head, climb_line, climb_text

LAYERS = Path(__file__).parent / "layers"
Embed, Attention, MLP, Unembed = (
    cast(Any, load(LAYERS / "arena.py", [name]).get(name, "arena.py"))
    for name in ("Embed", "Attention", "MLP", "Unembed")
)


class Unscaled(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 1.0)

    def apply_causal_mask(self, scores: Tensor) -> Tensor:
        return super().apply_causal_mask(scores * self.cfg.d_head**0.5)


def test_it_goes_by_the_ladders_order_as_far_as_the_first_that_is_wrong() -> None:
    seen: list[object] = []
    climbed = climb(
        unembed=Unembed,
        attention=Unscaled,
        embed=Embed,
        cases=5,
        on_start=seen.append,
        on_end=lambda tried: seen.append(tried.passed),
    )
    assert seen == ["embed", True, "attention", False]
    assert [(each.rung, each.layer, each.status) for each in climbed.rungs] == [
        ("embed", "Embed", "passed"),
        ("attention", "Unscaled", "failed"),
    ]
    found = climbed.rungs[-1]
    assert found.mistakes == ("no 1/sqrt(d_head)",)
    assert found.smallest == {"batch": 1, "seq": 2, "d_model": 2, "n_heads": 1, "d_head": 2}
    text = climb_text(climbed)
    assert max(map(len, text.splitlines())) <= 80
    assert "attention: Unscaled is wrong: the output is off by" in text
    assert "The mistake: no 1/sqrt(d_head)." in text
    with pytest.raises(AssertionError) as caught:
        climbed.raise_if_failed()
    # pytest's summary shows the first line: it is the verdict.
    assert str(caught.value).startswith("attention: Unscaled is wrong: no 1/sqrt(d_head) (")
    plain = json.loads(json.dumps(climbed.as_json(), allow_nan=False))
    assert (plain["status"], plain["passed"]) == ("failed", False)
    assert [each["mistakes"] for each in plain["rungs"]] == [[], ["no 1/sqrt(d_head)"]]
    assert plain["rungs"][0].keys() == plain["rungs"][1].keys()


def test_the_table_and_the_text_give_the_same_number() -> None:
    climbed = climb(attention=Unscaled, cases=5)
    number = f"{climbed.rungs[0].off:.1e}"
    text = climb_text(climbed)
    assert text.splitlines()[1].split() == ["attention", number, "FAILED"]
    assert f"the output is off by {number}," in text.replace("\n", " ")
    assert len(climb_head(verbose=True).split()) == 6
    assert len(Text.from_markup(climb_line(climbed.rungs[0], verbose=True)).plain.split()) == 7


def test_a_hint_gives_away_as_much_as_it_is_asked_for() -> None:
    found = climb(attention=Unscaled, cases=3).rungs[0]
    where, what, fix = (found.text(hint) for hint in ("where", "what", "fix"))
    assert "Look at " in where
    assert "The attention scores are not scaled." not in where
    assert "no 1/sqrt(d_head)" not in where
    assert "The attention scores are not scaled." in what
    assert "Divide q·k by sqrt(d_head)" not in what
    assert "Divide q·k by sqrt(d_head)" in fix


def test_the_old_name_of_layer_norm_goes_on_working(capsys: pytest.CaptureFixture[str]) -> None:
    source = f"{LAYERS / 'arena.py'}:LayerNorm"
    assert [each.rung for each in climb(layernorm=source, cases=1).rungs] == ["layer-norm"]
    assert main(["climb", "--layernorm", source, "--cases", "1"]) == 0
    assert "layer-norm " in capsys.readouterr().out


def test_what_is_not_finite_is_none_for_a_program() -> None:
    class Nothing(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    plain = json.loads(json.dumps(climb(mlp=Nothing, cases=1).as_json(), allow_nan=False))
    assert plain["rungs"][0]["verdict"]["float64"] is None


def test_a_climb_of_nothing_has_not_passed() -> None:
    assert not Climb().passed
    assert Climb(refused="no file").as_json()["error"] == "no file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no layer was given"),
        ({"mlp": MLP, "cases": 0}, "cases is 0; at least 1"),
        ({"mlp": MLP, "time_limit": 0}, "time_limit is 0; it is a number of seconds above 0"),
        ({"mlp": MLP, "hint": "all"}, "hint is 'all'; it can be where, what or fix"),
        ({"mlp": "mlp.py:MLP"}, "there is no file mlp.py"),
    ],
)
def test_what_it_cannot_do_is_reported_before_anything_is_tried(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        climb(**arguments)


# ---- a whole file ---------------------------------------------------------------------------------------------------

WILD = """
import torch, wandb, no_such_module
import torch.nn as nn
from torch.nn import functional as F

batch_size = 64
block_size = 256
n_embd = 384
n_head = 6
dropout = 0.2
torch.manual_seed(1337)
text = open("input.txt").read()
vocab_size = len(set(text))

class Head(nn.Module):
    def __init__(self, head_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=BIAS)
        self.query = nn.Linear(n_embd, head_size, bias=BIAS)
        self.value = nn.Linear(n_embd, head_size, bias=BIAS)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1]**-0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return self.dropout(F.softmax(wei, dim=-1)) @ self.value(x)

class MultiHeadAttention(nn.Module):
    def __init__(self, num_heads, head_size):
        super().__init__()
        self.heads = nn.ModuleList([Head(head_size) for _ in range(num_heads)])
        self.proj = nn.Linear(head_size * num_heads, n_embd)

    def forward(self, x):
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))

class FeedForward(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        wide = 4 * n_embd
        self.net = nn.Sequential(nn.Linear(n_embd, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, n_embd))

    def forward(self, x):
        return self.net(x)

class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.sa = MultiHeadAttention(n_head, n_embd // n_head)
        self.ffwd = FeedForward(n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))

class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head=n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets=None):
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        return logits, None

n_layer = 6
model = LanguageModel()
print(sum(p.numel() for p in model.parameters()))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_script_with_globals_climbs_without_an_adapter(here: Path) -> None:
    Path("wild.py").write_text(WILD.replace("BIAS", "True"))
    climbed = climb("wild.py", cases=3, copy_process=True)
    assert climbed.passed, str(climbed)
    assert list(climbed.taken) == ["attention", "mlp", "block", "model"]
    assert climbed.rungs[0].layer == "wild.py:MultiHeadAttention"
    assert climbed.rungs[0].reading == "heads.0.query, heads.0.key, heads.0.value are [h m], proj is [m (n h)]"
    assert any("script part was not run" in note for note in climbed.left_out)


def test_gpt2_without_biases_is_called_that_with_what_else_is_wrong(here: Path) -> None:
    Path("wild.py").write_text(WILD.replace("BIAS", "False"))
    found = climb("wild.py:MultiHeadAttention", cases=3, copy_process=True).rungs[0]
    assert found.text().startswith("b_Q, b_K, b_V are missing (GPT-2 has them); all else is right.")
    Path("wild.py").write_text(WILD.replace("BIAS", "False").replace('nn.GELU(approximate="tanh")', "nn.ReLU()"))
    found = climb(model="wild.py:LanguageModel", cases=3, copy_process=True).rungs[0]
    assert found.mistakes == ("every block's MLP: ReLU for GELU", "attn.b_Q, attn.b_K, attn.b_V missing")


def test_a_mistake_that_is_not_listed_is_explained_beside_missing_biases(here: Path) -> None:
    Path("wild.py").write_text(WILD.replace("BIAS", "False").replace("F.softmax(wei,", "F.softmax(wei / 2,"))
    found = climb("wild.py:MultiHeadAttention", cases=3, copy_process=True).rungs[0]
    assert found.mistakes == ("b_Q, b_K, b_V missing",)
    assert "gives the masked scores times 0.5." in found.text()


def test_a_layer_inside_that_lacks_biases_is_still_seen_as_one(here: Path) -> None:
    text = WILD.replace("BIAS", "False").replace("self.sa(self.ln1(x))", "self.sa(x)")
    Path("wild.py").write_text(text)
    found = climb("wild.py:Block", cases=3, copy_process=True).rungs[0]
    assert found.mistakes[0] == "ln1 not applied"
    line = 1 + next(i for i, line in enumerate(text.splitlines()) if "x + self.sa(x)" in line)
    assert found.at == f"wild.py:{line}"


def test_heads_that_are_interleaved_pass_with_a_caveat(here: Path) -> None:
    Path("odd.py").write_text(
        "from torch import nn\nimport torch.nn.functional as F\n"
        "class Attention(nn.Module):\n"
        "    def __init__(self, dim, num_heads):\n"
        "        super().__init__()\n"
        "        self.h = num_heads\n"
        "        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)\n"
        "    def forward(self, x):\n"
        "        q, k, v = (t.unflatten(-1, (-1, self.h)).permute(0, 3, 1, 2) for t in self.qkv(x).chunk(3, -1))\n"
        "        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n"
        "        return self.out(z.transpose(1, 2).flatten(2))\n"
    )
    for seed in range(6):  # also if the first case has one head
        found = climb("odd.py", cases=2, seed=seed, copy_process=True).rungs[0]
        assert found.passed, found.text()
        assert "GPT-2's weights do not fit as they are stored" in found.note


def test_a_mask_that_a_wrong_forward_takes_is_given_so_that_it_hides(here: Path) -> None:
    Path("masked.py").write_text(
        "from torch import nn\n"
        "class Attention(nn.Module):\n"
        "    def __init__(self, dim, num_heads):\n"
        "        super().__init__()\n"
        "        self.h = num_heads\n"
        "        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)\n"
        "    def forward(self, x, mask=None):\n"
        "        q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))\n"
        "        scores = q @ k.mT / q.shape[-1]\n"
        "        if mask is not None:\n"
        "            scores = scores.masked_fill(mask == 0, -1e9)\n"
        "        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))\n"
    )
    found = climb("masked.py", cases=3, copy_process=True).rungs[0]
    assert found.mistakes == ("divided by d_head, without the root",)
    assert found.note == (
        "Forward was given a causal mask (mask: ones where a query may look), so its own masking was not judged."
    )


def test_a_mask_from_outside_does_not_hide_a_wrong_mask_inside(here: Path) -> None:
    Path("masked.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Attention(nn.Module):\n"
        "    def __init__(self, dim, num_heads):\n"
        "        super().__init__()\n"
        "        self.h = num_heads\n"
        "        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)\n"
        "    def forward(self, x, attention_mask=None):\n"
        "        q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))\n"
        "        scores = q @ k.mT / q.shape[-1] ** 0.5\n"
        "        scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, -1.0)\n"
        "        if attention_mask is not None:\n"
        "            scores = scores + attention_mask\n"
        "        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))\n"
    )
    found = climb("masked.py", cases=3, copy_process=True).rungs[0]
    assert not found.passed
    assert found.mistakes == ("mask fills -1",)
    assert "its own masking" not in found.note


def test_a_width_beside_a_configuration_is_the_hidden_layers(here: Path) -> None:
    Path("mlp.py").write_text(
        "from torch import nn\n"
        "class MLP(nn.Module):\n"
        "    def __init__(self, n_state, config):\n"
        "        super().__init__()\n"
        "        self.c_fc, self.c_proj = nn.Linear(config.n_embd, n_state), nn.Linear(n_state, config.n_embd)\n"
        "        self.act = nn.GELU(approximate='tanh')\n"
        "    def forward(self, x):\n"
        "        return self.c_proj(self.act(self.c_fc(x)))\n"
    )
    climb("mlp.py", cases=2, copy_process=True).raise_if_failed()


def test_a_value_that_is_not_known_can_be_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("norm.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Norm(nn.Module):\n"
        "    def __init__(self, cfg):\n"
        "        super().__init__()\n"
        "        self.k = cfg.oddity\n"
        "        self.w, self.b = nn.Parameter(torch.ones(cfg.d_model)), nn.Parameter(torch.zeros(cfg.d_model))\n"
        "    def forward(self, x):\n"
        "        return nn.functional.layer_norm(x, x.shape[-1:], self.w, self.b, 1e-5) * self.k\n"
    )
    assert main(["climb", "--layer-norm", "norm.py:Norm", "--cases", "2"]) == 1
    assert "--set oddity=VALUE" in capsys.readouterr().out.replace("\n", " ")
    assert main(["climb", "norm.py:Norm", "--set", "oddity=1", "--cases", "2"]) == 0


def test_the_command_shows_the_lines_and_exits_by_the_outcome(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "from pathlib import Path\nimport sys\n"
        f"sys.path.insert(0, {str(LAYERS)!r})\n"
        "from arena import Embed, MLP as Right\n"
        "class MLP(Right):\n"
        "    def forward(self, x):\n"
        "        print('x' * 2_000_000)\n"
        "        return super().forward(x) + self.b_out\n"
    )
    command = ["climb", "--mlp", "mine.py:MLP", "--embed", "mine.py:Embed", "--cases", "2"]
    assert main([*command, "--html", "report.html"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layer         off by"
    assert lines[1] == "embed              0  passed"
    assert lines[2].startswith("mlp ")
    assert lines[2].endswith("  FAILED")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("The layers printed ") and line.endswith(" MB. It begins:") for line in lines)
    assert "mlp: mine.py:MLP is wrong: the output is off by" in "\n".join(lines)
    assert lines[-1] == "Written: report.html"
    whose = "<code>mine.py</code>: embed: <code>Embed</code>, mlp: <code>MLP</code>"
    assert whose in Path("report.html").read_text()

    assert main(["climb", "--embed", "mine.py:Embed", "--cases", "1", "--json"]) == 0
    right = json.loads(capsys.readouterr().out)
    assert right["rungs"][0]["layer"] == "mine.py:Embed"
    assert main(["climb", "absent.py", "--json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert refused.keys() == right.keys()
    assert refused["status"] == "refused"

    assert main(["climb"]) == 1
    assert capsys.readouterr().err.startswith("gptladder climb: no layer was given")
    assert main(["climb", "--embed", "absent.py:Embed"]) == 1
    assert capsys.readouterr().err.startswith("gptladder climb: there is no file absent.py")


def test_make_tries_a_layer_of_ones_own_on_every_rung() -> None:
    root = Path(__file__).parents[2]
    for rung, option in (("pos-embed", "pos-embed"), ("layer-norm", "layer-norm"), ("layernorm", "layernorm")):
        command = ["make", "--dry-run", "--no-print-directory", "VENV=/venv", f"test-{rung}", "IMPL=mine.py:Mine"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == f"/venv/bin/gptladder climb --{option} 'mine.py:Mine'"


def test_climbing_loads_neither_library(here: Path) -> None:
    code = (
        "import sys\nfrom gptladder.ladder import climb\n"
        f"assert climb(mlp={str(LAYERS / 'arena.py')!r} + ':MLP', cases=1).passed\n"
        "print(sys.modules.keys() & {'transformer_lens', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_transformer_lens_can_be_the_reference() -> None:
    pytest.importorskip("transformer_lens")
    found = climb(mlp=MLP, cases=2, reference="transformer-lens").rungs[0]
    assert found.passed
    assert found.verdict is not None
    assert found.verdict.reference == "TransformerLens"
