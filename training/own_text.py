"""The values that a training on a text of the user's own begins with: a recipe for the text, or those of a preset."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from .data.config import DataConfig
from .data.corpus import Corpus
from .data.prepare import load_data, open_text, prepared_folder, read_facts
from .data.survey import MANY_CHARACTERS, TextSurvey, prompt_from, survey
from .presets import TrainConfig
from .recipes import recipe_for_text

__all__ = ["Start", "check_prompt", "is_own_text", "start_from_preset", "start_from_recipe"]

# A trained model forgets at the learning rates that a fresh one learns by.
_FINE_TUNING = {"optimizer": "adamw", "lr": 3e-4, "min_lr": 3e-5}

_MOST_BYTES_A_TOKEN = 6


@dataclass(frozen=True)
class Start:
    """Values to begin with, which options of the command line may change."""

    config: TrainConfig
    survey: TextSurvey

    def line(self, config: TrainConfig) -> str:
        """Return the recipe in one line, as it is after the options of the command line."""
        model, optim, text = config.model, config.optim, self.survey
        vocabulary = f" of {config.data.vocab_size:,} tokens" if config.data.tokenizer == "bpe" else ""
        if config.init_from is None:
            sizes = f"{model.n_layers} layers, d_model {model.d_model}, {model.n_heads} heads, n_ctx {model.n_ctx}"
        else:
            sizes = f"starting from {config.init_from}"
        tokens = text.length if config.data.tokenizer == "char" else text.size_bytes / 3
        passes = optim.max_epochs
        if optim.max_steps is not None:
            passes = optim.max_steps * optim.batch * config.seq / (tokens * (1 - config.data.val_fraction))
        length = f"{optim.max_steps:,} steps" if optim.max_steps is not None else "epochs"
        return (
            f"recipe for {config.data.name} ({text.length:,} characters, {text.kinds} different ones): "
            f"tokenizer {config.data.tokenizer}{vocabulary}; model: {sizes}; {length} of {optim.batch} x {config.seq} "
            f"tokens, learning rate {optim.lr:g}"
            + (f" (Muon: {optim.muon_lr:g})" if optim.optimizer == "muon" else "")
            + (f", about {passes:.3g} passes over the text" if passes is not None else "")
            + f"; samples begin with {config.run.prompt!r}"
        )


def is_own_text(corpus: str | tuple[str, ...]) -> bool:
    """Return whether a corpus is the user's own, and not one that the presets are made for."""
    names = (corpus,) if isinstance(corpus, str) else corpus
    return names not in (("stories",), ("tinystories",))


def start_from_recipe(data: DataConfig, *, tokenizer: str | None = None, init_from: str | None = None) -> Start:
    """Return the recipe for a text.

    Args:
        data: the text, and how it is read; the recipe chooses the rest.
        tokenizer: kind of the tokenizer, if the user chose it.
        init_from: a trained model that the run starts from, with its own tokenizer.

    Raises:
        ValueError: the text cannot be read, or is too short.
    """
    folder = prepared_folder(data)
    if folder is not None:
        seen, prepared = _prepared_text(folder)
    else:
        seen, prepared = survey(open_text(data)), {}
    recipe = recipe_for_text(seen)
    chosen = {"tokenizer": recipe.data.tokenizer, "vocab_size": recipe.data.vocab_size, **prepared}
    config = dataclasses.replace(
        recipe,
        data=dataclasses.replace(data, **chosen),
        run=dataclasses.replace(recipe.run, name=data.name),
    )
    if init_from is not None:
        config = config.replace(**_FINE_TUNING)
    if init_from is not None or tokenizer not in (None, "char", chosen["tokenizer"]):
        # Such a tokenizer makes fewer tokens, and the part that is held back must hold a window of them.
        held_back = int(seen.size_bytes / _MOST_BYTES_A_TOKEN * data.val_fraction)
        config = config.replace(n_ctx=min(config.model.n_ctx, max(1, held_back - 1)))
    return Start(config, seen)


def start_from_preset(preset: TrainConfig, data: DataConfig, *, tokenizer: str | None = None) -> TrainConfig:
    """Return the values of a preset for another text: what is about model and optimizer, and the way of tokenizing.

    Args:
        preset: made for a text of its own.
        data: the text, and how it is read.
        tokenizer: kind of the tokenizer (default: the preset's).

    Raises:
        ValueError: the text cannot be read.
    """
    prompt, folder = preset.run.prompt, prepared_folder(data)
    kept = {name: getattr(preset.data, name) for name in ("tokenizer", "vocab_size", "val_fraction")}
    if folder is not None:
        opening, prepared = _prepared_text(folder)
        kept |= prepared
        fits = _can_encode(load_tokenizer(folder), prompt)
    else:
        corpus = open_text(data)
        fits = (tokenizer or preset.data.tokenizer) != "char" or _holds(corpus, set(prompt))
        opening = None if fits else survey(corpus)
    if not fits and opening is not None:
        prompt = prompt_from(opening.opening)
    return dataclasses.replace(
        preset, data=dataclasses.replace(data, **kept), run=dataclasses.replace(preset.run, prompt=prompt)
    )


def check_prompt(prompt: str, tokenizer: Tokenizer) -> None:
    """Make sure that samples can begin with a prompt.

    Raises:
        ValueError: the tokenizer lacks a character of it, or it is empty and there is no end-of-text token.
    """
    try:
        ids = tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"--prompt {prompt!r} cannot be encoded: {error}") from None
    if not ids and tokenizer.eot_id is None:
        raise ValueError(
            "--prompt is empty, and the text has no end-of-text token to begin with: give some of its text"
        )


def _prepared_text(folder: Path) -> tuple[TextSurvey, dict[str, Any]]:
    """Return what is known of a prepared text, and how it was prepared; the text itself need not exist any more."""
    data, facts = load_data(folder), read_facts(folder)
    tokens = data.train.header.tokens + data.val.header.tokens
    first = data.train.tokens[:100_000].tolist()
    some = data.tokenizer.decode_bytes(first)
    text = some.decode("utf-8", "replace").replace(END_OF_TEXT, "\n").lstrip()
    characters = facts["vocabulary"] if facts["tokenizer"] == "char" else MANY_CHARACTERS
    length = tokens if facts["tokenizer"] == "char" else tokens * len(text) // len(first)
    seen = TextSurvey(
        size_bytes=tokens * len(some) // len(first),
        documents=data.train.header.documents + data.val.header.documents,
        characters=min(characters, MANY_CHARACTERS),
        opening=text[:200],
        length=length,
        blanks=(text.count(" ") + text.count("\n")) * length // max(1, len(text)),
    )
    return seen, {name: facts[name] for name in ("tokenizer", "vocab_size", "val_fraction") if name in facts}


def _can_encode(tokenizer: Tokenizer, prompt: str) -> bool:
    try:
        return bool(tokenizer.encode(prompt)) or not prompt
    except ValueError:
        return False


def _holds(corpus: Corpus, characters: set[str]) -> bool:
    """Return whether a text holds all of some characters. It is read only as far as necessary."""
    missing = set(characters)
    for piece in corpus.text():
        missing -= set(piece)
        if not missing:
            return True
    return not missing
