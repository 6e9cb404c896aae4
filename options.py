"""Read the options of a command: one door to tyro for all commands, with errors in one sentence.

Each command describes its options as a dataclass; a field's docstring is its help text.
"""

import contextlib
import difflib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

__all__ = ["fail", "named_by_option", "nearest", "parse", "take", "typed"]

T = TypeVar("T")

# Options whose values name files or folders. A shell expands `--model ~/x` but not `--model=~/x`.
_PATHS = frozenset(
    {
        "--model", "--tokenizer", "--prompt-file", "--corpus", "--data-dir", "--runs-dir", "--init-from", "--resume",
        "--out", "--html", "--embed", "--pos-embed", "--layer-norm", "--layernorm", "--attention", "--mlp", "--block",
        "--unembed", "--config",
    }
)  # fmt: skip

# What users of nanoGPT and transformers type, and its name here.
_ELSEWHERE = {
    "--learning-rate": "--lr", "--block-size": "--n-ctx", "--n-embd": "--d-model", "--max-iters": "--max-steps",
    "--epochs": "--max-epochs", "--num-train-epochs": "--max-epochs", "--eval-interval": "--eval-every",
    "--dataset": "--corpus", "--data": "--corpus", "--text": "--corpus", "--input": "--corpus",
    "--out-dir": "--runs-dir", "--output-dir": "--runs-dir", "--num-samples": "--n", "--num-return-sequences": "--n",
    "--max-length": "--max-new-tokens", "--num-beams": "--beams", "--model-name-or-path": "--model",
    "--checkpoint": "--model",
}  # fmt: skip

# tyro lays out its texts for the width of the terminal: with very few columns it does not end, with few it breaks the
# names of options, and with many it shows groups of options side by side. Messages are read off its texts, so these are
# laid out for a fixed width.
_LEAST_COLUMNS, _COLUMNS_OF_HELP, _COLUMNS_OF_ERRORS = 40, 100, 400

_BOX = re.compile(r"^[│╭╰]\s?|\s*[│╮╯]$")
_RULE = re.compile(r"^[─\-]{8,}$")
_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Return the options that a command line gives, as an instance of a dataclass.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     steps: int = 3
    >>> parse(Options, ["--steps", "5"], prog="gptladder example")
    Options(steps=5)

    Args:
        kind: The dataclass.
        argv: What follows the command's name on the command line. ``~`` at the start of a path is expanded.
        prog: The command's name, for messages and help.
        default: Values of the fields that the command line does not give (default: those of the dataclass).

    Raises:
        SystemExit: Status 2 after a message of one line, if the command line is wrong; status 0 after ``--help``.
    """
    _refuse_empty_paths(kind, argv, prog)
    argv = list(_with_home(argv))
    rest: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    columns = _COLUMNS_OF_ERRORS
    if {"-h", "--help"} & set(argv):
        columns = max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)
    try:
        with contextlib.redirect_stderr(errors), _terminal(columns):
            options = tyro.cli(kind, args=argv, prog=prog, config=(tyro.conf.OmitArgPrefixes,), **rest)
    except SystemExit as stopped:
        if stopped.code in (None, 0):
            raise
        described = _help_text(kind, prog, rest)
        known = _known_options(described)
        if "positional arguments" in described:
            texts, stray = "; put a text that begins with - last, after --", "put a text of several words in quotes"
        else:
            texts, stray = "", "each value stands after the name of its option"
            stray += ", such as --corpus TEXT" if "--corpus" in known else ""
        message = _unknown_option(argv, known, texts) or _sentence(errors.getvalue(), stray)
    else:
        sys.stderr.write(errors.getvalue())
        return options
    fail(prog, rename(message, kind))


def take(argv: Sequence[str], option: str, *, prog: str, values: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of one option, or None, and the command line without that option.

    For an option that decides the defaults of the others, and so must be read first.

    >>> take(["--steps", "5", "--preset=small"], "--preset", prog="gptladder example", values=["small", "large"])
    ('small', ['--steps', '5'])

    Raises:
        SystemExit: Status 2 after a message of one line, if the option has no value or a value not in ``values``.
    """
    value: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, given = word.partition("=")
        if name != option:
            rest.append(word)
            continue
        value = given if equals else next(words, "")
        if not value or value.startswith("-"):
            fail(prog, f"{option} needs a value: {', '.join(values)}")
        if value not in values:
            choices = nearest(value, values) or f"; there are {', '.join(values)}"
            fail(prog, f"there is no {option.lstrip('-')} {value!r}{choices}")
    return value, rest


