"""Climbing with somebody's own layers: each in its turn tried against the reference, and what is wrong with it."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .candidate.layer import SIZES, Candidate, Fault, Look, Question, Reply
from .candidate.sandbox import Sandbox
from .candidate.source import Code

if TYPE_CHECKING:  # the references take seconds to load; meanwhile the sandbox loads what it needs
    from .diagnosis import Diagnosis
    from .rungs import Case
    from .verdicts import Verdict

Layer = str | Callable[..., Any]


@dataclass(frozen=True)
class Tried:
    """What came of a rung with somebody's layer on it.

    Args:
        rung: its name.
        layer: whose: ``my.py:Attention``, or a class's name.
        verdict: how far its numbers are off; None where it gave none.
        fault: what is wrong with it, other than its numbers.
        diagnosis: of numbers that are wrong.
        smallest: the smallest case that shows what is wrong.
        asked: the fields of the configuration that it reads.
        note: what a layer that passed was not tried on, and why.
    """

    rung: str
    layer: str
    verdict: "Verdict | None"
    fault: Fault | None = None
    diagnosis: "Diagnosis | None" = None
    smallest: "Case | None" = None
    asked: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it gave answers, and every one was right."""
        return self.fault is None and self.verdict is not None and self.verdict.passed

    def told(self) -> str:
        """What is wrong and how to mend it, in plain text; empty where nothing is."""
        lines = []
        if self.fault:
            lines.append(str(self.fault))
        found = self.diagnosis
        if found and not found.right:
            if found.mistakes:
                lines.append(f"The mistake: {' and '.join(found.mistakes)}.")
            lines += [found.hint, found.departs or ""]
        if self.smallest and not self.passed:
            sizes = {"batch": self.smallest.batch, "seq": self.smallest.seq}
            sizes |= {name: getattr(self.smallest.config, name) for name in SIZES if name in self.asked}
            lines.append("Smallest case: " + " ".join(f"{name}={size}" for name, size in sizes.items()))
        return "\n".join(line for line in lines if line)


@dataclass
class Climb:
    """How far somebody's layers got.

    Args:
        rungs: what came of each rung tried, in order; the last may have failed.
        printed: the beginning of what the layers printed in the process of their own.
        printed_bytes: how much they printed there.
    """

    rungs: list[Tried] = field(default_factory=list)
    printed: str = ""
    printed_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether every layer given is right."""
        return bool(self.rungs) and all(each.passed for each in self.rungs)

    def raise_if_failed(self) -> None:
        """For a test of your own.

        Raises:
            AssertionError: a layer is wrong; the message says what is, and how to mend it.
        """
        if not self.passed:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        from .report.terminal import climb_text

        return climb_text(self)

    def as_json(self) -> dict[str, Any]:
        """Everything, for ``--json``. What is not finite is None."""

        def plain(value: Any) -> Any:
            if isinstance(value, float):
                return value if math.isfinite(value) else None
            if isinstance(value, dict):
                return {name: plain(each) for name, each in value.items()}
            return value

        return {
            "passed": self.passed,
            "rungs": [
                {
                    "rung": each.rung,
                    "layer": each.layer,
                    "passed": each.passed,
                    "verdict": plain(dataclasses.asdict(each.verdict)) if each.verdict else None,
                    "fault": dataclasses.asdict(each.fault) if each.fault else None,
                    "mistakes": list(each.diagnosis.mistakes) if each.diagnosis else [],
                    "told": each.told(),
                    "smallest": dataclasses.asdict(each.smallest) if each.smallest else None,
                    "note": each.note,
                }
                for each in self.rungs
            ],
            "printed_bytes": self.printed_bytes,
        }


def climb(
    *,
    embed: Layer | None = None,
    pos_embed: Layer | None = None,
    layernorm: Layer | None = None,
    attention: Layer | None = None,
    mlp: Layer | None = None,
    block: Layer | None = None,
    unembed: Layer | None = None,
    model: Layer | None = None,
    cases: int = 25,
    seed: int = 0,
    time_limit: float = 10.0,
    on_start: Callable[[str], None] = lambda rung: None,
    on_end: Callable[[Tried], None] = lambda tried: None,
) -> Climb:
    """Try your own layers against TransformerLens's, from the embedding up, and stop at the first that is wrong.

    A layer is a class, an adapter (see ``docs/your-layer.md``), or ``"FILE.py:NAME"`` of either. Given as text, it runs
    in a process of its own: it may hang, exit or crash there. Given as an object, it runs in this one.

    Args:
        cases: random configurations for each layer. One in five, and the last, has a long sequence.
        seed: of the configurations and of every number in them.
        time_limit: seconds that a layer given as text has for one case.
        on_start: told each rung's name as it begins.
        on_end: told what came of it.

    Raises:
        CandidateError: a layer that cannot be tried: no such file, no such class, a constructor that asks for what
            there is not.
        ValueError: no layer; fewer than one case; a time limit that is not above 0.
    """
    given = {
        "embed": embed,
        "pos-embed": pos_embed,
        "layernorm": layernorm,
        "attention": attention,
        "mlp": mlp,
        "block": block,
        "unembed": unembed,
        "model": model,
    }
    layers = {name: layer for name, layer in given.items() if layer is not None}
    if not layers:
        raise ValueError(
            "no layer was given: give at least one, such as --attention my.py:Attention (attention=… in Python)"
        )
    if cases < 1:
        raise ValueError(f"cases is {cases}; at least 1 is needed to judge by")
    if not time_limit > 0:
        raise ValueError(f"time_limit is {time_limit}; it is a number of seconds above 0")
    climbed = Climb()
    with _Bench(layers, time_limit) as bench:
        from .rungs import RUNGS
        from .trying import try_layer

        bench.ready()
        for rung in RUNGS:
            if rung.name in layers:
                on_start(rung.name)
                tried = try_layer(rung, bench.shown[rung.name], bench.respond, number=cases, seed=seed)
                climbed.rungs.append(tried)
                on_end(tried)
                if not tried.passed:
                    break
    climbed.printed, climbed.printed_bytes = bench.printed
    return climbed


class _Bench:
    """Where the layers run: those given as text in a sandbox, those given as objects here."""

    def __init__(self, layers: Mapping[str, Layer], time_limit: float) -> None:
        sources = {rung: layer for rung, layer in layers.items() if isinstance(layer, str)}
        self.shown: dict[str, str] = {rung: str(Path(source)) for rung, source in sources.items()}
        self.here: dict[str, Candidate] = {}
        for rung, layer in layers.items():
            if not isinstance(layer, str):
                self.shown[rung] = getattr(layer, "__qualname__", repr(layer))
                self.here[rung] = Candidate(layer, getattr(layer, "__name__", repr(layer)), Code(*_file(layer)))
        self.sandbox = Sandbox(sources, time_limit) if sources else None

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        if self.sandbox:
            self.sandbox.close()

    def ready(self) -> None:
        if self.sandbox:
            self.sandbox.ready()

    def respond(self, question: Question, look: Look = "") -> Reply:
        if question.rung in self.here:
            return self.here[question.rung].respond(question, look)
        assert self.sandbox is not None
        return self.sandbox.respond(question, look)

    @property
    def printed(self) -> tuple[str, int]:
        if self.sandbox is None:
            return "", 0
        return self.sandbox.printed.decode(errors="replace"), self.sandbox.printed_bytes


def _file(layer: Callable[..., Any]) -> list[Path]:
    """Where an object's source is, if anywhere: a class typed at a prompt has none."""
    try:
        return [Path(inspect.getfile(layer))]
    except (TypeError, OSError):
        return []
