"""Show the axes of a tensor in API pages without the sizes that only the check at run time needs.

``Float[Tensor, "batch seq d_model={self.d_model}"]`` is shown as ``Float[Tensor, "batch seq d_model"]``.
"""

import re
from typing import Any

import griffe

_SIZE = re.compile(r"=?\{[^}]*\}")


class Axes(griffe.Extension):
    """Shorten the annotations of every function."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Shorten the annotations of one function's parameters and of what it returns."""
        for parameter in func.parameters:
            _shorten(parameter.annotation)
        _shorten(func.returns)


def _shorten(expression: Any) -> None:
    if not isinstance(expression, griffe.Expr):
        return
    for node in (expression, *expression.iterate(flat=False)):
        if isinstance(node, griffe.ExprTuple):
            node.elements = [_SIZE.sub("", part) if isinstance(part, str) else part for part in node.elements]
        if isinstance(node, griffe.Expr) and node is not expression:
            _shorten(node)
