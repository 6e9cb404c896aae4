"""The command line: ``gptladder COMMAND …``, also ``python -m gptladder COMMAND …``."""

import importlib
import os
import sys
from typing import Any

# Loaded when asked for: the references take seconds to import, and need not be installed for training.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("training.command", "train a model on your text, on TinyStories, or on stories made here"),
    "prepare": ("training.command", "turn text into token files, to train on later"),
    "generate": ("sampling.command", "continue a prompt, by every way of decoding"),
    "predict": ("sampling.command", "the likeliest next tokens of a prompt, beside transformers'"),
    "climb": ("ladder.command", "try your own layers against the references: which mistake is it?"),
    "convert": ("weights.command", "a model from one format into another, proved before it is there"),
    "ladder": ("ladder.command", "try every layer against the references, from the embedding up"),
    "parity": ("ladder.command", "layers, whole model and round trips against the references, with a report"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status. What goes wrong is said in one line; GPTLADDER_DEBUG=1 shows where."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{_name(arguments)}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has had enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("GPTLADDER_DEBUG"):
            raise
        print(f"{_name(arguments)}: {error}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"gptladder {importlib.import_module(__package__ or 'gptladder').__version__}")
        return 0
    if name not in COMMANDS:
        print(f"gptladder: there is no command {name!r}\n\n{_help()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    command = getattr(module, name)
    return command(rest, sample=_sample) if name == "train" else command(rest)


def _sample(model: Any, tokenizer: Any, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    """What ``train`` shows of a model. Here, because training and sampling do not import each other."""
    sampling = importlib.import_module(".sampling", __package__)
    params = sampling.SamplingParams(temperature=0.7, top_k=min(50, model.d_vocab))
    completions = sampling.generate(
        model, prompt, params, tokenizer=tokenizer, max_new_tokens=max_new_tokens, seed=seed, past_context="slide"
    )
    return prompt + completions[0].text


def _name(arguments: list[str]) -> str:
    return " ".join(["gptladder", *arguments[:1]])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {says}" for name, (_, says) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gptladder COMMAND [options]",
            "",
            *lines,
            "",
            "gptladder COMMAND --help lists the options of a command.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
