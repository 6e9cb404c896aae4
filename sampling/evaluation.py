"""Measure how well a model predicts a text: loss, perplexity, bits per byte, accuracy. Each token counts once."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..assembly import GPT2
from ..assembly.arguments import check_model
from ..components.dropout import no_dropout
from ..tokenizer import Tokenizer, TokenizerSource
from .text import as_tokenizer
from .transforms.base import whole

__all__ = ["Evaluation", "evaluate"]


_ROWS = 512  # number of positions whose logits are computed together


@dataclass(frozen=True)
class Evaluation:
    """Sums over the predicted tokens of a text, and the measures that follow from them.

    >>> found = Evaluation(documents=1, tokens=101, predicted=100, correct=25, bytes=400, nats=200.0)
    >>> found.loss, round(found.perplexity, 3), round(found.bits_per_byte, 3), found.accuracy
    (2.0, 7.389, 0.721, 0.25)
    """

    documents: int
    tokens: int
    """Number of tokens of the text."""
    predicted: int
    """Number of predicted tokens: all, or all except each document's first if there is no token before it."""
    correct: int
    """Number of predicted tokens that have the highest logit (if several logits are the highest, the first)."""
    bytes: int
    """Number of bytes of the predicted tokens, in UTF-8."""
    nats: float
    """The sum of -log(probability) over the predicted tokens."""

    @property
    def loss(self) -> float:
        """The mean of -log(probability), in nats per token."""
        return self.nats / self.predicted

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if that is larger than a float can hold."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss per byte of text instead of per token, which can be compared between tokenizers."""
        return self.nats / math.log(2) / self.bytes

    @property
    def accuracy(self) -> float:
        """The share of predicted tokens that have the highest logit."""
        return self.correct / self.predicted


@dataclass(frozen=True)
class _Window:
    """Tokens that the model reads together. The last ``count`` of them are predicted."""

    tokens: list[int]
    count: int


