"""Train from a configuration: write a folder with the trained model, its metrics, samples and a plot of the losses."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..device import pick_device
from ..tokenizer import Tokenizer
from ..weights.sources import config_from_ours, resolve, tokenizer_folder
from .changes import changed_options, flat, flat_record, recorded_config
from .data.batches import Batches, evaluation_batches
from .data.config import DataConfig
from .data.prepare import TextData, load_data, prepare_data
from .display import Display, JSONDisplay, TensorBoardDisplay, TerminalDisplay, WandbDisplay
from .ending import Ending
from .folder import RunFolder
from .idle_options import idle_data_options, idle_options
from .interruption import Interruption
from .lock import RunFolderError
from .loop import TrainingRun
from .metrics import RunFiles
from .model_card import bytes_per_token
from .models import check_memory, check_vocabulary, fresh_model, with_dropout, with_source
from .own_text import check_prompt
from .parallel import Processes, joined
from .precision import computing_by, keep_freed_memory, settle
from .presets import TrainConfig
from .resume import Resumption, check_health, check_text, find_snapshot, settle_folder
from .samples import Sampler
from .schedule import last_step, learning_rate
from .timing import Timing
from .trainer import NonFiniteError, Trainer

__all__ = ["NonFiniteError", "Outcome", "RunFolderError", "train"]


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    folder: Path
    """The run's folder."""
    ending: Ending
    """Why the run ended."""
    step: int
    """Number of updates."""


def train(config: TrainConfig, *, sample: Sampler | None = None, asked: Collection[str] | None = None) -> Outcome:
    """Prepare the data, train, and write the results to ``runs_dir/name``.

    The folder then holds ``config.json``, ``tokenizer/``, ``metrics.jsonl``, ``metrics.csv``, ``speed.jsonl``,
    ``samples.md``, ``loss.png``, ``snapshots/``, and two models, which transformers can load too: ``final/``, the model
    with the lowest validation loss, and ``last/``, the model at the end.

    All options and inputs are checked before anything in the folder changes. A start that fails before its first
    snapshot leaves the folder as it was.

    Args:
        config: A preset, or a configuration of your own.
        sample: Draws the samples (default: there are none).
        asked: Names of the fields that the user set. With ``init_from``, they must agree with the model to start from
            (default: the fields of the model's configuration that differ from ``GPT2Config()``).

    Raises:
        ValueError: An option, the data, the folder or a snapshot cannot be used; the message is one line
            (`RunFolderError` and `SnapshotError` are subclasses).
        NonFiniteError: A loss or a gradient is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before training began, or a second time.
    """
    timing, device = Timing(), pick_device(config.optim.device)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        processes = stack.enter_context(joined(config.optim.parallel, device))
        display = stack.enter_context(_display(config, processes))

        # Lock the folder, and check everything. Nothing in the folder changes yet.
        home = stack.enter_context(RunFolder(config.folder)) if processes.first else None
        found = _look(config, home, display)
        config = processes.share(_settled(config, found, asked, device, display) if processes.first else None)
        stack.enter_context(computing_by(config))
        if device.type == "cpu":
            keep_freed_memory()
        trainer, data = _prepare(config, found, asked, device, processes, display, timing)
        _check_samples(sample, trainer.config, data, display)
        changes = [] if found is None else _check_snapshot(found, trainer, data)

        # From here on, the folder changes.
        facts = describe(trainer, data)
        sizes, after = _open(home, found, data, {**trainer.config.recorded(), "facts": facts})
        display = _with_trackers(display, stack, trainer.config, processes)
        run = TrainingRun(
            trainer,
            data.tokenizer,
            folder=config.folder,
            display=display,
            sample=sample,
            interruption=interruption,
            facts=facts,
            text=data.facts.get("text_sha256"),
            on_saved=home.keep if home else lambda: None,
            timing=timing,
        )
        display.facts(**facts)
        if found is not None:
            run.resume(found.contents, sizes)
            for line in [f"resumed from {found.path}, at step {run.step}{after}", *_explained(changes, found, trainer)]:
                display.say(line)
            del found  # free the snapshot's memory: as much as the model and its optimizer need
        return _train(run, home)


def _check_samples(sample: Sampler | None, config: TrainConfig, data: TextData, display: Display) -> None:
    """Check that samples can begin with the prompt, or report that there are none."""
    if sample is None:
        display.say("no samples: train() was called without sample=")
    else:
        check_prompt(config.run.prompt, data.tokenizer)


