"""Who races in `time_to_loss`: the text, and for each contestant its model, its loss, its optimizer and its recipe."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from steps import Loss
from torch import Tensor, nn
from torch.optim import Optimizer

from gptladder.assembly import GPT2, GPT2Config
from gptladder.tokenizer import CharTokenizer
from gptladder.training.data.stories import stories
from gptladder.training.loss import NextTokenLoss
from gptladder.training.optim import make_optimizer
from gptladder.training.presets import PRESETS, OptimConfig, TrainConfig

D_MODEL, N_LAYERS, N_HEADS, SEQ = 128, 4, 4, 64

# python train.py config/train_shakespeare_char.py --device=cpu --compile=False --block_size=64 --batch_size=12
#     --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0
NANOGPT_RECIPE = OptimConfig(
    max_steps=2000, batch=12, lr=1e-3, min_lr=1e-4, warmup_steps=100, beta2=0.99, weight_decay=0.1, grad_clip=1.0
)


@dataclass(frozen=True)
class Data:
    """The characters as ids."""

    train: np.ndarray
    val: np.ndarray
    n_vocab: int


def read_data(path: Path | None) -> Data:
    """Return a text by characters, its last tenth for validation (default: a megabyte of generated stories)."""
    text = path.read_text(encoding="utf-8") if path else "\n\n".join(islice(stories(seed=1), 1250))
    tokenizer = CharTokenizer.from_text([text])
    ids = np.array(tokenizer.encode(text))
    cut = int(len(ids) * 0.9)
    return Data(ids[:cut], ids[cut:], tokenizer.n_vocab)


def ours(optim: OptimConfig, n_vocab: int) -> tuple[nn.Module, Loss, Optimizer]:
    """Our model, its loss in chunks, and the optimizer of a preset."""
    model = NextTokenLoss(
        GPT2(GPT2Config(d_model=D_MODEL, n_layers=N_LAYERS, n_heads=N_HEADS, d_vocab=n_vocab, n_ctx=SEQ))
    )
    return model, lambda tokens, targets: model(tokens, targets).loss / targets.numel(), make_optimizer(model, optim)


def transformers_gpt2(optim: OptimConfig, n_vocab: int) -> tuple[nn.Module, Loss, Optimizer]:
    """transformers' GPT-2 with its default attention and initial weights."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    config = TheirConfig(
        vocab_size=n_vocab,
        n_positions=SEQ,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    # As nanoGPT divides them: parameters with at least two axes decay.
    matrices, vectors = ([p for p in model.parameters() if (p.dim() >= 2) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        fused=True,
    )
    return model, lambda tokens, targets: _cross_entropy(model(tokens).logits, targets), optimizer


def nanogpt(folder: Path, optim: OptimConfig, n_vocab: int) -> tuple[nn.Module, Loss, Optimizer]:
    """nanoGPT's own model and optimizer, from a clone's ``model.py``."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").exists():
        raise SystemExit(f"there is no model.py in {folder}: give --nanogpt the folder of a clone of nanoGPT")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        vocab_size=n_vocab,
        block_size=SEQ,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        dropout=0.0,
        bias=False,  # the default of its train.py
    )
    model = module.GPT(config)
    optimizer = model.configure_optimizers(optim.weight_decay, optim.lr, (optim.beta1, optim.beta2), "cpu")
    return model, lambda tokens, targets: model(tokens, targets)[1], optimizer


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Contestant:
    """Who trains, and by which recipe."""

    name: str
    config: TrainConfig
    build: Callable[[OptimConfig, int], tuple[nn.Module, Loss, Optimizer]]


class FromClone:
    """`nanogpt` with its folder; a class, because processes are handed it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, optim: OptimConfig, n_vocab: int) -> tuple[nn.Module, Loss, Optimizer]:
        """Build it."""
        return nanogpt(self.folder, optim, n_vocab)


TRANSFORMERS, NANOGPT = "transformers, nanoGPT's recipe", "nanoGPT"
SHORT = 280  # steps; after 260 one seed of three was 0.001 above the target


def contestants(clone: Path | None, steps: int | None) -> list[Contestant]:
    """Return who trains; ``steps`` shortens every recipe to so many steps at most, for a trial."""
    peer = TrainConfig(optim=NANOGPT_RECIPE)
    fast = PRESETS["shakespeare-char-fast"]
    found = [
        Contestant(TRANSFORMERS, peer, transformers_gpt2),
        *([Contestant(NANOGPT, peer, FromClone(clone))] if clone else []),
        Contestant("ours, AdamW", PRESETS["shakespeare-char"].replace(precision="auto"), ours),
        Contestant("ours, Muon, short", fast.replace(max_steps=SHORT), ours),
        Contestant("ours, Muon", fast, ours),
    ]
    if steps is None:
        return found
    return [
        replace(c, config=c.config.replace(max_steps=min(steps, c.config.optim.max_steps or steps), warmup_steps=1))
        for c in found
    ]
