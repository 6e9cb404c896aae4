"""How a run reports: a progress line for people, JSON lines for programs, TensorBoard, Weights & Biases."""

import html
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..extras import import_extra
from ..files import first_sentence, write_whole
from .metrics import Metrics


class Display:
    """A display that shows nothing: that of all processes except the first, and the base of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, text: str) -> None:
        """Show a message for the user, in one line."""

    def facts(self, **facts: Any) -> None:
        """Show facts about the run: its model, its data, its device."""

    def progress(self, step: int, last_step: int | None, loss: float, tokens_per_second: float) -> None:
        """Show the progress after an update. ``last_step`` is the last step of the run (None: it is not known)."""

    def metrics(self, row: Metrics) -> None:
        """Show a row of metrics."""

    def sample(self, title: str, text: str) -> None:
        """Show a sample."""


class TerminalDisplay(Display):
    """A progress line with step, loss, tokens per second and the time left; messages appear above it."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.console = Console(file=file, highlight=False, soft_wrap=True, emoji=False)  # a sample may hold ":x:"
        self._progress = Progress(
            TextColumn("step {task.completed}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("training", total=None, loss="-", speed="-", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def facts(self, **facts: Any) -> None:
        """Print the facts, each with its name."""
        width = max(map(len, facts))
        for name, value in facts.items():
            self.say(f"{name.replace('_', ' '):<{width}}  {value}")

    def progress(self, step: int, last_step: int | None, loss: float, tokens_per_second: float) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            visible=True,
            completed=step,
            total=last_step,
            loss=f"{loss:.4f}",
            speed=f"{tokens_per_second:,.0f}",
        )

    def metrics(self, row: Metrics) -> None:
        """Print rows that hold an evaluation; the others are in the bar."""
        if row.val_loss is not None and row.val_accuracy is not None and row.val_perplexity is not None:
            trained = "" if row.loss is None else f"train loss {row.loss:.4f}  "
            self.say(
                f"step {row.step}  epoch {row.epoch:.2f}  {trained}validation loss {row.val_loss:.4f}  "
                f"accuracy {row.val_accuracy:.1%}  perplexity {row.val_perplexity:,.2f}"
            )

    def sample(self, title: str, text: str) -> None:
        """Print a sample, indented."""
        self.say(f"{title}:")
        self.say("\n".join(f"    {line}" for line in text.splitlines()))


class JSONDisplay(Display):
    """One JSON object a line: ``{"event": "metrics", "step": 10, …}``."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def _write(self, event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}, default=str), file=self._file or sys.stdout, flush=True)

    def say(self, text: str) -> None:
        """Write an object with ``message``."""
        self._write("message", message=text)

    def facts(self, **facts: Any) -> None:
        """Write an object with all facts."""
        self._write("facts", **facts)

    def metrics(self, row: Metrics) -> None:
        """Write an object with the row's columns."""
        self._write("metrics", **asdict(row))

    def sample(self, title: str, text: str) -> None:
        """Write an object with ``title`` and ``text``."""
        self._write("sample", title=title, text=text)


class Beside(Display):
    """Another display, and beside it a record of every number. Leaving it closes the record, not the other display.

    Args:
        display: the other one.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._tokens_per_second: float | None = None

    def say(self, text: str) -> None:
        """Pass it on."""
        self._display.say(text)

    def facts(self, **facts: Any) -> None:
        """Pass them on."""
        self._display.facts(**facts)

    def progress(self, step: int, last_step: int | None, loss: float, tokens_per_second: float) -> None:
        """Pass it on, and keep the speed for the next row."""
        self._tokens_per_second = tokens_per_second
        self._display.progress(step, last_step, loss, tokens_per_second)

    def metrics(self, row: Metrics) -> None:
        """Pass it on."""
        self._display.metrics(row)

    def sample(self, title: str, text: str) -> None:
        """Pass it on."""
        self._display.sample(title, text)

    def numbers(self, row: Metrics) -> dict[str, float]:
        """Return each number of a row that is there, and the speed."""
        named = {**asdict(row), "tokens_per_second": self._tokens_per_second}
        return {name: value for name, value in named.items() if value is not None and name != "step"}


class TensorBoardDisplay(Beside):
    """Another display, and beside it TensorBoard's event files.

    Args:
        display: the other one.
        folder: where the event files go.

    Raises:
        ModuleNotFoundError: tensorboard is not installed; the text names the extra that has it.
    """

    def __init__(self, display: Display, folder: Path) -> None:
        super().__init__(display)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                '--tensorboard needs tensorboard, which is not installed: pip install "gptladder[tensorboard]"'
            ) from None
        self._writer = SummaryWriter(str(folder))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def facts(self, **facts: Any) -> None:
        """Pass them on, and write them as a text."""
        super().facts(**facts)
        self._writer.add_text("facts", "\n".join(f"- {name}: {value}" for name, value in facts.items()))

    def metrics(self, row: Metrics) -> None:
        """Pass it on, and write each number of the row."""
        super().metrics(row)
        for name, value in self.numbers(row).items():
            self._writer.add_scalar(name, value, row.step)

    def sample(self, title: str, text: str) -> None:
        """Pass it on, and write it as a text."""
        super().sample(title, text)
        self._writer.add_text("samples", f"{title}\n\n{text}")


class WandbDisplay(Beside):
    """Another display, and beside it a run of Weights & Biases, which a resumed run continues.

    Args:
        display: the other one.
        folder: the run's folder; wandb keeps its files in ``wandb`` there.
        name: name of the run.
        config: the run's settings, which wandb shows.

    Raises:
        ImportError: wandb is not installed; the message names the extra.
        ValueError: wandb cannot start: no account, or no network.
    """

    def __init__(self, display: Display, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        super().__init__(display)
        self._wandb = wandb = import_extra("wandb")
        self._step = 0
        number = folder / "wandb" / "run-id.txt"
        number.parent.mkdir(exist_ok=True)
        if not number.exists():
            write_whole(number, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project="gptladder",
                name=name,
                id=number.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"--wandb cannot start ({first_sentence(error)}): type wandb login, or set WANDB_MODE=offline"
            ) from error
        # A run that went back to an earlier snapshot logs earlier steps again, which wandb's own counter would drop.
        self._run.define_metric("*", step_metric="step")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.finish(exit_code=0 if error is None else 1)

    def facts(self, **facts: Any) -> None:
        """Pass them on, and add them to wandb's settings of the run."""
        super().facts(**facts)
        self._run.config.update({"facts": facts}, allow_val_change=True)

    def metrics(self, row: Metrics) -> None:
        """Pass it on, and log each number of the row."""
        super().metrics(row)
        self._step = row.step
        self._run.log({"step": row.step, **self.numbers(row)})

    def sample(self, title: str, text: str) -> None:
        """Pass it on, and log it as a page that shows the text as it is."""
        super().sample(title, text)
        page = f"<h4>{html.escape(title)}</h4><pre>{html.escape(text)}</pre>"
        self._run.log({"step": self._step, "sample": self._wandb.Html(page, inject=False)})
