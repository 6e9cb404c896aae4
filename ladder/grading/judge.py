"""Judge one submission on one rung."""

from pathlib import Path

from ..candidate.isolation import Limits
from ..candidate.source import CandidateError
from ..climbing import climb
from ..results import Climb, Tried
from .grade import Settings
from .outcomes import Outcome, Status
from .submissions import Submission

_STATUS_OF_FAULT: dict[str, Status] = {
    "hang": "hung",
    "died": "crashed",
    "exit": "crashed",
    "limit": "over a limit",
    "build": "cannot be built",
    "parameters": "cannot be built",
}


def judge(submission: Submission, rung: str, settings: Settings) -> Outcome:
    """Return the outcome of one submission on one rung.

    The files are tried in the order of their paths, until one holds a layer for the rung.
    """
    status, hint = "no layer", f"no class for {rung} was found in the submission"
    for file in submission.files:
        try:
            climbed = climb(
                file,
                cases=settings.cases,
                seed=settings.seed,
                time_limit=settings.time_limit,
                hint=settings.hint,  # pyright: ignore[reportArgumentType]
                only=rung,
                limits=Limits(memory=settings.memory, processes=settings.processes),
            )
        except CandidateError as error:
            # A file without any layer is no fault, if another one has what is asked for.
            if status == "no layer" and error.kind != "no layer":
                status, hint = _STATUS_OF_FAULT.get(error.kind, "cannot be read"), str(error)
            continue
        if climbed.rungs:
            return _outcome(submission, file, climbed, climbed.rungs[0], settings)
    return _empty(submission, rung, settings, status, hint)


def _empty(submission: Submission, rung: str, settings: Settings, status: Status, hint: str) -> Outcome:
    return Outcome(
        student=submission.student,
        file="",
        sha256=submission.sha256,
        rung=rung,
        status=status,
        score=0.0,
        max_score=settings.points[rung],
        version=settings.version,
        seed=settings.seed,
        hint=hint,
    )


def _outcome(submission: Submission, file: Path, climbed: Climb, tried: Tried, settings: Settings) -> Outcome:
    status: Status
    if tried.passed:
        status = "right in float32" if tried.verdict is not None and tried.verdict.lenient else "right"
    else:
        status = _STATUS_OF_FAULT.get(tried.fault.kind if tried.fault else "", "wrong")
    verdict, points = tried.verdict, settings.points[tried.rung]
    return Outcome(
        student=submission.student,
        file=f"{file.name}:{tried.layer.rpartition(':')[2]}",
        sha256=submission.sha256,
        rung=tried.rung,
        status=status,
        score=points if tried.passed else 0.0,
        max_score=points,
        mistake="; ".join(tried.mistakes) or (tried.fault.kind if tried.fault else ""),
        line=Path(tried.at or "").name,
        error=None if verdict is None else verdict.float64,
        limit=None if verdict is None else verdict.tolerance64,
        borrowed="; ".join(tried.borrowed),
        version=settings.version,
        seed=settings.seed,
        hint=tried.text(climbed.hint) if not tried.passed else tried.note,
    )
