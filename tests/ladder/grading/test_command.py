"""``gptladder grade`` on submissions that are right, wrong, borrowed, and that do everything to harm the others."""

import csv
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from gptladder.ladder.grading.command import grade
from gptladder.ladder.sandbox.processes import probe

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
    "eats": "self.eaten = [torch.empty(2**26) for _ in range(1000)]",
    "forks": "import os, time; [os.fork() or time.sleep(600) for _ in range(1000)]",
    "fills": "import tempfile; [open(f'{tempfile.gettempdir()}/{i}', 'wb').write(bytes(9 << 20)) for i in range(99)]",
    "stops": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "calls": "import socket; socket.create_connection(('127.0.0.1', 9), timeout=5)",
    "copies": "exec(open({right!r}).read(), globals()); return MLP.forward(self, x)",
    "fakes": """import sys
        frame = sys._getframe()
        while frame:
            if "replies" in frame.f_locals: frame.f_locals["replies"].write(bytes(4096))
            frame = frame.f_back""",
}
STATUS = {
    "hangs": ("hung",),
    "exits": ("crashed",),
    "floods": ("right",),  # a layer may print
    "eats": ("wrong", "crashed", "over a limit"),
    "forks": ("over a limit", "crashed", "hung"),  # on a busy machine the time is up first
    "fills": ("over a limit",),
    "stops": ("hung",),
    "calls": ("wrong",),
    "copies": ("wrong",),
    "fakes": ("crashed",),
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
        submission(folder, name, within=within.replace("{right!r}", repr(str(folder / "right.py"))))
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
    options = ["--rungs", "mlp=4", "--out", str(out), "--time-limit", "3", "--cases", "2", "--memory-mb", "700"]
    before = (folder / "wrong.py").read_text()
    assert grade([str(folder), *options, "--gradescope"]) == 0
    assert "16 submissions, 16 of 16 graded" in capsys.readouterr().out

    rows = {row["student"]: row for row in csv.DictReader((out / "results.csv").read_text("utf-8-sig").splitlines())}
    assert len(rows) == 16
    assert (rows["right"]["status"], rows["right"]["score"]) == ("right", "4.0")
    assert (rows["wrong"]["status"], rows["wrong"]["score"]) == ("wrong", "0.0")
    assert rows["broken"]["status"] == "cannot be read"
    assert rows["empty"]["status"] == "no layer"
    for name, expected in STATUS.items():
        assert rows[name]["status"] in expected, name
        assert rows[name]["score"] == ("4.0" if rows[name]["status"] == "right" else "0.0")
    assert rows["hangs"]["limit"] == "3 s a case, 700 MB, 32 processes"
    assert rows["wrong"]["limit"] == "1e-12"
    assert rows["forges"]["status"] in ("right", "over a limit")  # its processes add up until their parents end
    if probe()["files"]:
        assert (folder / "wrong.py").read_text() == before
    assert "forged" not in (out / "results.csv").read_text("utf-8-sig").replace("forges", "")
    assert json.loads((out / "gradescope" / "right.json").read_text())["score"] == 4.0
    page = (out / "index.html").read_text()
    assert "<script" not in page
    assert "16 submissions" in page


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_names_and_formats_of_every_kind_are_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names as learning platforms give them, names that files can hardly have, zip files, and a second run."""
    monkeypatch.chdir(tmp_path)
    folder = Path("class")
    (folder / "Ann Lee_12_assignsubmission_file_" / "work").mkdir(parents=True)
    right = RIGHT.format(before="", within="pass")
    (folder / "Ann Lee_12_assignsubmission_file_" / "work" / "mlp.py").write_text(right)
    (folder / "bokim_LATE_34_56_mlp-1.py").write_text(right)
    with zipfile.ZipFile(folder / "cem.zip", "w") as packed:
        packed.writestr("a/mlp.py", right)
        packed.writestr("../outside.py", "forged")
    odd = os.fsdecode(b"d\xff\n\x1b[2J") + "n" * 200
    (folder / f"{odd}.py").write_text(right)
    (folder / "two").mkdir()
    (folder / "two" / "a_template.py").write_text(
        right.replace("return post", "raise NotImplementedError; return post")
    )
    (folder / "two" / "mine.py").write_text(right)
    # The results lie in the class's own folder, and are no submission.
    options = ["class", "--rungs", "mlp", "--out", "class/results", "--cases", "1", "--gradescope", "--classroom"]
    for _ in range(2):
        assert grade(options) == 0
    rows = list(csv.DictReader((folder / "results" / "results.csv").read_text("utf-8-sig").splitlines()))
    assert [row["student"] for row in rows][:3] == ["Ann Lee_12", "bokim_34", "cem"]
    assert rows[3]["student"] == "d\\udcff\\n\\x1b[2J" + "n" * 200
    assert [row["status"] for row in rows] == ["right"] * 5
    assert [row["file"] for row in rows][-1] == "mine.py:MLP"
    assert not (tmp_path / "outside.py").exists()
    assert len(list((folder / "results" / "gradescope").iterdir())) == 5
    assert len(list((folder / "results" / "classroom").iterdir())) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_withheld_hints_go_to_the_teachers_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work").mkdir()
    wrong = RIGHT.format(before="", within="pass").replace("0.044715", "0.44715")
    (tmp_path / "work" / "mlp.py").write_text(wrong)
    options = ["--rungs", "mlp", "--single", "--gradescope", "--withhold-hints", "--cases", "2"]
    assert grade([str(tmp_path / "work"), *options, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "work mlp: wrong" in printed
    assert "Look at mlp.py:16: post = " in printed
    assert str(tmp_path / "work") not in printed
    result = json.loads((tmp_path / "out" / "gradescope" / "work.json").read_text())
    assert result["stdout_visibility"] == "hidden"
    assert result["tests"][0]["output"] == "mlp: wrong"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rungs", "attention,heads"], "--rungs names 'heads'; the rungs are embed, pos-embed"),
        (["--rungs", "mlp,mlp"], "names mlp twice"),
        (["--rungs", "mlp=none"], "gives mlp 'none' points"),
        *(
            (["--rungs", "mlp", option, value], f"{option} is {value}; it must be above 0")
            for option, value in (
                ("--cases", "0"),
                ("--jobs", "0"),
                ("--jobs", "-1"),
                ("--time-limit", "nan"),
                ("--time-limit", "inf"),
                ("--memory-mb", str(10**15)),
                ("--processes", str(10**20)),
            )
        ),
        (["--rungs", "mlp", "--out", "."], "--out . is the folder of the submissions: give another folder"),
        (["--rungs", "mlp", "--out", "ann.py"], "--out ann.py is a file: give another folder"),
    ],
)
def test_what_cannot_be_graded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ann.py").write_text("a")
    with pytest.raises(ValueError, match=message):
        grade([str(tmp_path), *options])
    assert [path.name for path in tmp_path.iterdir()] == ["ann.py"]
