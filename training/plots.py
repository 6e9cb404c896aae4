"""The picture of a run: its losses, and the perplexity that they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Metrics

_SMOOTHED_OVER = 50  # the training curve shows about this many means
_LOGARITHMIC_FROM = 8  # ratio of the highest to the lowest loss
_APART = 0.05  # of the height of the picture: distance of two labels


def draw_losses(rows: Sequence[Metrics], path: Path, *, title: str) -> None:
    """Draw training and validation loss against steps, with perplexity on a second axis, into a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the text names the extra that has it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'the loss curve needs matplotlib, which is not installed: pip install "gptladder[plot]"'
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    # The loss of an update's batch is that of the model before the update, so it stands at the step before.
    points = [(row.step - 1, row.loss) for row in rows if row.loss is not None]
    steps, losses = np.array(points).reshape(-1, 2).T
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1, label="train, each logged step")
    window = max(1, len(losses) // _SMOOTHED_OVER)
    means_at, means = _means(steps, window), _means(losses, window)
    name = f"train, mean of {window}" if window > 1 else "train"
    axes.plot(means_at, means, color="tab:blue", label=_with_last(name, means))
    evaluated = np.array([(row.step, row.val_loss) for row in rows if row.val_loss is not None]).reshape(-1, 2)
    axes.plot(
        *evaluated.T, color="tab:orange", marker="o", markersize=3, label=_with_last("validation", evaluated[:, 1])
    )
    if len(evaluated) > 2:
        step, best = evaluated[1:][evaluated[1:, 1].argmin()]
        axes.plot(step, best, "*", color="tab:red", markersize=9, label=f"best: {best:.3f} at step {step:.0f}")
    axes.set(title=title, xlabel="step", ylabel="cross-entropy (nats per token)")
    shown = np.concatenate([means, evaluated[:, 1]])
    if shown.size and 0 < shown.min() * _LOGARITHMIC_FROM < shown.max():
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in _round_numbers(-8, (1, 2, 5)) if low <= tick <= high])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    _add_perplexity(axes)
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _means(values: np.ndarray, window: int) -> np.ndarray:
    return values[: len(values) // window * window].reshape(-1, window).mean(axis=1)


def _with_last(name: str, values: np.ndarray) -> str:
    return f"{name}: {values[-1]:.3f}" if len(values) else name


def _add_perplexity(axes: Any) -> None:
    """Add a second axis that shows each loss as the perplexity that it is."""
    second = axes.secondary_yaxis("right", functions=(_exp, _log))
    second.set_ylabel("perplexity")
    low, high = axes.get_ylim()
    scale = np.log if axes.get_yscale() == "log" else np.asarray
    height = scale(high) - scale(low)
    ticks: list[float] = []
    for tick in _round_numbers(0):
        loss = _log(tick)
        # Labels that would overlap are left out.
        near = ticks and (scale(loss) - scale(_log(ticks[-1]))) / height < _APART
        if low <= loss <= high and not near:
            ticks.append(tick)
    second.set_yticks(ticks)
    second.yaxis.set_major_formatter("{x:g}")
    second.minorticks_off()


def _round_numbers(first_power: int, digits: Sequence[float] = (1, 1.5, 2, 3, 5, 7)) -> list[float]:
    return [digit * 10.0**power for power in range(first_power, 8) for digit in digits]


def _exp(loss: ArrayLike) -> np.ndarray:
    return np.exp(np.minimum(loss, 700.0))


def _log(perplexity: ArrayLike) -> np.ndarray:
    return np.log(np.maximum(perplexity, 1e-300))
