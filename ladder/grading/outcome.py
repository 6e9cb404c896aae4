"""The outcome of grading one student's layer on one rung."""

from dataclasses import dataclass
from typing import Literal

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
