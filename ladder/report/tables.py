"""Verdicts and parity as tables in the terminal, and as JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Table

from ...files import write_whole
from ..parity import Parity, RoundTrip, WholeModel
from ..results import Verdict
from .terminal import number


def verdict_table(verdicts: Iterable[Verdict], title: str) -> Table:
    """One line for each layer and reference."""
    table = _table(title, ["layer", "reference"], ["float64", "gradient", "limit", "float32", "limit"])
    for each in verdicts:
        table.add_row(
            each.rung,
            each.reference,
            number(each.float64, each.tolerance64),
            number(each.gradient, each.tolerance64),
            f"{each.tolerance64:.0e}",
            number(each.float32, each.tolerance32),
            f"{each.tolerance32:.0e}",
            _word(each.passed),
        )
    return table


def whole_table(found: Iterable[WholeModel], title: str) -> Table:
    """One line for each reference and dtype."""
    table = _table(title, ["reference", "dtype"], ["logits", "loss", "limit"])
    for each in found:
        numbers = [number(each.logits, each.tolerance), number(each.loss, each.tolerance), f"{each.tolerance:.0e}"]
        table.add_row(each.reference, each.dtype, *numbers, _word(each.passed))
    return table


def round_trip_table(found: Iterable[RoundTrip]) -> Table:
    """One line for each way there and back."""
    table = _table("Round trips: largest |Δ|", ["path"], ["|Δ|", "limit"])
    for each in found:
        limit = "0" if each.tolerance == 0 else f"{each.tolerance:.0e}"
        table.add_row(each.path, number(each.error, each.tolerance), limit, _word(each.passed))
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


def _word(passed: bool) -> str:
    return "[green]equal[/]" if passed else "[bold red]DIFFERS[/]"
