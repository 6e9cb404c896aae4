"""docs/your-layer.md runs as it stands: every file in it is written, every command run, every answer the one shown."""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from gptladder.cli import main
from gptladder.ladder import climb
from gptladder.ladder.candidate.source import load

TEXT = (Path(__file__).parents[1] / "docs" / "your-layer.md").read_text(encoding="utf-8")
SESSION, REST = TEXT.split("## What it does")
BLOCKS = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(text: str) -> str:
    first = re.match(r"# (\S+\.py)\n", text)
    assert first is not None
    name = first[1]
    Path(name).write_text(text)
    return name


def without_rounding(text: str) -> str:
    """Differences that are rounding are other ones on another machine: 9.5e-07 becomes ?.?e-??; 1.6e+00 stays."""
    return re.sub(r"\d\.\de-(0[6-9]|1\d)", "?.?e-??", re.sub(r" +$", "", text, flags=re.MULTILINE)).rstrip()


def fix(name: str, diff: str) -> None:
    old, new = ("".join(line[1:] + "\n" for line in diff.splitlines() if line[0] == sign) for sign in "-+")
    source = Path(name).read_text()
    assert source.count(old) == 1
    Path(name).write_text(source.replace(old, new))


def test_the_session(capsys: pytest.CaptureFixture[str]) -> None:
    statuses, name = [], ""
    for kind, text in BLOCKS.findall(SESSION):
        if kind == "python":
            name = write(text)
        elif kind == "diff":
            fix(name, text)
        else:
            command, shown = text.split("\n", 1)
            statuses.append(main(shlex.split(command.removeprefix("$ gptladder "))))
            assert without_rounding(capsys.readouterr().out) == without_rounding(shown)
    assert statuses == [1, 1, 0]


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS.findall(REST) if "def attention(cfg" in text])
def test_the_adapters(block: str) -> None:
    name = write(block)
    assert f"\n    gptladder climb --attention {name}:attention\n" in TEXT
    if "transformers" in block:
        pytest.importorskip("transformers")
    adapter = load(Path(name), ["attention"]).get("attention", name)
    climb(attention=adapter, cases=3).raise_if_failed()


@pytest.mark.parametrize("finished", [False, True])
def test_the_test_of_ones_own(finished: bool) -> None:
    (example,) = [text for kind, text in BLOCKS.findall(REST) if "def test_" in text]
    blocks = BLOCKS.findall(SESSION)
    name = write(next(text for kind, text in blocks if kind == "python"))
    for kind, text in blocks:
        if kind == "diff" and finished:
            fix(name, text)
    names: dict = {}
    exec(example, names)
    outcome = nullcontext() if finished else pytest.raises(AssertionError, match="forward raises NotImplementedError")
    with outcome:
        names["test_my_attention_is_gpt2s"]()


def test_the_readme_leads_there() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "/docs/your-layer.md)" in readme
    # The README shows the output of the session.
    shown = next(text for kind, text in BLOCKS.findall(SESSION) if "The mistake" in text).removeprefix("$ ")
    command, rest = shown.split("\n", 1)
    for part in (command, *rest.strip().split("\n\n")):
        assert "".join(f"    {line}\n" for line in part.splitlines()) in readme
