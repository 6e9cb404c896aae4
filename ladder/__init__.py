"""The ladder: each layer is a rung, tried against reference layers before the next one stands on it.

`climb` tries your own layers. Whatever compares needs the extra ``gptladder[reference]``, and loads it when used.
"""

from .candidate.source import CandidateError
from .climbing import Climb, climb

__all__ = ["CandidateError", "Climb", "climb"]
