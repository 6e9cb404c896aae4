"""Results in a notebook: the verdict as HTML, and the cell magic ``%%climb``."""

import shlex
from typing import Any

from ..results import Climb
from .html import STYLE, body


def fragment(climbed: Climb) -> str:
    """Return a climb as HTML to stand under a cell: verdict, line, patterns side by side."""
    return f'<div class="gptladder"><style>{scoped(STYLE)}</style>{body(climbed)}</div>'


def scoped(style: str) -> str:
    """Return the page's style, for the part of a notebook that shows a result."""
    rules = style.replace(":root", ".gptladder").replace("body {", ".gptladder {")
    lines = []
    for line in rules.splitlines():
        starts = line[:1] not in ("", " ", "@", "}") and not line.startswith(".gptladder")
        lines.append(f".gptladder {line}" if starts and "{" in line else line)
    return "\n".join(lines)


def load_ipython_extension(ipython: Any) -> None:
    """Register ``%%climb``: it runs the cell, and tries the layers that the cell defines."""

    def climb_cell(line: str, cell: str) -> Climb | None:
        from torch import nn

        from ..climbing import climb

        before = dict(ipython.user_ns)
        if not ipython.run_cell(cell).success:
            return None
        made = [
            value
            for name, value in ipython.user_ns.items()
            if isinstance(value, type) and issubclass(value, nn.Module) and before.get(name) is not value
        ]
        if not made:
            print("%%climb: the cell defines no layer (no nn.Module class)")
            return None
        words = shlex.split(line)
        hint: Any = words[words.index("--hint") + 1] if "--hint" in words else "what"
        return climb(*made, hint=hint)

    ipython.register_magic_function(climb_cell, magic_kind="cell", magic_name="climb")
