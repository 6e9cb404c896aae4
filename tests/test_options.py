"""How command lines are read: values, paths, and the message for a command line that is wrong."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from gptladder import cli, options


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Where things are."""

    model: str | None = None
    """A folder."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do something."""

    prompt: Annotated[str, tyro.conf.arg(metavar="PROMPT"), tyro.conf.Positional]
    """A text; not --prompt-text."""
    inner: Annotated[Inner, tyro.conf.arg(name="")] = field(default_factory=Inner)
    top_k: int = 50
    """How many tokens."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How often."""
    scale: float = 1.0
    """How large."""
    mode: Literal["fast", "slow"] = "fast"
    """How fast."""
    stop: tuple[str, ...] = ()
    """Where to end."""
    beams: int | None = None
    """How wide."""
    every: float | Literal["epoch"] = "epoch"
    """How often, in steps."""
    a_name_of_very_many_words: bool = False
    """Nothing."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0")


def read(*argv: str) -> Options:
    return options.parse(Options, argv, prog="gptladder thing")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    head, tail = "gptladder thing: ", " (gptladder thing --help lists the options)\n"
    assert err.startswith(head)
    assert err.endswith(tail)
    return err.removeprefix(head).removesuffix(tail)


def test_values_underscores_and_equals_signs_are_read() -> None:
    assert read("a b", "--top_k=3", "-n", "2", "--model", "x", "--stop", "p", "q") == Options(
        prompt="a b", top_k=3, n=2, inner=Inner(model="x"), stop=("p", "q")
    )


@pytest.mark.parametrize("prompt", ["- a list", "-5", "", "a\nb", "$HOME `x` \"y\" 'z'"])
def test_a_text_arrives_as_it_was_typed(prompt: str) -> None:
    assert read(prompt).prompt == prompt
    assert read("--", prompt).prompt == prompt


@pytest.mark.parametrize("width", ["1", "20", "200"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--top-k", "abc"], "--top-k takes a whole number, not 'abc'"),
        (["x", "--top-k", "0.5"], "--top-k takes a whole number, not '0.5'"),
        (["x", "--scale", "large"], "--scale takes a number, not 'large'"),
        (["x", "--beams", "many"], "--beams takes a whole number, not 'many'"),
        (["x", "--every", "2,5"], "--every takes a number or epoch, not '2,5'"),
        (["x", "--num-beams", "3"], "there is no option --num-beams; did you mean --beams?"),
        (["x", "--text", "y"], "there is no option --text; put a text that begins with - last, after --"),
        (["x", ""], "there is no use for '': put a text of several words in quotes"),
        (["x", "--hepl"], "there is no option --hepl; did you mean --help?"),
        (["x", "--top-kk", "3"], "there is no option --top-kk; did you mean --top-k?"),
        (["x", "--a-name-of-very-many-words", "--top-kk"], "there is no option --top-kk; did you mean --top-k?"),
        (["x", "--top_kk=3"], "there is no option --top-kk; did you mean --top-k?"),
        (["--dashes here"], "'--dashes here' is no option: put a text that begins with -- last, after --"),
        (["--zzz"], "there is no option --zzz; put a text that begins with - last, after --"),
        ([], "PROMPT is missing"),
        (["x", "y", "z"], "there is no use for y, z: put a text of several words in quotes"),
        (["x", "--model"], "--model needs a value"),
        (["x", "--mode", "medium"], "--mode is 'medium'; it can be 'fast', 'slow'"),
        (["x", "--top-k", "-1"], "--top-k is -1; it must be at least 0"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert refused(capsys, *argv) == message


@pytest.mark.parametrize("argv", [["--model", ""], ["--model="]])
def test_an_empty_path_is_not_this_folder(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    expected = "--model has no value: give the name of a file or folder; a dot is this folder"
    assert refused(capsys, "x", *argv) == expected


@pytest.mark.parametrize("argv", [["climb", ""], ["grade", "", "--rungs", "mlp"], ["convert", "a", "", "--to", "hf"]])
def test_an_empty_argument_is_not_this_folder(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(argv)
    assert "an argument is empty: give the name of a file or folder" in capsys.readouterr().err


def test_an_empty_text_is_a_text() -> None:
    assert (read("").prompt, read("x", "--stop", "").stop) == ("", ("",))


def test_a_command_without_arguments_names_the_option_for_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Training:
        corpus: str = ""

    for argv, message in (
        (
            ["text.txt"],
            "there is no use for text.txt: each value stands after the name of its option, such as",
        ),
        (["--zzz"], "there is no option --zzz ("),
        (["--model", "x"], "there is no option --model ("),
        (["--dataset", "x"], "there is no option --dataset; did you mean --corpus?"),
    ):
        with pytest.raises(SystemExit):
            options.parse(Training, argv, prog="gptladder train")
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("width", ["1", "80"])
def test_help_is_tyros_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    assert "How many" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["x", "--model=~/m"], ["x", "--model", "~/m"]])
def test_the_home_folder_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read(*argv).inner.model == str(Path("/home/me/m"))


def test_the_home_folder_is_not_expanded_in_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read("~/x", "--stop=~/y") == Options(prompt="~/x", stop=("~/y",))


@pytest.mark.parametrize(
    ("argv", "value", "rest"),
    [
        (["--preset", "a", "-x"], "a", ["-x"]),
        (["y", "--preset=b"], "b", ["y"]),
        (["--preset", "a", "--preset", "b"], "b", []),
        (["--presets", "a"], None, ["--presets", "a"]),
    ],
)
def test_one_option_is_taken_out_before_the_others(argv: list[str], value: str | None, rest: list[str]) -> None:
    assert options.take(argv, "--preset", prog="p", values=["a", "b"]) == (value, rest)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset"], "--preset needs a value: tiny, large"),
        (["--preset", "--name", "x"], "--preset needs a value: tiny, large"),
        (["--preset="], "--preset needs a value: tiny, large"),
        (["--preset", "tinny"], "there is no preset 'tinny'; did you mean tiny?"),
        (["--preset", "q"], "there is no preset 'q'; there are tiny, large"),
    ],
)
def test_a_wrong_preset_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        options.take(argv, "--preset", prog="p", values=["tiny", "large"])
    assert capsys.readouterr().err == f"p: {message} (p --help lists the options)\n"


@pytest.mark.parametrize(
    ("message", "renamed"),
    [
        ("top_k=3 is more than n=2", "--top-k 3 is more than --n 2"),
        ("n must be at least 1", "--n must be at least 1"),
        ("the mode is n", "the mode is n"),
        ("my_top_k is 3; top_k_max is 4; x.top_k; top_k(3)", "my_top_k is 3; top_k_max is 4; x.top_k; top_k(3)"),
        ("model must be there", "--model must be there"),
    ],
)
def test_messages_name_options(message: str, renamed: str) -> None:
    assert options.rename(message, Options) == renamed
    with (
        pytest.raises(ValueError, match=f"^{renamed.replace('(', '[(]').replace(')', '[)]')}$"),
        options.named_by_option(Options),
    ):
        raise ValueError(message)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_known_on_a_terminal_of_any_width(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = cli.COMMANDS[name]
    kind = getattr(importlib.import_module(f"gptladder.{command.module}"), command.options)
    for columns in ("20", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        known = options._known_options(options._help_text(kind, "gptladder", {}))
        positional = {"prompt", "model", "text", "folder", "file", "source", "destination", "name"}
        assert {f"--{field.replace('_', '-')}" for field in options._field_names(kind) - positional} <= {*known}


def test_every_option_that_takes_a_path_expands_the_home_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """An option whose help shows FOLDER, FILE or PATH as its value is in the list of options with paths."""
    shown = set()
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        for line in capsys.readouterr().out.splitlines():
            words = line.strip("│|+ ").split()
            if (
                len(words) > 1
                and words[0].startswith("--")
                and any(kind in words[1] for kind in ("FOLDER", "FILE", "PATH"))
            ):
                assert words[0] in options._PATHS, f"{name} {words[0]}"
                shown.add(words[0])
    assert shown >= {"--model", "--tokenizer", "--out", "--attention"}
