"""Climbs as text in the terminal."""

import io
import math

from rich.console import Console
from rich.text import Text

from ..results import Climb, Tried


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
            number(value, limit, width=9)
            for value, limit in (
                (verdict.float64, exact),
                (verdict.gradient, exact),
                (verdict.tolerance64, verdict.tolerance64),
                (verdict.float32, verdict.tolerance32),
                (verdict.tolerance32, verdict.tolerance32),
            )
        )
    else:
        numbers = number(verdict.float64, math.inf if tried.passed else verdict.tolerance64, width=9)
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
        text.append(f"\n{last.subject}: ", "bold red")
        text.append(last.text(climbed.hint))
    return text


def climb_text(climbed: Climb) -> str:
    """Return the whole of a climb, in plain text of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    with console.capture() as captured:
        lines = [climb_line(tried) for tried in climbed.rungs]
        for line in (climb_begin(climbed), climb_head(), *lines, climb_end(climbed)):
            if line:
                console.print(line)
    return captured.get()


def number(value: float, limit: float, width: int = 0) -> str:
    """Return a difference as rich text: red if it is above its limit."""
    text = f"{'0' if value == 0 else f'{value:.0e}' if value == limit else f'{value:.1e}':>{width}}"
    return text if value <= limit else f"[bold red]{text}[/]"


def _amount(size: float) -> str:
    """Bytes, as people say them."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000 or unit == "MB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
