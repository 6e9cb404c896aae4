"""GPT-2's byte-level byte-pair encoding, run by tiktoken, which is ten times as fast as the ``tokenizers`` package.

The encodings here are those of tiktoken: a token's id is its rank, and the pair whose union has the lowest rank is
merged first. If each token is made by one merge, and the ids are in the order of the merges, that is the same function
as the list of merges that ``tokenizers`` and transformers go by. `BPETokenizer.from_pipeline` checks it, and refuses to
stand in for a tokenizer of which it is not true.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import tiktoken
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from .base import END_OF_TEXT, MAX_ID, NO_TEMPLATE, Tokenizer, check_utf8, default_config, unknown_id
from .cutting import BEFORE_BLANK, cut, cutting_place
from .network import gpt2_encoding

__all__ = ["BPETokenizer", "bytes_of"]

# The pre-tokens of GPT-2 (`encoder.py` of its release), in tiktoken's faster wording of the same language.
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# The characters that `\s` stands for in the pattern above. Python's own `\s` is wider, by U+001C to U+001F.
_BLANK = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG = 100_000
_LONG_BLANK = re.compile(rf"(?<![{_BLANK}])[{_BLANK}]{{{_LONG},}}(?=[{_BLANK}][^{_BLANK}])")

# GPT-2 writes each byte as a character that shows: itself, or one from U+0100 on.
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in set(_SHOWN)]
_CHARACTERS = {**{byte: chr(byte) for byte in _SHOWN}, **{byte: chr(256 + n) for n, byte in enumerate(_HIDDEN)}}


class _Bytes(dict[int, str]):
    """From a character's code point to its byte as a Latin-1 character; any other to one that Latin-1 lacks."""

    def __missing__(self, code_point: int) -> str:
        return "\uffff"


