"""The configuration of a training run, as typed dataclasses, and the presets: values that reproduce known small runs.

A field's docstring is its help text on the command line.
"""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..assembly.config import GPT2Config
from .data.batches import Order
from .data.config import DataConfig
from .parallel import Parallel

Precision = Literal["float32", "bf16", "auto"]
Products = Literal["auto", "default", "onednn"]
OptimizerName = Literal["adamw", "muon"]
Decay = Literal["cosine", "linear"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the model is trained, and when that ends."""

    batch: int = 16
    """Sequences of each update, over all processes and micro-batches together."""
    micro_batch: int | None = None
    """Sequences that one process computes at a time (default: its whole share of the batch)."""
    gradient_checkpointing: bool = False
    """Compute each block's activations again for its gradients instead of holding them: far less memory, up to a third
    more time, and the same losses to the bit."""
    seq: int | None = None
    """Tokens of a sequence (default: n_ctx)."""
    order: Order = "shuffled"
    """shuffled: each window of the text once per epoch; documents: the same, with each document divided into windows
    separately, from its beginning; random: windows that begin at any token."""
    max_steps: int | None = None
    """Updates after which training ends."""
    max_epochs: float | None = None
    """Passes over the training data after which training ends."""
    target_loss: float | None = None
    """Training loss of a batch at which training ends."""
    patience: int | None = None
    """Evaluations in a row without a lower validation loss after which training ends."""
    optimizer: OptimizerName = "adamw"
    """adamw, or muon (Muon for the matrices of the blocks, AdamW for the rest), which needs fewer updates."""
    lr: float = 1e-3
    """Learning rate of AdamW after warm-up."""
    min_lr: float | None = None
    """Learning rate at the end of the decay (default: the rate stays constant after warm-up). The learning rate of Muon
    decays in the same proportion."""
    muon_lr: float = 0.02
    """Learning rate of Muon after warm-up; it follows the same schedule."""
    muon_momentum: float = 0.95
    """Muon's decay rate for the running mean of the gradient."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    decay: Decay = "cosine"
    """Shape of the decay to min_lr: half a cosine, or a straight line (linear)."""
    decay_steps: int | None = None
    """Updates after which the decay ends (default: all of them)."""
    beta1: float = 0.9
    """AdamW's decay rate for the running mean of the gradient."""
    beta2: float = 0.999
    """AdamW's decay rate for the running mean of the squared gradient."""
    weight_decay: float = 0.01
    """Weight decay of matrices, embeddings included: each update subtracts this times the learning rate of them."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient: a gradient with a larger norm is scaled down to it."""
    seed: int = 1337
    """Seed of the initial weights, of dropout, and of the order of the data."""
    device: str | None = None
    """cuda, mps or cpu (default: the first of these that is available)."""
    precision: Precision = "float32"
    """Precision of matrix products: float32, bf16 (with autocast; weights stay in float32), or auto: bf16 if a trial at
    the start finds it at least 1.5 times as fast."""
    products: Products = "auto"
    """Backend for float32 matrix products on a CPU: default (PyTorch's choice), onednn, or auto: oneDNN if a trial at
    the start finds it as accurate and not clearly slower."""
    compile: bool = False
    """Compile the model with torch.compile."""
    parallel: Parallel = "ddp"
    """With torchrun: each process has a copy of the model (ddp), or the weights are sharded among them (fsdp)."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "batch",
            "micro_batch",
            "seq",
            "max_steps",
            "max_epochs",
            "target_loss",
            "patience",
            "lr",
            "muon_lr",
            "decay_steps",
            "grad_clip",
        )
        for name, choices in (("optimizer", get_args(OptimizerName)), ("decay", get_args(Decay))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(choices)}")
        for name in ("max_epochs", "target_loss", "lr", "muon_lr", "min_lr", "weight_decay"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number")
        for name in ("min_lr", "warmup_steps", "weight_decay"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_steps is self.max_epochs is self.target_loss is None:
            raise ValueError("nothing ends this run: give max_steps, max_epochs or target_loss")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run writes and prints, and how often."""

    name: str | None = None
    """Name of the run, and of its folder (default: the preset's name)."""
    runs_dir: str = "runs"
    """Folder that contains the folders of runs."""
    log_every: int = 10
    """Updates between rows of metrics."""
    eval_every: int | Literal["epoch"] = 250
    """Updates between evaluations on the validation data, or "epoch"."""
    eval_batches: int | None = None
    """Batches of an evaluation, spread evenly over the validation data (default: all of it)."""
    snapshot_every: int = 500
    """Updates between snapshots."""
    keep: int = 3
    """Number of snapshots to keep; older ones are deleted."""
    sample_every: int | Literal["epoch"] | None = None
    """Updates between samples, or "epoch" (default: as often as evaluations)."""
    prompt: str = "Once upon a time"
    """Text that samples continue."""
    sample_tokens: int = 200
    """Tokens of a sample."""
    final_samples: int = 3
    """Number of samples after training."""
    resume: str | None = None
    """"auto" continues the run from its newest snapshot, or starts it if there is none. The path of a snapshot of this
    run returns to that snapshot; the path of another run's snapshot starts a new run from it."""
    config: str | None = None
    """config.json of an earlier run: everything is as in that run, except the options that are given beside it."""
    overwrite: bool = False
    """Start from the beginning, and delete the earlier run of this name once the new one has a snapshot."""
    json: bool = False
    """Print one JSON object per line, and nothing else, instead of a progress line."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""
    wandb: bool = False
    """Also send metrics and samples to Weights & Biases (WANDB_MODE=offline keeps them in the run's folder)."""
    license: str | None = None
    """Licence of the trained model, for its card, such as mit (default: none, which the card states)."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "log_every", "eval_every", "eval_batches", "snapshot_every", "keep", "sample_every", "sample_tokens"
        )
        if self.name is not None and not _is_folder_name(self.name):
            raise ValueError(f"name is {self.name[:40]!r}; it must be the name of a folder, such as mine")
        if not self.runs_dir:
            raise ValueError("runs_dir is ''; it must be a folder, such as runs")
        if self.final_samples < 0:
            raise ValueError(f"final_samples is {self.final_samples}; it must not be negative")
        if self.overwrite and self.resume:
            raise ValueError("overwrite deletes what resume would continue: give one of them")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a GPT-2 on text."""

    preset: str = ""
    """Preset that gives the default of every other option: tinystories, tinystories-2l64d, tinystories-char,
    shakespeare-char, shakespeare-char-fast, verdict-124m or target-loss-124m."""
    data: DataConfig = field(default_factory=DataConfig)
    model: GPT2Config = field(default_factory=GPT2Config)
    init_from: str | None = None
    """Model folder, run, snapshot, or name of a published model to start from. Its sizes and its tokenizer are used."""
    dropout: float | None = None
    """Dropout in training, for the embeddings, the attention pattern, and the output of each layer (default: the value
    in the model's configuration, or in that of the model to start from)."""
    optim: OptimConfig
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.dropout is not None:
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
            everywhere: Any = dict.fromkeys(DROPOUTS, self.dropout)
            object.__setattr__(self, "model", dataclasses.replace(self.model, **everywhere))
        # The sequence of a model to start from is checked when that model's sizes are known.
        if self.init_from is None and self.seq > self.model.n_ctx:
            raise ValueError(
                f"seq={self.seq} is more than the model has positions for, n_ctx={self.model.n_ctx}: "
                "take shorter sequences, or a model with more positions"
            )

    @property
    def seq(self) -> int:
        """Tokens of a sequence."""
        return self.optim.seq or self.model.n_ctx

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name or self.preset or "run"

    def recorded(self) -> dict[str, Any]:
        """Return what a run records: all of the configuration except the options of one start (``--resume``, …).

        So a resumed run records the same as a run that was never stopped.
        """
        values = dataclasses.asdict(self)
        dropouts = {values["model"][name] for name in DROPOUTS}
        values["model"]["dropout"] = dropouts.pop() if len(dropouts) == 1 else None  # as version 0.1 records it
        for start in ("resume", "config", "overwrite", "json"):
            del values["run"][start]
        return values

    def replace(self, **fields: Any) -> "TrainConfig":
        """Return this configuration with fields of any of its parts changed.

        Sizes that follow from others (``d_head``, ``d_mlp``) follow the changed ones.

        Raises:
            ValueError: no part has such a field.
        """
        parts = {"": self} | {part: getattr(self, part) for part in PARTS}
        changed: dict[str, dict[str, Any]] = {part: {} for part in parts}
        for name, value in fields.items():
            owner = next((part for part, config in parts.items() if name in field_names(config)), None)
            if owner is None:
                raise ValueError(f"there is no field {name!r}")
            changed[owner][name] = value
        new: dict[str, Any] = {
            part: dataclasses.replace(parts[part], **changed[part]) for part in PARTS if part != "model"
        }
        own = {"dropout": None, **changed[""]} if changed["model"].keys() & set(DROPOUTS) else changed[""]
        return dataclasses.replace(self, **{**new, "model": resized(self.model, **changed["model"]), **own})


PARTS = ("data", "model", "optim", "run")
DROPOUTS = ("embed_dropout", "attn_dropout", "resid_dropout")


def field_names(config: Any) -> set[str]:
    """Return the names of a configuration's fields; of `TrainConfig`, those that are not parts."""
    return {field.name for field in dataclasses.fields(config)} - set(PARTS)


def resized(model: GPT2Config, **changes: Any) -> GPT2Config:
    """Return a model's configuration with fields changed; sizes that were derived from others are derived again.

    >>> resized(GPT2Config(d_model=64, n_heads=4), d_model=32).d_mlp
    128
    """
    follows = {"d_head": model.d_model // model.n_heads, "d_mlp": 4 * model.d_model}
    again = {name: 0 for name, size in follows.items() if getattr(model, name) == size}
    return dataclasses.replace(model, **{**again, **changes}) if changes else model


def _is_folder_name(name: str) -> bool:
    """Return whether a run's folder can have this name, and the files beside it a longer one."""
    last = Path(name).name  # empty for "." and "/"
    return last not in ("", "..") and "\0" not in name and len(os.fsencode(last)) <= 200


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


PRESETS: dict[str, TrainConfig] = {
    # Short stories that read well, in three minutes on two cores: TinyStories, or without a network stories made here.
    # The values are from benchmarks/recipes.py (study "stories").
    "tinystories": TrainConfig(
        preset="tinystories",
        data=DataConfig(corpus="tinystories", fraction=0.01, stories_mb=16, tokenizer="bpe", vocab_size=2048),
        # Untied: wherever no name was mentioned before, all names are equally likely. This draws their rows of a tied
        # table together, and a model this narrow is then slow to distinguish them.
        model=GPT2Config(d_model=128, n_layers=2, n_heads=4, n_ctx=256, tie_word_embeddings=False),
        optim=OptimConfig(
            batch=8,
            order="documents",
            max_steps=2000,
            optimizer="muon",
            muon_lr=0.02,
            lr=8e-3,
            min_lr=0.0,
            decay="linear",
            warmup_steps=60,
            beta2=0.99,
            weight_decay=0.01,
            precision="auto",
        ),
        run=RunConfig(eval_every=250, eval_batches=32, sample_every=500, snapshot_every=500),
    ),
    # Two layers of width 64 on the whole of TinyStories; documented: loss 3.17, accuracy 35.5% after 5 epochs.
    "tinystories-2l64d": TrainConfig(
        preset="tinystories-2l64d",
        data=DataConfig(corpus="tinystories", tokenizer="gpt2"),
        model=GPT2Config(d_model=64, n_layers=2, n_heads=4, n_ctx=256),
        optim=OptimConfig(batch=16, max_epochs=5, lr=1e-3, weight_decay=0.01),
        run=RunConfig(eval_every=1000, eval_batches=100, snapshot_every=1000, sample_every="epoch"),
    ),
    # A character model with ReLU; documented: loss 1.25, perplexity 3.5 after 10,000 steps, sampled from one space.
    "tinystories-char": TrainConfig(
        preset="tinystories-char",
        data=DataConfig(corpus="tinystories", tokenizer="char"),
        model=GPT2Config(d_model=64, n_layers=4, n_heads=4, n_ctx=32, act_fn="relu"),
        optim=OptimConfig(batch=16, order="random", max_steps=10_000, lr=1e-3, grad_clip=None),
        run=RunConfig(
            eval_every=500, eval_batches=200, snapshot_every=2000, log_every=20, prompt=" ", sample_tokens=400
        ),
    ),
    # GPT-2 small on one short story (Raschka 2024, "Build a Large Language Model", appendix D).
    "verdict-124m": TrainConfig(
        preset="verdict-124m",
        data=DataConfig(corpus="the-verdict.txt", tokenizer="gpt2"),
        model=GPT2Config(n_ctx=256),
        dropout=0.1,
        optim=OptimConfig(
            batch=2, max_epochs=15, lr=1e-3, min_lr=1e-5, warmup_steps=27, weight_decay=0.1, grad_clip=1.0
        ),
        run=RunConfig(
            eval_every="epoch",
            snapshot_every=50,
            keep=1,
            log_every=1,
            prompt="Every effort moves you",
            sample_tokens=50,
        ),
    ),
    # GPT-2 small learns one short text by heart, and stops by itself.
    "target-loss-124m": TrainConfig(
        preset="target-loss-124m",
        data=DataConfig(corpus="the-verdict.txt", tokenizer="gpt2"),
        model=GPT2Config(),
        optim=OptimConfig(batch=4, seq=32, target_loss=0.099999, lr=3e-4),
        run=RunConfig(
            eval_every="epoch",
            snapshot_every=10,
            keep=2,
            log_every=1,
            prompt="I HAD always thought",
            sample_tokens=30,
            final_samples=5,
        ),
    ),
    # nanoGPT's recipe for a CPU, at twice its learning rate; documented there: validation loss 1.88 after 2,000 steps.
    "shakespeare-char": TrainConfig(
        preset="shakespeare-char",
        data=DataConfig(corpus="tinyshakespeare.txt", tokenizer="char"),
        model=GPT2Config(d_model=128, n_layers=4, n_heads=4, n_ctx=64),
        optim=OptimConfig(
            batch=12,
            order="random",
            max_steps=2000,
            lr=2e-3,
            min_lr=1e-4,
            warmup_steps=100,
            beta2=0.99,
            weight_decay=0.1,
            grad_clip=1.0,
        ),
        run=RunConfig(prompt="\n", sample_tokens=300),
    ),
    # The same model by Muon, with twice the batch. The values are from benchmarks/recipes.py.
    "shakespeare-char-fast": TrainConfig(
        preset="shakespeare-char-fast",
        data=DataConfig(corpus="tinyshakespeare.txt", tokenizer="char"),
        model=GPT2Config(d_model=128, n_layers=4, n_heads=4, n_ctx=64),
        optim=OptimConfig(
            batch=24,
            order="random",
            max_steps=1000,
            optimizer="muon",
            muon_lr=0.03,
            lr=5e-3,
            min_lr=0.0,
            decay="linear",
            warmup_steps=15,
            beta2=0.99,
            weight_decay=0.1,
            grad_clip=1.0,
            precision="auto",
        ),
        run=RunConfig(eval_every=100, prompt="\n", sample_tokens=300),
    ),
}
