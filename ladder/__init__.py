"""The ladder: each layer is a rung, tried against reference layers before the next one stands on it.

`climb` tries your own layers, and needs no extra: our layers, which the tests prove against both libraries, are the
reference. ``gptladder ladder`` and ``gptladder parity`` compare with the libraries themselves, and need
``gptladder[reference]``. In a notebook, ``%load_ext gptladder.ladder`` adds the cell magic ``%%climb``.
"""

from typing import Any

from .candidate.source import CandidateError
from .climbing import climb
from .report.notebook import register
from .results import Climb

__all__ = ["CandidateError", "Climb", "climb", "load_ipython_extension"]


def load_ipython_extension(ipython: Any) -> None:
    """Add the cell magic ``%%climb``, which tries the layers that a cell defines; called by ``%load_ext``.

    Example: see ``docs/your-layer.md``.
    """
    register(ipython, climb)
