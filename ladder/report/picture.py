"""Parity as a picture."""

import io
from pathlib import Path
from typing import Any

from ...files import write_whole
from ..parity import Parity

# Of the numbers of a verdict: colour and label. Of a reference: marker.
_NUMBERS = {
    "float64": ("#2b6cb0", "output, float64"),
    "gradient": ("#2f855a", "gradient, float64"),
    "float32": ("#c05621", "output, float32"),
}
_MARKERS = {"TransformerLens": "o", "transformers": "s"}
# An exact match has no place on a log scale: it is drawn at the bottom, below float64's smallest step.
_FLOOR = 1e-17


def draw(parity: Parity, path: Path) -> None:
    """Write ``parity.png``: the differences by layer, on a log scale, each against what is allowed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'gptladder[plot]'") from error

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_layers(left, parity)
    _draw_whole(right, parity)
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_ylim(_FLOOR / 20, None)
        axes.grid(axis="y", alpha=0.3)
        axes.axhline(_FLOOR, color="grey", linewidth=0.5, linestyle=":")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture.getvalue())


def _draw_layers(axes: Any, parity: Parity) -> None:
    """Draw each layer's differences from both references, and the tolerances."""
    rungs = list(dict.fromkeys(each.rung for each in parity.layers))
    for each in parity.layers:
        nudge = -0.18 if each.reference == "TransformerLens" else 0.18
        for offset, (what, (colour, _)) in zip((-0.07, 0, 0.07), _NUMBERS.items(), strict=True):
            x = rungs.index(each.rung) + nudge + offset
            axes.plot(x, max(getattr(each, what), _FLOOR), _MARKERS[each.reference], color=colour, markersize=6)
    for index, name in enumerate(rungs):
        limits = next(each for each in parity.layers if each.rung == name)
        axes.hlines(limits.tolerance64, index - 0.4, index + 0.4, color=_NUMBERS["float64"][0], linewidth=1)
        axes.hlines(limits.tolerance32, index - 0.4, index + 0.4, color=_NUMBERS["float32"][0], linewidth=1)
    axes.set_xticks(range(len(rungs)), rungs, rotation=30)
    axes.set_xlabel("rung")
    axes.set_ylabel("largest absolute difference")
    axes.set_title(f"Layers, {parity.layers[0].cases} random cases each")
    handles = [
        *(axes.plot([], [], "o", color=colour, label=label)[0] for colour, label in _NUMBERS.values()),
        *(axes.plot([], [], marker, color="grey", label=label)[0] for label, marker in _MARKERS.items()),
        axes.plot([], [], "-", color="grey", label="allowed")[0],
    ]
    axes.legend(handles=handles, fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.66))
    axes.text(len(rungs) - 0.5, _FLOOR / 2, "equal to the bit", fontsize=7, color="grey", ha="right", va="top")


def _draw_whole(axes: Any, parity: Parity) -> None:
    """Draw the whole model's differences, block after block."""
    for each in parity.whole:
        line = "-" if each.reference == "TransformerLens" else "--"
        values = [max(value, _FLOOR) for value in [*each.by_layer, each.logits]]
        axes.plot(
            values,
            line,
            marker=_MARKERS[each.reference],
            markersize=4,
            color=_NUMBERS[each.dtype][0],
            label=f"{each.reference}, {each.dtype}",
        )
    for dtype, tolerance in {each.dtype: each.tolerance for each in parity.whole}.items():
        axes.axhline(tolerance, color=_NUMBERS[dtype][0], linewidth=1, alpha=0.5, label=f"allowed, {dtype}")
    depth = len(parity.whole[0].by_layer)
    ticks = [*range(0, depth, max(1, depth // 12)), depth]
    axes.set_xticks(ticks, ["embed" if tick == 0 else "logits" if tick == depth else str(tick) for tick in ticks])
    axes.set_xlabel("residual stream after block")
    axes.legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.66))
    shape, weights = parity.shape, parity.weights
    shown = weights if len(weights) <= 40 else "…" + weights[-39:]
    axes.set_title(f"Whole model: {shape.n_layers} layers of {shape.d_model}, weights: {shown}")
