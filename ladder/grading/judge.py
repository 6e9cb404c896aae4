"""Judge one submission on one rung."""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..candidate.aliases import CLASS_NAMES
from ..candidate.source import CandidateError
from ..climbing import climb
from ..results import Climb, Tried
from .grade import Settings
from .outcome import Outcome, Status
from .submissions import Submission

_STATUS_OF_FAULT: dict[str, Status] = {
    "hang": "hung",
    "died": "crashed",
    "exit": "crashed",
    "limit": "over a limit",
    "build": "cannot be built",
    "parameters": "cannot be built",
    "internal": "not graded",
}
_MOST_TEXT = 10_000_000
# Of several files, the outcome of the one that came furthest counts.
_ORDER: tuple[Status, ...] = (
    "no layer",
    "cannot be read",
    "hung",
    "over a limit",
    "crashed",
    "cannot be built",
    "wrong",
    "not graded",  # staff look at it, whatever the student's other files are
    "right in float32",
    "right",
)


def judge(submission: Submission, rung: str, settings: Settings) -> Outcome:
    """Return the outcome of one submission on one rung.

    Files are tried until one holds a right layer, those with a class of a fitting name first. If none does, the outcome
    is that of the file that came furthest, the first of several. No further file is begun after `Settings.time_limit`.
    """
    torch.set_num_threads(1)  # other submissions are judged beside this one
    began = time.monotonic()
    if submission.fault and not submission.files:
        return settings.outcome(submission, rung, "cannot be read", hint=_shown(submission.fault, submission))
    if not submission.files:
        hint = "the submission has no .py file, no notebook and no zip file"
        return settings.outcome(submission, rung, "no layer", hint=hint)
    best = _no_layer(submission, rung, settings)
    for file in _likely_first(submission.files, rung):
        found = _tried(submission, file, rung, settings)
        if _ORDER.index(found.status) > _ORDER.index(best.status):
            best = found
        if best.passed or time.monotonic() - began > settings.time_limit:
            break
    return best


def _likely_first(files: Sequence[Path], rung: str) -> list[Path]:
    """Return the files that can hold a layer: first those with a class whose name fits the rung."""
    likely = []
    for file in files:
        try:
            with file.open(encoding="utf-8", errors="replace") as stream:
                text = stream.read(_MOST_TEXT)
        except OSError:
            text = ""
        names = re.findall(r"\bclass\s+(\w+)", text)
        if any(re.search(CLASS_NAMES[rung], name, re.IGNORECASE) for name in names):
            likely.append((0, file))
        elif names or len(files) == 1 or rung.replace("-", "_") in text:
            likely.append((1, file))
    return [file for _, file in sorted(likely, key=lambda each: each[0])]


def _tried(submission: Submission, file: Path, rung: str, settings: Settings) -> Outcome:
    hidden, visible = (tuple(map(str, paths)) for paths in (submission.hidden, submission.places))
    try:
        climbed = climb(
            file,
            cases=settings.cases,
            seed=settings.seed,
            time_limit=settings.time_limit,
            hint=settings.hint,  # pyright: ignore[reportArgumentType]
            only=rung,
            limits=replace(settings.limits, hidden=hidden, visible=visible),
            copy_process=True,
        )
    except CandidateError as error:
        if error.kind == "no layer":
            return _no_layer(submission, rung, settings)
        return settings.outcome(
            submission,
            rung,
            _STATUS_OF_FAULT.get(error.kind, "cannot be read"),
            file=file.name,
            mistake=error.kind,
            line=Path(error.at or "").name,
            hint=_shown(str(error), submission),
        )
    if not climbed.rungs:
        return _no_layer(submission, rung, settings)
    return _outcome(submission, file, climbed, climbed.rungs[0], settings)


def _no_layer(submission: Submission, rung: str, settings: Settings) -> Outcome:
    unread = f"; not all of it could be read: {_shown(submission.fault, submission)}" if submission.fault else ""
    return settings.outcome(
        submission, rung, "no layer", hint=f"no class for {rung} was found in the submission{unread}"
    )


def _outcome(submission: Submission, file: Path, climbed: Climb, tried: Tried, settings: Settings) -> Outcome:
    status: Status
    if tried.passed:
        status = "right in float32" if tried.verdict is not None and tried.verdict.lenient else "right"
    else:
        status = _STATUS_OF_FAULT.get(tried.fault.kind if tried.fault else "", "wrong")
    verdict = tried.verdict
    return settings.outcome(
        submission,
        tried.rung,
        status,
        file=f"{file.name}:{tried.layer.rpartition(':')[2]}",
        score=settings.points[tried.rung] if tried.passed else 0.0,
        mistake="; ".join(tried.mistakes) or (tried.fault.kind if tried.fault else ""),
        line=Path(tried.at or "").name,
        error=None if verdict is None or not math.isfinite(verdict.float64) else verdict.float64,
        limit=settings.limit_of(status) or (None if verdict is None else verdict.tolerance64),
        borrowed="; ".join(tried.borrowed),
        hint=_shown(tried.text(climbed.hint) if not tried.passed else tried.note, submission),
    )


def _shown(text: str, submission: Submission) -> str:
    """Return a message without the folders of this machine, which are not the student's concern."""
    for place in sorted(submission.places, key=lambda each: -len(str(each))):
        folder = place if place.is_dir() else place.parent
        text = text.replace(f"{folder}{os.sep}", "")
    return text
