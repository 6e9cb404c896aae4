"""Faults of gptladder's own: reported as such, so that they take away no verdict and are blamed on no layer."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .candidate.source import CandidateError, one_line

_PACKAGE = Path(__file__).resolve().parents[1]
# Not gptladder's faults: a source that cannot be tried, a full disk, a library that is not installed.
_OTHERS = (CandidateError, OSError, ImportError, MemoryError)


class OwnFault(Exception):
    """A fault of gptladder's own in the process of the layer: the message is `described` there."""


@contextmanager
def own_faults(report: Callable[[str], None]) -> Iterator[None]:
    """Report an unexpected exception of gptladder's own code, in a clause; ``GPTLADDER_DEBUG=1`` raises it."""
    try:
        yield
    except _OTHERS:
        raise
    except Exception as error:
        if os.environ.get("GPTLADDER_DEBUG"):
            raise
        report(f"{described(error)}; GPTLADDER_DEBUG=1 shows the traceback")


def described(error: Exception) -> str:
    """Return an exception of gptladder's own code in a clause, with the line that raised it and where to report it.

    Example:
        >>> described(KeyError("W_U"))
        "KeyError: 'W_U'. This is a fault of gptladder, not of the layer: please report it, with the layer, at \
https://github.com/gptladder/gptladder/issues"
    """
    if isinstance(error, OwnFault):
        return str(error)
    frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{path.relative_to(_PACKAGE).as_posix()}, line {line}" for path, line in frames if _PACKAGE in path.parents]
    where = f" (gptladder/{own[-1]})" if own else ""
    return (
        f"{one_line(error)}{where}. This is a fault of gptladder, not of the layer: please report it, with the layer, "
        "at https://github.com/gptladder/gptladder/issues"
    )
