"""Text from a model (greedy, sampled, by beam search, speculative), and how well a model predicts a text."""

from .beam import Beam, beam_search
from .evaluation import Evaluation, evaluate
from .generation import generate, stream
from .packed import PackedWeights, pack
from .params import SamplingParams
from .predictions import Prediction, top_predictions
from .rows import Chunk, Completion, Logprobs
from .speculative import PromptLookup, Speculation, speculate
from .transforms import Chain, LogitsTransform

__all__ = [
    "Beam",
    "Chain",
    "Chunk",
    "Completion",
    "Evaluation",
    "LogitsTransform",
    "Logprobs",
    "PackedWeights",
    "Prediction",
    "PromptLookup",
    "SamplingParams",
    "Speculation",
    "beam_search",
    "evaluate",
    "generate",
    "pack",
    "speculate",
    "stream",
    "top_predictions",
]
