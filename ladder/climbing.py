"""Climbing with the user's own layers: each in its turn is tried against the reference."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .candidate.finder import rungs_of
from .candidate.layer import Candidate
from .candidate.places import Code
from .candidate.source import CandidateError
from .report.notebook import ShownClimb
from .results import Climb, Hint, Tried
from .rungs import RUNGS, Rung
from .sandbox import Limits
from .sandbox.sandbox import Sandbox
from .try_layer import try_layer
from .under_test import Ask

Layer = str | Callable[..., Any]

_NO_LAYER = (
    "no layer was given: give a file, such as my_file.py, or a layer, such as --attention my.py:Attention "
    "(attention=… in Python)"
)
_DTYPES = {None: None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def climb(
    *sources: Layer | Path,
    embed: Layer | None = None,
    pos_embed: Layer | None = None,
    layer_norm: Layer | None = None,
    attention: Layer | None = None,
    mlp: Layer | None = None,
    block: Layer | None = None,
    unembed: Layer | None = None,
    model: Layer | None = None,
    layernorm: Layer | None = None,
    cases: int = 25,
    seed: int = 0,
    time_limit: float = 10.0,
    hint: Hint = "what",
    reference: str | None = None,
    dtype: str | None = None,
    chosen: Mapping[str, Any] | None = None,
    only: str | None = None,
    limits: Limits | None = None,
    copy_process: bool = False,
    on_start: Callable[[str], None] = lambda rung: None,
    on_end: Callable[[Tried], None] = lambda tried: None,
) -> Climb:
    """Try your own layers, from the embedding up, and stop at the first that is wrong.

    A layer is a class, an adapter (see ``docs/your-layer.md``), or ``"FILE.py:NAME"`` of either. Given as text, it runs
    in a process of its own: it may hang, exit or crash there. Given as an object, it runs in this one.

    Args:
        sources: a file or notebook, in which the layers are found; or classes, whose rungs are found.
        layernorm: the old name of ``layer_norm``.
        cases: random configurations for each layer. One in five, and the last, has a long sequence.
        seed: of the configurations and of every number in them.
        time_limit: seconds that a layer given as text has for one case.
        hint: how much the report gives away: ``where``, ``what`` or ``fix``.
        dtype: ``float16`` or ``bfloat16`` to try the layers at that precision too, where they may be a few times as far
            off as our own.
        reference: ``transformer-lens`` to judge by TransformerLens's layers (default: our own).
        chosen: values for what a constructor or configuration asks for, by name.
        only: the one rung to try, whatever else a file holds (default: all that it holds, in order).
        limits: what a layer given as text may use; with limits it has no network, and writes to a folder of its own
            alone (default: what the user may).
        copy_process: start the process of a layer given as text as a copy of this one, where the system can: a second
            faster. This process must have run no user's code, and no other thread may be at work in it.
        on_start: called with each rung's name as it begins.
        on_end: called with its result.

    Raises:
        CandidateError: a layer that cannot be tried: no such file, no such class.
        ValueError: no layer; fewer than one case; a time limit that is not above 0.

    Example:
        >>> from gptladder.components import MLP
        >>> climb(MLP, cases=2).passed
        True
    """
    given = (embed, pos_embed, layer_norm or layernorm, attention, mlp, block, unembed, model)
    layers = {rung.name: layer for rung, layer in zip(RUNGS, given, strict=True) if layer is not None}
    if not layers and not sources:
        raise ValueError(_NO_LAYER)
    _check(cases, time_limit, hint, reference, dtype)
    library = None if reference == "gptladder" else reference
    climbed = ShownClimb(hint=hint)
    with _Bench(layers, sources, time_limit, dict(chosen or {}), limits, copy_process, only) as bench:
        bench.ready()
        climbed.taken, climbed.left_out = bench.taken, bench.left_out
        for rung in bench.rungs:
            on_start(rung.name)
            layer, name, precision = bench.layer(rung.name), bench.shown[rung.name], _DTYPES[dtype]
            tried = try_layer(rung, layer, name, reference=library, number=cases, seed=seed, dtype=precision)
            climbed.rungs.append(tried)
            on_end(tried)
            if not tried.passed:
                break
        climbed.printed, climbed.printed_bytes = bench.printed
    return climbed


def _check(cases: int, time_limit: float, hint: str, reference: str | None, dtype: str | None) -> None:
    """Refuse options of `climb` that have no meaning.

    Raises:
        ValueError: one of them.
    """
    if cases < 1:
        raise ValueError(f"cases is {cases}; at least 1 is needed to judge by")
    if not time_limit > 0:
        raise ValueError(f"time_limit is {time_limit}; it is a number of seconds above 0")
    if hint not in ("where", "what", "fix"):
        raise ValueError(f"hint is {hint!r}; it can be where, what or fix")
    if reference not in (None, "gptladder", "transformer-lens"):
        raise ValueError(f"reference is {reference!r}; it can be gptladder or transformer-lens")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it can be float16 or bfloat16 (float64 and float32 are tried always)")


class _Bench:
    """Where the layers run: those given as text in a sandbox, those given as objects here."""

    def __init__(
        self,
        layers: Mapping[str, Layer],
        sources: Sequence[Layer | Path],
        time_limit: float,
        chosen: dict[str, Any],
        limits: Limits | None,
        copy_process: bool,
        only: str | None,
    ) -> None:
        texts = {rung: layer for rung, layer in layers.items() if isinstance(layer, str)}
        files = [str(source) for source in sources if isinstance(source, str | Path)]
        if len(files) > 1:
            raise ValueError(f"{len(files)} files were given; climb one at a time")
        self.shown: dict[str, str] = {rung: str(Path(source)) for rung, source in texts.items()}
        self.taken: dict[str, str] = {}
        self.left_out: tuple[str, ...] = ()
        self.here: dict[str, Candidate] = {}
        self._file, self._only = "", only
        for rung, layer in layers.items():
            if not isinstance(layer, str):
                self._place(rung, layer, chosen)
        for source in sources:
            if not isinstance(source, str | Path):
                self._place(self._rung(source, chosen), source, chosen)
        for file in files:
            # FILE.py:CLASS of an unknown rung is found in the sandbox too.
            self._file = file
            texts[""] = file
        self.sandbox = Sandbox(texts, time_limit, chosen, limits, copy=copy_process, only=only) if texts else None

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        if self.sandbox:
            self.sandbox.close()

    def ready(self) -> None:
        """Wait for the sandbox, and take over what it found in the file."""
        if self.sandbox is None:
            return
        self.sandbox.ready()
        self.left_out = self.sandbox.notes
        for rung, classes in self.sandbox.layers.items():
            if rung not in self.shown and rung not in self.here:
                file, colon, _ = self._file.rpartition(":")
                file = file if colon and not Path(self._file).is_file() else self._file
                self.shown[rung] = f"{file}:{classes[0]}"
                others = f" (also fitting: {', '.join(classes[1:])})" if classes[1:] else ""
                self.taken[rung] = f"{classes[0]}{others}"

    @property
    def rungs(self) -> list[Rung]:
        """The rungs that have a layer and are wanted, in order."""
        return [rung for rung in RUNGS if rung.name in self.shown and self._only in (None, rung.name)]

    def layer(self, rung: str) -> Ask:
        """Return what answers requests for the layer of a rung."""
        if rung in self.here:
            respond = self.here[rung].respond
            return lambda requests: map(respond, requests)
        assert self.sandbox is not None
        return self.sandbox.replies

    @property
    def printed(self) -> tuple[str, int]:
        """The beginning of what was printed, and how much it was."""
        if self.sandbox is None:
            return "", 0
        return self.sandbox.printed.decode(errors="replace"), self.sandbox.printed_bytes

    def _place(self, rung: str, layer: Callable[..., Any], chosen: dict[str, Any]) -> None:
        self.shown[rung] = getattr(layer, "__qualname__", repr(layer))
        name = getattr(layer, "__name__", repr(layer))
        self.here[rung] = Candidate(layer, name, _code(layer), _namespace(layer), chosen)

    def _rung(self, layer: Callable[..., Any], chosen: dict[str, Any]) -> str:
        name = getattr(layer, "__name__", repr(layer))
        found = [rung for rung in rungs_of(layer, name, dict(_namespace(layer)), chosen) if rung not in self.shown]
        if not found:
            raise CandidateError(
                f"{name} could not be taken for a layer of GPT-2: say which it is, such as attention={name}"
            )
        self.taken[found[0]] = name
        return found[0]


def _namespace(layer: Callable[..., Any]) -> dict[str, Any]:
    module = sys.modules.get(getattr(layer, "__module__", ""))
    # A copy: sizes that stand in the user's own module as globals are set where functions look them up.
    return vars(module) if module is not None and getattr(layer, "__module__", "") != "builtins" else {}


def _code(layer: Callable[..., Any]) -> Code:
    """Return an object's source: its file, or the cells of a notebook in which it was typed."""
    files: list[Path] = []
    with contextlib.suppress(TypeError, OSError):
        files = [Path(inspect.getfile(layer))]
    methods = vars(layer).values() if inspect.isclass(layer) else [layer]
    cells = {each.__code__.co_filename for each in methods if hasattr(each, "__code__")}
    return Code(
        *[file for file in files if file.exists()],
        cells=[cell for cell in cells if not Path(cell).exists() or "ipykernel" in cell],
    )
