"""Judges that do what real ones must survive. They run in processes of their own, so they are importable."""

import os
import time

from gptladder.ladder.grading.grade import Settings
from gptladder.ladder.grading.outcome import Outcome
from gptladder.ladder.grading.submissions import Submission


def judge(submission: Submission, rung: str, settings: Settings) -> Outcome:
    """Do what the submission's text asks for."""
    text = submission.files[0].read_text()
    with open(submission.files[0].parents[1] / "log", "a") as log:
        log.write(f"{submission.student} {rung}\n")
    if text == "hang":
        time.sleep(600)
    if text == "exit":
        os._exit(7)
    if text == "raise":
        raise RuntimeError("a fault of the grader's own")
    right = text == "right"
    return Outcome(
        student=submission.student,
        file=str(submission.files[0]),
        sha256=submission.sha256,
        rung=rung,
        status="right" if right else "wrong",
        score=settings.points[rung] if right else 0.0,
        max_score=settings.points[rung],
        version=settings.version,
        seed=settings.seed,
    )
