"""Verdicts as tables in the terminal, as JSON, and as a picture."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...files import write_whole
from ..climbing import Climb, Tried
from ..parity import Parity, RoundTrip, WholeModel
from ..verdicts import Verdict
from .html import write_page


def climb_line(tried: Tried) -> str:
    """A rung of the climb, in a line to print; under `CLIMB_HEAD`."""
    verdict = tried.verdict
    if verdict is None:
        numbers = " " * 45
    else:
        limit64, limit32 = verdict.tolerance64, verdict.tolerance32
        numbers = "".join(
            _number(value, limit, width=9)
            for value, limit in (
                (verdict.float64, limit64),
                (verdict.gradient, limit64),
                (limit64, limit64),
                (verdict.float32, limit32),
                (limit32, limit32),
            )
        )
    return f"{tried.rung:<10}{numbers}  {'[green]passed[/]' if tried.passed else '[bold red]FAILED[/]'}"


CLIMB_HEAD = f"{'layer':<10}" + "".join(f"{each:>9}" for each in ("float64", "gradient", "limit", "float32", "limit"))


def climb_end(climbed: Climb) -> Text:
    """What came of a climb, under its lines."""
    text = Text()
    if climbed.printed_bytes:
        kept = climbed.printed.rstrip()
        text.append(f"\nThe layers printed {_amount(climbed.printed_bytes)}. It begins:\n", "bold")
        text.append("".join(f"  {line[:70]}\n" for line in kept.splitlines()[:5]))
    for tried in climbed.rungs:
        if tried.note:
            text.append(f"\n{tried.rung}: {tried.note}\n")
    last = climbed.rungs[-1]
    if climbed.passed:
        text.append("\nPassed: ", "green")
        text.append(", ".join(each.layer for each in climbed.rungs))
    else:
        text.append(f"\n{last.rung}: {last.layer} is wrong: ", "bold red")
        text.append(last.told())
    return text


def climb_text(climbed: Climb) -> str:
    """The whole of a climb, in plain text of 80 columns."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    with console.capture() as captured:
        for line in (CLIMB_HEAD, *map(climb_line, climbed.rungs), climb_end(climbed)):
            console.print(line)
    return captured.get()


def write_html(climbed: Climb, path: Path) -> None:
    """The climb as a page."""
    write_page(
        path,
        [each.verdict for each in climbed.rungs if each.verdict],
        layers={each.rung: each.layer for each in climbed.rungs},
        diagnoses={each.rung: each.diagnosis for each in climbed.rungs if each.diagnosis},
        faults={each.rung: str(each.fault) for each in climbed.rungs if each.fault and not each.diagnosis},
    )


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


def draw(parity: Parity, path: Path) -> None:
    """``parity.png``: the differences by layer, on a log scale, each against what is allowed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'gptladder[plot]'") from error

    colours = {"float64": "#2b6cb0", "gradient": "#2f855a", "float32": "#c05621"}
    markers = {"TransformerLens": "o", "transformers": "s"}
    # An exact match has no place on a log scale: it is drawn at the bottom, below float64's smallest step.
    floor = 1e-17
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)

    rungs = list(dict.fromkeys(each.rung for each in parity.layers))
    for each in parity.layers:
        nudge = -0.18 if each.reference == "TransformerLens" else 0.18
        for offset, (what, colour) in zip((-0.07, 0, 0.07), colours.items(), strict=True):
            x = rungs.index(each.rung) + nudge + offset
            left.plot(x, max(getattr(each, what), floor), markers[each.reference], color=colour, markersize=6)
    for index, name in enumerate(rungs):
        limits = next(each for each in parity.layers if each.rung == name)
        left.hlines(limits.tolerance64, index - 0.4, index + 0.4, color=colours["float64"], linewidth=1)
        left.hlines(limits.tolerance32, index - 0.4, index + 0.4, color=colours["float32"], linewidth=1)
    left.set_xticks(range(len(rungs)), rungs, rotation=30)
    left.set_ylabel("largest absolute difference")
    left.set_title(f"Layers, {parity.layers[0].cases} random cases each")
    handles = [
        *(left.plot([], [], "o", color=colour, label=label)[0] for label, colour in _labels(colours).items()),
        *(left.plot([], [], marker, color="grey", label=label)[0] for label, marker in markers.items()),
        left.plot([], [], "-", color="grey", label="allowed")[0],
    ]
    left.legend(handles=handles, fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.66))

    for each in parity.whole:
        line = "-" if each.reference == "TransformerLens" else "--"
        values = [max(value, floor) for value in [*each.by_layer, each.logits]]
        right.plot(values, line, marker=markers[each.reference], markersize=4, color=colours[each.dtype])
        right.axhline(each.tolerance, color=colours[each.dtype], linewidth=1, alpha=0.5)
    depth = len(parity.whole[0].by_layer)
    step = max(1, depth // 12)
    ticks = [*range(0, depth, step), depth]
    right.set_xticks(ticks, ["embed" if tick == 0 else "logits" if tick == depth else str(tick) for tick in ticks])
    right.set_xlabel("residual stream after block")
    right.set_title(
        f"Whole model: {parity.shape.n_layers} layers of {parity.shape.d_model}, weights: {_short(parity.weights)}"
    )
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_ylim(floor / 3, None)
        axes.grid(axis="y", alpha=0.3)
        axes.axhline(floor, color="grey", linewidth=0.5, linestyle=":")
    left.text(len(rungs) - 0.5, floor * 1.3, "equal to the bit", fontsize=7, color="grey", ha="right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture.getvalue())


def _labels(colours: dict[str, str]) -> dict[str, str]:
    names = {"float64": "output, float64", "gradient": "gradient, float64", "float32": "output, float32"}
    return {names[what]: colour for what, colour in colours.items()}


def _short(text: str) -> str:
    return text if len(text) <= 40 else "…" + text[-39:]


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
