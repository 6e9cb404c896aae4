"""The command line: help, mistakes, and what it answers with."""

import os
import subprocess
import sys

import pytest

from gptladder import __version__, cli


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


def test_without_a_command_it_shows_the_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "usage: gptladder" in capsys.readouterr().out


def test_an_unknown_command_is_named(capsys):
    assert cli.main(["climb-faster"]) == 2
    assert "there is no command 'climb-faster'" in capsys.readouterr().err


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"gptladder {__version__}"


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"gptladder {command}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError("it is 3"), OSError("disk full"), ImportError("no such extra")])
def test_what_goes_wrong_is_said_in_one_line(monkeypatch, capsys, error):
    def fail(argv):
        raise error

    monkeypatch.setattr("gptladder.ladder.command.ladder", fail)
    assert cli.main(["ladder"]) == 1
    assert capsys.readouterr().err == f"gptladder ladder: {error}\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(argv):
        raise ZeroDivisionError

    monkeypatch.setattr("gptladder.ladder.command.ladder", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["ladder"])


def test_ctrl_c_ends_with_its_own_status(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("gptladder.ladder.command.ladder", interrupt)
    assert cli.main(["ladder"]) == 130
    assert capsys.readouterr().err == "gptladder ladder: stopped\n"


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys, gptladder.cli as cli; sys.stdin.read(); sys.exit(cli.main(['--help']))"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as writer:
        writer.stdout.close()  # before it is allowed to write
        writer.stdin.close()
        assert writer.stderr.read() == ""
    assert writer.returncode == 141


def test_no_case_is_no_proof(capsys):
    assert cli.main(["ladder", "--cases", "0"]) == 1
    assert "--cases is 0; at least 1 is needed" in capsys.readouterr().err


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "gptladder", "--version"], capture_output=True, text=True, cwd=os.sep)
    assert done.stdout.strip() == f"gptladder {__version__}"
