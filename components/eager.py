"""Run compiled modules uncompiled for a block of code.

What changes between calls and is not part of a compiled graph (hooks, dropout switched off for one thread) has no
effect on compiled code. Code that depends on it therefore runs within `uncompiled`.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# PyTorch's stance belongs to the process, not to a thread: the first block to begin sets it, the last to end restores
# it. Without the count, two threads whose blocks overlap would leave the wrong stance behind.
_lock = threading.Lock()
_blocks = 0
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run modules compiled by ``torch.compile`` as they were written, within the block.

    Other threads' compiled modules run uncompiled meanwhile too: slower, with the same results.
    """
    # Asking for the stance imports torch's compiler, which takes seconds; without it nothing can be compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _blocks, _stance
    with _lock:
        if _blocks == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _blocks += 1


def _leave() -> None:
    global _blocks, _stance
    with _lock:
        _blocks -= 1
        if _blocks == 0:
            _stance.__exit__(None, None, None)
            _stance = None