def _check_snapshot(found: Resumption, trainer: Trainer, data: TextData) -> list[str]:
    """Check that a snapshot fits the model, the optimizer, the data and the options; return the changed options."""
    folder = trainer.config.folder
    if found.here and trainer.processes.first:
        RunFiles(folder).check_lengths(found.contents["files"])
    # The text first: a changed text can have another vocabulary, and then the model has other sizes too.
    check_text(found, data.facts, folder)
    trainer.check(found.path, found.contents, data.tokenizer.fingerprint)
    check_health(found)
    return changed_options(flat_record(found.contents), flat(trainer.config))


def _train(run: TrainingRun, home: RunFolder | None) -> Outcome:
    """Run the training loop, and return its result."""
    try:
        ending = run.run()
    except NonFiniteError:
        if home is not None and run.step and not home.replaces:
            home.keep()  # its metrics show how it diverged
        raise
    if ending == "interrupted" and run.step:
        run.display.say(f"stopped at step {run.step}; continue with --resume auto")
    elif ending == "interrupted":
        run.display.say("stopped before the first step; nothing of this start is left")
    return Outcome(run.folder, ending, run.step)


def _look(config: TrainConfig, home: RunFolder | None, display: Display) -> Resumption | None:
    """Check the folder, on the first process, and return the snapshot to continue from."""
    run, folder = config.run, config.folder
    found = find_snapshot(run.resume, folder, display.say)
    if home is None:
        return found
    for line in home.lines:
        display.say(line)
    own = found is None or found.path.resolve().is_relative_to(folder.resolve())
    home.check(overwrite=run.overwrite, resume=run.resume is not None and own)
    if run.overwrite:
        corpus = config.data.corpus
        for path in (corpus,) if isinstance(corpus, str) else corpus:
            home.refuse_input("--corpus", path)
        home.refuse_input("--init-from", config.init_from)
        home.refuse_input("--data-dir", config.data.data_dir)
        home.refuse_input("--tokenizer", config.data.tokenizer)
    if run.resume is not None and found is None:
        display.say(f"nothing to resume in {folder}: the run begins")
    return found


def _open(
    home: RunFolder | None, found: Resumption | None, data: TextData, record: Mapping[str, Any]
) -> tuple[dict[str, int], str]:
    """Create or prepare the folder for a run that begins or continues, on the first process.

    Returns:
        The lengths of the files that the run appends to, and a message about results that were set aside.
    """
    if home is None:
        return {}, ""
    sizes: dict[str, int] = {}
    after = ""
    if found is None:
        home.begin(replace=True)
    else:
        if not found.path.resolve().is_relative_to(home.path.resolve()):
            home.begin(replace=False)
        sizes, after = settle_folder(home, found)
    home.write_record(record)  # first: by it a run that is killed next is known for one, and can begin again
    data.tokenizer.save(home.path / "tokenizer")
    return sizes, after


def _settled(
    config: TrainConfig,
    found: Resumption | None,
    asked: Collection[str] | None,
    device: torch.device,
    display: Display,
) -> TrainConfig:
    """Return the configuration with a precision and a backend; a run that continues uses those that it had.

    Options of the user that have no effect beside the others are reported.

    Raises:
        ValueError: The run has no end, or its model needs more memory than the machine has.
    """
    last_step(config.optim, 1)
    if config.init_from is None:
        check_memory(config.model, device)
    recorded = found and dataclasses.asdict(recorded_config(found.contents, found.path).optim)
    settled = settle(config, device, recorded)
    for line in [*idle_data_options(config.data, asked or ()), *idle_options(config.optim, settled.optim, asked or ())]:
        display.say(line)
    return settled


def _prepare(
    config: TrainConfig,
    found: Resumption | None,
    asked: Collection[str] | None,
    device: torch.device,
    processes: Processes,
    display: Display,
    timing: Timing,
) -> tuple[Trainer, TextData]:
    """Load the model to start from, prepare the data, and return the trainer and the data."""
    source = _source(config, found, device)
    if source is not None:
        config, lines = with_source(config, source.config if isinstance(source, GPT2) else source, asked)
        for line in lines:
            display.say(line)
    text = data_config(config, asked, found)
    with timing.part("text and tokenizer"):
        prepared = processes.share(prepare_data(text, say=display.say) if processes.first else None)
        data = load_data(prepared)
    config, model = make_model(config, source, data.tokenizer, device)
    return make_trainer(config, model, data, device, processes), data