def typed(argv: Sequence[str]) -> set[str]:
    """Return the names of the options on a command line, which may have their default values.

    >>> sorted(typed(["text", "--top_k=3", "--seed", "1", "--", "--prompt"]))
    ['--seed', '--top-k']
    """
    before = argv[: argv.index("--")] if "--" in argv else argv
    return {word.partition("=")[0].replace("_", "-") for word in before if word.startswith("--")}


def fail(prog: str, message: str, *, lists: str = "options") -> NoReturn:
    """Print why a command line cannot be used, and exit with status 2.

    >>> with contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
    ...     fail("gptladder example", "--steps is 0; it must be above 0")
    gptladder example: --steps is 0; it must be above 0 (gptladder example --help lists the options)
    """
    print(f"{prog}: {message} ({prog} --help lists the {lists})", file=sys.stderr)
    raise SystemExit(2)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return "; did you mean …?" with the name that is most like another, or "" if none is.

    >>> nearest("trian", ["train", "predict"])
    '; did you mean train?'
    """
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


@contextlib.contextmanager
def named_by_option(kind: type[Any]) -> Iterator[None]:
    """Let the messages of errors name options (``--top-k``) in place of the Python parameters (``top_k``).

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     top_k: int = 50
    >>> with named_by_option(Options):
    ...     raise ValueError("top_k must be a whole number of at least 0, not -1")
    Traceback (most recent call last):
    ValueError: --top-k must be a whole number of at least 0, not -1
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        changed = rename(text, kind)
        if changed == text:
            raise
        raise ValueError(changed) from error


def rename(message: str, kind: type[Any]) -> str:
    """Return a message in which the fields of a dataclass of options have the names of their options.

    A name with an underscore is no English word and is replaced everywhere; another one only at the beginning.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     n: int = 1
    ...     top_k: int = 50
    >>> rename("n must be at least 1, and top_k=3 too", Options)
    '--n must be at least 1, and --top-k 3 too'
    """
    for name in sorted(_field_names(kind), key=len, reverse=True):
        option = "--" + name.replace("_", "-")
        if "_" in name:
            message = re.sub(rf"(?<![\w./-]){name}(?![\w(])(?!\.\w)", option, message)
        else:
            message = re.sub(rf"^{name}(?= (?:is|must|and|has) )|(?<![\w./-]){name}(?==\S)", option, message)
        message = re.sub(rf"(?<![\w-]){option}=(?=\S)", f"{option} ", message)
    return message


def _field_names(kind: type[Any]) -> set[str]:
    names: set[str] = set()
    types = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(types[field.name]):
            names |= _field_names(types[field.name])
        else:
            names.add(field.name)
    return names


def _refuse_empty_paths(kind: type[Any], argv: Sequence[str], prog: str) -> None:
    """Refuse an empty name of a file or folder, such as a shell's unset variable gives: it would mean this folder."""
    before, texts = "", {"prompt", "text"} & _field_names(kind)
    for word in argv:
        name, equals, value = word.partition("=")
        option = (name if equals else before).replace("_", "-")
        if option in _PATHS and not (value if equals else word):
            fail(prog, f"{option} has no value: give the name of a file or folder; a dot is this folder")
        if not word and not before.startswith("-") and not texts:
            fail(prog, "an argument is empty: give the name of a file or folder; a dot is this folder")
        before = word


def _with_home(argv: Sequence[str]) -> Iterator[str]:
    path_follows = False
    for word in argv:
        name, equals, value = word.partition("=")
        if equals and name.replace("_", "-") in _PATHS:
            yield f"{name}={os.path.expanduser(value)}"
        else:
            yield os.path.expanduser(word) if path_follows else word
        path_follows = word.replace("_", "-") in _PATHS


