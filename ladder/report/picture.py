"""Parity as a picture."""

import io
from pathlib import Path

from ...files import write_whole
from ..parity import Parity


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
    left.set_xlabel("rung")
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
        label = f"{each.reference}, {each.dtype}"
        right.plot(values, line, marker=markers[each.reference], markersize=4, color=colours[each.dtype], label=label)
    for dtype, tolerance in {each.dtype: each.tolerance for each in parity.whole}.items():
        right.axhline(tolerance, color=colours[dtype], linewidth=1, alpha=0.5, label=f"allowed, {dtype}")
    depth = len(parity.whole[0].by_layer)
    step = max(1, depth // 12)
    ticks = [*range(0, depth, step), depth]
    right.set_xticks(ticks, ["embed" if tick == 0 else "logits" if tick == depth else str(tick) for tick in ticks])
    right.set_xlabel("residual stream after block")
    right.legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.66))
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
