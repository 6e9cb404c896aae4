"""Every argument of every public function: a value of the wrong type gets a sentence that names the argument."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gptladder import GPT2
from gptladder.sampling import (
    Chain,
    PromptLookup,
    SamplingParams,
    beam_search,
    evaluate,
    generate,
    pack,
    speculate,
    stream,
    top_predictions,
)
from gptladder.sampling.transforms import TopK
from gptladder.tokenizer import BPETokenizer

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (beam_search, evaluate, generate, pack, speculate, stream, top_predictions)
}

# What a call needs besides the argument that is wrong.
NEEDED: dict[str, dict[str, Any]] = {
    "beam_search": {"prompt": [1, 2]},
    "evaluate": {"documents": "a text"},
    "generate": {"prompts": [1, 2]},
    "pack": {"weights": "float32"},
    "speculate": {"prompt": [1, 2], "draft": PromptLookup()},
    "stream": {"prompts": [1, 2]},
    "top_predictions": {"text": [1, 2]},
}

PROMPTS = [None, 3, 1.5, b"text", {"input_ids": [1]}, [None], object(), torch.tensor(3), torch.tensor([0.5])]
NUMBERS = [None, "3", 1.5, True, [3], object()]

# The wrong values of each argument, and what the message calls it.
WRONG: dict[str, tuple[str, list[Any]]] = {
    "model": ("model must be a GPT2", [None, "gpt2", 3, nn.Linear(2, 2), GPT2]),
    "prompts": ("prompt|token ids|tokens of one text", PROMPTS),
    "prompt": ("prompt|token ids|tokens of one text", [*PROMPTS, ["one", "two"]]),
    "text": ("prompt|token ids|tokens of one text", [*PROMPTS, ["one", "two"]]),
    "params": ("params must be SamplingParams", [{"top_k": 3}, 0.8, "greedy", SamplingParams, [0.8]]),
    "tokenizer": ("is no tokenizer", [3, ["gpt2"], object(), max]),
    "n": ("n must be a whole number", NUMBERS),
    "seed": ("seed must be a whole number|seeds for", [None, "42", 1.5, [1.5], {}, object(), torch.tensor(0.5)]),
    "max_new_tokens": ("max_new_tokens must be a whole number", NUMBERS),
    "eos_token_ids": ("token ids are expected|tokens of one text", ["</s>", 1.5, [None], ["</s>"], object()]),
    "stop": ("stop strings are text", [3, [3], b"a", object()]),
    "past_context": ("past_context is", [None, 3, True, ["stop"]]),
    "logprobs": ("logprobs must be a whole number", ["3", 1.5, True, [3]]),
    "transforms": ("transforms must be a list of functions", [None, 3, "top_k", TopK(3), [3], [TopK(3), None], {}]),
    "draw": ("draw is", [None, 3, ["multinomial"]]),
    "num_beams": ("num_beams must be a whole number", NUMBERS),
    "num_return": ("num_return must be a whole number", NUMBERS),
    "length_penalty": ("length_penalty must be", [None, "1", True, [1.0], object()]),
    "early_stopping": ("early_stopping is", [None, "always", 3, ["never"]]),
    "draft": ("draft must be a GPT2 or PromptLookup", [None, "gpt2", 3, nn.Linear(2, 2), PromptLookup]),
    "lookahead": ("lookahead must be a whole number", NUMBERS),
    "documents": ("document", [None, 3, b"text", {"text": "a"}, [3], [[3, 1]], [None], [b"text"], object()]),
    "stride": ("stride must be a whole number", NUMBERS[1:]),
    "batch": ("batch must be a whole number", NUMBERS),
    "progress": ("progress must be a function", [3, "bar", True]),
    "weights": ("weights are", [None, 8, torch.bfloat16, ["int8"]]),
    "rows": ("rows must be a whole number", NUMBERS),
    "k": ("k must be a whole number", NUMBERS),
}


ARGUMENTS = [(name, argument) for name in FUNCTIONS for argument in inspect.signature(FUNCTIONS[name]).parameters]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_value_of_the_wrong_type_is_named(
    byte_model: GPT2, byte_tokenizer: BPETokenizer, name: str, argument: str
) -> None:
    message, values = WRONG[argument]
    for value in values:
        for reader in [None, byte_tokenizer] if argument != "tokenizer" else [None]:
            arguments = {"model": byte_model, **NEEDED[name]}
            if "tokenizer" in inspect.signature(FUNCTIONS[name]).parameters:
                # Text without a tokenizer is refused before anything else; it is tried with one.
                arguments["tokenizer"] = byte_tokenizer if name == "evaluate" or argument == "stop" else reader
            with pytest.raises(ValueError, match=message) as caught:
                FUNCTIONS[name](**{**arguments, argument: value})
            assert "\n" not in str(caught.value)


def test_settings_of_the_wrong_type_are_answered_with_how_to_give_them(byte_model: GPT2) -> None:
    wrong: dict[str, Any] = {r"\(\*\*settings\)": {"top_k": 3}, r"\(temperature=…, top_k=…\)": 0.8}
    for how, value in wrong.items():
        with pytest.raises(ValueError, match=f"give SamplingParams{how}$"):
            generate(byte_model, [1, 2], value)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SamplingParams)])
@pytest.mark.parametrize("value", ["3", [None], b"3", object(), True, 1j, ["x"]], ids=lambda it: type(it).__name__)
def test_a_setting_of_the_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("value", [None, 3, "top_k", TopK(3), [3]], ids=lambda value: type(value).__name__)
def test_a_chain_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"transforms must be a list|a step of the chain must be a callable"):
        Chain(value)


@pytest.mark.parametrize("value", [None, "3", 1.5, True, 0])
def test_a_lookup_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="max_ngram must be a whole number"):
        PromptLookup(max_ngram=value)


def test_seeds_may_be_an_array(byte_model: GPT2) -> None:
    expected = generate(byte_model, [1], n=2, seed=[5, 9], max_new_tokens=4)
    assert generate(byte_model, [1], n=2, seed=torch.tensor([5, 9]), max_new_tokens=4) == expected  # pyright: ignore[reportArgumentType]
    assert generate(byte_model, [1], n=2, seed=torch.tensor([5, 9]).numpy(), max_new_tokens=4) == expected  # pyright: ignore[reportArgumentType]


def test_a_compiled_model_is_a_model(byte_model: GPT2) -> None:
    compiled: Any = torch.compile(byte_model, backend="eager")
    assert top_predictions(compiled, [1], k=3) == top_predictions(byte_model, [1], k=3)


def test_ids_that_the_tokenizer_lacks_may_stand_in_a_prompt(byte_model: GPT2, byte_tokenizer: BPETokenizer) -> None:
    """A model may have more rows than its tokenizer has tokens; such ids are read, and never written."""
    few = BPETokenizer({bytes([byte]): byte for byte in range(256)}, {})
    prompt, params = [256, 5, 256, 5, 256], SamplingParams(repetition_penalty=1.2, no_repeat_ngram_size=2)
    (found,) = generate(byte_model, prompt, params, tokenizer=few, max_new_tokens=6)
    assert max(found.tokens) < 256
    guessed = speculate(byte_model, prompt, params, draft=PromptLookup(), tokenizer=few, max_new_tokens=6)
    assert max(guessed.tokens) < 256
    assert max(beam_search(byte_model, prompt, tokenizer=few, max_new_tokens=6)[0].tokens) < 256