_BYTES = _Bytes({ord(character): chr(byte) for byte, character in _CHARACTERS.items()})


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding with GPT-2's pre-tokens.

    Args:
        ranks: the bytes of each token -> its id; ids must grow in the order of the merges.
        special_tokens: tokens such as ``<|endoftext|>`` -> their ids. Text turns into them only with
            ``encode(text, allow_special=True)``.

    Raises:
        ValueError: a byte without a token, or an id given twice.

    >>> tokenizer = BPETokenizer.train("the cat sat on the mat; the cat sat", vocab_size=270)
    >>> tokenizer.decode(tokenizer.encode("the hat"))
    'the hat'
    """

    def __init__(self, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]):
        added = {AddedToken(token, normalized=False, special=True): i for token, i in special_tokens.items()}
        self._set_up(ranks, special_tokens, added)
        self.eot_id = self.bos_id = special_tokens.get(END_OF_TEXT)
        self._config = default_config(self.eot_id is not None)

    def _set_up(self, ranks: Mapping[bytes, int], others: Mapping[str, int], added: Mapping[AddedToken, int]) -> None:
        """Set the vocabulary: ``others`` are the tokens that no merge makes, ``added`` those matched before merging."""
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"{len(missing)} of the 256 bytes have no token (the first is 0x{missing[0]:02x})")
        ids = [*ranks.values(), *others.values()]
        if len(set(ids)) < len(ids) or min(ids) < 0:
            raise ValueError("two tokens have the same id, or an id is negative")
        self.n_vocab = max(ids) + 1
        self._ranks, self._others, self._added = dict(ranks), dict(others), list(added)
        self._encoding = tiktoken.Encoding(
            "gptladder", pat_str=_GPT2_PATTERN, mergeable_ranks=self._ranks, special_tokens=self._others
        )
        # `tokenizers` matches in two rounds: first the tokens that it takes from the text as it is written.
        self._rounds = [
            re.compile("|".join(map(re.escape, contents)))
            for normalized in (False, True)
            if (contents := sorted((t.content for t in added if t.normalized == normalized), key=len, reverse=True))
        ]
        self._matched = {token.content: i for token, i in added.items()}
        self._special = {token.content for token in added if token.special}
        self._plain = len(self._special) == len(added)
        self._place = cutting_place(
            {
                "added_tokens": [{"content": token.content, "rstrip": token.rstrip} for token in added],
                "pre_tokenizer": {"type": "ByteLevel"},
            }
        )

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        """Return GPT-2's own vocabulary of 50,257 tokens, from tiktoken's cache or else from the network.

        Raises:
            OfflineError: neither has it. The error comes within 10 seconds and names the folder to put the files into.
        """
        gpt2 = gpt2_encoding()
        eot_id = gpt2.eot_token
        return cls({gpt2.decode_single_token_bytes(i): i for i in range(eot_id)}, {END_OF_TEXT: eot_id})

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn a vocabulary from texts: the 256 bytes, the merges that save most, and the end-of-text token.

        Args:
            texts: read once, and not kept.
            vocab_size: tokens in all, at least 257. A short text may have fewer pairs worth a token (those that occur
                twice or more); ``n_vocab`` has the number.

        Raises:
            ValueError: no text, or a ``vocab_size`` that is under 257 or above `MAX_ID`.

        >>> BPETokenizer.train("ab ab", vocab_size=300).n_vocab
        258
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size is {vocab_size}, and the 256 bytes and the end of text take 257 of it")
        if vocab_size > MAX_ID:
            raise ValueError(f"vocab_size is {vocab_size}; it must be at most {MAX_ID:,}")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=sorted(_CHARACTERS.values()),
            show_progress=False,
        )
        characters = 0

        def counted() -> Iterator[str]:
            nonlocal characters
            for text in [texts] if isinstance(texts, str) else texts:
                check_utf8(text)
                characters += len(text)
                yield text

        backend.train_from_iterator(counted(), trainer)
        if not characters:
            raise ValueError("there is no text to learn a vocabulary from")
        ranks = _ranks(json.loads(backend.to_str())["model"], backend.model)
        if ranks is None:
            raise RuntimeError("the vocabulary just learnt has ids that are not in the order of its merges")
        return cls(ranks, {END_OF_TEXT: len(ranks)})

    @classmethod
    def from_pipeline(cls, pipeline: Mapping[str, Any], model: models.Model) -> "BPETokenizer | None":
        """Return the same function as the pipeline in a ``tokenizer.json``, or None if tiktoken has no such function.

        Args:
            pipeline: the JSON as ``tokenizers`` itself writes it.
            model: the model in it.
        """
        added = {
            AddedToken(**{name: value for name, value in token.items() if name != "id"}): token["id"]
            for token in pipeline["added_tokens"]
        }
        if not _is_gpt2s(pipeline) or any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        vocab = pipeline["model"]["vocab"]
        ranks = _ranks(pipeline["model"], model)
        if ranks is None:
            return None
        matched = {token.content: i for token, i in added.items()}
        # `tokenizers` may decode an added token to other bytes than those of its text.
        if any(bytes_of(token) != token.encode() or ranks.get(token.encode(), i) != i for token, i in matched.items()):
            return None
        merged = set(ranks.values())
        others = {token: i for token, i in (vocab | matched).items() if i not in merged}
        if any(bytes_of(token) != token.encode() for token in others):
            return None
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(ranks, others, added)
        return tokenizer

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, written as in ``tokenizer.json``, or None if the vocabulary does not have it."""
        return self._others.get(token, self._ranks.get(bytes_of(token)))

    @property
    def n_text_vocab(self) -> int:
        """One more than the highest id that ordinary text turns into."""
        return max([*self._ranks.values(), *(i for token, i in self._others.items() if token not in self._special)]) + 1

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of some ids. Raises ValueError for an id that the vocabulary does not have."""
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            known = {*self._ranks.values(), *self._others.values()}
            raise unknown_id(next(i for i in ids if i not in known), self.n_vocab) from None

    def unused_ids(self, below: int) -> list[int]:
        """Return the ids under ``below`` and ``n_vocab`` that stand for no text."""
        known = {*self._ranks.values(), *self._others.values()}
        return [i for i in range(min(below, self.n_vocab)) if i not in known]

    def _encode(self, text: str, position: int, allow_special: bool) -> list[int]:
        if not self._rounds or (self._plain and not allow_special):
            return self._merge(text)
        return self._match(text, 0, allow_special)

    def _match(self, text: str, round_: int, allow_special: bool) -> list[int]:
        """Return the ids of a text in which added tokens are matched, from a round on."""
        if round_ == len(self._rounds):
            return self._merge(text)
        ids: list[int] = []
        start = 0
        for match in self._rounds[round_].finditer(text):
            token = match.group()
            if token in self._special and not allow_special:
                continue
            ids += self._match(text[start : match.start()], round_ + 1, allow_special)
            ids.append(self._matched[token])
            start = match.end()
        return ids + self._match(text[start:], round_ + 1, allow_special)

    def _merge(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special."""
        # tiktoken's regex engine overflows its stack on about a million blanks before a word. The last blank of a run
        # goes with the word and the rest make one pre-token, so the text can be cut between them.
        if any(text[i : i + _LONG].isspace() for i in range(0, len(text), _LONG)):
            cuts = [0, *(m.end() for m in _LONG_BLANK.finditer(text)), len(text)]
            return [i for a, b in pairwise(cuts) for i in self._encoding.encode_ordinary(text[a:b])]
        return self._encoding.encode_ordinary(text)

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        return cut(chunks, BEFORE_BLANK if self._plain else self._place)

    def _identity(self) -> tuple[Any, ...]:
        others = {token.encode(): i for token, i in self._others.items()}
        vocabulary = sorted((i, token) for tokens in (self._ranks, others) for token, i in tokens.items())
        matched = sorted((t.content, t.normalized) for t in self._added if not t.special)
        return (vocabulary, matched) if matched else (vocabulary,)

    def _backend(self) -> Backend:
        vocab = {_characters(token): i for token, i in self._ranks.items()} | self._others
        merges = [(_characters(left), _characters(right)) for left, right in _merges(self._ranks)]
        backend = Backend(models.BPE(vocab=vocab, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_tokens(self._added)
        return backend


def bytes_of(token: str) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary is decoded to.

    >>> bytes_of("Ġthe"), bytes_of("狐")
    (b' the', b'\\xe7\\x8b\\x90')
    """
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _is_gpt2s(pipeline: Mapping[str, Any]) -> bool:
    """Tell whether everything but the vocabulary is as in GPT-2's ``tokenizer.json``."""
    model, words, template = pipeline["model"], pipeline["pre_tokenizer"] or {}, pipeline["post_processor"] or {}
    merging = (
        model["type"] == "BPE"
        and not model["dropout"]
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and not model["byte_fallback"]
        and not model["ignore_merges"]
    )
    splitting = words.get("type") == "ByteLevel" and words["use_regex"] and not words["add_prefix_space"]
    adds_nothing = template.get("type") in (None, "ByteLevel") or (
        template["type"] == "TemplateProcessing" and template["single"] == [NO_TEMPLATE]
    )
    decoding = (pipeline["decoder"] or {}).get("type") == "ByteLevel"
    return pipeline["normalizer"] is None and merging and splitting and adds_nothing and decoding


def _characters(token: bytes) -> str:
    return token.decode("latin-1").translate(_CHARACTERS)


def _ranks(pipeline_model: Mapping[str, Any], model: models.Model) -> dict[bytes, int] | None:
    """Return bytes -> id for the 256 bytes and what the merges make, or None if the ids are not tiktoken's ranks.

    They are if ids grow in the order of the merges, no two merges make the same token, and each token's bytes are
    merged into this token.
    """
    vocab: Mapping[str, int] = pipeline_model["vocab"]
    if not all(character in vocab for character in _CHARACTERS.values()):
        return None
    ranks = {bytes([byte]): vocab[character] for byte, character in _CHARACTERS.items()}
    last = -1
    for left, right in pipeline_model["merges"]:
        token = left + right
        rank = vocab[token]
        if rank <= last:
            return None
        last = rank
        try:
            ranks[token.translate(_BYTES).encode("latin-1")] = rank
        except UnicodeEncodeError:
            return None
        parts = model.tokenize(token)
        if len(parts) != 1 or parts[0].id != rank:
            return None
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the pair that makes each token: what is left of its bytes after all merges of lower rank."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best, at = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
            if best >= rank:
                raise ValueError(f"token {rank} ({token!r}) cannot be made by merging tokens of lower ids")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges
