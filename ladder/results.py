"""Results: what was found out about a layer, and how it reads as plain text."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .findings import Diagnosis, Fault, Finding, Hint, Line, as_text, listed

__all__ = [
    "SCHEMA", "Climb", "Diagnosis", "Fault", "Finding", "Hint", "Line", "Status", "Tried", "Verdict", "as_text",
    "listed", "plain",
]  # fmt: skip

Status = Literal["passed", "failed", "refused"]

SCHEMA = 1


@dataclass(frozen=True)
class Verdict:
    """The numbers of one rung against one reference.

    Args:
        rung, reference: which.
        cases: how many.
        float64, float32: the largest absolute difference of an output.
        gradient: the largest of a gradient, in float64.
        tolerance64, tolerance32: how large they may be.
        worst: the seed of the case with the largest float64 difference, to look at it again.
        lenient: the layer computes in float32 throughout: its float64 numbers are judged by the float32 tolerance.
    """

    rung: str
    reference: str
    cases: int
    float64: float
    float32: float
    gradient: float
    tolerance64: float
    tolerance32: float
    worst: int
    lenient: bool = False

    @property
    def passed(self) -> bool:
        """Whether every difference is within its tolerance."""
        exact = self.lenient or max(self.float64, self.gradient) <= self.tolerance64
        return exact and self.float32 <= self.tolerance32


@dataclass
class Tried:
    """The result of one rung.

    Args:
        rung: its name.
        layer: whose layer: ``my.py:Attention``, or a class's name.
        verdict: how far its numbers are off; None if it gave none.
        fault: what is wrong with it; None if nothing is.
        diagnosis: of numbers that are wrong.
        smallest: the sizes of a small case that shows the fault.
        missing: the parameters of GPT-2 that it does not have.
        reading: how its parameters were read, in a line; empty if they have TransformerLens's names.
        notes: what to know of a layer that passed, and of how it was tried.
        borrowed: what it takes ready-made from libraries: classes, fused functions.
        seconds: how long it took.
    """

    rung: str
    layer: str
    verdict: Verdict | None
    fault: Fault | None = None
    diagnosis: Diagnosis | None = None
    smallest: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    reading: str = ""
    notes: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """``passed``, ``failed``, or ``refused``: it could not be tried."""
        if self.fault is None:
            return "passed" if self.verdict is not None and self.verdict.passed else "failed"
        return "refused" if self.fault.kind in ("build", "parameters", "refused", "internal") else "failed"

    @property
    def passed(self) -> bool:
        """Whether it gave answers, and every one was right."""
        return self.status == "passed"

    @property
    def subject(self) -> str:
        """The beginning of a sentence on what is wrong: ``attention: my.py:Attention is wrong``."""
        kind = {"passed": "is right", "refused": "cannot be tried", "failed": "is wrong"}[self.status]
        if self.fault and self.fault.kind == "half":
            kind = "is right but for its precision"
        return f"{self.rung}: {self.layer} {kind}"

    @property
    def note(self) -> str:
        """The notes in one text."""
        return " ".join(self.notes)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """The names of its mistakes, as far as they are catalogued."""
        return self.diagnosis.mistakes if self.diagnosis else ()

    @property
    def off(self) -> float | None:
        """How far the output is off, at most: the number that the report gives."""
        return self.verdict.float64 if self.verdict else None

    @property
    def at(self) -> str | None:
        """``file:line`` of what is wrong, if it is known."""
        if self.diagnosis and self.diagnosis.finding and self.diagnosis.finding.at:
            return self.diagnosis.finding.at
        return self.fault.at if self.fault else None

    def summary(self) -> str:
        """The verdict in one line."""
        if self.fault is None:
            return f"{self.rung}: {self.layer} is right"
        found = self.diagnosis
        what = found.named if found and found.mistakes and not found.others else self.fault.message
        return f"{self.subject}: {what}" + (f" ({self.at})" if self.at else "")

    def lines(self, hint: Hint = "what") -> list[Line]:
        """What is wrong, line by line; none if nothing is."""
        if self.fault is None:
            return []
        lines, found = self.fault.lines, self.diagnosis
        if hint == "fix" and self.fault.fix and not (found and found.what):
            lines.append(("text", self.fault.fix))
            if found and found.finding:  # what to write on its line is not what is wrong
                found = dataclasses.replace(found, finding=dataclasses.replace(found.finding, fix=""))
        if found and found.finding and found.finding.at == self.fault.at:
            lines = [each for each in lines if each[0] != "code"]  # the finding shows that line
        if found:
            # That biases are missing is the fault, and the mistake.
            lines += [each for each in found.lines(hint) if each[0] != "mistake" or self.fault.kind != "biases"]
        shown = "whose answer is wrong" if found and len(found.mistakes) > 1 else "that shows it"
        lines += [("small", f"A small case {shown}: {_sizes(self.smallest)}")] if self.smallest else []
        if self.smallest and self.diagnosis and self.diagnosis.has_numbers(hint):
            lines.append(("small", f"The sentences above are of: {_sizes(self.diagnosis.sizes)}"))
        return lines

    def text(self, hint: Hint = "what") -> str:
        """What is wrong, in plain text; empty if nothing is."""
        return as_text(self.lines(hint))

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program. The keys are the same for every outcome; what is not known is None or empty."""
        finding = self.diagnosis.finding if self.diagnosis else None
        return {
            "rung": self.rung,
            "layer": self.layer,
            "status": self.status,
            "passed": self.passed,
            "verdict": plain(dataclasses.asdict(self.verdict)) if self.verdict else None,
            "fault": dataclasses.asdict(self.fault) if self.fault else None,
            "mistakes": list(self.mistakes),
            "at": self.at,
            "finding": dataclasses.asdict(finding) if finding else None,
            "what": list(self.diagnosis.what) if self.diagnosis else [],
            "fix": list(self.diagnosis.fix) if self.diagnosis else [],
            "text": self.text(),
            "smallest": dict(self.smallest),
            "missing": list(self.missing),
            "reading": self.reading,
            "notes": list(self.notes),
            "note": self.note,
            "borrowed": list(self.borrowed),
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Climb:
    """How far the user's layers got.

    Args:
        rungs: the result of each rung tried, in order; the last may have failed.
        taken: which class was taken for which rung, if that was not given.
        left_out: what of the file was left out or replaced, as clauses.
        refused: why nothing could be tried; empty if something was.
        printed: the beginning of what the layers printed in the process of their own.
        printed_bytes: how much they printed there.
        hint: how much the text gives away: ``where``, ``what`` or ``fix``.

    Example:
        >>> from gptladder.components import MLP
        >>> from gptladder.ladder import climb
        >>> climb(MLP, cases=1)
        <Climb: right: mlp>
    """

    rungs: list[Tried] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    refused: str = ""
    printed: str = ""
    printed_bytes: int = 0
    hint: Hint = "what"

    @property
    def passed(self) -> bool:
        """Whether every layer given is right."""
        return bool(self.rungs) and all(each.passed for each in self.rungs)

    @property
    def status(self) -> Status:
        """Of all rungs together."""
        if not self.rungs:
            return "refused"
        failed: list[Status] = [each.status for each in self.rungs if not each.passed]
        return failed[0] if failed else "passed"

    def raise_if_failed(self) -> None:
        """For a test of your own.

        Raises:
            AssertionError: a layer is wrong. The first line of the message is the verdict; below it, what is wrong.
        """
        if not self.passed:
            raise AssertionError(f"{self.summary()}\n\n{self}")

    def summary(self) -> str:
        """The verdict in one line."""
        if not self.rungs:
            return self.refused or "nothing was tried"
        failed = next((each for each in self.rungs if not each.passed), None)
        return failed.summary() if failed else f"right: {', '.join(each.rung for each in self.rungs)}"

    def __str__(self) -> str:
        lines = [f"{each.rung:<11} {'passed' if each.passed else each.status.upper()}" for each in self.rungs]
        for each in self.rungs:
            lines += ["", f"{each.subject}: {each.text(self.hint)}"] if each.fault else []
            lines += ["", f"{each.rung}: {each.note}"] if each.notes else []
        return "\n".join(lines) or self.refused

    def __repr__(self) -> str:
        return f"<Climb: {self.summary()}>"

    def as_json(self) -> dict[str, Any]:
        """Everything, for ``--json``: one schema for every outcome. What is not finite is None."""
        return {
            "schema": SCHEMA,
            "status": self.status,
            "passed": self.passed,
            "error": self.refused or None,
            "taken": dict(self.taken),
            "left_out": list(self.left_out),
            "rungs": [each.as_json() for each in self.rungs],
            "printed_bytes": self.printed_bytes,
        }


def plain(value: Any) -> Any:
    """Return a value as JSON takes it: what is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return value


def _sizes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items())
