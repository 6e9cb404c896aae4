"""``gptladder generate`` and ``gptladder predict``."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..assembly import GPT2, GPT2Config, pick_device
from ..tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer, load_tokenizer
from ..weights import from_pretrained, resolve, to_hf
from .beam import beam_search
from .packed import PackedWeights, pack
from .params import SamplingParams
from .stream import Chunk, PastContext, check_fits, logits_after, stream
from .text import prompt_tokens, vocabulary

_TOLERANCE = 1e-3  # of log-probabilities, between transformers and ours in float32
_SMALL = GPT2Config(d_model=128, n_layers=4, n_heads=4, d_vocab=257, n_ctx=256)
_INIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Which model."""

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER")] = None
    """A model folder, such as runs/x/final, or a published model's name, such as gpt2."""
    random_init: bool = False
    """Fresh weights: of --model's sizes and with its tokenizer, or, without it, a small model of bytes."""
    device: str | None = None
    """cuda, mps or cpu; where it is not given, the first of these that is there."""


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Continue a prompt, showing the text as it comes."""

    prompt: Annotated[str, tyro.conf.Positional]
    """What to continue."""
    weights: Annotated[ModelArguments, tyro.conf.arg(name="")] = field(default_factory=ModelArguments)
    pack: PackedWeights | None = None
    """Lay the weights out for decoding on a CPU: float32 (the same to rounding), bfloat16 or int8 (faster, rounded)."""
    n: int = 1
    """Continuations."""
    seed: int = 42
    """Of the first continuation; the next ones have the next numbers."""
    max_new_tokens: int = 128
    """Most tokens of a continuation."""
    min_new_tokens: int = 0
    """Fewest tokens before the end of text."""
    stop: tuple[str, ...] = ()
    """Strings that end a continuation."""
    past_context: PastContext = "stop"
    """Where the model's positions are used up: stop, or slide (read the last ones anew for each token: slow)."""
    temperature: float = 1.0
    """Below 1 safer, above 1 bolder; 0 takes the likeliest token each time."""
    top_k: int = 50
    """Choose among the likeliest k tokens."""
    top_p: float = 1.0
    """Choose among the fewest tokens with this much probability together."""
    min_p: float = 0.0
    """Choose among tokens at least this many times as probable as the likeliest."""
    typical_p: float = 1.0
    """Choose among the fewest most typical tokens with this much probability together."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the text less likely to come again."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was generated."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it was generated."""
    no_repeat_ngram_size: int | None = None
    """No sequence of so many tokens twice."""
    beams: int | None = None
    """Beam search with so many beams, in place of sampling; of the best n, all are shown."""
    length_penalty: float = 1.0
    """Of beam search: above 0 favours long texts."""
    early_stopping: Literal["yes", "no", "never"] = "no"
    """Of beam search: end with enough finished texts, where none is likely to be better, or where none can be."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Show the likeliest next tokens; and transformers' beside them, where it is installed."""

    prompt: Annotated[str, tyro.conf.Positional]
    """What to continue."""
    weights: Annotated[ModelArguments, tyro.conf.arg(name="")] = field(default_factory=ModelArguments)
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Tokens to show."""


def generate(argv: list[str]) -> int:
    """Run ``gptladder generate``: text goes to standard output, what is said about it to standard error.

    Returns:
        0.

    Raises:
        ValueError, OSError: a model, a tokenizer, a prompt or a setting that cannot be used.
    """
    arguments = tyro.cli(GenerateArguments, args=argv, prog="gptladder generate")
    greedy = arguments.beams is not None or arguments.temperature == 0
    params = SamplingParams(
        temperature=0.0 if greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        typical_p=arguments.typical_p,
        repetition_penalty=arguments.repetition_penalty,
        frequency_penalty=arguments.frequency_penalty,
        presence_penalty=arguments.presence_penalty,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        min_new_tokens=arguments.min_new_tokens,
    )
    model, tokenizer, _ = _load(arguments.weights)
    if arguments.pack is not None:
        model = pack(model, arguments.pack, rows=arguments.beams or arguments.n)
    if arguments.beams is not None:
        _refuse_with_beams(arguments)
        found = beam_search(
            model,
            arguments.prompt,
            params,
            tokenizer=tokenizer,
            num_beams=arguments.beams,
            num_return=arguments.n,
            length_penalty=arguments.length_penalty,
            early_stopping={"yes": True, "no": False, "never": "never"}[arguments.early_stopping],
            max_new_tokens=arguments.max_new_tokens,
        )
        for place, beam in enumerate(found):
            _heading(place, arguments.n, f"score {beam.score:.4f}")
            print(arguments.prompt + beam.text, flush=True)
        return 0
    chunks = stream(
        model,
        arguments.prompt,
        params,
        tokenizer=tokenizer,
        n=arguments.n,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        stop=arguments.stop,
        past_context=arguments.past_context,
    )
    _show(chunks, arguments)
    return 0


def predict(argv: list[str]) -> int:
    """Run ``gptladder predict``.

    Returns:
        0; 1 where transformers gives a token another log-probability, by more than 0.001.

    Raises:
        ValueError, OSError: a model, a tokenizer or a prompt that cannot be used.
    """
    arguments = tyro.cli(PredictArguments, args=argv, prog="gptladder predict")
    if arguments.k < 1:
        raise ValueError(f"-k is {arguments.k}; it takes at least 1 token to show")
    model, tokenizer, folder = _load(arguments.weights)
    tokens = torch.tensor([prompt_tokens(arguments.prompt, model, tokenizer)], device=model.embed.W_E.device)
    check_fits(tokens[0].tolist(), model.config.n_ctx)
    with torch.inference_mode():
        ours = logits_after(model, tokens)[0, -1].double().log_softmax(-1)
    theirs = _transformers_log_probs(model, folder, tokens)
    console = Console()
    console.print(_table(ours, theirs, tokenizer, min(arguments.k, vocabulary(model, tokenizer))))
    if theirs is None:
        console.print("transformers is not installed, so there is nothing to compare with.")
        return 0
    apart = float((ours - theirs).abs().max())
    agrees = apart <= _TOLERANCE
    console.print(
        f"transformers {'agrees' if agrees else '[bold red]differs[/]'}: largest difference of a log-probability, over "
        f"{len(ours):,} tokens, {apart:.1e}"
    )
    return 0 if agrees else 1


def _load(arguments: ModelArguments) -> tuple[GPT2, Tokenizer, Path | None]:
    """The model, its tokenizer, and the folder that its weights are from, if any; says which weights they are."""
    if arguments.model is None and not arguments.random_init:
        raise ValueError("which model? Give --model FOLDER or --model NAME, or --random-init for fresh weights")
    device = pick_device(arguments.device)
    folder = None if arguments.model is None else resolve(arguments.model)
    tokenizer = _bytes() if folder is None else load_tokenizer(folder)
    if folder is None or arguments.random_init:
        config = _SMALL if folder is None else from_pretrained(folder).config
        torch.manual_seed(_INIT_SEED)
        model = GPT2(config, device=device).eval()
        sizes = "a small model of bytes" if folder is None else f"the sizes of {arguments.model}"
        named = f"random ones (seed {_INIT_SEED}, {sizes}), so expect noise"
    else:
        model = from_pretrained(folder, device=device)
        named = f"{arguments.model}" if Path(str(arguments.model)).is_dir() else f"{arguments.model} ({folder})"
    print(f"weights: {named}; {model.num_parameters():,} parameters, on {device}", file=sys.stderr, flush=True)
    return model, tokenizer, None if arguments.random_init else folder


def _bytes() -> BPETokenizer:
    """A token for each byte, and one for the end of text: any text can be had without a vocabulary to load."""
    return BPETokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def _refuse_with_beams(arguments: GenerateArguments) -> None:
    if arguments.stop:
        raise ValueError("--stop does nothing with --beams: texts of beam search end at the end-of-text token alone")
    if arguments.past_context == "slide":
        raise ValueError("--past-context slide does nothing with --beams: beam search ends where n_ctx is full")


def _show(chunks: Iterator[Chunk], arguments: GenerateArguments) -> None:
    """Print continuations as they come: the first unfinished one at once, what the others have so far after it."""
    waiting: dict[int, list[str]] = {row: [] for row in range(arguments.n)}
    reasons: dict[int, str] = {}
    shown, tokens, began = -1, 0, time.perf_counter()

    def turn_to(row: int) -> None:
        _heading(row, arguments.n, f"seed {arguments.seed + row}")
        print(arguments.prompt, end="", flush=True)

    try:
        for chunk in chunks:
            if shown < 0:
                shown = 0
                turn_to(0)
            tokens += 1
            waiting[chunk.row].append(chunk.text)
            if chunk.finish_reason is not None:
                reasons[chunk.row] = chunk.finish_reason
            while shown < arguments.n:
                print("".join(waiting[shown]), end="", flush=True)
                waiting[shown].clear()
                if shown not in reasons:
                    break
                print(flush=True)
                shown += 1
                if shown < arguments.n:
                    turn_to(shown)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    seconds = time.perf_counter() - began
    ends = ", ".join(f"{reason} {count}" for reason, count in Counter(reasons.values()).most_common())
    print(f"{tokens} tokens, {tokens / seconds:.1f} a second; ended by: {ends}", file=sys.stderr)


def _heading(place: int, of: int, what: str) -> None:
    if of > 1:
        print(f"--- {place + 1} of {of}, {what} ---", flush=True)


def _transformers_log_probs(model: GPT2, folder: Path | None, tokens: Tensor) -> Tensor | None:
    """transformers' log-probabilities of the next token: from the folder itself, so that reading it is tried too."""
    try:
        import transformers
    except ModuleNotFoundError:
        return None
    if folder is None:
        reference: Any = to_hf(model)
    else:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        reference = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = reference(tokens.to(reference.device)).logits[0, -1]
    return logits.double().log_softmax(-1).to(tokens.device)


