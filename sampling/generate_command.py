"""``gptladder generate``: continue a prompt, and print the text while it is generated."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ..options import named_by_option, parse, typed
from .beam import beam_search
from .generation import PastContext, stream
from .model_options import ModelOptions, load
from .packed import PackedWeights, pack
from .params import SamplingParams
from .prompt_options import PromptOptions, unescaped
from .rows import Chunk


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Continue a prompt, and print the text while it is generated."""

    prompt: Annotated[PromptOptions, tyro.conf.arg(name="")] = field(default_factory=PromptOptions)
    weights: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    pack: PackedWeights | None = None
    """Arrange the weights for decoding on a CPU: float32 (same result up to rounding), bfloat16 or int8 (faster, less
    precise)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Number of continuations."""
    seed: int = 42
    """Seed of the first continuation; the second has the next number, and so on."""
    max_new_tokens: int = 128
    """Largest number of tokens of a continuation."""
    min_new_tokens: int = 0
    """Smallest number of tokens before the end of the text."""
    stop: tuple[str, ...] = ()
    """Strings that end a continuation; \\n is a new line, \\t a tab."""
    past_context: PastContext = "stop"
    """At the model's last position: stop, or slide (read the last n_ctx tokens again for each new one, which is
    slow)."""
    temperature: float = 1.0
    """Below 1 the text is more predictable, above 1 more varied; 0 always takes the most probable token."""
    top_k: int = 50
    """Choose among the k most probable tokens; 0 chooses among all."""
    top_p: float = 1.0
    """Choose among the fewest tokens whose probabilities sum to this (1: all)."""
    min_p: float = 0.0
    """Choose among tokens at least this many times as probable as the most probable one."""
    typical_p: float = 1.0
    """Choose among the fewest most typical tokens whose probabilities sum to this (1: all)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of prompt and text less probable."""
    frequency_penalty: float = 0.0
    """Number subtracted from a token's logit for each time that the token was generated."""
    presence_penalty: float = 0.0
    """Number subtracted from a token's logit if the token was generated."""
    no_repeat_ngram_size: int | None = None
    """Never repeat a sequence of this many tokens."""
    beams: int | None = None
    """Use beam search with this many beams, not sampling, and print the n best texts."""
    length_penalty: float = 1.0
    """For beam search: above 0 favours long texts."""
    early_stopping: Literal["yes", "no", "never"] = "no"
    """For beam search: end when enough texts are finished (yes), when a better one is improbable (no), or when a better
    one is impossible (never)."""


# Options that do nothing with --beams, and options that do nothing without it.
_SAMPLING = ("--temperature", "--top-k", "--top-p", "--min-p", "--typical-p", "--seed", "--stop", "--past-context")
_BEAMS = ("--length-penalty", "--early-stopping")


def generate(argv: list[str]) -> int:
    """Run ``gptladder generate``: text goes to standard output, everything else to standard error.

    Returns:
        0.

    Raises:
        ValueError, OSError: A model, a tokenizer, a prompt or a setting cannot be used.
    """
    options = parse(GenerateArguments, argv, prog="gptladder generate")
    _refuse_idle(options, argv)
    with named_by_option(GenerateArguments):
        params = _params(options)
    prompt = options.prompt.text()
    model, tokenizer, _ = load(options.weights)
    if options.pack is not None:
        model = pack(model, options.pack, rows=options.beams or options.n)

    # Sample, and print each token as it comes.
    if options.beams is None:
        with named_by_option(GenerateArguments):
            chunks = stream(
                model,
                prompt,
                params,
                tokenizer=tokenizer,
                n=options.n,
                seed=options.seed,
                max_new_tokens=options.max_new_tokens,
                stop=[unescaped(text) for text in options.stop],
                past_context=options.past_context,
            )
        _show(chunks, options, prompt)
        return 0

    # Or search, and print the results.
    with named_by_option(GenerateArguments):
        found = beam_search(
            model,
            prompt,
            params,
            tokenizer=tokenizer,
            num_beams=options.beams,
            num_return=options.n,
            length_penalty=options.length_penalty,
            early_stopping={"yes": True, "no": False, "never": "never"}[options.early_stopping],
            max_new_tokens=options.max_new_tokens,
        )
    for place, beam in enumerate(found):
        _heading(place, options.n, f"score {beam.score:.4f}")
        print(prompt + beam.text, flush=True)
    return 0


def _params(options: GenerateArguments) -> SamplingParams:
    with_beams = options.beams is not None
    return SamplingParams(
        temperature=0.0 if with_beams else options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        typical_p=options.typical_p,
        repetition_penalty=options.repetition_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        min_new_tokens=options.min_new_tokens,
    )


def _refuse_idle(options: GenerateArguments, argv: Sequence[str]) -> None:
    """Refuse options that would have no effect together with the others."""
    given = typed(argv)
    if options.beams is None:
        if idle := [name for name in _BEAMS if name in given]:
            raise ValueError(f"{idle[0]} is for beam search: give --beams too")
        return
    if options.beams < 1:
        raise ValueError(f"--beams must be a whole number of at least 1, not {options.beams}")
    if options.n > options.beams:
        raise ValueError(f"--n is {options.n}, more than --beams {options.beams} can find: give more beams")
    if idle := [name for name in _SAMPLING if name in given]:
        raise ValueError(f"{idle[0]} does nothing with --beams: beam search draws nothing, and ends at the end of text")


def _show(chunks: Iterator[Chunk], arguments: GenerateArguments, prompt: str) -> None:
    """Print the continuations one after another, each while it is generated.

    All of them are generated together. The text of later ones waits until the earlier ones are complete.
    """
    waiting: dict[int, list[str]] = {row: [] for row in range(arguments.n)}
    reasons: dict[int, str] = {}
    shown, tokens, began = -1, 0, time.perf_counter()

    def turn_to(row: int) -> None:
        _heading(row, arguments.n, f"seed {arguments.seed + row}")
        print(prompt, end="", flush=True)

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
    print(f"{tokens} tokens, {tokens / seconds:.1f} per second; ended by: {ends}", file=sys.stderr)


def _heading(place: int, of: int, what: str) -> None:
    if of > 1:
        print(f"--- {place + 1} of {of}, {what} ---", flush=True)
