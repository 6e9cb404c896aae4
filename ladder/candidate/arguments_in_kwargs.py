"""Find the arguments that a constructor takes out of its ``**kwargs``."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def in_kwargs(make: Callable[..., Any], has_names: bool) -> list[inspect.Parameter]:
    """Return the arguments that a constructor reads from its ``**kwargs``, or hands on to its base class.

    Args:
        make: a class.
        has_names: it names other arguments: its base class then may get them from it, and is not asked.

    Example:
        >>> class Attention(nn.Module):
        ...     def __init__(self, *args, **kwargs):
        ...         super().__init__()
        ...         self.config = kwargs["config"]
        >>> [each.name for each in in_kwargs(Attention, False)]
        ['config']
    """
    found: dict[str, inspect.Parameter] = {}
    for cls in make.__mro__ if inspect.isclass(make) else ():
        constructor = vars(cls).get("__init__")
        if cls is nn.Module or not inspect.isfunction(constructor):
            continue
        arguments = list(inspect.signature(constructor).parameters.values())[1:]
        if cls is not make:
            named = [each for each in arguments if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
            found = {each.name: each for each in named} | found
        rest = next((each.name for each in arguments if each.kind == each.VAR_KEYWORD), None)
        if rest is None:
            break
        found |= {each.name: each for each in _looked_up(constructor, rest)}
        if has_names:
            break
    return list(found.values())


def _looked_up(constructor: Callable[..., Any], rest: str) -> Iterator[inspect.Parameter]:
    """Yield what a function looks up in its ``**kwargs``: ``kwargs["config"]``, ``kwargs.get("bias", True)``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(constructor)))
    except (OSError, SyntaxError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))) if name == rest:
                yield inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr=("get" | "pop" | "setdefault") as method),
                args=[ast.Constant(value=str(key)), *default],
            ) if name == rest and key.isidentifier():
                value = default[0].value if default and isinstance(default[0], ast.Constant) else None
                required = not default and method == "pop"
                given = inspect.Parameter.empty if required else value
                yield inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=given)
            case _:
                pass
