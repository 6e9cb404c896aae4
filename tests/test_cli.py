"""The command line: help, mistakes, and what it answers with."""

import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gptladder import GPT2, GPT2Config, __version__, cli
from gptladder.tokenizer import BPETokenizer


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


def test_without_a_command_it_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: gptladder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("trian", "there is no command 'trian'; did you mean train?"),
        ("--verison", "there is no option '--verison'; did you mean --version?"),
        ("frobnicate", "there is no command 'frobnicate'"),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(
    capsys: pytest.CaptureFixture[str], typed: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([typed])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"gptladder: {message} (gptladder --help lists the commands)\n"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert cli.main([option]) == 0
    assert capsys.readouterr().out.strip() == f"gptladder {__version__}"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_each_command_names_its_options(name: str) -> None:
    command = cli.COMMANDS[name]
    module = importlib.import_module(f"gptladder.{command.module}")
    assert dataclasses.is_dataclass(getattr(module, command.options))
    assert callable(getattr(module, name))


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_knows_commands_and_their_options(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert cli.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.COMMANDS)
    assert "max-new-tokens" in script


def test_completion_in_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    cli.main(["--completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for words, expected in (
        (["gptladder", "gene"], "generate"),
        (["gptladder", "generate", "--max-n"], "--max-new-tokens"),
    ):
        probe = f"""
            source "{tmp_path}/script"
            COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
            COMP_LINE="{" ".join(words)}"; COMP_POINT=${{#COMP_LINE}}
            function=$(complete -p gptladder | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            $function gptladder "{words[-1]}" "{words[-2]}"
            echo "${{COMPREPLY[@]}}"
        """
        done = subprocess.run([bash, "-c", probe], capture_output=True, text=True)
        assert expected in done.stdout, done.stderr


@pytest.mark.parametrize("argv", [["--completion"], ["--completion", "cmd"], ["--completion", "bash", "zsh"]])
def test_completion_for_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(argv)
    assert "--completion needs the name of your shell: bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"gptladder {command}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError("it is 3"), OSError("disk full"), ImportError("no such extra")])
def test_an_error_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(argv: list[str]) -> NoReturn:
        raise error

    monkeypatch.setattr("gptladder.ladder.command.ladder", fail)
    assert cli.main(["ladder"]) == 1
    assert capsys.readouterr().err == f"gptladder ladder: {error}\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr("gptladder.ladder.command.ladder", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["ladder"])


def test_ctrl_c_ends_with_its_own_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(argv: list[str]) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptladder.ladder.command.ladder", interrupt)
    assert cli.main(["ladder"]) == 130
    assert capsys.readouterr().err == "gptladder ladder: stopped\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys, gptladder.cli as cli; sys.stdin.read(); sys.exit(cli.main(['--help']))"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdin=pipe, stdout=pipe, stderr=pipe) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.close()  # before it is allowed to write
        writer.stdin.close()
        assert writer.stderr.read() == ""
    assert writer.returncode == 141


def test_a_closed_standard_input_is_empty() -> None:
    read = "lambda argv: len(sys.stdin.buffer.read())"
    code = "import sys, types, gptladder.cli as cli\n"
    code += f"cli._imported = lambda module, name: types.SimpleNamespace(look={read})\n"
    code += "sys.stdin = None; sys.exit(cli.main(['look']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_no_case_is_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ladder", "--cases", "0"]) == 1
    assert "--cases is 0; at least 1 is needed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small model whose tokenizer takes any text."""
    model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=257, n_ctx=32))
    model.tokenizer = BPETokenizer.train("a", 257)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def run(*argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptladder", *argv], capture_output=True, text=True, cwd=os.sep, **kwargs
    )


def test_as_a_module() -> None:
    assert run("--version").stdout.strip() == f"gptladder {__version__}"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(option: str) -> None:
    code = f"import sys; from gptladder.cli import main; main([{option!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(os.name == "nt", reason="a shell closes streams so on POSIX systems")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(model: Path, closed: str) -> None:
    line = f"{sys.executable} -m gptladder generate A --model {model} --max-new-tokens 2 {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=os.sep)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_reported_in_one_line(model: Path) -> None:
    line = f"{sys.executable} -m gptladder generate A --model {model} --max-new-tokens 2 >/dev/full"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=os.sep)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "gptladder generate: No space left on device"


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.8, 1.5])
def test_ctrl_c_during_import_ends_without_a_traceback(model: Path, seconds: float) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gptladder", "generate", "A", "--model", str(model)]
    command += ["--max-new-tokens", "100000", "--past-context", "slide"]
    # A shell starts background commands with SIGINT ignored, and these tests may run in one.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.sep,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        # Python itself prints a traceback for Ctrl-C before `main` begins, and how long that takes depends on the
        # machine. Wait for its module, and for the next import after it, which `main` asks for.
        assert any(line.endswith("| gptladder.cli\n") for line in process.stderr)
        assert next(process.stderr).startswith("import time:")
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert errors.splitlines()[-1] == "gptladder generate: stopped"
    assert "Traceback" not in errors
    assert process.returncode == 130


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_that_a_package_swallows_still_ends_the_import() -> None:
    code = """
import importlib, signal, sys
from gptladder import cli

def swallow(name, package=None):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("initialisation failed") from None

signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell may have had it ignored
importlib.import_module = swallow
sys.argv = ["gptladder", "generate"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gptladder generate: stopped\n")


def test_an_interrupt_of_another_program_that_calls_main_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, package: str | None = None) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(importlib, "import_module", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell may have had it ignored
    try:
        assert cli.main(["generate"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_character_that_the_terminal_lacks_is_escaped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = {}
    for command, *argv in (["generate", "Grüße, 狐", "--max-new-tokens", "1"], ["predict", "狐", "-k", "3"]):
        with (tmp_path / command).open("w", encoding="ascii") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            assert cli.main([command, *argv, "--model", str(model)]) == 0
        printed[command] = (tmp_path / command).read_text("ascii")
    assert printed["generate"].startswith(r"Gr\xfc\xdfe, \u72d0")
    assert printed["predict"].count("\n") >= 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "x.txt: No such file or directory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nat x.cpp"),
         "not enough memory (DefaultCPUAllocator: can't allocate memory: 9 bytes)"),
    ],
)  # fmt: skip
def test_errors_of_the_system_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr("gptladder.ladder.command.ladder", fail)
    assert cli.main(["ladder"]) == 1
    assert capsys.readouterr().err == f"gptladder ladder: {line}\n"


def test_training_without_memory_prints_what_needs_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str], sample: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gptladder.training.command.train", fail)
    assert cli.main(["train"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("gptladder train: not enough memory; try --micro-batch 1, --gradient-checkpointing")
    assert printed.count("\n") == 1
