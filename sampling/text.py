"""Convert between a user's strings and the model's tokens: prompts, end tokens, stop strings, and generated text."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..assembly import GPT2
from ..assembly.text import one_row
from ..tokenizer import Tokenizer, TokenizerSource, load_tokenizer
from .arguments import checked_transforms
from .transforms import BadWords, LogitsTransform

__all__ = [
    "Prompt",
    "TextStream",
    "as_tokenizer",
    "end_tokens",
    "only_text",
    "prompt_tokens",
    "text_stream",
    "vocabulary",
]

Prompt = str | Sequence[int] | Tensor
"""Text, or the ids of its tokens."""


def as_tokenizer(model: GPT2, tokenizer: TokenizerSource | None) -> Tokenizer | None:
    """Return the tokenizer that the user passed as one of ours (default: the model's own, or None if it has none).

    >>> from gptladder import GPT2, GPT2Config
    >>> from gptladder.tokenizer import CharTokenizer
    >>> model = GPT2(GPT2Config(d_vocab=3, d_model=8, n_layers=1, n_heads=1, n_ctx=4))
    >>> model.tokenizer = CharTokenizer("abc")
    >>> as_tokenizer(model, None) is model.tokenizer
    True
    """
    return model.tokenizer if tokenizer is None else load_tokenizer(tokenizer)


def prompt_tokens(prompt: Prompt, model: GPT2, tokenizer: Tokenizer | None, *, name: str = "the prompt") -> list[int]:
    """Return the ids of a prompt's tokens. An empty text becomes the token that begins every text.

    Args:
        prompt: Text, or the ids of tokens.
        model: The model that will read them.
        tokenizer: Encodes text.
        name: Name of the prompt in an error message.

    Raises:
        ValueError: The prompt is text without a tokenizer, is neither text nor ids, has no token, or has a token
            outside the model's vocabulary.

    >>> from gptladder import GPT2, GPT2Config
    >>> from gptladder.tokenizer import CharTokenizer
    >>> model = GPT2(GPT2Config(d_vocab=3, d_model=8, n_layers=1, n_heads=1, n_ctx=4))
    >>> tokenizer = CharTokenizer("ab", end_of_text=True)
    >>> prompt_tokens("ba", model, tokenizer), prompt_tokens("", model, tokenizer)
    ([1, 0], [2])
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"{name} is text, and the model has no tokenizer to read it: pass tokenizer=..., set model.tokenizer, "
                "or give the ids of its tokens"
            )
        tokens = tokenizer.encode(prompt)
        if not tokens and tokenizer.start_id is not None:
            tokens = [tokenizer.start_id]
    elif isinstance(prompt, Mapping):  # its keys would be read as texts
        raise ValueError(
            f"{name} is a {type(prompt).__name__}: if a tokenizer of transformers returned it, give its ['input_ids']"
        )
    elif not hasattr(prompt, "__len__") or (isinstance(prompt, list) and any(isinstance(item, str) for item in prompt)):
        raise ValueError(f"{name} must be a text or the ids of its tokens, not {prompt!r:.40}: give one text")
    else:
        tokens = one_row(prompt)
    if not tokens:
        raise ValueError(
            f"{name} is empty, and a model needs at least one token to read: give some text, such as a space"
        )
    for token in tokens:
        if not 0 <= token < model.d_vocab:
            raise ValueError(
                f"{name} holds token {token}, but the model's vocabulary has {model.d_vocab}: ids go from 0 to "
                f"{model.d_vocab - 1}"
            )
    return tokens


