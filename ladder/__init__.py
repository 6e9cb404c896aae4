"""The ladder: each layer is a rung, tried against reference layers before the next one stands on it.

`climb` tries your own layers, and needs no extra: our layers, which the tests prove against both libraries, are the
reference. ``gptladder ladder`` and ``gptladder parity`` compare with the libraries themselves, and need
``gptladder[reference]``.
"""

from .candidate.source import CandidateError
from .climbing import climb
from .results import Climb

__all__ = ["CandidateError", "Climb", "climb"]
