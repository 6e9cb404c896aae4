"""Every way to get text out of a model: greedy, sampled, by beam search, and with something that guesses ahead."""

from .beam import Beam, beam_search
from .packed import PackedWeights, pack
from .params import SamplingParams
from .rows import Chunk, Completion, Logprobs
from .speculative import PromptLookup, Speculation, speculate
from .stream import generate, stream
from .transforms import Chain, LogitsTransform

__all__ = [
    "Beam",
    "Chain",
    "Chunk",
    "Completion",
    "LogitsTransform",
    "Logprobs",
    "PackedWeights",
    "PromptLookup",
    "SamplingParams",
    "Speculation",
    "beam_search",
    "generate",
    "pack",
    "speculate",
    "stream",
]