def end_tokens(eos_token_ids: Sequence[int] | None, model: GPT2, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Return the tokens that end a text (default: the tokenizer's end of text).

    Raises:
        ValueError: a token is outside the model's vocabulary.

    >>> from gptladder import GPT2, GPT2Config
    >>> from gptladder.tokenizer import CharTokenizer
    >>> model = GPT2(GPT2Config(d_vocab=3, d_model=8, n_layers=1, n_heads=1, n_ctx=4))
    >>> end_tokens(None, model, CharTokenizer("ab", end_of_text=True)), end_tokens([0], model, None)
    ((2,), (0,))
    """
    if eos_token_ids is None:
        eot_id = None if tokenizer is None else tokenizer.eot_id
        return () if eot_id is None or eot_id >= model.d_vocab else (eot_id,)
    tokens = one_row([eos_token_ids] if isinstance(eos_token_ids, int) else eos_token_ids)
    for token in tokens:
        if not 0 <= token < model.d_vocab:
            raise ValueError(f"eos_token_ids holds {token}, but the model's vocabulary ends at {model.d_vocab - 1}")
    return tuple(tokens)


def vocabulary(model: GPT2, tokenizer: Tokenizer | None) -> int:
    """Return the number of ids that can be generated. A model may have more ids than its tokenizer has tokens.

    Raises:
        ValueError: The tokenizer has ids for text that the model does not have, so the two do not belong together.

    >>> from gptladder import GPT2, GPT2Config
    >>> from gptladder.tokenizer import CharTokenizer
    >>> model = GPT2(GPT2Config(d_vocab=64, d_model=8, n_layers=1, n_heads=1, n_ctx=4))
    >>> vocabulary(model, CharTokenizer("abc"))
    3
    """
    if tokenizer is None:
        return model.d_vocab
    if (needed := tokenizer.n_text_vocab) > model.d_vocab:
        raise ValueError(
            f"the tokenizer has ids up to {needed - 1:,} and the model's vocabulary {model.d_vocab:,} rows, so they do "
            "not belong together: pass the tokenizer that the model was trained with"
        )
    return min(tokenizer.n_vocab, model.d_vocab)


def only_text(
    transforms: Sequence[LogitsTransform], model: GPT2, tokenizer: Tokenizer | None
) -> Sequence[LogitsTransform]:
    """Return the user's transforms, preceded by one that bans the ids to which the tokenizer assigns no text.

    Raises:
        ValueError: The transforms are not functions in a list.

    >>> only_text([], None, None)
    ()
    """
    transforms = checked_transforms(transforms)
    unused = [] if tokenizer is None else tokenizer.unused_ids(model.d_vocab)
    return [BadWords([[i] for i in unused]), *transforms] if unused else transforms


def text_stream(tokenizer: Tokenizer | None, stop: str | Sequence[str] | None) -> "TextStream | None":
    """Return a `TextStream` for a row, or None without a tokenizer.

    Raises:
        ValueError: A stop string is empty, or there is no tokenizer for it.

    >>> text_stream(None, ()) is None
    True
    """
    stop = () if stop is None else stop
    if tokenizer is not None:
        return TextStream(tokenizer, (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else stop)
    if stop or stop == "":
        raise ValueError(
            "stop strings are looked for in text, and the model has no tokenizer: pass tokenizer=..., set "
            "model.tokenizer, or use eos_token_ids"
        )
    return None


class TextStream:
    """Turn tokens into text one by one, and end at a stop string.

    If the bytes of a character are in several tokens, the character is returned with the last of them. Bytes that are
    not UTF-8 become U+FFFD; an incomplete character at the very end is left out. The text ends before the first
    complete stop string, which may begin and end inside tokens. Text that may be the beginning of a stop string is held
    back until that is decided.

    Raises:
        ValueError: A stop string is empty, or is no text.

    >>> from gptladder.tokenizer import CharTokenizer
    >>> text = TextStream(CharTokenizer("abc"), stop=["bc"])
    >>> [text.push(token) for token in (0, 1, 2)]
    [('a', False), ('', False), ('', True)]
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if strange := [text for text in stop if not isinstance(text, str)]:
            raise ValueError(f"stop strings are text, not {strange[0]!r:.40}; tokens that end a text are eos_token_ids")
        if "" in stop:
            raise ValueError("a stop string is empty, and would end every text at once: leave it out")
        self._stop = tuple(stop)
        self._decoder = tokenizer.text_decoder()
        self._held = ""
        self._stopped = False

    def push(self, token: int) -> tuple[str, bool]:
        """Return the text that is certain after one more token, and whether a stop string has ended the text."""
        return self._take(self._decoder.push(token))

    def finish(self) -> str:
        """Return the text that was held back, after the last token."""
        if self._stopped:
            return ""
        # The decoder returns the rest of its text, which may complete a stop string.
        text, stopped = self._take(self._decoder.finish().rstrip("\N{REPLACEMENT CHARACTER}"))
        held, self._held = self._held, ""
        return text if stopped else text + held

    def _take(self, text: str) -> tuple[str, bool]:
        self._held += text
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        settled = min(found)[1] if found else len(self._held) - self._begun()
        text, self._held = self._held[:settled], "" if found else self._held[settled:]
        self._stopped = bool(found)
        return text, bool(found)

    def _begun(self) -> int:
        """Return the number of characters at the end that may be the beginning of a stop string."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._held.endswith(stop[:size])), default=0
        )
