"""Judge many submissions at a time, each layer in a process of its own, and store each outcome at once."""

import hashlib
import json
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ...files import FileError, read_json, write_whole
from ..sandbox import Limits
from ..sandbox.processes import context_of_judges
from .outcome import Outcome, Status
from .submissions import Submission, printable

# Beyond a submission's own limit: to start the two processes and to describe the mistake.
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """How every submission is judged.

    Args:
        points: what each rung is worth.
        version: of gptladder.
        seed: of the cases.
        cases: for each rung.
        time_limit: seconds of wall time that a layer has for one case.
        limits: what one submission may use on one rung.
        hint: how much the student is shown: ``where``, ``what`` or ``fix``.
        unlimited: what this system cannot limit, such as ``memory``.
    """

    points: Mapping[str, float]
    version: str
    seed: int = 0
    cases: int = 25
    time_limit: float = 60.0
    limits: Limits = field(default_factory=Limits)
    hint: str = "what"
    unlimited: tuple[str, ...] = ()

    def outcome(self, submission: Submission, rung: str, status: Status, **known: Any) -> Outcome:
        """Return the outcome of a submission on a rung; without points, unless a score is among what is known."""
        outcome = Outcome(
            student=submission.student,
            file="",
            sha256=submission.sha256,
            rung=rung,
            status=status,
            score=0.0,
            max_score=self.points[rung],
            limit=self.limit_of(status),
            version=self.version,
            seed=self.seed,
        )
        return replace(outcome, **known)

    def limit_of(self, status: Status) -> str | None:
        """Return the limits that a layer was run with, if it was stopped or ended its process; else None."""
        if status not in ("hung", "crashed", "over a limit"):
            return None
        if self.unlimited:
            return f"{self.time_limit:g} s a case; {' and '.join(self.unlimited)} not limited on this system"
        return f"{self.time_limit:g} s a case, {self.limits.memory // 2**20} MB, {self.limits.processes} processes"


Judge = Callable[[Submission, str, Settings], Outcome]
"""Judges one submission on one rung. It runs in a process of its own, so it must be importable by name."""


def grade(
    submissions: Sequence[Submission], judge: Judge, settings: Settings, *, folder: Path, jobs: int
) -> Generator[Outcome, None, None]:
    """Judge every submission on every rung, and yield each outcome as soon as it is known.

    Outcomes that are in ``folder`` already, of the same files and settings, are not judged again. Each outcome is
    written by this process, whole, after the submission's processes have ended.

    Args:
        submissions: what to judge.
        judge: judges one of them on one rung.
        settings: how; ``settings.points`` names the rungs.
        folder: for the outcomes, to continue later.
        jobs: how many are judged at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[tuple[Submission, str]] = []
    for submission in submissions:
        for rung in settings.points:
            earlier = _earlier(folder, submission, rung, settings)
            if earlier is not None:
                yield earlier
            else:
                waiting.append((submission, rung))
    waiting.reverse()
    running: list[_Judging] = []
    context = context_of_judges()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Judging(context, judge, settings, *waiting.pop()))
            for each in _ended(running):
                outcome = _printable(each.outcome())
                write_whole(_place(folder, each.submission, each.rung, settings), json.dumps(asdict(outcome)) + "\n")
                yield outcome
    finally:
        for each in running:
            each.stop()


class _Judging:
    """A submission that is being judged on a rung, in a process of its own."""

    def __init__(self, context: Any, judge: Judge, settings: Settings, submission: Submission, rung: str) -> None:
        self.submission, self.rung, self.settings = submission, rung, settings
        self.limit, self.late = settings.time_limit + _GRACE_SECONDS, False
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, judge, submission, rung, settings), daemon=True)
        with warnings.catch_warnings():
            # As in processes.py: the threads are numerical libraries'.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()
        self.began = time.monotonic()

    def is_over(self, ready: Sequence[Any]) -> bool:
        """Return whether it has reported or ended, if one of its handles is ready, or has used up its time."""
        self.late = time.monotonic() - self.began > self.limit
        return self.late or self.pipe in ready or self.process.sentinel in ready

    def outcome(self) -> Outcome:
        """End the process, and return what it reported, or how it ended."""
        message: dict[str, Any] | None = None
        if self.pipe.poll():
            with suppress(EOFError, OSError, ValueError):
                message = json.loads(self.pipe.recv_bytes())
        seconds = round(time.monotonic() - self.began, 2)
        if message is None and not self.late:
            self.process.join(timeout=5)  # its end of the pipe closes a moment before it ends
        self.stop()
        if message is not None and "failed" not in message:
            return replace(Outcome(**message), seconds=seconds)
        status: Status = "not graded"
        if message is not None:
            hint = message["failed"]
        elif self.late:
            status, hint = "hung", f"the rung did not end within {self.limit:g} s"
        else:
            hint = f"the judging process ended with status {self.process.exitcode}"
        return self.settings.outcome(self.submission, self.rung, status, seconds=seconds, hint=hint)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection, judge: Judge, submission: Submission, rung: str, settings: Settings) -> None:
    """In the process of its own: judge, and report. Ctrl-C reaches it too, but ending it is its parent's task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        message = asdict(judge(submission, rung, settings))
    except Exception as error:  # reported, so that one submission cannot stop the others
        message = {"failed": f"{type(error).__name__}: {error}"}
    pipe.send_bytes(json.dumps(message).encode())
    pipe.close()


def _ended(running: list[_Judging]) -> Iterator[_Judging]:
    """Wait until some have reported, ended, or used up their time; remove them from the list."""
    deadline = min(each.began + each.limit for each in running)
    handles = [handle for each in running for handle in (each.pipe, each.process.sentinel)]
    ready = wait(handles, timeout=max(0.0, deadline - time.monotonic()))
    for each in list(running):
        if each.is_over(ready):
            running.remove(each)
            yield each


def _printable(outcome: Outcome) -> Outcome:
    """Return the outcome without characters that files, terminals or spreadsheets cannot take."""
    texts = {name: value for name, value in asdict(outcome).items() if isinstance(value, str)}
    lines = {name: "\n".join(map(printable, text.expandtabs(4).split("\n"))) for name, text in texts.items()}
    return replace(outcome, **lines)


def _earlier(folder: Path, submission: Submission, rung: str, settings: Settings) -> Outcome | None:
    """Return the outcome of an earlier call, unless it is damaged or a fault of the grader's own."""
    path = _place(folder, submission, rung, settings)
    if not path.exists():
        return None
    try:
        outcome = Outcome(**read_json(path))
    except (FileError, TypeError):
        return None
    return None if outcome.status == "not graded" else outcome


def _place(folder: Path, submission: Submission, rung: str, settings: Settings) -> Path:
    """Return the file of an outcome. Its name holds a hash of all that the outcome depends on."""
    depends = [submission.student, submission.sha256, rung, asdict(settings)]
    return folder / f"{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24]}.json"
