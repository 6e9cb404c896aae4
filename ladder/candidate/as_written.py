"""The Python of what TorchScript compiles, run in its place: a trace sees no step inside a compiled function."""

from collections.abc import Callable
from typing import Any

import torch
from torch.jit import ScriptFunction

from ..answers import Answer, close
from .trace import Trace


class AsWritten:
    """Runs functions and modules of ``torch.jit.script`` as the user wrote them, in its context.

    What was compiled before it began keeps its parameters: modules are left as they are then, and functions are not.
    """

    def __init__(self) -> None:
        self.used = False
        """Whether something ran as it was written, and not as it was compiled."""

    def __enter__(self) -> "AsWritten":
        self._script, self._call = torch.jit.script, ScriptFunction.__call__

        def script(written: Any, *args: Any, **kwargs: Any) -> Any:
            self.used = True
            return written

        def run(compiled: Any, *args: Any, **kwargs: Any) -> Any:
            written = getattr(compiled, "_torchdynamo_inline", None)
            if written is None:
                return self._call(compiled, *args, **kwargs)
            self.used = True
            return written(*args, **kwargs)

        torch.jit.script = script  # pyright: ignore[reportAttributeAccessIssue]
        ScriptFunction.__call__ = run  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def __exit__(self, *_: object) -> None:
        torch.jit.script = self._script
        ScriptFunction.__call__ = self._call


def recorded(answer: Callable[[Trace], Answer], trace: Trace) -> Answer:
    """Return a layer's answer, and record how it is made: as its author wrote it, if that gives the same numbers.

    Args:
        answer: runs the layer and records it.
        trace: to be filled.
    """
    found = None
    with AsWritten() as written:
        try:
            found = answer(trace)
        except Exception:
            if not written.used:
                raise
    if found is not None and not written.used:
        return found
    compiled, own = Trace(), None
    try:
        own = answer(compiled)
        return own
    finally:
        same = own is found or (own and found and close(own.output, found.output))
        vars(trace).update({} if same else vars(compiled))
