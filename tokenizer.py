"""Text to token ids and back: GPT-2's byte-pair encoding, one trained on the user's text, or plain characters.

A tokenizer is saved beside the model as ``tokenizer.json`` and ``tokenizer_config.json``, which
``transformers.AutoTokenizer`` reads too and turns every text into the same ids. ``load_tokenizer`` reads them back, or
the ``vocab.json`` and ``merges.txt`` of an older GPT-2 folder.

The byte-pair encodings here are those of tiktoken: a token's id is its rank, and the pair whose union has the lowest
rank is merged first. With one merge for each token and ids in the order of the merges, which is checked, that is the
same function as the list of merges that the ``tokenizers`` package and transformers go by.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tiktoken
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from .files import write_whole

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharTokenizer",
    "OfflineError",
    "Tokenizer",
    "answer_within",
    "load_tokenizer",
]

T = TypeVar("T")

END_OF_TEXT = "<|endoftext|>"

# The pre-tokens of GPT-2 (`encoder.py` of its release), in tiktoken's quicker wording of the same language.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

_GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_SECONDS_TO_ANSWER = 3.0  # a run may ask two hosts, and is to say within 10 seconds that it is offline

# The characters that `\s` stands for in the pattern above. Python's own `\s` is wider, by U+001C to U+001F.
_BLANK = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG = 100_000


class OfflineError(ConnectionError):
    """Something is neither on this machine nor to be had from the network."""


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        n_vocab: one more than the highest id.
        eot_id: the id of the end-of-text token, or None where the vocabulary has none.
    """

    n_vocab: int
    eot_id: int | None

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        """The ids of a text. ``<|endoftext|>`` in it is ordinary text, unless ``allow_eot``, where it is the token.

        Raises:
            ValueError: a lone surrogate, or a character that the vocabulary lacks, with its position.
        """
        _check_utf8(text)
        if not allow_eot or self.eot_id is None:
            return self._encode(text, 0)
        first, *rest = text.split(END_OF_TEXT)
        ids = self._encode(first, 0)
        position = len(first)
        for part in rest:
            position += len(END_OF_TEXT)
            ids += [self.eot_id, *self._encode(part, position)]
            position += len(part)
        return ids

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[list[int]]:
        """The ids of a text that comes in chunks: joined, they equal ``encode`` of the joined text.

        What is held at any time is one chunk and the longest stretch of text that cannot be cut.

        Raises:
            ValueError: as for `encode`; the position is that in the whole text.
        """
        position = 0
        for text in self._cut(chunks):
            _check_utf8(text, position)
            yield self._encode(text, position)
            position += len(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Bytes that are not UTF-8, as of half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids; text that is shown as it comes goes through an incremental UTF-8 decoder.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary: equal for two tokenizers exactly where they give the same ids."""
        return hashlib.sha256(repr((type(self).__name__, self._vocabulary())).encode()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, each of them whole or not at all."""
        backend = self._backend()  # first: a vocabulary that cannot be written leaves no half of the two files
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # "<|endoftext|>" in a user's text is text, as in `encode`
        }
        if self.eot_id is not None:
            config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "tokenizer.json", backend.to_str(pretty=True))
        write_whole(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @abstractmethod
    def _encode(self, text: str, position: int) -> list[int]:
        """The ids of a text that begins at ``position`` of the whole."""

    @abstractmethod
    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        """The same text in pieces that can be encoded one by one."""

    @abstractmethod
    def _vocabulary(self) -> list[tuple[int, bytes]]:
        """Every id and its bytes, in the order of the ids."""

    @abstractmethod
    def _backend(self) -> Backend:
        """The same function from text to ids, as the ``tokenizers`` package has it."""


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding with GPT-2's pre-tokens, run by tiktoken.

    Args:
        ranks: the bytes of each token -> its id; ids must grow in the order of the merges.
        special_tokens: tokens that no text turns into, such as ``<|endoftext|>`` -> their ids.

    Raises:
        ValueError: a byte without a token, or an id given twice.
    """

    def __init__(self, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]):
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"{len(missing)} of the 256 bytes have no token (the first is 0x{missing[0]:02x})")
        ids = [*ranks.values(), *special_tokens.values()]
        if len(set(ids)) < len(ids) or min(ids) < 0:
            raise ValueError("two tokens have the same id, or an id is negative")
        self.n_vocab = max(ids) + 1
        self.eot_id = special_tokens.get(END_OF_TEXT)
        self._ranks = dict(ranks)
        self._special_tokens = dict(special_tokens)
        self._encoding = tiktoken.Encoding(
            "gptladder", pat_str=GPT2_PATTERN, mergeable_ranks=self._ranks, special_tokens=self._special_tokens
        )

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        """GPT-2's own vocabulary of 50,257 tokens, from tiktoken's cache or, failing that, the network.

        Raises:
            OfflineError: neither has it; said within 10 seconds, with the place to put the files.
        """
        cache = _tiktoken_cache()
        names = [hashlib.sha1(f"{_GPT2_FILES}/{name}".encode()).hexdigest() for name in ("vocab.bpe", "encoder.json")]
        cached = cache is not None and all((cache / name).exists() for name in names)
        patience = _SECONDS_TO_ANSWER
        try:
            if not cached:
                import requests  # what tiktoken fetches with, so that a proxy set for it serves both

                answer_within(patience, lambda: requests.head(f"{_GPT2_FILES}/vocab.bpe", timeout=patience))
                patience = 300.0  # there is a network, but it may be slow
            gpt2 = answer_within(patience, lambda: tiktoken.get_encoding("gpt2"))
        except OSError as error:
            raise OfflineError(
                f"GPT-2's vocabulary is not in tiktoken's cache ({cache or 'off'}) and {_GPT2_FILES} does not answer "
                f"({type(error).__name__}): put its vocab.bpe and encoder.json there, named {names[0]} and {names[1]}, "
                "or set TIKTOKEN_CACHE_DIR to a folder that holds them so, or load a model folder with vocab.json and "
                "merges.txt"
            ) from None
        eot_id = gpt2.eot_token
        return cls({gpt2.decode_single_token_bytes(i): i for i in range(eot_id)}, {END_OF_TEXT: eot_id})

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn a vocabulary from texts: the 256 bytes, the merges that save most, and the end-of-text token.

        Args:
            texts: read once, and not kept.
            vocab_size: tokens in all, at least 257. A short text may have fewer pairs worth a token (those that occur
                twice or more); ``n_vocab`` tells.

        Raises:
            ValueError: no text, or a ``vocab_size`` under 257.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size is {vocab_size}, and the 256 bytes and the end of text take 257 of it")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=sorted(_BYTE_OF),
            show_progress=False,
        )
        characters = 0

        def counted() -> Iterator[str]:
            nonlocal characters
            for text in [texts] if isinstance(texts, str) else texts:
                _check_utf8(text)
                characters += len(text)
                yield text

        backend.train_from_iterator(counted(), trainer)
        if not characters:
            raise ValueError("there is no text to learn a vocabulary from")
        model = json.loads(backend.to_str())["model"]
        ranks, _ = _ranks(model["vocab"], model["merges"], "the vocabulary just learnt")
        return cls(ranks, {END_OF_TEXT: len(ranks)})

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids. Raises ValueError for an id that the vocabulary does not have."""
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            known = {*self._ranks.values(), *self._special_tokens.values()}
            raise _unknown_id(next(i for i in ids if i not in known), self.n_vocab) from None

    def _encode(self, text: str, position: int) -> list[int]:
        # tiktoken's regex engine overflows its stack on about a million blanks before a word. The last blank of a run
        # goes with the word and the rest make one pre-token, so the text can be cut between them.
        if any(text[i : i + _LONG].isspace() for i in range(0, len(text), _LONG)):
            cuts = [0, *(m.end() for m in _LONG_BLANK.finditer(text)), len(text)]
            return [i for a, b in pairwise(cuts) for i in self._encoding.encode_ordinary(text[a:b])]
        return self._encoding.encode_ordinary(text)

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        # A pre-token has white space only at its beginning, or nowhere else than white space: where a blank follows
        # something else one ends, whatever comes before and after. What is left of the last such place is settled.
        held = ""
        for chunk in chunks:
            seen = max(0, len(held) - 1)
            held += chunk
            cut = _LAST_CUT.match(held, seen)
            if cut:
                yield held[: cut.end()]
                held = held[cut.end() :]
        if held:
            yield held

    def _vocabulary(self) -> list[tuple[int, bytes]]:
        special = {token.encode(): i for token, i in self._special_tokens.items()}
        return sorted((i, token) for tokens in (self._ranks, special) for token, i in tokens.items())

    def _backend(self) -> Backend:
        vocab = {_characters(token): i for token, i in self._ranks.items()} | self._special_tokens
        merges = [(_characters(left), _characters(right)) for left, right in _merges(self._ranks)]
        backend = Backend(models.BPE(vocab=vocab, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in self._special_tokens])
        return backend


class CharTokenizer(Tokenizer):
    """One id for each character, in the order given.

    Args:
        characters: the vocabulary.
        end_of_text: whether an end-of-text token follows them. A text in one document needs none; without it, documents
            cannot be told apart (`gptladder.training.data.shards` refuses more than one).

    Raises:
        ValueError: no characters, one given twice, or something that is not one character.
    """

    def __init__(self, characters: Sequence[str], *, end_of_text: bool = False):
        if not characters or len(set(characters)) < len(characters) or any(len(c) != 1 for c in characters):
            raise ValueError("a character vocabulary is one or more different single characters")
        _check_utf8("".join(characters))
        self._ids = {character: i for i, character in enumerate(characters)}
        self.eot_id = len(characters) if end_of_text else None
        self.n_vocab = len(characters) + end_of_text
        self._bytes = [c.encode() for c in characters] + [END_OF_TEXT.encode()] * end_of_text

    @classmethod
    def from_text(cls, texts: str | Iterable[str], *, end_of_text: bool = False) -> "CharTokenizer":
        """The sorted distinct characters of a text, or of several; they are read once, and not kept.

        Raises:
            ValueError: no text.
        """
        characters = sorted(set().union(*[texts] if isinstance(texts, str) else texts))
        if not characters:
            raise ValueError("there is no text to take the characters from")
        return cls(characters, end_of_text=end_of_text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids. Raises ValueError for an id that the vocabulary does not have."""
        ids = list(ids)
        for i in ids:
            if not 0 <= i < self.n_vocab:
                raise _unknown_id(i, self.n_vocab)
        return b"".join([self._bytes[i] for i in ids])

    def _encode(self, text: str, position: int) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            position += text.index(character)
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the "
                f"{len(self._ids)} characters of this tokenizer: take it out of the text, or build the tokenizer from "
                "text that has it"
            ) from None

    def _cut(self, chunks: Iterable[str]) -> Iterator[str]:
        yield from chunks

    def _vocabulary(self) -> list[tuple[int, bytes]]:
        return list(enumerate(self._bytes))

    def _backend(self) -> Backend:
        vocab = dict(self._ids) if self.eot_id is None else self._ids | {END_OF_TEXT: self.eot_id}
        backend = Backend(models.WordLevel(vocab=vocab, unk_token=""))  # no unknown token: it raises, as we do
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        backend.decoder = decoders.Fuse()
        if self.eot_id is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        return backend


def load_tokenizer(folder: str | os.PathLike[str]) -> BPETokenizer | CharTokenizer:
    """The tokenizer of a model folder: its ``tokenizer.json``, or else its ``vocab.json`` and ``merges.txt``.

    OpenAI's names for these two are ``encoder.json`` and ``vocab.bpe``.

    Raises:
        ValueError: no such files, or a kind of tokenizer that is none of ours.
    """
    folder = Path(folder)
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not vocab.exists():
        vocab, merges = folder / "encoder.json", folder / "vocab.bpe"
    try:
        if whole.exists():
            return _from_json(json.loads(whole.read_text(encoding="utf-8")), str(whole))
        if vocab.exists() and merges.exists():
            lines = merges.read_text(encoding="utf-8").split("\n")
            pairs = [line for line in lines if line and not line.startswith("#version:")]
            return BPETokenizer(*_ranks(json.loads(vocab.read_text(encoding="utf-8")), pairs, str(vocab)))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the tokenizer in {folder} is damaged: {type(error).__name__}: {error}") from None
    raise ValueError(f"no tokenizer in {folder}: it has neither tokenizer.json nor both of vocab.json and merges.txt")


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """``ask()``, or TimeoutError where it has not returned in time.

    A look-up of a name may hang far longer than the time limit given to the request that needs it; so the wait is here,
    and what hangs is left to itself on a thread that does not keep the program alive.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None


# GPT-2 writes each byte as a character that shows: itself, or one from U+0100 on.
_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {
    chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in set(_SHOWN))
}
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}

