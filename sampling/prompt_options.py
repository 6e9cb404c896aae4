"""The options for the prompt of a command (typed, from a file, or from standard input), and escape sequences."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..files import read_bytes, user_path

__all__ = ["PromptOptions", "unescaped"]

_LARGEST_PROMPT = 64 * 2**20  # bytes

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Options that give the prompt.

    >>> PromptOptions(prompt="Once").text()
    'Once'
    """

    prompt: Annotated[str | None, tyro.conf.arg(metavar="[PROMPT]"), tyro.conf.Positional] = None
    """The text to continue, in quotes; "" begins a new text; - reads standard input."""
    prompt_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Read the prompt from a UTF-8 file, without its last line end."""

    def text(self) -> str:
        """Return the prompt.

        Raises:
            ValueError: There is no prompt, or there are two; a file or standard input is not UTF-8.
            FileError: A file cannot be read.
        """
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("there are two prompts: give PROMPT or --prompt-file, not both")
        if self.prompt_file is not None:
            path = user_path(self.prompt_file)
            return _decoded(read_bytes(path, limit=_LARGEST_PROMPT), str(path))
        if self.prompt is None:
            raise ValueError("there is no prompt: give PROMPT in quotes, --prompt-file FILE, or - for standard input")
        if self.prompt == "-":
            return _decoded(sys.stdin.buffer.read(), "standard input")
        return self.prompt


def unescaped(text: str) -> str:
    r"""Return a text with its escape sequences replaced: a shell passes on the two characters of a quoted ``\n``.

    The sequences are ``\n``, ``\t``, ``\r``, ``\xNN``, ``\uNNNN`` and a doubled backslash; all others stay unchanged.

    >>> unescaped(r"a\nb\u00e9\\n\q") == "a\nb\u00e9" + r"\n\q"
    True
    """

    def replace(match: re.Match[str]) -> str:
        code = match[1]
        return _ESCAPES[code] if code in _ESCAPES else chr(int(code[1:], 16))

    return re.sub(r"\\([ntr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})", replace, text)


def _decoded(content: bytes, name: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start}; convert it first"
        ) from None
    # The line end of the last line is not part of the text, as with `$(cat file)` in a shell.
    return text.removesuffix("\n").removesuffix("\r")
