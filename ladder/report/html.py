"""The climb as one page to open in a browser: nothing is loaded from anywhere, and nothing runs in it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from torch import Tensor

from ...files import write_whole
from ..results import Climb, Hint, Tried, Verdict

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

# The chart's scale, powers of ten. What is equal to the bit stands at the left end, what is infinite at the right.
_LEAST, _MOST = -17, 3
_LEFT, _WIDTH, _ROW = 92, 250, 30
_MARKS = (
    ("float64", "tolerance64", "output, float64", "o64"),
    ("gradient", "tolerance64", "gradients, float64", "g64"),
    ("float32", "tolerance32", "output, float32", "o32"),
)


def write_html(climbed: Climb, path: Path) -> None:
    """Write a climb as one page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(climbed).encode())


def page(climbed: Climb) -> str:
    """Return a climb as a page that stands alone."""
    return framed(_title(climbed), STYLE, body(climbed))


def framed(title: str, style: str, body: str) -> str:
    """Return a page that fetches nothing, and in which nothing runs."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\" />\n"
        f"<title>gptladder: {escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def body(climbed: Climb) -> str:
    """Return the verdict, every rung that failed, notes, and how far each layer is off."""
    failed = [each for each in climbed.rungs if not each.passed]
    verdicts = [each.verdict for each in climbed.rungs if each.verdict]
    parts = [
        f'<h1 class="{"bad" if failed or not climbed.rungs else "good"}">{escape(_title(climbed))}</h1>',
        f'<p class="quiet">{_whose(climbed)}</p>' if climbed.rungs else f"<p>{escape(climbed.refused)}</p>",
        *(f'<p class="quiet">{escape(note)}.</p>' for note in climbed.left_out),
        *(_failure(each, climbed.hint) for each in failed),
        *(_noted(each) for each in climbed.rungs if each.passed),
        f"<h2>How far each layer is off</h2>{_chart(verdicts)}{_table(verdicts)}" if verdicts else "",
    ]
    return "\n".join(part for part in parts if part)


def _title(climbed: Climb) -> str:
    failed = [each.rung for each in climbed.rungs if not each.passed]
    if failed:
        return f"{' and '.join(failed)}: not right yet"
    return f"Right: {', '.join(each.rung for each in climbed.rungs)}" if climbed.rungs else "Nothing was tried"


def _whose(climbed: Climb) -> str:
    """Return which layer was tried on which rung; a file that all come from is named once."""
    files = {each.layer.rpartition(":")[0] for each in climbed.rungs}
    one = len(files) == 1 and len(climbed.rungs) > 1
    named = [(each.rung, each.layer.rpartition(":")[2] if one else each.layer) for each in climbed.rungs]
    whose = ", ".join(f"{rung}: <code>{escape(layer)}</code>" for rung, layer in named)
    return f"<code>{escape(files.pop())}</code>: {whose}" if one and files != {""} else whose


def _failure(tried: Tried, hint: Hint) -> str:
    """Return the section of a rung that failed: its mistake, what is wrong, the line, the patterns."""
    lines = [f"<h2>{escape(tried.rung)}</h2>"]
    for kind, text in tried.lines(hint):
        tag = "pre" if kind in ("code", "look", "listing") else "p"
        shown = text[:1].upper() + text[1:] if kind == "text" else text
        lines.append(f'<{tag} class="{kind}">{escape(shown)}</{tag}>')
    if tried.diagnosis is not None:
        lines.append(_patterns(tried.diagnosis.patterns))
    lines.append(_notes(tried))
    return f"<section>{''.join(lines)}</section>"


def _noted(tried: Tried) -> str:
    notes = _notes(tried)
    return f"<section><h2>{escape(tried.rung)}</h2>{notes}</section>" if notes else ""


def _notes(tried: Tried) -> str:
    notes = [*tried.notes, *([f"Its parameters: {tried.reading}."] if tried.reading else [])]
    return "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes)


def _patterns(patterns: Mapping[str, Tensor]) -> str:
    """Each head's patterns beside one another, queries down, keys across."""
    if not patterns:
        return ""
    heads = "".join(
        f'<div class="heads"><h3>Head {head}</h3>'
        + "".join(
            f"<figure><figcaption>{escape(whose)}</figcaption>{_grid(weights[head])}</figure>"
            for whose, weights in patterns.items()
        )
        + "</div>"
        for head in range(min(map(len, patterns.values())))
    )
    key = "Queries down, keys across; a row sums to 1. Red: weight where there can be none."
    return f'<h3>Attention patterns</h3><p class="quiet">{key}</p>{heads}'


