"""Results: what was found out about a layer, and how it reads as plain text."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Hint = Literal["where", "what", "fix"]
Status = Literal["passed", "failed", "refused"]

SCHEMA = 1

# A line of a report: its kind and text. A ``mistake``'s name, a sentence (``text``), the place of a fault (``code``) or
# of a finding (``look``), a ``listing``, or something ``small``.
Line = tuple[str, str]
_BEFORE = {"code": "  ", "look": "Look at "}


def as_text(lines: Iterable[Line]) -> str:
    """Return lines of a report as plain text.

    Example:
        >>> as_text([("text", "It is wrong."), ("code", "mine.py:3: x")])
        'It is wrong.\\n  mine.py:3: x'
    """
    return "\n".join(_BEFORE.get(kind, "") + text for kind, text in lines)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a layer.

    Args:
        kind: of a layer that gives no answer ``build``, ``parameters``, ``raises``, ``exit``, ``type``, ``shape``,
            ``dtype``, ``input``, ``hang`` or ``died``; ``unlearned`` (it has no parameters, and GPT-2's has); of one
            that gives one ``nan``, ``some nan``, ``output``, ``half`` (computed in 16 bits), ``random``, ``state``
            (wrong after another call), ``context`` (at n_ctx), ``large`` (for large scores), ``training`` (in training
            mode), ``low`` (in float16 or bfloat16 alone), ``missing`` (a gradient), ``gradient``, ``float32`` (alone),
            ``biases`` (GPT-2's are missing, all else is right); ``refused`` of one that cannot be tried, and
            ``internal`` if that is a fault of gptladder's own.
        message: what happened, as a sentence without its full stop.
        at: ``file:line`` in the user's source, if it is known.
        code: that line.
        listing: for ``parameters``: GPT-2's beside those that the layer has.
        names: for ``build`` and ``missing``: the names that it is about.
    """

    kind: str
    message: str
    at: str | None = None
    code: str | None = None
    listing: str = ""
    names: tuple[str, ...] = ()

    @property
    def lines(self) -> list[Line]:
        """The fault in words."""
        lines: list[Line] = [("text", f"{self.message.removesuffix('.')}.")]
        lines += [("code", f"{self.at}: {self.code}")] if self.at else []
        return lines + ([("listing", self.listing)] if self.listing else [])

    def __str__(self) -> str:
        return as_text(self.lines)


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


@dataclass(frozen=True)
class Finding:
    """Where a layer first departs from GPT-2.

    Args:
        at: ``file:line`` in the user's source; None if the line is not known.
        code: that line.
        right: the last quantities that are right, with their lines: ``the queries (line 37)``.
        wrong: the quantity that is wrong there, or what the line gives instead; empty if all is right before an error.
        detail: how it is wrong, in sentences; each was checked.
    """

    at: str | None
    code: str | None
    right: tuple[str, ...]
    wrong: str
    detail: tuple[str, ...] = ()

    def lines(self, hint: Hint) -> list[Line]:
        """The finding in words."""
        lines: list[Line] = [("look", f"{self.at}: {self.code}")] if self.at else []
        right = f"Right up to there: {listed(self.right)}." if self.right and (self.at or not self.wrong) else ""
        # A line and GPT-2's step in one bracket, not in two.
        wrong = re.sub(r"(\(line \d+)\) \(GPT-2 ", r"\1; GPT-2 ", f"First wrong: {self.wrong}.") if self.wrong else ""
        lines.append(("text", " ".join(filter(None, (right, wrong)))))
        return lines + [("text", each) for each in self.detail if hint != "where"]


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a wrong layer after it was tried on cases chosen to tell mistakes apart.

    Args:
        mistakes: the catalogued mistakes that give its very answers, output and gradients: one, as a rule; two that it
            makes together; none.
        what: what is wrong, a sentence or two for each mistake.
        fix: how to fix it, likewise.
        finding: where it first departs from GPT-2.
        facts: what else was observed: a gradient that reaches no parameter, a wrong row of a table.
        smallest: the sizes of a small case that it still fails.
        sizes: of the case that the finding and the facts are of.
        patterns: of attention on one trial: the right weights ``[n_heads query_pos key_pos]`` and the layer's own, by
            whose they are.
    """

    mistakes: tuple[str, ...] = ()
    what: tuple[str, ...] = ()
    fix: tuple[str, ...] = ()
    finding: Finding | None = None
    facts: tuple[str, ...] = ()
    smallest: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    patterns: Mapping[str, Tensor] = field(default_factory=dict)

    def lines(self, hint: Hint) -> list[Line]:
        """The diagnosis in words."""
        kind = "The mistake" if len(self.mistakes) == 1 else f"The {len(self.mistakes)} mistakes"
        named = self.mistakes and hint != "where"
        lines: list[Line] = [("mistake", f"{kind}: {' and '.join(self.mistakes)}.")] if named else []
        texts = list(self.what) if hint != "where" else []
        if hint == "fix" and len(self.fix) == len(self.what):  # how to fix it stands beside what is wrong
            texts = [each for pair in zip(self.what, self.fix, strict=True) for each in pair]
        elif hint == "fix":
            texts += self.fix
        lines += [("text", each) for each in texts]
        if self.finding:
            # A named mistake needs no numbers; missing biases have no name.
            lines += self.finding.lines("where" if self.what else hint)
        return lines + [("text", each) for each in self.facts if hint != "where" and not self.what]

    def has_numbers(self, hint: Hint) -> bool:
        """Return whether the words have numbers that may be others in another case: a head, a position, a block."""
        catalogued = {*self.what, *self.fix}
        words = " ".join(text for kind, text in self.lines(hint) if kind == "text" and text not in catalogued)
        # GELU's constants, and block 0, are the same in every case.
        words = re.sub(r"`[^`]*`|lines? [\d, and]+|1/sqrt|\(block 0\)|\S+ x[²³]|sqrt\(2/pi\)|1 \+", "", words)
        return bool(re.search(r"(?<![\w.-])\d", re.sub(r"in GELU times \S+\. GPT-2 has that times \S+", "", words)))


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
        what = " and ".join(self.mistakes) or self.fault.message
        return f"{self.subject}: {what}" + (f" ({self.at})" if self.at else "")

    def lines(self, hint: Hint = "what") -> list[Line]:
        """What is wrong, line by line; none if nothing is."""
        if self.fault is None:
            return []
        lines = self.fault.lines
        lines += self.diagnosis.lines(hint) if self.diagnosis else []
        lines += [("small", f"A small case that shows it: {_sizes(self.smallest)}")] if self.smallest else []
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


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence.

    Example:
        >>> listed(["w", "b", "eps"])
        'w, b and eps'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
