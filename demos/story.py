"""Shared by the demos that look into a model: the story model, its prompt, and pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gptladder import GPT2
from gptladder.lens import Labelled, read_prompt
from gptladder.tokenizer import Tokenizer, load_tokenizer

STORY_MODEL = Path("runs/tinystories/final")
BEGINNING = "Once upon a time there was a brave {kind} named {name}, who loved to sing. One morning,"
HEROES = {
    "fox": "Mia",
    "pig": "Tim",
    "bear": "Ben",
    "puppy": "Sam",
    "hedgehog": "Leo",
    "calf": "Max",
    "panda": "Ella",
    "kitten": "Kate",
    "lamb": "Nina",
    "rabbit": "Rosa",
}
"""Heroes of the generated stories: each kind of animal always has the same name."""

STORY, OTHER_STORY = (BEGINNING.format(kind=kind, name=HEROES[kind]) for kind in ("fox", "pig"))
HERO, OTHER = " Mia", " Tim"


def arguments(doc: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a demo's command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"a published model's name, or a folder (default: {STORY_MODEL})")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demos"), help="folder for pictures (default: runs/demos)"
    )
    return parser.parse_args(argv)


def story_model(given: argparse.Namespace) -> tuple[GPT2, Tokenizer]:
    """Return the model of ``--model``, or that of ``make train-tinystories``, and its tokenizer."""
    folder = given.model or STORY_MODEL
    if given.model is None and not STORY_MODEL.exists():
        raise SystemExit(f"there is no {STORY_MODEL}: run make train-tinystories first, or give --model")
    print(f"weights: {folder}")
    return GPT2.from_pretrained(folder), load_tokenizer(folder)


def show(model: GPT2, tokenizer: Tokenizer, text: str) -> None:
    """Print a prompt and its tokens."""
    tokens = read_prompt(model, text, tokenizer).labels
    print(f"prompt: {text}\n{len(tokens)} tokens: {'|'.join(tokens)}")


def one_token(tokenizer: Tokenizer, name: str) -> int:
    """Return the token of a name; its first one if the vocabulary lacks the name."""
    return tokenizer.encode(name)[0]


def save(found: Labelled, path: Path) -> None:
    """Draw labelled numbers into a file, and print where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found.figure().savefig(path, dpi=100)
    print(f"picture: {path}")