def _grid(weights: Tensor) -> str:
    size = 30
    cells = []
    for query, row in enumerate(weights.tolist()):
        for key, weight in enumerate(row):
            known = math.isfinite(weight)
            text = f"{weight:.2f}" if known else "NaN"
            text = "0" if text in ("0.00", "-0.00") else text.removeprefix("0") if known and weight < 1 else text
            strength = min(abs(weight), 1.0) if known else 0.5
            allowed = known and weight >= 0 and (key <= query or weight <= 1e-9)
            x, y = key * size, query * size
            cells.append(
                f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{size - 1}" height="{size - 1}" '
                f'class="{"cell" if allowed else "cell wrong"}" style="fill-opacity:{strength:.3f}">'
                f"<title>query {query}, key {key}: {weight:.6g}</title></rect>"
                f'<text x="{x + size / 2}" y="{y + size / 2 + 3.5}" class="in">{text}</text>'
            )
    height, width = weights.shape[0] * size, weights.shape[1] * size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" style="max-width:{width * 1.3:.0f}px">{"".join(cells)}</svg>'
    )


def _at(value: float) -> float:
    """Where a value stands on the chart's scale."""
    power = _LEAST if value == 0 else _MOST if not math.isfinite(value) else math.log10(value)
    return _LEFT + _WIDTH * (min(max(power, _LEAST), _MOST) - _LEAST) / (_MOST - _LEAST)


def _chart(verdicts: Sequence[Verdict]) -> str:
    """Errors on a log scale, a row for each rung and reference, each beside the line that it may not cross."""
    bottom = 22 + _ROW * len(verdicts)
    drawn = []
    for power in range(_LEAST + 1, _MOST + 1, 4):
        x = _at(10.0**power)
        drawn.append(f'<line x1="{x:.1f}" y1="18" x2="{x:.1f}" y2="{bottom}" class="grid" />')
        drawn.append(f'<text x="{x:.1f}" y="12" class="tick">1e{power}</text>')
    for index, verdict in enumerate(verdicts):
        y = 22 + _ROW * index
        passed = "good" if verdict.passed else "bad"
        drawn.append(f'<text x="0" y="{y + 14}" class="{passed}">{escape(verdict.rung)}</text>')
        drawn.append(f'<text x="0" y="{y + 24}" class="small">{escape(verdict.reference)}</text>')
        for offset, (what, limit, words, mark) in zip((7, 15, 23), _MARKS, strict=True):
            value, allowed = getattr(verdict, what), getattr(verdict, limit)
            x, far = _at(value), _at(allowed)
            over = "" if value <= allowed else " over"
            drawn.append(
                f'<g class="{mark}{over}"><title>{words}: {value:.1e}, at most {allowed:.0e}</title>'
                f'<line x1="{_LEFT}" y1="{y + offset}" x2="{x:.1f}" y2="{y + offset}" class="stem" />'
                f'<line x1="{far:.1f}" y1="{y + offset - 4}" x2="{far:.1f}" y2="{y + offset + 4}" class="limit" />'
                f'<circle cx="{x:.1f}" cy="{y + offset}" r="3.2" /></g>'
            )
    key = "".join(f'<span class="{mark}">●</span> {words} &#160; ' for _, _, words, mark in _MARKS)
    return (
        f'<p class="quiet">{key}<span class="limit-key">|</span>&#160;allowed. Left end: equal to the bit. '
        "Right end: infinite, or not a number.</p>"
        f'<svg viewBox="0 0 {_LEFT + _WIDTH + 8} {bottom + 4}" role="img" class="chart">{"".join(drawn)}</svg>'
    )


def _table(verdicts: Iterable[Verdict]) -> str:
    def cell(value: float, limit: float) -> str:
        over = "" if value <= limit else ' class="bad"'
        return f"<td{over}>{'0' if value == 0 else f'{value:.1e}'}</td><td>{limit:.0e}</td>"

    rows = "".join(
        f"<tr><th>{escape(each.rung)}</th><th>{escape(each.reference)}</th><td>{each.cases}</td>"
        f"{cell(each.float64, each.tolerance64)}{cell(each.gradient, each.tolerance64)}"
        f"{cell(each.float32, each.tolerance32)}"
        f'<td class="{"good" if each.passed else "bad"}">{"equal" if each.passed else "differs"}</td></tr>'
        for each in verdicts
    )
    heads = ("layer", "reference", "cases", "float64", "limit", "gradient", "limit", "float32", "limit", "verdict")
    return (
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
