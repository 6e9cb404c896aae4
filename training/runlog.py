"""Record and show the progress of a run: rows of metrics, samples, speed, and a plot of the losses."""

import json
import time
from pathlib import Path

from .display import Display
from .metrics import Metrics, RunFiles, read_metrics
from .plots import draw_losses


class RunLog:
    """The record of a run.

    Only the first process writes and shows it. Every process has the rows of metrics, because all of them decide by
    these when the run ends.

    Args:
        folder: The run's folder, which must exist.
        title: Title of the plot.
        display: Shows the record to the user.
        writes: Whether this is the first process.

    Attributes:
        rows: All rows of metrics so far.
        tokens_per_second: Speed since the last row.
        draws: Whether `draw` draws; False once matplotlib was found to be missing.
    """

    def __init__(self, folder: Path, *, title: str, display: Display, writes: bool = True) -> None:
        self.files = RunFiles(folder)
        self.display, self.rows = display, list[Metrics]()
        self.tokens_per_second = 0.0
        self._folder, self._title, self._writes = folder, title, writes
        self.draws = True
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start to measure the tokens per second again, so that evaluations and samples do not count."""
        self._since, self._tokens = time.perf_counter(), 0

    def count(self, row: Metrics, tokens: int, last_step: int | None) -> None:
        """Show the progress after an update of ``tokens`` tokens."""
        self._tokens += tokens
        self.tokens_per_second = self._tokens / (time.perf_counter() - self._since)
        self.display.progress(row.step, last_step, row.loss or 0.0, self.tokens_per_second)

    def record(self, row: Metrics) -> None:
        """Write a row of metrics, and the speed."""
        self.rows.append(row)
        if not self._writes:
            return
        self.files.append_metrics(row)
        self.display.metrics(row)
        if row.step:
            speed = {"step": row.step, "tokens_per_second": round(self.tokens_per_second, 1)}
            # Not one of the files whose length a snapshot stores: it may differ from run to run.
            self.files.append("speed.jsonl", json.dumps(speed) + "\n")
        self.restart_clock()

    def sample(self, title: str, text: str) -> None:
        """Write a sample."""
        quoted = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
        self.files.append("samples.md", f"## {title}\n\n{quoted}\n\n")
        self.display.sample(title, text)

    def draw(self) -> None:
        """Draw ``loss.png`` again. Without matplotlib, print once that there is no plot."""
        if not (self._writes and self.draws):
            return
        try:
            draw_losses(self.rows, self._folder / "loss.png", title=self._title)
        except ModuleNotFoundError as error:
            self.draws = False
            self.display.say(f"no picture of the losses: {error}")

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Truncate the files to their length at a snapshot, and read the rows of metrics that they then hold."""
        self.files.cut_back(sizes)
        self.rows = read_metrics(self._folder)
