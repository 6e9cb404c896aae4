"""The command line: ``gptladder COMMAND …``, also ``python -m gptladder COMMAND …``."""

import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: its line in the help text, and where it is defined."""

    module: str
    options: str
    """The dataclass of its options, in ``module``."""
    summary: str


# Modules are imported when their command runs: torch and the references take seconds to import, and the references
# need not be installed.
COMMANDS: dict[str, Command] = {
    "train": Command(
        "training.command", "TrainConfig", "train a model on your text, on TinyStories, or on stories made here"
    ),
    "prepare": Command("training.command", "DataConfig", "turn text into token files, to train on later"),
    "generate": Command(
        "sampling.generate_command", "GenerateArguments", "continue a prompt: sampled, greedy or by beam search"
    ),
    "predict": Command(
        "sampling.predict_command",
        "PredictArguments",
        "the most probable next tokens of a prompt",
    ),
    "evaluate": Command(
        "sampling.evaluate_command", "EvaluateArguments", "loss, perplexity, bits per byte and accuracy on a text"
    ),
    "look": Command("lens.command", "LookArguments", "write one page that shows what a model does with a text"),
    "climb": Command("ladder.command", "ClimbArguments", "test your own layers, and name the mistake"),
    "grade": Command("ladder.grading.command", "GradeArguments", "judge a folder of submissions, each in a sandbox"),
    "convert": Command(
        "weights.command", "ConvertArguments", "convert a model into another format, and check the result"
    ),
    "push": Command("weights.command", "PushArguments", "push a model folder to the hub, with its card"),
    "ladder": Command(
        "ladder.command", "LadderArguments", "test every layer against the references, from the embedding up"
    ),
    "parity": Command(
        "ladder.command", "ParityArguments", "layers, whole model and round trips against the references, with a report"
    ),
}
SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    A user's mistake is reported in one line: status 1, or 2 for a wrong command line. ``GPTLADDER_DEBUG=1`` shows the
    traceback. Ctrl-C ends with status 130, and a closed pipe with 141, as in other programs.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        _prepare_streams()
        status = _run(arguments, own_process=argv is None)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{_name(arguments)}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if os.environ.get("GPTLADDER_DEBUG") or (isinstance(error, RuntimeError) and not _out_of_memory(error)):
            raise
        if isinstance(error, OSError) and _cannot_flush():
            _silence_stdout()
        print(f"{_name(arguments)}: {_one_line(error)}{_advice(error, arguments)}", file=sys.stderr)
        return 1


def _run(arguments: list[str], *, own_process: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        print(f"gptladder {importlib.import_module(__package__ or 'gptladder').__version__}")
        return 0
    if name == "--completion":
        return _completion(rest)
    if name not in COMMANDS:
        options = importlib.import_module(".options", __package__)
        known = [*COMMANDS, "--help", "--version", "--completion"]
        kind = "option" if name.startswith("-") else "command"
        options.fail("gptladder", f"there is no {kind} {name!r}{options.nearest(name, known)}", lists="commands")
    command = getattr(_imported(COMMANDS[name].module, _name(arguments) if own_process else None), name)
    return command(rest, **_BETWEEN_PARTS.get(name, {}))


def _imported(module: str, name: str | None) -> ModuleType:
    """Import a module of the package. ``name``: of the command, where the process is its own, and Ctrl-C may end it.

    A ``KeyboardInterrupt`` within torch's import does not always arrive: packages that are imported may ignore it, and
    in some of torch's C++ code it aborts the process with a stack trace. Nothing is open yet, so the process ends here.
    """

    def stop(*_: object) -> None:
        os.write(2, f"{name}: stopped\n".encode())
        os._exit(130)

    standard = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if name is None or not standard:
        return importlib.import_module(f".{module}", __package__)
    signal.signal(signal.SIGINT, stop)
    try:
        return importlib.import_module(f".{module}", __package__)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _sample(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    """Return a sample for ``train`` to show. It is here because training and sampling do not import each other."""
    sampling = importlib.import_module(".sampling", __package__)
    params = sampling.SamplingParams(temperature=0.7, top_k=min(50, model.d_vocab))
    completions = sampling.generate(
        model, prompt, params, tokenizer=tokenizer, max_new_tokens=max_new_tokens, seed=seed, past_context="slide"
    )
    return prompt + completions[0].text


def _documents(text: str, encoding: str | None) -> Iterator[Iterator[str]]:
    """Return the documents of a text for ``evaluate``: of a file or folder, read as ``train`` does, or of "-"."""
    corpus = importlib.import_module(".training.data.corpus", __package__)
    if text != "-":
        return corpus.TextFiles(text, encoding=encoding).documents()
    return _standard_input(corpus, encoding)


def _standard_input(corpus: Any, encoding: str | None) -> Iterator[Iterator[str]]:
    """Yield the documents of standard input, by way of a file: it may be larger than memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard input"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        if not path.stat().st_size:
            raise ValueError("standard input is empty: give a text to evaluate on")
        yield from corpus.TextFiles(path, encoding=encoding).documents()


# What a command takes from a part of the package that its own part does not import.
_BETWEEN_PARTS: dict[str, dict[str, Any]] = {"train": {"sample": _sample}, "evaluate": {"documents": _documents}}


def _completion(arguments: list[str]) -> int:
    """Print a completion script: one tyro application of all commands, which is why all modules are imported here."""
    from typing import Annotated, Union

    tyro = importlib.import_module("tyro")
    options = importlib.import_module(".options", __package__)
    shell = arguments[0] if len(arguments) == 1 else None
    if shell not in SHELLS:
        options.fail("gptladder", f"--completion needs the name of your shell: {', '.join(SHELLS)}", lists="commands")
    kinds = [
        Annotated[
            getattr(importlib.import_module(f".{command.module}", __package__), command.options),
            tyro.conf.subcommand(name, description=command.summary),
        ]
        for name, command in COMMANDS.items()
    ]
    every_command: Any = Union[tuple(kinds)]  # noqa: UP007 (a union of a list)
    try:
        tyro.cli(
            every_command,
            args=["--tyro-write-completion", shell, "-"],
            prog="gptladder",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def _prepare_streams() -> None:
    """Replace closed streams, and escape what an encoding lacks, so that reading and printing never fail."""
    if sys.stdin is None:  # closed by the shell: `gptladder … <&-`; it is empty
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `gptladder … >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _cannot_flush() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _silence_stdout() -> None:
    """Send what standard output still holds to nowhere: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    # "overflow": PyTorch's word for a tensor of more bytes than a 64-bit number can count.
    return any(part in text for part in ("out of memory", "not enough memory", "can't allocate memory", "overflow"))


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError | RuntimeError):
        detail = next(iter(str(error).splitlines()), "")
        return f"not enough memory{f' ({detail})' if detail else ''}"
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _advice(error: BaseException, arguments: list[str]) -> str:
    """Return what to type when training needs too much memory; an empty string for every other error."""
    if isinstance(error, MemoryError | RuntimeError) and arguments[:1] == ["train"]:
        return "; try --micro-batch 1, --gradient-checkpointing, or a smaller --seq"
    return ""


def _name(arguments: list[str]) -> str:
    return " ".join(["gptladder", *(name for name in arguments[:1] if name in COMMANDS)])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gptladder COMMAND [options]",
            "",
            *lines,
            "",
            "gptladder COMMAND --help lists the options of a command; gptladder --version prints the version.",
            f"gptladder --completion SHELL prints a script that completes commands and options ({', '.join(SHELLS)}).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
