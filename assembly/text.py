"""Text in and out of a model: the methods of `GPT2` that use its tokenizer.

They behave as ``transformer_lens.HookedTransformer``'s methods of the same names, with a tokenizer of ours. By default
text gets the token that begins every text in front of it: even models that were not trained so often use the first
position as a resting place for attention.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tokenizer import Tokenizer
from .config import GPT2Config

PaddingSide = Literal["left", "right"]

Input = str | Sequence[str] | Sequence[int] | Tensor
"""What a model's call takes: text, tokens, or a residual stream."""


_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)  # of files of tokens; an embedding takes none


class ReadsText(Protocol):
    """What these functions ask of a model."""

    config: GPT2Config
    default_prepend_bos: bool

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What reads and writes text for it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def W_U(self) -> Tensor:
        """Its output projection, [d_model d_vocab]."""
        ...


class Batch(NamedTuple):
    """Texts as a model reads them."""

    tokens: Int[Tensor, "batch seq"]
    is_token: Bool[Tensor, "batch seq"] | None
    """False at padding (None: there is none)."""


def as_batch(
    model: ReadsText,
    input: Input | None,
    padding_mask: Tensor | None,
    prepend_bos: bool | None,
    padding_side: PaddingSide | None,
) -> tuple[Tensor, Tensor | None]:
    """Return a model's input as tokens [batch seq], and which of them are not padding.

    Raises:
        ValueError: no input; no text; what `to_tokens` refuses; a text of more than ``n_ctx`` tokens; ``padding_mask``
            with text.
    """
    if input is None:
        raise ValueError("the model was called without an input: give it tokens or a text")
    given: Any = input
    if not isinstance(given, Tensor) and hasattr(given, "tolist"):  # NumPy's and pandas'
        given = given.tolist()
    if isinstance(given, list | tuple | range) and given and all(_holds_ids(item) for item in given):
        rows = _plain(given)
        if len(lengths := {len(row) if isinstance(row, list) else 0 for row in rows}) > 1:
            raise ValueError(
                f"the rows of tokens have {min(lengths)} to {max(lengths)} tokens: fill them up to one length, and "
                "give padding_mask=…, which is False at the filling"
            )
        given = torch.tensor(rows, dtype=torch.int64, device=model.device)
    if isinstance(given, Tensor):
        given = given.long() if given.dtype in _UNSIGNED else given
        return (given[None] if given.dim() == 1 else given), padding_mask
    if padding_mask is not None:
        raise ValueError("texts are padded here: leave out padding_mask, or give the tokens that it is of")
    rows = [_ids(model, text, prepend_bos) for text in _texts(given)]
    longest = max(map(len, rows))
    if longest > model.config.n_ctx:
        raise ValueError(
            f"a text has {longest} tokens and the model {model.config.n_ctx} positions: shorten it, or pass "
            "to_tokens(text), which cuts it"
        )
    return _padded(model, rows, padding_side)


def as_padding_mask(attention_mask: Tensor, padding_mask: Tensor | None) -> Bool[Tensor, "batch seq"]:
    """Return an attention mask of numbers, as TransformerLens and transformers have it, as our padding mask.

    Raises:
        ValueError: there is a padding mask too; the mask has other numbers than 0 and 1.
    """
    if padding_mask is not None:
        raise ValueError("attention_mask means what padding_mask means: give one of padding_mask and attention_mask")
    mask = torch.as_tensor(attention_mask)
    # A mask that is added to scores (0 at tokens, -10000 at padding) would mean its opposite.
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"attention_mask has numbers from {mask.min():g} to {mask.max():g}; it must be 1 at tokens and 0 at padding"
        )
    return mask.bool()


def one_row(tokens: Any) -> list[int]:
    """Return the ids of one text's tokens, which may be in a list, a tensor or an array, [seq] or [1 seq].

    Raises:
        ValueError: several rows, or other things than whole numbers.

    Example:
        >>> one_row(torch.tensor([[3, 1]])), one_row([3, 1])
        ([3, 1], [3, 1])
    """
    ids = _plain(tokens)
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
        ids = ids[0]
    if isinstance(ids, int) or not all(isinstance(i, int) for i in ids):
        raise ValueError(
            f"the tokens of one text are expected, [seq] or [1 seq], not {tokens!r:.60}: give one text at a time"
        )
    return ids


