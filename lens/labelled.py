"""The output of every function here: numbers whose axes are named and labelled, and which draw themselves."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from ..files import user_path, write_whole

# The ends of the two colour scales, chosen so that they differ for readers without colour vision too: blue for what is
# positive, orange for what is negative. Light and dark pages mix them with their own background.
_POSITIVE, _NEGATIVE = (0, 90, 181), (213, 94, 0)

# More than this of a vocabulary, or of every head's pattern, is too much to look at, and too large for a notebook.
_MOST_COLUMNS, _MOST_ROWS = 64, 400

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8" /><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'" />
<style>:root{{color-scheme:light dark;background:Canvas;color:CanvasText}}
body{{font:13px system-ui,sans-serif;margin:8px}}h1{{font-size:14px}}
table{{border-collapse:collapse}}th{{font-weight:normal;padding:1px 6px;white-space:pre}}
thead th{{vertical-align:bottom}}tbody th{{text-align:right}}
td{{min-width:3.2em;height:1.6em;text-align:center;padding:0 3px;
border:1px solid color-mix(in srgb,currentColor 12%,transparent)}}
</style></head><body>{body}</body></html>
"""


@dataclass(frozen=True)
class Labelled:
    """Numbers with a name for each axis and a label for each place along it.

    In a notebook it shows itself as a heat map. Colours are on a square-root scale, so that a weight of 0.02 can still
    be seen. Of many columns, such as a vocabulary, the 64 with the largest values are drawn; of many rows, the first
    400.

    Args:
        values: the numbers.
        axes: for each axis of ``values``, in order, its name and its labels.
        title: what the numbers are, with their unit.

    Raises:
        ValueError: the labels do not fit the shape of ``values``.

    Example:
        >>> import torch
        >>> Labelled(torch.eye(2), {"layer": ["0", "1"], "head": ["0", "1"]}, title="share of attention")
        Labelled(share of attention: layer 2, head 2; from 0 to 1, largest at layer 0, head 0)
    """

    values: Tensor
    axes: Mapping[str, Sequence[str]]
    title: str

    def __post_init__(self) -> None:
        expected = [len(labels) for labels in self.axes.values()]
        if list(self.values.shape) != expected:
            raise ValueError(f"the values have the shape {list(self.values.shape)} and the labels {expected}")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(labels)}" for name, labels in self.axes.items())
        low, high = self.values.min().item(), self.values.max().item()
        where = ", ".join(f"{name} {label}" for name, label in self.largest().items())
        return f"Labelled({self.title}: {sizes}; from {low:.3g} to {high:.3g}, largest at {where})"

    def largest(self) -> dict[str, str]:
        """Return where the largest value stands: the label on each axis."""
        place = int(self.values.argmax())
        found: dict[str, str] = {}
        for name, labels in reversed(list(self.axes.items())):
            place, index = divmod(place, len(labels))
            found[name] = labels[index]
        return dict(reversed(found.items()))

    def rows(self) -> tuple[list[str], Tensor]:
        """Return a label for each row, and the rows: the last axis goes across, all others go down."""
        *down, _ = self.axes.items()
        labels = [""]
        for name, names in down:
            prefix = name[0].upper() if len(down) > 1 else f"{name} "  # a bare number does not say what it counts
            named = [f"{prefix}{label}" if label.isdigit() else label for label in names]
            labels = [f"{before} {label}".strip() for before in labels for label in named]
        return labels, self.values.reshape(-1, self.values.shape[-1])

    def _drawn(self) -> tuple[list[str], list[str], Tensor, str]:
        """Return labels of rows and of columns, the values to draw, and the title, which names what is left out."""
        labels, values = self.rows()
        columns, title = list(list(self.axes.values())[-1]), self.title
        if len(columns) > _MOST_COLUMNS:
            title += f"; {_MOST_COLUMNS} of {len(columns):,} columns, those with the largest values"
            places = values.amax(0).topk(_MOST_COLUMNS).indices.sort().values
            columns, values = [columns[place] for place in places.tolist()], values[:, places]
        if len(labels) > _MOST_ROWS:
            title += f"; the first {_MOST_ROWS} of {len(labels):,} rows"
            labels, values = labels[:_MOST_ROWS], values[:_MOST_ROWS]
        return labels, columns, values, title

    def html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the heat map as one page, and write it to ``path`` if that is given. It fetches nothing."""
        page = _PAGE.format(title=escape(self.title), body=self._table())
        if path is not None:
            write_whole(user_path(path), page)
        return page

    def _repr_html_(self) -> str:
        return framed(self.html(), height=90 + 24 * min(len(self.rows()[0]), _MOST_ROWS), scripts=False)

    def figure(self) -> Any:
        """Return the heat map as a ``matplotlib.figure.Figure``.

        Raises:
            ModuleNotFoundError: matplotlib is not installed (the extra ``plot``).
        """
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        labels, columns, values, title = self._drawn()
        drawn = Figure(figsize=(2.5 + 0.35 * len(columns), 1.6 + 0.28 * len(labels)), layout="constrained")
        plot = drawn.subplots()
        most = values.abs().max().item() or 1.0
        signed = bool((values < 0).any())
        ends = [tuple(part / 255 for part in colour) for colour in (_NEGATIVE, (255, 255, 255), _POSITIVE)]
        image = plot.imshow(
            values.double().cpu().numpy(),
            aspect="auto",
            cmap=LinearSegmentedColormap.from_list("signed", ends) if signed else "Blues",
            vmin=-most if signed else 0,
            vmax=most,
        )
        # parse_math: a token may be "$$"
        plot.set_title(title, fontsize=9, parse_math=False)
        plot.set_xlabel(list(self.axes)[-1])
        plot.set_ylabel(", ".join(list(self.axes)[:-1]))
        across = [repr(label)[1:-1] for label in columns]
        upright = max(map(len, across)) < 3
        plot.set_xticks(range(len(columns)), across, rotation=0 if upright else 90, fontsize=7, parse_math=False)
        plot.set_yticks(range(len(labels)), [repr(label)[1:-1] for label in labels], fontsize=7, parse_math=False)
        drawn.colorbar(image, ax=plot)
        return drawn

    def _table(self) -> str:
        labels, columns, values, title = self._drawn()
        most = values.abs().max().item() or 1.0
        head = "".join(f"<th>{escape(visible(label))}</th>" for label in columns)
        body = "".join(
            f"<tr><th>{escape(visible(label))}</th>"
            + "".join(f'<td style="{_colour(value / most)}">{value:.2f}</td>' for value in row)
            + "</tr>"
            for label, row in zip(labels, values.tolist(), strict=True)
        )
        *down, across = self.axes
        corner = f"{escape(', '.join(down))} ↓ {escape(across)} →"
        return (
            f"<h1>{escape(title)}</h1><table><thead><tr><th>{corner}</th>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )


def visible(text: str) -> str:
    """Return a token's text with blanks and line ends made visible, as a label needs them."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") if text.strip() != text else text


def framed(page: str, *, height: int, scripts: bool) -> str:
    """Return a page as a frame for a notebook: sandboxed, so that neither meets the other's style or scripts."""
    allowed = "allow-scripts" if scripts else ""
    return (
        f'<iframe srcdoc="{escape(page, quote=True)}" sandbox="{allowed}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def _colour(share: float) -> str:
    """Return the style of a cell for a value's share of the largest one, from -1 to 1."""
    red, green, blue = _POSITIVE if share >= 0 else _NEGATIVE
    strength = math.sqrt(min(1.0, abs(share))) if math.isfinite(share) else 1.0
    # Dark letters are readable on all oranges and on light blue, white ones on dark blue (contrast above 4).
    text = ";color:#fff" if share >= 0 and strength > 0.75 else ""
    return f"background:rgba({red},{green},{blue},{strength:.3f}){text}"