_LONG_BLANK = re.compile(rf"(?<![{_BLANK}])[{_BLANK}]{{{_LONG},}}(?=[{_BLANK}][^{_BLANK}])")
_LAST_CUT = re.compile(r"(?s).*\S(?=[ \n\t])")


def _characters(token: bytes) -> str:
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _ranks(
    vocab: Mapping[str, int], merges: Sequence[str | Sequence[str]], source: str
) -> tuple[dict[bytes, int], dict[str, int]]:
    """Bytes -> id for the 256 bytes and what the merges make, and token -> id for what is left: the special tokens."""
    special = dict(vocab)
    ranks = {bytes([byte]): special.pop(character) for character, byte in _BYTE_OF.items() if character in special}
    last = -1
    for merge in merges:
        token = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        rank = special.pop(token, -1)
        if rank <= last:
            raise ValueError(
                f"{source}: the id of {token!r} does not follow that of the merge before it; only vocabularies with "
                "one id for each merge, in their order, can be used, as GPT-2's are"
            )
        ranks[bytes(_BYTE_OF[character] for character in token)] = last = rank
    return ranks, special


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token: what remains of its bytes when everything of lower rank has merged."""
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


def _from_json(data: dict[str, Any], source: str) -> BPETokenizer | CharTokenizer:
    model, added = data["model"], {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    kind = model.get("type", "BPE")  # the older files leave it out
    before = data.get("pre_tokenizer") or {}
    plain = data.get("normalizer") is None and (data.get("post_processor") or {}).get("type") in (None, "ByteLevel")
    if plain and kind == "WordLevel" and before.get("type") == "Split":
        characters = sorted(model["vocab"].keys() - added.keys(), key=model["vocab"].__getitem__)
        tokenizer = CharTokenizer(characters, end_of_text=END_OF_TEXT in added)
        if tokenizer._backend().get_vocab() == model["vocab"]:
            return tokenizer
    gpt2_words = before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before["add_prefix_space"]
    if plain and kind == "BPE" and gpt2_words and not model.get("dropout"):
        ranks, special = _ranks(model["vocab"], model["merges"], source)
        return BPETokenizer(ranks, special | added)
    raise ValueError(f"{source} is neither a byte-level BPE with GPT-2's pre-tokens nor a vocabulary of characters")


def _tiktoken_cache() -> Path | None:
    """Where tiktoken looks before it asks the network; None where the user has switched its cache off."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if named is None:
        return Path(tempfile.gettempdir(), "data-gym-cache")
    return Path(named) if named else None


def _check_utf8(text: str, position: int = 0) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"position {position + error.start} of the text is a lone surrogate (U+{ord(text[error.start]):04X}), "
            "which is no character: decode the bytes it came from as UTF-8"
        ) from None


def _unknown_id(token: int, n_vocab: int) -> ValueError:
    return ValueError(f"token id {token} is not in this vocabulary of {n_vocab}")
