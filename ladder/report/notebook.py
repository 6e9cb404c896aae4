"""Results in a notebook: the verdict as HTML, and the cell magic ``%%climb``."""

import shlex
from collections.abc import Callable
from typing import Any

from torch import nn

from ..results import Climb
from .html import STYLE, body
from .terminal import climb_text


def fragment(climbed: Climb) -> str:
    """Return a climb as HTML to stand under a cell: verdict, line, patterns side by side."""
    return f'<div class="gptladder"><style>{scoped(STYLE)}</style>{body(climbed)}</div>'


def scoped(style: str) -> str:
    """Return the page's style, for the part of a notebook that shows a result."""
    rules = style.replace(":root", ".gptladder").replace("body { margin: 0 auto;", ".gptladder { margin: 0;")
    lines = []
    for line in rules.splitlines():
        starts = line[:1] not in ("", " ", "@", "}") and not line.startswith(".gptladder")
        lines.append(f".gptladder {line}" if starts and "{" in line else line)
    return "\n".join(lines)


class ShownClimb(Climb):
    """A climb that shows itself: as HTML in a notebook, as text in IPython's terminal."""

    def _repr_html_(self) -> str:
        return fragment(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(climb_text(self))


# The options of ``%%climb``, and their types.
_OPTIONS: dict[str, type] = {"hint": str, "cases": int, "seed": int, "dtype": str}


def register(ipython: Any, climb: Callable[..., Climb]) -> None:
    """Register ``%%climb``: it runs the cell, and tries the layers that the cell defines.

    Args:
        ipython: the shell.
        climb: tries the layers.
    """

    def climb_cell(line: str, cell: str) -> Climb | None:
        options = _options(line)
        before = dict(ipython.user_ns)
        outer = ipython.displayhook.exec_result
        ran = ipython.run_cell(cell)
        ipython.displayhook.exec_result = outer  # which running a cell within a cell takes away
        if not ran.success:
            return None  # IPython has shown the error
        made = [
            value
            for name, value in ipython.user_ns.items()
            if isinstance(value, type) and issubclass(value, nn.Module) and before.get(name) is not value
        ]
        if not made:
            print("%%climb: the cell defines no layer (no nn.Module class)")
            return None
        return climb(*made, **options)

    ipython.register_magic_function(climb_cell, magic_kind="cell", magic_name="climb")


def _options(line: str) -> dict[str, Any]:
    """Return the options on the line of ``%%climb``.

    Raises:
        ValueError: an option that is not known, or has no value of its type.
    """
    words = shlex.split(line)
    options: dict[str, Any] = {}
    for option, value in zip(words[::2], [*words[1::2], None], strict=False):
        name = option.removeprefix("--")
        if name not in _OPTIONS or option == name or value is None:
            known = ", ".join(f"--{each}" for each in _OPTIONS)
            raise ValueError(f"%%climb {line}: cannot read {option}; write options and values, of {known}")
        try:
            options[name] = _OPTIONS[name](value)
        except ValueError:
            raise ValueError(f"%%climb {line}: {option} takes a whole number, not {value}") from None
    return options
