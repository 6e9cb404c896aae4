"""Somebody's source file: found, imported, and its lines told from those of libraries."""

import sys

import pytest

from gptladder.ladder.candidate.source import CandidateError, Code, find, said, split


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file, in a folder of its own to stand in; what importing it leaves behind is taken away again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield lambda name, text: (tmp_path / name).write_text(text)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_class_is_found_with_what_lies_beside_its_file(write):
    write("helpers_of_mine.py", "WIDTH = 3\n")
    write("mine.py", "from helpers_of_mine import WIDTH\nclass Attention:\n    width = WIDTH\n")
    found, _ = find("mine.py:Attention")
    assert (found.__name__, found.width) == ("Attention", 3)
    assert find("mine.py:Attention")[0] is found  # imported once


def test_two_files_of_one_name_are_two(write, tmp_path):
    write("mine.py", "class A:\n    here = 1\n")
    (tmp_path / "other").mkdir()
    write("other/mine.py", "class A:\n    here = 2\n")
    assert [find(source)[0].here for source in ("mine.py:A", "other/mine.py:A")] == [1, 2]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("mine.py", "'mine.py' does not say which class of which file: write FILE.py:CLASS"),
        ("mine.py:2", "'mine.py:2' does not say which class of which file"),
        ("absent.py:A", "there is no file absent.py"),
        ("mine.py:Attenton", r"the file has no Attenton; it has Attention, MLP; did you mean Attention\?"),
        ("empty.py:A", "the file has no A; it has no class at all"),
        ("broken.py:A", r"^broken.py:2: importing it raises SyntaxError: invalid syntax: x = = 3$"),
        ("raises.py:A", r"^raises.py:3: importing it raises ZeroDivisionError: division by zero: 1 / 0$"),
        ("asks.py:A", r"^asks.py:1: importing it raises ModuleNotFoundError: No module named 'no_such_module'"),
        ("leaves.py:A", r"^leaves.py:1: importing it raises SystemExit: 3"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_line(write, source, told):
    write("mine.py", "import textwrap\nfrom pathlib import Path\nclass Attention: pass\nclass MLP: pass\n")
    write("empty.py", "")
    write("broken.py", "class A: pass\nx = = 3\n")
    write("raises.py", "class A: pass\n\n1 / 0\n")
    write("asks.py", "import no_such_module\n")
    write("leaves.py", "raise SystemExit(3)\n")
    with pytest.raises(CandidateError, match=told) as caught:
        find(source)
    assert "\n" not in str(caught.value)


def test_the_deepest_line_of_the_users_is_told_not_that_of_a_library(write):
    write(
        "mine.py", "import json\ndef parse(text):\n    return json.loads(text)\ndef outer():\n    return parse('{')\n"
    )
    outer, code = find("mine.py:outer")
    with pytest.raises(ValueError, match="property name") as caught:
        outer()
    assert code.raised(caught.value) == ("mine.py:3", "return json.loads(text)")


def test_a_library_beside_the_file_is_not_the_users(tmp_path):
    code = Code(tmp_path / "mine.py")
    frames = [(str(tmp_path / ".venv/lib/site-packages/torch/nn.py"), 1), (str(tmp_path / "helpers.py"), 2)]
    assert code.first(frames) == (f"{tmp_path / 'helpers.py'}:2", "")
    assert code.first(frames[:1]) is None


def test_a_long_message_is_cut():
    assert len(said(ValueError("much " * 1000))) < 330
    assert said(NotImplementedError()) == "NotImplementedError"


def test_the_file_is_taken_from_the_last_colon(tmp_path):
    (tmp_path / "a:b.py").write_text("")
    assert split(f"{tmp_path / 'a:b.py'}:C") == ((tmp_path / "a:b.py").resolve(), "C")
