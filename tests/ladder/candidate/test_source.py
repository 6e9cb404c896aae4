"""The user's source file: found, read without its script part, and its lines kept apart from those of libraries."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from gptladder.ladder.candidate.places import Code
from gptladder.ladder.candidate.source import CandidateError, load, one_line, split
from gptladder.ladder.candidate.standins import StandIn, Unavailable

Write = Callable[[str, str], object]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file, in a folder of its own to stand in; what importing it leaves behind is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield lambda name, text: (tmp_path / name).write_text(text)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def find(source: str) -> tuple[Callable[..., Any], Code]:
    """Return the class or function that ``FILE.py:NAME`` names, and its file's code."""
    path, name = split(source)
    loaded = load(path, [name])
    return loaded.get(name, source), loaded.code


def test_a_class_is_found_with_what_lies_beside_its_file(write: Write) -> None:
    write("helpers_of_mine.py", "WIDTH = 3\n")
    write("mine.py", "from helpers_of_mine import WIDTH\nclass Attention:\n    width = WIDTH\n")
    found, _ = find("mine.py:Attention")
    assert (found.__name__, vars(found)["width"]) == ("Attention", 3)


def test_two_files_of_one_name_are_two(write: Write, tmp_path: Path) -> None:
    write("mine.py", "class A:\n    here = 1\n")
    (tmp_path / "other").mkdir()
    write("other/mine.py", "class A:\n    here = 2\n")
    assert [vars(find(source)[0])["here"] for source in ("mine.py:A", "other/mine.py:A")] == [1, 2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine.py:2", "'mine.py:2' names no class: write FILE.py:CLASS, or the file alone"),
        ("absent.py:A", "there is no file absent.py"),
        ("mine.py:Attenton", r"the file has no Attenton; it has Attention, MLP; did you mean Attention\?"),
        ("empty.py:A", "the file has no A; it has no class"),
        ("broken.py:B", r"the file has no B; it has A \(line 2 does not parse"),
        ("raises.py:A", r"^raises.py:1: reading it raises ZeroDivisionError: division by zero: class A\(1 / 0\)"),
    ],
)
def test_what_cannot_be_found_is_reported_in_one_line(write: Write, source: str, message: str) -> None:
    write("mine.py", "import textwrap\nfrom pathlib import Path\nclass Attention: pass\nclass MLP: pass\n")
    write("empty.py", "")
    write("broken.py", "class A: pass\nclass B: x = = 3\n")
    write("raises.py", "class A(1 / 0): pass\n")
    with pytest.raises(CandidateError, match=message) as caught:
        find(source)
    assert "\n" not in str(caught.value)


def test_the_deepest_line_of_the_user_is_reported_not_a_librarys(write: Write) -> None:
    write(
        "mine.py", "import json\ndef parse(text):\n    return json.loads(text)\ndef outer():\n    return parse('{')\n"
    )
    outer, code = find("mine.py:outer")
    with pytest.raises(ValueError, match="property name") as caught:
        outer()
    assert code.raised(caught.value) == ("mine.py:3", "return json.loads(text)")


def test_a_library_beside_the_file_is_not_the_users(tmp_path: Path) -> None:
    code = Code(tmp_path / "mine.py")
    frames = [(str(tmp_path / ".venv/lib/site-packages/torch/nn.py"), 1), (str(tmp_path / "helpers.py"), 2)]
    assert code.first(frames) == (f"{tmp_path / 'helpers.py'}:2", "")
    assert code.first(frames[:1]) is None


def test_a_long_message_is_cut() -> None:
    assert len(one_line(ValueError("much " * 1000))) < 330
    assert one_line(NotImplementedError()) == "NotImplementedError"


def test_the_file_is_taken_from_the_last_colon(tmp_path: Path) -> None:
    (tmp_path / "a:b.py").write_text("")
    assert split(f"{tmp_path / 'a:b.py'}:C") == ((tmp_path / "a:b.py").resolve(), "C")


SCRIPT = """
import torch, no_such_module
from torch import nn
from no_such_package import einsum, decorate

data = open("absent.txt").read()
width = len(data)
EPS = 1e-5

@decorate
class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = EPS

    def forward(self, x: Tensor) -> Tensor:
        return einsum(x)

print("training")
raise SystemExit(3)
"""