def _table(ours: Tensor, theirs: Tensor | None, tokenizer: Tokenizer, k: int) -> Table:
    best = ours[: tokenizer.n_vocab].topk(k)
    table = Table(title="The likeliest next tokens")
    for name in ("", "token", "id", "probability", *(() if theirs is None else ("transformers",))):
        table.add_column(name, justify="left" if name == "token" else "right")
    table.add_column("", no_wrap=True)
    probs = best.values.exp().tolist()
    for place, (token, prob) in enumerate(zip(best.indices.tolist(), probs, strict=True), start=1):
        cells: Sequence[str] = [str(place), _printable(tokenizer, token), str(token), f"{prob:.4%}"]
        if theirs is not None:
            cells = [*cells, f"{float(theirs[token].exp()):.4%}"]
        table.add_row(*cells, _bar(prob / probs[0]))
    return table


def _printable(tokenizer: Tokenizer, token: int) -> str:
    """A token as a literal, so that blanks and halves of characters can be told apart; no markup for rich."""
    content = tokenizer.decode_bytes([token])
    try:
        literal = repr(content.decode())
    except UnicodeDecodeError:
        literal = repr(content)
    return escape(literal)


def _bar(share: float, width: int = 24) -> str:
    """A bar of a share of the width, to an eighth of a column."""
    eighths = max(1, round(share * width * 8))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
