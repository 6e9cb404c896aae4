"""The picture of a run: its losses, and the perplexity of each loss."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..files import naming
from .metrics import Metrics

_SMOOTHED_OVER = 50  # the training curve shows about this many means
_LOGARITHMIC_FROM = 8  # ratio of the highest to the lowest loss
_APART = 0.05  # of the height of the picture: distance of two labels


def draw_losses(rows: Sequence[Metrics], path: Path, *, title: str) -> None:
    """Draw training and validation loss against steps, with perplexity on a second axis, into a PNG file.

    If the loss falls mostly in the first tenth of the steps, the axis of steps is logarithmic, so that the fall and
    what follows can both be seen.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message names the extra that has it.
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
    trained = _points((row.step - 1, row.loss) for row in rows)
    evaluated = _points((row.step, row.val_loss) for row in rows)
    falls_early = _falls_early(trained)
    means = _means(trained, growing=falls_early)

    axes.plot(*trained.T, color="tab:blue", alpha=0.25, linewidth=1, label="train, each logged step")
    last = trained[-max(1, len(trained) // _SMOOTHED_OVER) :, 1].mean() if len(trained) else None
    axes.plot(*means.T, color="tab:blue", label=_with_value("train, smoothed", last))
    _draw_evaluations(axes, evaluated)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.set_title(title, parse_math=False)  # a run may be called a$b$
    if falls_early:
        _set_log_steps(axes, trained[trained[:, 0] > 0, 0].min())
    _set_log_losses(axes, np.concatenate([means[:, 1], evaluated[:, 1]]))
    axes.grid(alpha=0.3)
    axes.legend()
    _add_perplexity(axes)
    temporary = path.with_name(f".{path.name}.part")
    with naming(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the title may have characters that the font lacks
        figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _points(pairs: Iterable[tuple[int, float | None]]) -> np.ndarray:
    return np.array([(step, loss) for step, loss in pairs if loss is not None], dtype=float).reshape(-1, 2)


def _falls_early(points: np.ndarray) -> bool:
    """Return whether a tenth of the steps holds more than half of the fall of the loss."""
    if len(points) < 20:
        return False
    first, tenth = points[0, 1], points[: len(points) // 10 + 1, 1].min()
    return bool(first - tenth > (first - points[:, 1].min()) / 2 > 0)


def _means(points: np.ndarray, *, growing: bool) -> np.ndarray:
    """Return means of consecutive points: of equally many each, or (growing) of more and more."""
    if not len(points):
        return points
    count = min(_SMOOTHED_OVER, len(points))
    if growing:
        cuts = np.unique(np.geomspace(1, len(points), count).astype(int))
    else:
        cuts = np.arange(1, count) * (len(points) // count)
    return np.array([part.mean(axis=0) for part in np.split(points, cuts) if len(part)])


def _draw_evaluations(axes: Any, evaluated: np.ndarray) -> None:
    """Draw the validation losses. That of step 0 stands alone: a line from it to the next would be no measurement."""
    first, later = evaluated[evaluated[:, 0] == 0], evaluated[evaluated[:, 0] > 0]
    orange: dict[str, Any] = {"color": "tab:orange", "marker": "o", "markersize": 4}
    if len(first):
        label = _with_value("validation at step 0", first[-1, 1])
        axes.plot(*first.T, linestyle="", markerfacecolor="white", **orange, label=label)
    if len(later):
        axes.plot(*later.T, **orange, label=_with_value("validation", later[-1, 1]))
    if len(later) > 1:
        step, best = later[later[:, 1].argmin()]
        axes.plot(step, best, "k*", markersize=10, zorder=3, label=f"best: {best:.3f} at step {step:,.0f}")


def _with_value(name: str, value: float | None) -> str:
    return name if value is None else f"{name}: {value:.3f}"


def _set_log_steps(axes: Any, first: float) -> None:
    """Make the axis of steps logarithmic from the first step above 0 on, and linear below, so that it has a 0."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.3)
    left, right = 0, axes.dataLim.x1
    axes.set_xlim(left - 0.3 * first, right * 1.1)
    axes.set_xticks([0, *(tick for tick in _round_numbers(0, (1, 2, 5)) if first <= tick <= right)])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(_no_ticks())
    axes.set_xlabel("step (logarithmic)")


def _set_log_losses(axes: Any, losses: np.ndarray) -> None:
    """Make the axis of losses logarithmic if they differ by more than a factor."""
    if losses.size and 0 < losses.min() * _LOGARITHMIC_FROM < losses.max():
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in _round_numbers(-8, (1, 2, 5)) if low <= tick <= high])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(_no_ticks())


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _add_perplexity(axes: Any) -> None:
    """Add a second axis that shows each loss as a perplexity."""
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
    second.yaxis.set_major_formatter("{x:,g}")
    second.minorticks_off()


def _round_numbers(first_power: int, digits: Sequence[float] = (1, 1.5, 2, 3, 5, 7)) -> list[float]:
    return [digit * 10.0**power for power in range(first_power, 8) for digit in digits]


def _exp(loss: ArrayLike) -> np.ndarray:
    return np.exp(np.minimum(loss, 700.0))


def _log(perplexity: ArrayLike) -> np.ndarray:
    return np.log(np.maximum(perplexity, 1e-300))