def test_the_script_is_not_run_and_missing_imports_raise_when_used(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("script.py", SCRIPT)
    loaded = load(tmp_path / "script.py")
    assert list(loaded.classes) == ["Norm"]
    norm = loaded.classes["Norm"]()
    assert norm.eps == 1e-5
    with pytest.raises(Unavailable, match=r"einsum is not available: script.py:4: ModuleNotFoundError"):
        norm(None)
    assert capsys.readouterr().out == ""
    assert loaded.notes[0].startswith("the file's script part was not run (lines 6, 19, 20)")
    assert "could not be imported: einsum, decorate" in loaded.notes[1]


def test_a_stand_in_is_a_base_class_a_decorator_and_a_silent_logger() -> None:
    base = cast(Any, StandIn("pl.LightningModule", "no pl"))

    class Model(base):
        pass

    assert list(Model().parameters()) == []
    assert StandIn("decorate", "")(Model) is Model
    StandIn("logger", "").info("nothing")
    with pytest.raises(Unavailable):
        StandIn("einsum", "no einops")(1, 2)


def test_constants_made_by_torch_are_no_script(write: Write) -> None:
    write(
        "mine.py",
        "import math\nimport torch\nROOT = torch.sqrt(torch.tensor(2 / math.pi)).item()\n"
        "NEG = torch.tensor(-math.inf)\nLOW = torch.finfo(torch.float32).min\n"
        "DATA = torch.tensor(open('absent.txt').read())\n"
        "class MLP:\n    values = ROOT, NEG, LOW\n",
    )
    found, _ = find("mine.py:MLP")
    assert vars(found)["values"] == (pytest.approx((2 / math.pi) ** 0.5), -math.inf, torch.finfo(torch.float32).min)


def test_a_notebook_is_read_cell_by_cell_without_its_magics(write: Write, tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["class Not: pass"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!pip install x\n", "from torch import nn\n"]},
        {"cell_type": "code", "source": ["%%bash\n", "ls"]},
        {"cell_type": "code", "source": ["class Norm(nn.Module):\n", "    def forward(self, x):\n", "        1 / 0\n"]},
    ]
    write("book.ipynb", json.dumps({"cells": cells}))
    loaded = load(tmp_path / "book.ipynb")
    with pytest.raises(ZeroDivisionError) as caught:
        loaded.classes["Norm"]()(None)
    assert loaded.code.raised(caught.value) == ("book.ipynb[cell 3]:3", "1 / 0")
    assert any("notebook magics were left out" in note for note in loaded.notes)
    assert any("book.ipynb[cell 2] was left out: it begins with %%bash" in note for note in loaded.notes)


def test_what_is_left_out_of_a_notebook_is_named_by_cell_and_line(write: Write, tmp_path: Path) -> None:
    sources = ["import torch\nprint(1)\nprint(2)", "print(3)\nclass A: pass", "x = ", "print(4)", "print(5)"]
    cells = [{"cell_type": "code", "source": [source]} for source in sources]
    write("book.ipynb", json.dumps({"cells": cells}))
    notes = load(tmp_path / "book.ipynb").notes
    assert "the file's script part was not run (cell 1, lines 2, 3; cell 2, line 1; cell 4, line 1, …)" in notes
    assert any(note.startswith("cell 3, line 1 does not parse") for note in notes)


def test_relative_and_sibling_imports_resolve(write: Write, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    write("package/__init__.py", "")
    write("package/sizes.py", "WIDTH = 7\nraise SystemExit(1)\n")
    write(
        "package/layers.py",
        "from torch import nn\nfrom .sizes import WIDTH\nclass Mine(nn.Module):\n    width = WIDTH\n",
    )
    assert vars(load(tmp_path / "package" / "layers.py").classes["Mine"])["width"] == 7
    write("beside.py", "HEADS = 3\nopen('absent')\n")
    write("user.py", "from torch import nn\nfrom beside import HEADS\nclass Mine(nn.Module):\n    heads = HEADS\n")
    assert vars(load(tmp_path / "user.py").classes["Mine"])["heads"] == 3


def test_a_class_can_be_named_by_its_module(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    write("pack/part.py", "class A: pass\n")
    assert split("pack.part:A") == ((tmp_path / "pack" / "part.py").resolve(), "A")


def test_a_relative_import_out_of_a_plain_folder_resolves(write: Write, tmp_path: Path) -> None:
    for folder in ("parts", "parts/layers", "parts/sizes"):
        (tmp_path / folder).mkdir()
    write("parts/__init__.py", "")
    write("parts/sizes/width.py", "from ..counts import HEADS\nWIDTH = 4 * HEADS\ntrain_for_hours()\n")
    write("parts/counts.py", "HEADS = 3\n")
    write("parts/layers/norm.py", "from torch import nn\n\nclass Norm(nn.Module): ...\n")
    lines = "from torch import nn\nfrom ..sizes.width import WIDTH\nfrom . import norm as own\n"
    write("parts/layers/block.py", f"{lines}class Block(nn.Module):\n    width, norm = WIDTH, own.Norm\n")
    loaded = load(tmp_path / "parts/layers/block.py")
    assert vars(loaded.module)["Block"].width == 12
    assert vars(loaded.module)["Block"].norm.__name__ == "Norm"
