"""A whole run: from a configuration to a folder with a trained model, its metrics, its samples and its picture."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..assembly.model import GPT2
from ..device import pick_device
from ..files import write_whole
from .data.batches import Batches, evaluation_batches
from .data.prepare import TextData, load_data, prepare_data
from .display import Display, JSONDisplay, TensorBoardDisplay, TerminalDisplay
from .kernels import computing_by, keep_freed_memory, settle
from .loop import Ending, Sampler, Trainer
from .metrics import Metrics, read_metrics
from .models import check_vocabulary, fresh_model, with_dropout, with_source
from .parallel import Processes, joined
from .plots import draw_losses
from .presets import DataConfig, TrainConfig
from .snapshots import load_snapshot, newest_snapshot


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    folder: Path
    """The run's."""
    ending: Ending
    """What ended it."""
    step: int
    """Updates made."""


class RunFolderError(ValueError):
    """A run's folder that cannot be used."""


def train(config: TrainConfig, *, sample: Sampler | None = None, asked: Collection[str] | None = None) -> Outcome:
    """Prepare the data, train, and leave everything in ``runs_dir/name``.

    The folder then holds ``config.json``, ``metrics.jsonl``, ``metrics.csv``, ``speed.jsonl``, ``samples.md``,
    ``loss.png``, ``snapshots/``, and ``final/``: the model, its tokenizer and a short model card, which transformers
    can load too.

    Args:
        config: a preset, or one made by hand.
        sample: draws the samples; without it there are none.
        asked: names of the model's fields that the user asked for, beside a model to start from (default: those that
            differ from ``GPT2Config()``).

    Raises:
        ValueError: what does not fit together, in one line (`RunFolderError` and `SnapshotError` among them).
        NonFiniteError: a loss or a gradient that is not finite.
    """
    device = pick_device(config.optim.device)
    folder = Path(config.run.runs_dir, config.name)
    with ExitStack() as stack:
        processes = stack.enter_context(joined(config.optim.parallel, device))
        display = stack.enter_context(_display(config, folder, processes))
        if processes.first:
            open_folder(folder, overwrite=config.run.overwrite, resume=config.run.resume is not None)
        found = _snapshot_to_resume(config, folder, display)
        recorded = found and found[1]["config"]["optim"]
        config = processes.share(settle(config, device, recorded) if processes.first else None)
        stack.enter_context(computing_by(config))
        if device.type == "cpu":
            keep_freed_memory()
        prepared = processes.share(prepare_data(data_config(config), say=display.say) if processes.first else None)
        data = load_data(prepared)
        if config.init_from is not None:
            model = GPT2.from_pretrained(config.init_from, device=device, dtype=torch.float32)
            config, lines = with_source(config, model.config, asked)
            for line in lines:
                display.say(line)
            check_vocabulary(config, model.config, data.tokenizer)
            model = with_dropout(model, config.model)
        else:
            config = dataclasses.replace(
                config, model=dataclasses.replace(config.model, d_vocab=data.tokenizer.n_vocab)
            )
            model = fresh_model(config, device)
        trainer = Trainer(
            config,
            model,
            data.tokenizer,
            Batches(
                data.train.tokens,
                seq=config.seq,
                batch_size=config.optim.batch,
                order=config.optim.order,
                seed=config.optim.seed,
            ),
            lambda: evaluation_batches(
                data.val.tokens,
                seq=config.seq,
                batch_size=config.optim.batch,
                most=config.run.eval_batches and config.run.eval_batches * config.optim.batch,
            ),
            folder=folder,
            device=device,
            processes=processes,
            display=display,
            sample=sample,
        )
        facts = describe(config, model, data, device, processes)
        display.facts(**facts)
        if sample is None:
            display.say("no samples: this run was given nothing to draw them with")
        if found is not None:
            _resume(trainer, *found)
            del found  # as large as the model and its optimizer, and not needed any more
        elif processes.first:
            trainer.files.cut_back({})  # what a run that left no snapshot has left behind
        if processes.first:
            _write_json(folder / "config.json", {**config.recorded(), "facts": facts})
        ending = trainer.run()
        if ending == "interrupted":
            display.say(f"stopped at step {trainer.step}; --resume auto goes on from there")
        else:
            finish(trainer, facts)
        return Outcome(folder, ending, trainer.step)