def to_tokens(
    self: ReadsText,
    input: str | Sequence[str],
    prepend_bos: bool | None = None,
    padding_side: PaddingSide | None = None,
    move_to_device: bool = True,
    truncate: bool | None = None,
) -> Int[Tensor, "batch seq"]:
    """Return the tokens of a text or several, as a batch. Shorter texts are padded.

    Special tokens that are written in a text, as ``<|endoftext|>``, are read as tokens.

    Args:
        input: the text, or several.
        prepend_bos: begin with the token that begins every text (default: ``default_prepend_bos``, if the tokenizer
            has such a token).
        padding_side: ``left`` or ``right`` (default: right).
        move_to_device: put the tokens on the model's device.
        truncate: cut what exceeds ``n_ctx`` tokens, without (True) or with a warning (default), or keep it (False).

    Raises:
        ValueError: no tokenizer; no text; ``prepend_bos`` without a token that begins every text; texts of different
            lengths without a token to pad with; a token outside the model's vocabulary.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> from gptladder.tokenizer import CharTokenizer
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=4, n_ctx=8))
        >>> model.tokenizer = CharTokenizer("abc", end_of_text=True)
        >>> model.to_tokens("cab"), model.to_tokens("cab", prepend_bos=False)
        (tensor([[3, 2, 0, 1]]), tensor([[2, 0, 1]]))
    """
    rows = [_ids(self, text, prepend_bos) for text in _texts(input)]
    longest, n_ctx = max(map(len, rows), default=0), self.config.n_ctx
    if longest > n_ctx and truncate is not False:
        rows = [row[:n_ctx] for row in rows]
        if truncate is None:
            warnings.warn(
                f"a text has {longest} tokens, and is cut to the model's {n_ctx} positions: pass truncate=True to cut "
                "it without this warning, or truncate=False to keep all tokens",
                stacklevel=2,
            )
    if len(set(map(len, rows))) > 1 and _padding_token(self) is None:
        raise ValueError(
            "the texts have different numbers of tokens, and the tokenizer has no token to pad with: give texts of "
            "one length, or one at a time"
        )
    tokens = _padded(self, rows, padding_side).tokens
    return tokens if move_to_device else tokens.cpu()


def to_string(self: ReadsText, tokens: int | Sequence[Any] | Tensor | Any) -> str | list[str]:
    """Return the text of tokens, or of each row of [batch seq]. Bytes that are not UTF-8 become U+FFFD.

    Example: see `to_str_tokens`.
    """
    tokenizer, ids = tokenizer_of(self), _plain(tokens)
    if isinstance(ids, int):
        return tokenizer.decode([ids])
    if ids and isinstance(ids[0], list):
        return [tokenizer.decode(row) for row in ids]
    return tokenizer.decode(ids)


def to_str_tokens(
    self: ReadsText, input: str | Sequence[Any] | Tensor | Any, prepend_bos: bool | None = None
) -> list[Any]:
    """Return the text of each token: a list of strings; for several texts or rows, a list of such lists.

    Args:
        input: text, or tokens [seq] or [1 seq]; or several of these.
        prepend_bos: for text: as for `to_tokens`.

    Raises:
        ValueError: as for `to_tokens`.

    Example:
        >>> from gptladder import GPT2, GPT2Config
        >>> from gptladder.tokenizer import CharTokenizer
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=4, n_ctx=8))
        >>> model.tokenizer = CharTokenizer("abc", end_of_text=True)
        >>> model.to_str_tokens("ca"), model.to_string([2, 0]), model.to_single_token("b")
        (['<|endoftext|>', 'c', 'a'], 'ca', 1)
    """
    tokenizer = tokenizer_of(self)
    if isinstance(input, str):
        ids: Any = to_tokens(self, input, prepend_bos)[0].tolist()
    elif isinstance(input, list | tuple) and not all(isinstance(item, int) for item in input):
        return [to_str_tokens(self, item, prepend_bos) for item in input]
    else:
        ids = _plain(input)
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        if len(ids) > 1:
            return [[tokenizer.decode([i]) for i in row] for row in ids]
        ids = ids[0]
    return [tokenizer.decode([i]) for i in ([ids] if isinstance(ids, int) else ids)]


def to_single_token(self: ReadsText, string: str) -> int:
    """Return the token whose text is the string. Example: see `to_str_tokens`.

    Raises:
        ValueError: the string is not exactly one token.
    """
    ids = _ids(self, string, prepend_bos=False)
    if len(ids) != 1:
        parts = ", ".join(repr(tokenizer_of(self).decode([i])) for i in ids)
        raise ValueError(f"{string!r} has {len(ids)} tokens ({parts}), where exactly one is expected")
    return ids[0]


def to_single_str_token(self: ReadsText, int_token: int) -> str:
    """Return the text of one token."""
    return tokenizer_of(self).decode([int(int_token)])


