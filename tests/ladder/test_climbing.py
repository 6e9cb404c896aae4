"""Climbing: in the ladder's order, as far as the first layer that is wrong; what is said of it, in every form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptladder.cli import main
from gptladder.ladder import climb
from gptladder.ladder.candidate.source import find
from gptladder.ladder.report import terminal as report

LAYERS = Path(__file__).parent / "layers"
Embed, Attention, MLP, Unembed = (
    find(f"{LAYERS / 'arena.py'}:{name}")[0] for name in ("Embed", "Attention", "MLP", "Unembed")
)


class Unscaled(Attention):
    def forward(self, x):
        return super().forward(x * 1.0)

    def apply_causal_mask(self, scores):
        return super().apply_causal_mask(scores * self.cfg.d_head**0.5)


def test_it_goes_by_the_ladders_order_as_far_as_the_first_that_is_wrong():
    said = []
    climbed = climb(
        unembed=Unembed,
        attention=Unscaled,
        embed=Embed,
        cases=5,
        on_start=said.append,
        on_end=lambda tried: said.append(tried.passed),
    )
    assert said == ["embed", True, "attention", False]
    assert [(each.rung, each.layer, each.passed) for each in climbed.rungs] == [
        ("embed", "Embed", True),
        ("attention", "Unscaled", False),
    ]
    found = climbed.rungs[-1]
    assert found.diagnosis.mistakes == ("no 1/sqrt(d_head)",)
    assert found.smallest == found.diagnosis.smallest
    text = str(climbed)
    assert max(map(len, text.splitlines())) <= 80
    assert "attention: Unscaled is wrong: the output is off by" in text
    assert "The mistake: no 1/sqrt(d_head)." in text
    with pytest.raises(AssertionError, match="no 1/sqrt"):
        climbed.raise_if_failed()
    plain = json.loads(json.dumps(climbed.as_json(), allow_nan=False))
    assert plain["passed"] is False
    assert [each["mistakes"] for each in plain["rungs"]] == [[], ["no 1/sqrt(d_head)"]]
    assert plain["rungs"][1]["fault"]["kind"] == "output"


def test_what_is_not_finite_is_none_for_a_program():
    class Nothing(MLP):
        def forward(self, x):
            return super().forward(x) * float("nan")

    plain = json.loads(json.dumps(climb(mlp=Nothing, cases=1).as_json(), allow_nan=False))
    assert plain["rungs"][0]["verdict"]["float64"] is None


def test_a_climb_of_nothing_has_not_passed():
    assert not report.Climb().passed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "no layer was given"),
        ({"mlp": MLP, "cases": 0}, "cases is 0; at least 1"),
        ({"mlp": MLP, "time_limit": 0}, "time_limit is 0; it is a number of seconds above 0"),
        ({"mlp": "mlp.py:MLP"}, "there is no file mlp.py"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_is_loaded(arguments, told):
    with pytest.raises(ValueError, match=told):
        climb(**arguments)


def test_the_command_shows_the_lines_and_exits_by_the_outcome(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
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
    assert lines[0] == "layer       float64 gradient    limit  float32    limit"
    assert lines[1] == "embed             0        0    1e-12        0    4e-06  passed"
    assert lines[2].startswith("mlp ")
    assert lines[2].endswith("  FAILED")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("The layers printed ") and line.endswith(" MB. It begins:") for line in lines)
    assert "mlp: mine.py:MLP is wrong: the output is off by" in "\n".join(lines)
    assert lines[-1] == "Written: report.html"
    assert "mine.py:MLP" in Path("report.html").read_text()

    assert main(["climb", "--embed", "mine.py:Embed", "--cases", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rungs"][0]["layer"] == "mine.py:Embed"

    assert main(["climb"]) == 1
    assert capsys.readouterr().err.startswith("gptladder climb: no layer was given")
    assert main(["climb", "--embed", "absent.py:Embed"]) == 1
    assert capsys.readouterr().err == "gptladder climb: there is no file absent.py\n"


def test_make_tries_a_layer_of_ones_own_on_every_rung():
    root = Path(__file__).parents[2]
    for rung in ("pos-embed", "attention"):
        command = ["make", "--dry-run", "--no-print-directory", "VENV=/venv", f"test-{rung}", "IMPL=mine.py:Mine"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].strip() == f"/venv/bin/gptladder climb --{rung} 'mine.py:Mine'"


def test_the_references_are_loaded_only_when_something_is_compared():
    code = "import sys, gptladder.ladder; print(sys.modules.keys() & {'transformer_lens', 'transformers'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