def open_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Make a run's folder, and make sure that it can be written to.

    Raises:
        RunFolderError: it cannot; it holds a run, and nobody said what is to become of that; or it is to be deleted and
            holds something else than a run.
    """
    is_run = (folder / "config.json").exists() or (folder / "snapshots").exists()
    try:
        if overwrite and folder.exists():
            if not is_run and any(folder.iterdir()):
                raise RunFolderError(
                    f"{folder} is not the folder of a run, and is not deleted: give another name or runs_dir"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"the run's folder {folder} cannot be written to ({error.strerror}): choose another runs_dir"
        ) from None
    if is_run and not (resume or overwrite):
        raise RunFolderError(
            f"{folder} holds a run already: go on with it by --resume auto, delete it by --overwrite, "
            "or give another --name"
        )


def data_config(config: TrainConfig) -> DataConfig:
    """Return the data of a run; a model that it starts from brings its own tokenizer."""
    start = config.init_from
    if start is None:
        return config.data
    # Of the published models all have GPT-2's vocabulary.
    return dataclasses.replace(config.data, tokenizer=start if Path(start).is_dir() else "gpt2")


def describe(
    config: TrainConfig, model: GPT2, data: TextData, device: torch.device, processes: Processes
) -> dict[str, Any]:
    """What a run is about, for its display, its config.json and its model card."""
    sizes = model.config
    return {
        "run": config.name,
        "model": f"{model.num_parameters():,} parameters: {sizes.n_layers} layers, d_model {sizes.d_model}, "
        f"{sizes.n_heads} heads, {sizes.n_ctx} positions, {sizes.act_fn}",
        **data.facts,
        "batch": f"{config.optim.batch} x {config.seq} tokens",
        "device": f"{device}, {processes.world} processes ({processes.parallel})"
        if processes.world > 1
        else str(device),
        "products": config.optim.precision
        + (" by oneDNN, as accurate here as PyTorch's default" if config.optim.products == "onednn" else ""),
        "torch": torch.__version__,
    }


def finish(trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """Write the final model's folder and the picture of the run. Every process must call it."""
    model = trainer.whole_model()
    if model is None:
        return
    folder, name = trainer.folder, trainer.config.name
    rows = read_metrics(folder)
    final = folder / "final"
    model.save_pretrained(final, overwrite=True)
    trainer.tokenizer.save(final)
    write_whole(final / "README.md", model_card(name, rows[-1], facts))
    try:
        draw_losses(rows, folder / "loss.png", title=name)
    except ModuleNotFoundError as error:
        trainer.display.say(f"no picture of the losses: {error}")
    trainer.display.say(f"the model is in {final}, everything else in {folder}")


def model_card(name: str, last: Metrics, facts: Mapping[str, Any]) -> str:
    """A short README for a trained model: what it is, what it was trained on, how well it does."""
    lines = [
        f"# {name}",
        "",
        "A GPT-2 trained with gptladder. `GPT2.from_pretrained(folder)` of gptladder reads this folder, and so do",
        "`AutoModelForCausalLM` and `AutoTokenizer` of transformers.",
        "",
        *(f"- {fact.replace('_', ' ')}: {value}" for fact, value in facts.items()),
        f"- trained: {last.step:,} updates, {last.tokens:,} tokens, {last.epoch:.2f} epochs",
        f"- loss of the last batch: {last.loss:.4f}" if last.loss is not None else "- not trained",
        f"- validation: loss {last.val_loss:.4f}, accuracy {last.val_accuracy:.1%}, "
        f"perplexity {last.val_perplexity:.2f}",
    ]
    return "\n".join(lines) + "\n"


def _display(config: TrainConfig, folder: Path, processes: Processes) -> Display:
    if not processes.first:
        return Display()
    display = JSONDisplay() if config.run.json else TerminalDisplay()
    return TensorBoardDisplay(display, folder / "tensorboard") if config.run.tensorboard else display


def _snapshot_to_resume(config: TrainConfig, folder: Path, display: Display) -> tuple[Path, dict[str, Any]] | None:
    """The snapshot that the configuration names."""
    if config.run.resume is None:
        return None
    if config.run.resume != "auto":
        return Path(config.run.resume), load_snapshot(Path(config.run.resume))
    found = newest_snapshot(folder / "snapshots", display.say)
    if found is None:
        display.say(f"nothing to resume in {folder}: the run begins")
    return found


def _resume(trainer: Trainer, path: Path, snapshot: dict[str, Any]) -> None:
    trainer.resume(path, snapshot)
    trainer.display.say(f"resumed from {path}, at step {trainer.step}")
    for difference in differences(snapshot["config"], trainer.config.recorded()):
        trainer.display.say(f"otherwise than before: {difference}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What in a configuration may give a resumed run another result, as lines like ``lr: 0.001 was 0.003``."""
    lines = []
    for part in ("data", "model", "optim"):
        for name, value in now[part].items():
            if before[part].get(name) != value:
                lines.append(f"{name}: {value} was {before[part].get(name)}")
    return lines


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")