def get_token_position(
    self: ReadsText,
    single_token: str | int | Tensor,
    input: str | Sequence[int] | Tensor,
    mode: Literal["first", "last"] = "first",
    prepend_bos: bool | None = None,
) -> int:
    """Return the position of a token in a text or in tokens, [seq] or [1 seq].

    Raises:
        ValueError: the token is not there; several texts; another ``mode``.
    """
    if mode not in ("first", "last"):
        raise ValueError(f"mode is {mode!r}; it can be 'first' or 'last'")
    token = to_single_token(self, single_token) if isinstance(single_token, str) else int(single_token)
    ids: Any = to_tokens(self, input, prepend_bos).tolist() if isinstance(input, str) else _plain(input)
    if ids and isinstance(ids[0], list):
        if len(ids) > 1:
            raise ValueError(f"there are {len(ids)} rows of tokens; give one")
        ids = ids[0]
    if token not in ids:
        raise ValueError(f"token {token} is not among the {len(ids)} tokens {ids[:8]}")
    return ids.index(token) if mode == "first" else len(ids) - 1 - ids[::-1].index(token)


def tokens_to_residual_directions(
    self: ReadsText, tokens: str | int | Sequence[int] | Tensor
) -> Float[Tensor, "*tokens d_model"]:
    """Return the direction of the residual stream that raises the logit of a token: its column of ``W_U``.

    Args:
        tokens: the text of one token, its id, or ids of any shape; a row [1 seq] counts as [seq].
    """
    if isinstance(tokens, str):
        tokens = to_single_token(self, tokens)
    ids = torch.as_tensor(tokens, device=self.device)
    directions = self.W_U.T[ids]
    return directions.reshape(self.W_U.shape[0]) if ids.numel() == 1 else directions


def tokenizer_of(model: ReadsText) -> Tokenizer:
    """Return the model's tokenizer.

    Raises:
        ValueError: it has none.
    """
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer to read or write text with: set model.tokenizer to a folder that holds one, to "
            "'gpt2', or to a tokenizer of transformers; or pass token ids"
        )
    return model.tokenizer


def _texts(input: str | Sequence[Any]) -> list[str]:
    if isinstance(input, Mapping):  # its keys would be read as texts
        raise ValueError(
            f"a text or tokens are expected, not a {type(input).__name__}: if a tokenizer of transformers returned it, "
            "give its ['input_ids'], and attention_mask=… beside it"
        )
    texts = list(input) if isinstance(input, Iterable) and not isinstance(input, str) else [input]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"text is expected, or a list of texts, not {type(text).__name__}: {text!r:.40}")
    if not texts:
        raise ValueError("there is no text: give at least one")
    return texts


def _ids(model: ReadsText, text: str, prepend_bos: bool | None) -> list[int]:
    """Return the ids of one text, with or without the token that begins every text."""
    tokenizer = tokenizer_of(model)
    start, d_vocab = tokenizer.start_id, model.config.d_vocab
    ids = tokenizer.encode(text, allow_special=True)
    # Some tokenizers put the token there themselves, by a template.
    template = start is not None and tokenizer.encode("")[:1] == [start]
    if prepend_bos is None:
        prepend_bos = model.default_prepend_bos and start is not None and start < d_vocab
    if prepend_bos and not template:
        if start is None:
            raise ValueError("prepend_bos is True, and the tokenizer has no token that begins a text: pass False")
        ids = [start, *ids]
    elif not prepend_bos and template:
        ids = ids[1:]
    if ids and max(ids) >= d_vocab:
        raise ValueError(
            f"the tokenizer gives token {max(ids)}, but the model's vocabulary has {d_vocab}: ids go from 0 to "
            f"{d_vocab - 1}; give the model its own tokenizer"
        )
    return ids


def _padding_token(model: ReadsText) -> int | None:
    tokenizer = tokenizer_of(model)
    known = (tokenizer.pad_id, tokenizer.eot_id, tokenizer.bos_id)
    return next((token for token in known if token is not None and token < model.config.d_vocab), None)


def _padded(model: ReadsText, rows: list[list[int]], padding_side: PaddingSide | None) -> Batch:
    if padding_side not in (None, "left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}; it can be 'left' or 'right'")
    longest = max(map(len, rows))
    padding, left = _padding_token(model) or 0, padding_side == "left"
    filled, is_token = [], []
    for row in rows:
        missing = longest - len(row)
        fill, off, on = [padding] * missing, [False] * missing, [True] * len(row)
        filled.append(fill + row if left else row + fill)
        is_token.append(off + on if left else on + off)
    tokens = torch.tensor(filled, dtype=torch.int64, device=model.device).reshape(len(rows), longest)
    if all(len(row) == longest for row in rows):
        return Batch(tokens, None)
    return Batch(tokens, torch.tensor(is_token, device=model.device))


def _holds_ids(item: Any) -> bool:
    return isinstance(item, int | float | list | tuple) or hasattr(item, "tolist")


def _plain(tokens: Any) -> Any:
    """Return tokens as a number, a list, or a list of lists, whatever holds them."""
    plain = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if isinstance(plain, list | tuple | range):
        return [_plain(item) for item in plain]
    if isinstance(plain, int | float) and not isinstance(plain, bool) and plain % 1 == 0:  # not of NaN or infinity
        return int(plain)
    raise ValueError(f"token ids are expected, not {plain!r:.40}")
