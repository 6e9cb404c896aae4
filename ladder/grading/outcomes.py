"""The outcome of grading one student's layer on one rung, and the formats that teachers' tools read."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Status = Literal[
    "right",
    "right in float32",
    "wrong",
    "no layer",
    "cannot be read",
    "cannot be built",
    "crashed",
    "hung",
    "over a limit",
    "not graded",
]
"""``not graded`` is a fault of the grader's own, never of the submission."""

PASSING: tuple[Status, ...] = ("right", "right in float32")


@dataclass(frozen=True)
class Outcome:
    """The outcome for one student and rung; the fields are the columns of ``results.csv``.

    Args:
        student: the student's name.
        file: the file and class that stood on the rung, as far as one was found.
        sha256: of the whole submission.
        rung: the layer's name.
        status: right, wrong, or why it was not judged.
        score: points given.
        max_score: points that the rung is worth.
        mistake: the names of the mistakes that the layer makes, joined by semicolons.
        line: ``file:line`` of the mistake, where it is known.
        error: the largest difference from the reference in float64.
        limit: how large it may be; for a layer that was stopped or ended its process, the limits that it ran with.
        borrowed: what the layer takes from a library, joined by semicolons.
        seconds: wall time.
        version: of gptladder.
        seed: of the cases.
        hint: text for the student.
    """

    student: str
    file: str
    sha256: str
    rung: str
    status: Status
    score: float
    max_score: float
    mistake: str = ""
    line: str = ""
    error: float | None = None
    limit: float | str | None = None
    borrowed: str = ""
    seconds: float = 0.0
    version: str = ""
    seed: int = 0
    hint: str = ""

    @property
    def passed(self) -> bool:
        """Whether the layer gets its points."""
        return self.status in PASSING


def outcome_from_json(values: Mapping[str, Any]) -> Outcome:
    """Return the outcome whose fields these are.

    Raises:
        TypeError: a field is missing or unknown.
    """
    return Outcome(**values)


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """Return ``results.csv``: a line for each student and rung, for spreadsheets.

    The text begins with a byte-order mark, so that Excel reads it as UTF-8. A cell that a spreadsheet would take for a
    formula begins with an apostrophe.
    """
    columns = [field.name for field in fields(Outcome) if field.name != "hint"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for outcome in outcomes:
        values = asdict(outcome)
        writer.writerow([_cell(values[name]) for name in columns])
    return "\ufeff" + text.getvalue()


def as_json(outcomes: Sequence[Outcome], *, isolation: str = "") -> str:
    """Return ``results.json``: the same as a list of objects, hints included.

    Args:
        outcomes: of all students and rungs.
        isolation: how the submissions were isolated, as a sentence.
    """
    listed = [asdict(each) for each in outcomes]
    return json.dumps({"format": "gptladder-grades", "isolation": isolation, "outcomes": listed}, indent=2) + "\n"


def as_gradescope(outcomes: Sequence[Outcome], *, withhold_hints: bool = False) -> str:
    """Return Gradescope's ``results.json`` for one student's outcomes.

    Each rung is one test with its own score. Withheld hints go to the standard output, whose visibility is then
    ``hidden``: a hidden test would hide the student's total score too.
    """
    tests = [
        {
            "name": outcome.rung,
            "score": outcome.score,
            "max_score": outcome.max_score,
            "status": "passed" if outcome.passed else "failed",
            "output": _message(outcome, with_hint=not withhold_hints),
            "output_format": "text",
            "visibility": "visible",
        }
        for outcome in outcomes
    ]
    results = {
        "score": sum(outcome.score for outcome in outcomes),
        "execution_time": round(sum(outcome.seconds for outcome in outcomes)),
        "visibility": "visible",
        "stdout_visibility": "hidden" if withhold_hints else "visible",
        "tests": tests,
    }
    return json.dumps(results, indent=2) + "\n"


def as_classroom(outcomes: Sequence[Outcome]) -> str:
    """Return the result of one student's outcomes for GitHub Classroom's autograding reporter.

    The reporter prints a message only of tests with an error, but the code of every test: the hint stands there.
    """
    tests = []
    for outcome in outcomes:
        line = outcome.line.rpartition(":")[2]
        tests.append(
            {
                "name": f"{outcome.rung}: {outcome.status}",
                "status": "pass" if outcome.passed else "error" if outcome.status == "not graded" else "fail",
                "message": _message(outcome, with_hint=True),
                "test_code": outcome.hint,
                "filename": outcome.file.partition(":")[0],
                "line_no": int(line) if line.isdecimal() else 0,
                "score": outcome.score,
                "max_score": outcome.max_score,
                "execution_time": f"{outcome.seconds:.1f}s",
            }
        )
    passed = all(outcome.passed for outcome in outcomes)
    total = sum(outcome.max_score for outcome in outcomes)
    failed = any(outcome.status == "not graded" for outcome in outcomes)
    status = "pass" if passed else "error" if failed else "fail"
    return json.dumps({"version": 1, "status": status, "max_score": total, "tests": tests}, indent=2) + "\n"


def _message(outcome: Outcome, *, with_hint: bool) -> str:
    lines = [f"{outcome.rung}: {outcome.status}"]
    if with_hint and outcome.hint:
        lines.append(outcome.hint)
    return "\n".join(lines)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")):
        return "'" + value
    if isinstance(value, str) and value.startswith(("\t", "\r")):
        return "'" + value
    return "" if value is None else value