@torch.inference_mode()
def evaluate(
    model: GPT2,
    documents: str | Iterable[str | Iterable[str]],
    *,
    tokenizer: TokenizerSource | None = None,
    stride: int | None = None,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return how well a model predicts a text.

    Each document is read in windows of up to ``n_ctx`` tokens. Each window predicts the ``stride`` tokens after those
    that earlier windows have predicted. So every token is predicted once, from all tokens before it in its document, or
    from at least ``n_ctx - stride`` of them. If the tokenizer has a token for the beginning of a text, each document
    begins with it, so that its first token is predicted too.

    >>> from gptladder import GPT2, GPT2Config
    >>> from gptladder.tokenizer import CharTokenizer
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=3, n_ctx=16)).eval()
    >>> found = evaluate(model, "abcabcabc" * 9, tokenizer=CharTokenizer("abc"))
    >>> found.tokens, found.predicted, found.bytes
    (81, 80, 80)

    Args:
        model: The model, in any mode; dropout is off.
        documents: A text, or several. A text that is too large for memory can be an iterable of pieces.
        tokenizer: Encodes the text (default: the model's own).
        stride: Number of tokens that each window predicts (default: ``n_ctx / 2``). A small stride gives each token
            more context and takes more time; ``n_ctx`` is the fastest.
        batch: Number of windows that the model reads together. It changes the speed, and the result only by rounding.
        progress: Called with the number of tokens predicted so far.

    Raises:
        ValueError: An argument is of the wrong type, there is no tokenizer, a number is out of range, there is no token
            to predict, a token is outside the model's vocabulary, or the tokenizer cannot encode the text.
    """
    check_model(model)
    n_ctx = model.config.n_ctx
    stride = max(1, n_ctx // 2) if stride is None else whole("stride", stride, least=1)
    if stride > n_ctx:
        raise ValueError(f"stride is {stride}, and the model reads at most n_ctx={n_ctx} tokens: give {n_ctx} or fewer")
    whole("batch", batch, least=1)
    reader = as_tokenizer(model, tokenizer)
    if reader is None:
        raise ValueError("the model has no tokenizer to read the text with: pass tokenizer=..., or set model.tokenizer")
    if isinstance(documents, bytes | Mapping) or not hasattr(documents, "__iter__"):
        raise ValueError(f"documents must be a text or several, not {documents!r:.60}: read a file by path.read_text()")
    if progress is not None and not callable(progress):
        raise ValueError(f"progress must be a function of the number of tokens predicted, not {progress!r:.60}")
    totals = _Totals(model, reader, progress)
    waiting: list[_Window] = []
    for document in [documents] if isinstance(documents, str) else documents:
        pieces = totals.text([document] if isinstance(document, str) else document)
        tokens = totals.tokens(reader.encode_stream(pieces))
        for window in _windows(tokens, reader.start_id, n_ctx, stride):
            waiting.append(window)
            if len(waiting) == batch:
                totals.add(waiting)
                waiting.clear()
    totals.add(waiting)
    return totals.result()


def _windows(tokens: Iterable[list[int]], start: int | None, n_ctx: int, stride: int) -> Iterator[_Window]:
    """Divide the tokens of a document, given in pieces, into windows."""
    held: list[int] = [] if start is None else [start]
    known = 1 if held else 0  # tokens of `held` that are already predicted, or need not be
    for piece in tokens:
        if not held and piece:
            held, piece, known = piece[:1], piece[1:], 1
        held += piece
        # A window reads n_ctx tokens and predicts the one after each: n_ctx + 1 tokens in all.
        begin = 0
        while len(held) - begin - known >= stride:
            end = begin + known + stride
            first = max(begin, end - (n_ctx + 1))
            yield _Window(held[first:end], stride)
            # The next window predicts from `end` on, and reads at most n_ctx + 1 - stride tokens before it.
            begin = max(begin, end - (n_ctx + 1))
            known = end - begin
        del held[:begin]
    if len(held) > known:
        yield _Window(held[max(0, len(held) - (n_ctx + 1)) :], len(held) - known)


class _Totals:
    """Sums over the predictions of windows."""

    def __init__(self, model: GPT2, tokenizer: Tokenizer, progress: Callable[[int], None] | None) -> None:
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        self._documents = self._tokens = self._predicted = self._correct = self._bytes = 0
        self._nats = 0.0

    def text(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a document's text unchanged, and count its bytes."""
        self._documents += 1
        for piece in pieces if hasattr(pieces, "__iter__") else [pieces]:
            if not isinstance(piece, str):
                raise ValueError(f"a document must be text, not {piece!r:.40}: give the text, and not its tokens")
            self._bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))
            yield piece

    def tokens(self, pieces: Iterable[list[int]]) -> Iterator[list[int]]:
        """Yield a document's tokens unchanged, and count them."""
        d_vocab, first = self._model.d_vocab, True
        for piece in pieces:
            self._tokens += len(piece)
            if piece and max(piece) >= d_vocab:
                raise ValueError(
                    f"the tokenizer makes token {max(piece)} of the text, and the model's vocabulary ends at "
                    f"{d_vocab - 1}: give the tokenizer that the model was trained with"
                )
            if piece and first:
                first = False
                if self._tokenizer.start_id is None:  # no token is before the first one, so it is not predicted
                    self._bytes -= len(self._tokenizer.decode_bytes(piece[:1]))
            yield piece

    def add(self, windows: list[_Window]) -> None:
        """Evaluate some windows. They are padded on the right; earlier positions do not attend to the padding."""
        if not windows:
            return
        device = self._model.embed.W_E.device
        width = max(len(window.tokens) for window in windows)
        tokens = torch.zeros(len(windows), width, dtype=torch.int64)
        counted = torch.zeros(len(windows), width - 1, dtype=torch.bool)
        for row, window in enumerate(windows):
            length = len(window.tokens)
            tokens[row, :length] = torch.tensor(window.tokens)
            counted[row, length - 1 - window.count : length - 1] = True
        tokens, counted = tokens.to(device), counted.to(device)
        targets: Tensor = tokens[:, 1:][counted]
        with no_dropout(self._model):
            residual = self._model.final_residual(tokens[:, :-1])[counted]
            # A row of logits has the size of the vocabulary, so all rows at once would need gigabytes.
            for rows, expected in zip(residual.split(_ROWS), targets.split(_ROWS), strict=True):
                logits = self._model.unembed(rows[None])[0]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                self._nats -= float(logits.log_softmax(-1).gather(1, expected[:, None]).double().sum())
                self._correct += int((logits.argmax(-1) == expected).sum())
        self._predicted += len(targets)
        if self._progress is not None:
            self._progress(self._predicted)

    def result(self) -> Evaluation:
        """Return the result.

        Raises:
            ValueError: There is no token to predict, or the loss is not a number.
        """
        if not self._predicted:
            raise ValueError("the text has no token to predict: give a text of at least two tokens")
        if math.isnan(self._nats):
            raise ValueError("the model's logits are not finite: its weights are damaged or its training diverged")
        return Evaluation(
            documents=self._documents,
            tokens=self._tokens,
            predicted=self._predicted,
            correct=self._correct,
            bytes=self._bytes,
            nats=self._nats,
        )
