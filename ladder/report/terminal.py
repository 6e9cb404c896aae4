"""Climbs and verdicts as text and tables in the terminal, and as JSON."""

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...files import write_whole
from ..parity import Parity, RoundTrip, WholeModel
from ..results import Climb, Tried, Verdict


def climb_line(tried: Tried, verbose: bool = False) -> str:
    """Return a rung of the climb as a line to print; under `climb_head`."""
    verdict = tried.verdict
    word = {"passed": "[green]passed[/]", "failed": "[bold red]FAILED[/]", "refused": "[bold red]REFUSED[/]"}[
        tried.status
    ]
    if verdict is None:
        numbers = " " * (45 if verbose else 9)
    elif verbose:
        exact = math.inf if verdict.lenient else verdict.tolerance64
        numbers = "".join(
            _number(value, limit, width=9)
            for value, limit in (
                (verdict.float64, exact),
                (verdict.gradient, exact),
                (verdict.tolerance64, verdict.tolerance64),
                (verdict.float32, verdict.tolerance32),
                (verdict.tolerance32, verdict.tolerance32),
            )
        )
    else:
        numbers = _number(verdict.float64, math.inf if tried.passed else verdict.tolerance64, width=9)
    return f"{tried.rung:<11}{numbers}  {word}"


def climb_head(verbose: bool = False) -> str:
    """Return the head of the lines: one number, or all of them."""
    columns = ("float64", "gradient", "limit", "float32", "limit") if verbose else ("off by",)
    return f"{'layer':<11}" + "".join(f"{each:>9}" for each in columns)


def climb_begin(climbed: Climb) -> Text:
    """Return what was understood of a file: which class is which layer, and what was left out."""
    text = Text()
    if climbed.taken:
        taken = [f"{rung} is {name}" for rung, name in climbed.taken.items()]
        text.append(f"Found: {'; '.join(taken)}.\n")
    for note in climbed.left_out:
        text.append(f"Note: {note}.\n")
    return text


def climb_end(climbed: Climb) -> Text:
    """Return the result of a climb, under its lines."""
    text = Text()
    if climbed.printed_bytes:
        kept = climbed.printed.rstrip()
        text.append(f"\nThe layers printed {_amount(climbed.printed_bytes)}. It begins:\n", "bold")
        text.append("".join(f"  {line[:70]}\n" for line in kept.splitlines()[:5]))
    for tried in climbed.rungs:
        for note in (*tried.notes, f"Its parameters: {tried.reading}." if tried.reading else ""):
            if note:
                text.append(f"\n{tried.rung}: {note}")
    if any(tried.notes or tried.reading for tried in climbed.rungs):
        text.append("\n")
    last = climbed.rungs[-1]
    if climbed.passed:
        text.append("\nPassed: ", "green")
        text.append(", ".join(each.layer for each in climbed.rungs))
    else:
        kind = "cannot be tried" if last.status == "refused" else "is wrong"
        text.append(f"\n{last.rung}: {last.layer} {kind}: ", "bold red")
        text.append(last.text(climbed.hint))
    return text


def climb_text(climbed: Climb, verbose: bool = False) -> str:
    """Return the whole of a climb, in plain text of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    with console.capture() as captured:
        lines = [climb_line(tried, verbose) for tried in climbed.rungs]
        for line in (climb_begin(climbed), climb_head(verbose), *lines, climb_end(climbed)):
            if line:
                console.print(line)
    return captured.get()


def verdict_table(verdicts: Iterable[Verdict], title: str) -> Table:
    """One line for each layer and reference."""
    table = _table(title, ["layer", "reference"], ["float64", "gradient", "limit", "float32", "limit"])
    for each in verdicts:
        table.add_row(
            each.rung,
            each.reference,
            _number(each.float64, each.tolerance64),
            _number(each.gradient, each.tolerance64),
            f"{each.tolerance64:.0e}",
            _number(each.float32, each.tolerance32),
            f"{each.tolerance32:.0e}",
            _word(each.passed),
        )
    return table


def whole_table(found: Iterable[WholeModel], title: str) -> Table:
    """One line for each reference and dtype."""
    table = _table(title, ["reference", "dtype"], ["logits", "loss", "limit"])
    for each in found:
        numbers = [_number(each.logits, each.tolerance), _number(each.loss, each.tolerance), f"{each.tolerance:.0e}"]
        table.add_row(each.reference, each.dtype, *numbers, _word(each.passed))
    return table


def round_trip_table(found: Iterable[RoundTrip]) -> Table:
    """One line for each way there and back."""
    table = _table("Round trips: largest |Δ|", ["path"], ["|Δ|", "limit"])
    for each in found:
        limit = "0" if each.tolerance == 0 else f"{each.tolerance:.0e}"
        table.add_row(each.path, _number(each.error, each.tolerance), limit, _word(each.passed))
    return table


def write_json(parity: Parity, path: Path) -> None:
    """``parity.json``: everything that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(parity.as_json(), indent=2) + "\n").encode())


def _table(title: str, words: list[str], numbers: list[str]) -> Table:
    # Narrow enough for 80 columns.
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in words:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    return table


def _number(value: float, limit: float, width: int = 0) -> str:
    text = f"{'0' if value == 0 else f'{value:.0e}' if value == limit else f'{value:.1e}':>{width}}"
    return text if value <= limit else f"[bold red]{text}[/]"


def _amount(size: float) -> str:
    """Bytes, as people say them."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000 or unit == "MB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _word(passed: bool) -> str:
    return "[green]equal[/]" if passed else "[bold red]DIFFERS[/]"