@contextlib.contextmanager
def _terminal(columns: int) -> Iterator[None]:
    """Within the block, let the terminal seem to have so many columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _help_text(kind: type[Any], prog: str, rest: dict[str, Any]) -> str:
    output, width = contextlib.redirect_stdout(io.StringIO()), _terminal(_COLUMNS_OF_HELP)
    with output as text, width, contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog, config=(tyro.conf.OmitArgPrefixes,), **rest)
    return text.getvalue()


def _known_options(described: str) -> list[str]:
    """Return the names of all options, read off the help text: tyro has no public list of them."""
    # An option stands at the beginning of its line; its help text may mention others.
    lines = (_BOX.sub("", line).strip() for line in described.splitlines())
    return sorted({option for line in lines if line.startswith("-") for option in _OPTION.findall(line)} | {"--help"})


def _unknown_option(argv: Sequence[str], known: Sequence[str], texts: str) -> str:
    """Return what is wrong with the first option that the command does not have, or "" if it has all.

    Args:
        argv: the command line.
        known: the command's options.
        texts: how a text that looks like an option is given; empty if the command takes no text.
    """
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if word == "--":
            break
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name):
            if name not in known:
                elsewhere = _ELSEWHERE.get(name)
                likely = [option for option in known if option != "--help" or name.startswith("--h")]
                hint = f"; did you mean {elsewhere}?" if elsewhere in known else nearest(name, likely)
                return f"there is no option {name}{hint or texts}"
        elif word.startswith("--"):
            return f"{word!r} is no option" + (": put a text that begins with -- last, after --" if texts else "")
    return ""


def _sentence(text: str, stray: str) -> str:
    """Return tyro's message without its box, its help text and its layout, in words for users of the command line.

    Args:
        text: the message.
        stray: what to do about a word that no option takes.
    """
    title = ""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        bare = _BOX.sub("", line).strip()
        if line.startswith("╭"):
            title = bare.strip("─ ")
        elif _RULE.match(bare):
            parts.append([])
        elif bare:
            parts[-1].append(bare)
    if not title:  # where the output is not UTF-8 there is no box, and the title stands above a rule
        title, parts = " ".join(parts[0]), parts[1:] or [[]]
    first = " ".join(parts[0])
    if title == "Required options":
        missing = [line for line in parts[0][1:] if re.match(r"--[a-z]|[A-Z][A-Z|]+$", line)]
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    if found := re.fullmatch(r"Unrecognized options: ?(.*)", first):
        return f"there is no use for {found[1] or repr('')}: {stray}"
    if found := re.match(_NO_TYPE, first):
        return f"{found[1]} takes {_kinds(found[2])}, not {found[3]!r}"
    for pattern, words in _WORDINGS:
        if found := re.fullmatch(pattern, first, flags=re.DOTALL):
            return words.format(*found.groups())
    return first or text.strip() or "the command line cannot be read"


def _kinds(metavar: str) -> str:
    """Return in words what an option of several types takes, such as ``{None}|INT|{epoch}``."""
    words = {"INT": "a whole number", "FLOAT": "a number"}
    kinds = [words.get(kind, kind.strip("{}").replace(",", ", ")) for kind in metavar.split("|") if kind != "{None}"]
    return " or ".join(kinds)


_NO_TYPE = r"Error parsing (--?\S+): no type matching (\S+) could be instantiated from \['(.*?)'\]"

_WORDINGS = [
    (r"Error parsing (--?\S+): invalid literal for int\(\) with base 10: (.*)", "{0} takes a whole number, not {1}"),
    (r"Error parsing (--?\S+): could not convert string to float: (.*)", "{0} takes a number, not {1}"),
    (r"Error parsing \S+: (.*)", "{0}"),
    (r"invalid choice '(.*)' for argument '(--?\S+)'\. Expected one of \((.*?),?\)\.", "{1} is '{0}'; it can be {2}"),
    (r"Missing value for argument '(\S+)'\. Expected 1 values\.", "{0} needs a value"),
]
