"""Shared by the demos: a model that has learned to repeat random tokens, the story model, and pictures.

In random tokens that come twice, each token of the second round can be predicted: find its first occurrence, and take
what came next. That needs two attention heads in a row, an induction circuit (Elhage et al. 2021; Olsson et al. 2022).
A model of two layers learns it in seconds, and published models have it too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptladder import GPT2, GPT2Config
from gptladder.tokenizer import Tokenizer, load_tokenizer

PERIOD = 14  # of the tokens that the demos look at
STORY_MODEL = Path("runs/tinystories/final")
STORY = "Once upon a time there was a brave fox named Mia, who lived at the edge of the forest. One morning,"


def repeated(batch: int, period: int, d_vocab: int, generator: torch.Generator) -> Tensor:
    """Return [batch 2*period] tokens: ``period`` different ones in random order, twice."""
    once = torch.rand(batch, d_vocab, generator=generator).argsort(1)[:, :period]
    return torch.cat([once, once], dim=1)


def loss_when_repeated(logits: Tensor, tokens: Tensor, period: int) -> Tensor:
    """Return the mean cross-entropy of the predictable tokens: all of the second round but its first."""
    return F.cross_entropy(logits[:, period:-1].flatten(0, 1), tokens[:, period + 1 :].flatten())


def train(steps: int = 800) -> GPT2:
    """Return a model of two layers, trained on repeated tokens of many periods. Of one alone, it would learn to count.

    What it learns depends on the first weights: from a few of them it finds another way than induction heads.
    """
    torch.manual_seed(3)
    model = GPT2(GPT2Config(d_model=64, n_layers=2, n_heads=4, d_vocab=32, n_ctx=32, tie_word_embeddings=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    generator, loss = torch.Generator().manual_seed(3), torch.tensor(torch.nan)
    for _ in range(steps):
        period = int(torch.randint(6, 17, (), generator=generator))
        tokens = repeated(32, period, model.d_vocab, generator)
        loss = loss_when_repeated(model(tokens), tokens, period)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained a model of two layers for {steps} steps, to a loss of {loss.item():.3f}")
    return model.eval()


def arguments(doc: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a demo's command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a published model's name, or a folder")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demos"), help="folder for pictures (default: runs/demos)"
    )
    parser.add_argument("--steps", type=int, default=800, help="training steps of the small model (default: 800)")
    return parser.parse_args(argv)


def prepare(given: argparse.Namespace, batch: int = 64) -> tuple[GPT2, Tensor]:
    """Return a model and repeated tokens for it. Without ``--model`` a small one is trained once, kept in ``--out``."""
    kept = given.out / "model"
    if given.model is None and not kept.exists():
        train(given.steps).save_pretrained(kept)
    folder = given.model or kept
    model = GPT2.from_pretrained(folder)
    print(f"weights: {folder}")
    return model, repeated(batch, PERIOD, model.d_vocab, torch.Generator().manual_seed(0))


def story_model(given: argparse.Namespace) -> tuple[GPT2, Tokenizer]:
    """Return the model of ``--model``, or that of ``make train-tinystories``, and its tokenizer."""
    folder = given.model or STORY_MODEL
    if given.model is None and not STORY_MODEL.exists():
        raise SystemExit(f"there is no {STORY_MODEL}: run make train-tinystories first, or give --model")
    print(f"weights: {folder}")
    return GPT2.from_pretrained(folder), load_tokenizer(folder)


def figure(columns: int, *, width: float = 4.5, height: float = 3.6) -> tuple[Any, Any]:
    """Return a picture, and its axes in a row."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(columns * width, height), layout="constrained")
    return drawn, drawn.subplots(1, columns, squeeze=False)[0]


def heat(axes: Any, values: Tensor, *, title: str, x: str, y: str, rows: Sequence[str] = (), most: float = 0) -> None:
    """Draw a matrix: from white at 0 to blue at ``most`` (default: from purple to orange, white at 0)."""
    signed = most == 0
    most = most or values.abs().max().item()
    limits = {"vmin": -most if signed else 0, "vmax": most}
    image = axes.imshow(values.float().numpy(), aspect="auto", cmap="PuOr_r" if signed else "Blues", **limits)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yticks(range(len(values)), rows or range(len(values)))
    axes.get_figure().colorbar(image, ax=axes)


def save(drawn: Any, path: Path) -> None:
    """Write the picture, and print where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=100)
    print(f"picture: {path}")
