"""The picture of a run: its losses, and the perplexity that they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Metrics

_SMOOTHED_OVER = 50  # the training curve shows about this many means


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
    steps, losses = np.array([(row.step, row.loss) for row in rows if row.loss is not None]).reshape(-1, 2).T
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1, label="train, each logged step")
    window = max(1, len(losses) // _SMOOTHED_OVER)
    kept = len(losses) // window * window
    axes.plot(
        steps[:kept].reshape(-1, window).mean(axis=1),
        losses[:kept].reshape(-1, window).mean(axis=1),
        color="tab:blue",
        label=f"train, mean of {window}" if window > 1 else "train",
    )
    evaluated = np.array([(row.step, row.val_loss) for row in rows if row.val_loss is not None]).reshape(-1, 2)
    axes.plot(*evaluated.T, color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set(title=title, xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    second = axes.secondary_yaxis("right", functions=(_exp, _log))
    second.set_ylabel("perplexity")
    low, high = axes.get_ylim()
    second.set_yticks([tick for tick in _round_numbers() if _exp(low) <= tick <= _exp(high)])
    second.yaxis.set_major_formatter("{x:g}")
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _round_numbers() -> list[float]:
    return [digit * 10.0**power for power in range(8) for digit in (1, 1.5, 2, 3, 5, 7)]


def _exp(loss: ArrayLike) -> np.ndarray:
    return np.exp(np.minimum(loss, 700.0))


def _log(perplexity: ArrayLike) -> np.ndarray:
    return np.log(np.maximum(perplexity, 1e-300))