def _source(config: TrainConfig, found: Resumption | None, device: torch.device) -> GPT2 | GPT2Config | None:
    """Return the model to start from, or only its configuration if a snapshot has the weights."""
    if config.init_from is None:
        return None
    if found is not None and "model_config" in found.contents:
        return config_from_ours(found.contents["model_config"])
    return GPT2.from_pretrained(config.init_from, device=device, dtype=torch.float32)


def data_config(config: TrainConfig, asked: Collection[str] | None, found: Resumption | None) -> DataConfig:
    """Return the data configuration of a run. A model to start from brings its tokenizer, unless the user set another.

    Raises:
        ValueError: The model to start from comes without a tokenizer.
    """
    if config.init_from is None or "tokenizer" in (asked or ()):
        return config.data
    # A run that continues has a copy of the tokenizer, even if the model to start from has been moved.
    folder = tokenizer_folder(found.path if found else resolve(config.init_from))
    if folder is None:
        raise ValueError(
            f"--init-from {config.init_from} comes without a tokenizer: give the one that it was trained with, as "
            "--tokenizer gpt2 or --tokenizer FOLDER"
        )
    # As an absolute path: a folder that is called gpt2 is not GPT-2's own tokenizer.
    return dataclasses.replace(config.data, tokenizer=os.path.abspath(folder))


def make_model(
    config: TrainConfig, source: GPT2 | GPT2Config | None, tokenizer: Tokenizer, device: torch.device
) -> tuple[TrainConfig, GPT2]:
    """Return the model to train, and the configuration with the size of its vocabulary."""
    if isinstance(source, GPT2):
        check_vocabulary(config, source.config, tokenizer)
        return config, with_dropout(source, config.model)
    if source is None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, d_vocab=tokenizer.n_vocab))
    return config, fresh_model(config, device)


def make_trainer(
    config: TrainConfig, model: GPT2, data: TextData, device: torch.device, processes: Processes
) -> Trainer:
    """Return the trainer of a model on prepared data."""
    optim, most, eot_id = config.optim, config.run.eval_batches, data.tokenizer.eot_id
    seq, batch, order = config.seq, optim.batch, optim.order
    train = Batches(data.train.tokens, seq=seq, batch_size=batch, order=order, eot_id=eot_id, seed=optim.seed)
    val = evaluation_batches(
        data.val.tokens, seq=seq, batch_size=batch, most=most and most * batch, order=order, eot_id=eot_id
    )
    return Trainer(config, model, train, lambda: val, device=device, processes=processes)


def describe(trainer: Trainer, data: TextData) -> dict[str, Any]:
    """Return the facts of a run, for its display, its config.json and its model card."""
    config, model, processes = trainer.config, trainer.loss.model, trainer.processes
    sizes = model.config
    return {
        "run": config.name,
        "model": f"{model.num_parameters():,} parameters: {sizes.n_layers} layers, d_model {sizes.d_model}, "
        f"{sizes.n_heads} heads, {sizes.n_ctx} positions, {sizes.act_fn}",
        **data.facts,
        "batch": f"{config.optim.batch} x {config.seq} tokens",
        "device": f"{trainer.device}, {processes.world} processes ({processes.parallel})"
        if processes.world > 1
        else str(trainer.device),
        "products": config.optim.precision
        + (" by oneDNN, as accurate here as PyTorch's default" if config.optim.products == "onednn" else ""),
        "bytes_per_token": round(bytes_per_token(data.val.tokens, data.tokenizer), 4),
        "torch": torch.__version__,
    }


def _explained(changes: list[str], found: Resumption, trainer: Trainer) -> list[str]:
    """Return lines that report changed options and their effect on the learning rate."""
    lines = [f"changed: {change}" for change in changes]
    before = found.contents["metrics"]["lr"]
    after = learning_rate(trainer.config.optim, found.step, trainer.last_step)
    if changes and before and not 0.8 < after / before < 1.25 and trainer.last_step != found.step:
        lines.append(
            f"the learning rate of step {found.step + 1} is {after:.3g}; that of step {found.step} was {before:.3g}"
        )
    return lines


def _display(config: TrainConfig, processes: Processes) -> Display:
    if not processes.first:
        return Display()
    return JSONDisplay() if config.run.json else TerminalDisplay()


def _with_trackers(display: Display, stack: ExitStack, config: TrainConfig, processes: Processes) -> Display:
    """Return a display that also writes for TensorBoard and Weights & Biases, if the run asks for them."""
    if not processes.first:
        return display
    if config.run.tensorboard:
        display = stack.enter_context(TensorBoardDisplay(display, config.folder / "tensorboard"))
    if config.run.wandb:
        display = stack.enter_context(WandbDisplay(display, config.folder, config.name, config.recorded()))
    return display
