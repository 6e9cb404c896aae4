"""Text to token ids and back, for every kind of vocabulary that users bring.

`load_tokenizer` reads a folder, a name, or a tokenizer of another library. `BPETokenizer` is GPT-2's byte-pair
encoding, or one that was trained on the user's text; `CharTokenizer` gives each character an id; `PipelineTokenizer`
runs any other tokenizer that the ``tokenizers`` package can read. ``save`` writes files that
``transformers.AutoTokenizer`` reads.
"""

from .base import END_OF_TEXT, MAX_ID, TextDecoder, Tokenizer
from .byte_pairs import BPETokenizer
from .characters import CharTokenizer
from .loading import TokenizerSource, load_tokenizer
from .network import OfflineError, answer_within
from .pipeline import PipelineTokenizer

__all__ = [
    "END_OF_TEXT",
    "MAX_ID",
    "BPETokenizer",
    "CharTokenizer",
    "OfflineError",
    "PipelineTokenizer",
    "TextDecoder",
    "Tokenizer",
    "TokenizerSource",
    "answer_within",
    "load_tokenizer",
]
