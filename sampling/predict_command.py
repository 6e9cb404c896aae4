"""``gptladder predict``: the most probable next tokens of a prompt, beside transformers'."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ..assembly import GPT2
from ..extras import import_extra
from ..files import FileError, read_json
from ..options import parse
from ..tokenizer import Tokenizer
from ..weights import WeightsError, to_hf
from .model_options import ModelOptions, load
from .predictions import Prediction, most_probable, next_logits
from .prompt_options import PromptOptions
from .text import prompt_tokens

_TOLERANCE = 1e-3  # of log-probabilities in float32
_BAR = 24  # columns of the longest bar


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Print the most probable next tokens, and the probabilities that transformers gives them, if it is installed."""

    prompt: Annotated[PromptOptions, tyro.conf.arg(name="")] = field(default_factory=PromptOptions)
    weights: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of tokens to print."""


def predict(argv: list[str]) -> int:
    """Run ``gptladder predict``.

    Returns:
        0; 1 if a log-probability of transformers differs by more than the dtype of the weights explains.

    Raises:
        ValueError, OSError: A model, a tokenizer or a prompt that cannot be used.
    """
    options = parse(PredictArguments, argv, prog="gptladder predict")
    if options.k < 1:
        raise ValueError(f"-k is {options.k}; give at least 1 token to print")
    prompt = options.prompt.text()
    model, tokenizer, path = load(options.weights)
    logits = next_logits(model, prompt, tokenizer)
    ours = logits.log_softmax(-1)
    tokens = torch.tensor([prompt_tokens(prompt, model, tokenizer)], device=model.device)
    try:
        theirs, missing = _transformers_log_probs(model, path, tokens), ""
    except ImportError:
        theirs, missing = None, "transformers is not installed (pip install 'gptladder[reference]')"
    except WeightsError as error:  # a model that it cannot hold
        theirs, missing = None, str(error)
    for line in _table(most_probable(logits, options.k, model, tokenizer), theirs, tokenizer):
        print(line)
    if theirs is None:
        print(f"there is no comparison: {missing}")
        return 0
    difference = float((ours - theirs).abs().max())
    tolerance = _tolerance(model.embed.W_E.dtype, logits)
    agrees = difference <= tolerance
    dtype = str(model.embed.W_E.dtype).removeprefix("torch.")
    print(
        f"transformers {'agrees' if agrees else 'DIFFERS'}: the largest difference of a log-probability, over "
        f"{len(ours):,} tokens, is {difference:.1e}; {tolerance:.1e} is allowed in {dtype}"
    )
    return 0 if agrees else 1


def _tolerance(dtype: torch.dtype, logits: Tensor) -> float:
    """Return the difference of log-probabilities that rounding explains: two steps of the largest logit in 16 bits."""
    return max(_TOLERANCE, 2 * torch.finfo(dtype).eps * float(logits.abs().max()))


def _transformers_log_probs(model: GPT2, path: Path | None, tokens: Tensor) -> Tensor:
    """Return transformers' log-probabilities of the next token.

    A folder in its format is read by transformers itself, so that our reading of the file is tested too.

    Raises:
        ImportError: transformers is not installed.
        WeightsError: transformers' GPT-2 cannot hold the model.
    """
    transformers = import_extra("transformers")
    if path is not None and path.is_dir() and _is_transformers(path):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        reference: Any = transformers.GPT2LMHeadModel.from_pretrained(path, dtype=model.embed.W_E.dtype).eval()
    else:
        reference = to_hf(model)
    with torch.inference_mode():
        logits = reference(tokens.to(reference.device)).logits[0, -1]
    return logits.double().log_softmax(-1).to(tokens.device)


def _table(predictions: list[Prediction], theirs: Tensor | None, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a header and a line for each token. The numbers come first, so that a narrow terminal cuts none of them."""
    words = [_printable(tokenizer, prediction.token) for prediction in predictions]
    width = max(map(len, [*words, "token"]))
    yield f"{'':>3} {'id':>6} {'probability':>11}" + ("" if theirs is None else f" {'transformers':>12}") + "  token"
    for place, (prediction, word) in enumerate(zip(predictions, words, strict=True), start=1):
        line = f"{place:>3} {prediction.token:>6} {prediction.prob:>11.4%}"
        if theirs is not None:
            line += f" {float(theirs[prediction.token].exp()):>12.4%}"
        line += f"  {word:<{width}}"
        bar = f"  {_bar(prediction.prob / predictions[0].prob)}"
        yield (line + bar if len(line) + 2 + _BAR <= _columns() else line).rstrip()


def _is_transformers(folder: Path) -> bool:
    try:
        return read_json(folder / "config.json").get("model_type") == "gpt2"
    except FileError:
        return False


def _columns() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _printable(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as a Python literal, which shows blanks and tells parts of characters apart."""
    content = tokenizer.decode_bytes([token])
    try:
        return repr(content.decode())
    except UnicodeDecodeError:
        return repr(content)


def _bar(share: float) -> str:
    """Return a bar for a share of the longest one: to an eighth of a column, or in # where blocks cannot be printed."""
    if "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower():
        return "#" * max(1, round(share * _BAR))
    eighths = max(1, round(share * _BAR * 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
