"""``gptladder grade`` on submissions that are right, wrong, borrowed, and that do everything to harm the others."""

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from gptladder.ladder.candidate.isolation import probe
from gptladder.ladder.grading.command import grade

RIGHT = """
import torch, torch.nn as nn
{before}

class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, x):
        {within}
        pre = x @ self.W_in + self.b_in
        post = 0.5 * pre * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (pre + 0.044715 * pre ** 3)))
        return post @ self.W_out + self.b_out
"""

HARMFUL = {
    "hangs": "while True: pass",
    "exits": "import os; os._exit(3)",
    "floods": "print('x' * 10_000_000)",
    "eats": "self.kept = [torch.ones(2**24) for _ in range(1000)]",
    "forks": "import os, time; [os.fork() or time.sleep(600) for _ in range(1000)]",
}
STATUS = {
    "hangs": ("hung",),
    "exits": ("crashed",),
    "floods": ("right",),  # what it prints is its own affair
    "eats": ("wrong", "crashed", "over a limit"),
    "forks": ("over a limit", "crashed"),
}


def submission(folder: Path, name: str, *, before: str = "", within: str = "pass") -> None:
    (folder / f"{name}.py").write_text(RIGHT.format(before=before, within=within))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_class_is_graded_whatever_its_members_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "class", tmp_path / "out"
    folder.mkdir()
    submission(folder, "right")
    submission(folder, "borrows", before="from transformers.activations import NewGELUActivation as Gelu")
    (folder / "wrong.py").write_text(RIGHT.format(before="", within="pass").replace("0.044715", "0.44715"))
    (folder / "broken.py").write_text("class MLP(:\n")
    (folder / "empty.py").write_text("x = 1\n")
    for name, within in HARMFUL.items():
        submission(folder, name, within=within)
    # A double fork with setsid, which would write to the results and to a neighbour.
    submission(
        folder,
        "forges",
        within=f"""import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for _ in range(100):
                    time.sleep(0.1)
                    for path in ({str(out / "results.csv")!r}, {str(folder / "wrong.py")!r}):
                        try:
                            open(path, "w").write("forged")
                        except OSError:
                            pass
            os._exit(0)""",
    )
    options = ["--rungs", "mlp=4", "--out", str(out), "--time-limit", "5", "--cases", "3", "--memory-mb", "1500"]
    before = (folder / "wrong.py").read_text()
    assert grade([str(folder), *options, "--gradescope"]) == 0
    assert "11 submissions, 11 of 11 graded" in capsys.readouterr().out

    rows = {row["student"]: row for row in csv.DictReader((out / "results.csv").read_text("utf-8-sig").splitlines())}
    assert len(rows) == 11
    assert (rows["right"]["status"], rows["right"]["score"]) == ("right", "4.0")
    assert (rows["wrong"]["status"], rows["wrong"]["score"]) == ("wrong", "0.0")
    assert rows["broken"]["status"] == "cannot be read"
    assert rows["empty"]["status"] == "no layer"
    for name, expected in STATUS.items():
        assert rows[name]["status"] in expected, name
    assert rows["forges"]["status"] in ("right", "over a limit")  # its processes add up until their parents end
    if "files" in probe().available:
        assert (folder / "wrong.py").read_text() == before
    assert "forged" not in (out / "results.csv").read_text("utf-8-sig").replace("forges", "")
    assert json.loads((out / "gradescope" / "right.json").read_text())["score"] == 4.0
    page = (out / "index.html").read_text()
    assert "<script" not in page
    assert "11 submissions" in page
    assert not [path for path in Path("/tmp").glob("gptladder-*") if path.stat().st_uid != os.getuid()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rungs", "attention,heads"], "--rungs names 'heads'; the rungs are embed, pos-embed"),
        (["--rungs", "mlp,mlp"], "names mlp twice"),
        (["--rungs", "mlp=none"], "gives mlp 'none' points"),
        (["--rungs", "mlp", "--cases", "0"], "--cases is 0; it must be above 0"),
    ],
)
def test_what_cannot_be_graded_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grade([str(tmp_path), *options])
    assert list(tmp_path.iterdir()) == []
