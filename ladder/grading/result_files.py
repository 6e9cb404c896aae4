"""The files that a grading leaves: results.csv, results.json, the teacher's page, and one file for each student.

The formats are those that teachers' tools read: spreadsheets, Gradescope, GitHub Classroom.
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...files import write_whole
from .outcome import Outcome
from .page import class_page


def write_results(
    out: Path,
    outcomes: Sequence[Outcome],
    *,
    isolation: str,
    gradescope: bool = False,
    classroom: bool = False,
    withhold_hints: bool = False,
) -> None:
    """Write all files, each whole or not at all.

    Args:
        out: the folder, which exists.
        outcomes: in the order of the students and rungs.
        isolation: what the sandbox kept apart, in words.
        gradescope, classroom: also write these formats, into folders of their names.
        withhold_hints: leave the hints out of Gradescope's files, and print them.
    """
    write_whole(out / "results.csv", as_csv(outcomes))
    write_whole(out / "results.json", as_json(outcomes, isolation=isolation))
    write_whole(out / "index.html", class_page(outcomes, isolation=isolation))
    students = dict.fromkeys(each.student for each in outcomes)
    for student in students:
        own = [each for each in outcomes if each.student == student]
        if gradescope:
            text = as_gradescope(own, withhold_hints=withhold_hints)
            _write_one(out / "gradescope", student, text)
            if withhold_hints:  # the standard output is the teacher's alone then
                for each in own:
                    print(f"{student} {each.rung}: {each.status}\n{each.hint}".rstrip())
        if classroom:
            _write_one(out / "classroom", student, as_classroom(own))


def _write_one(folder: Path, student: str, text: str) -> None:
    """Write a student's file. A name that is too long for a file, or holds a slash, is shortened, with a hash."""
    folder.mkdir(exist_ok=True)
    name = student
    if len(student.encode()) > 180 or any(each in student for each in '/\\:*?"<>|'):
        plain = "".join(each if each.isalnum() or each in " ._-" else "_" for each in student)
        name = plain.encode()[:150].decode(errors="ignore") + "-" + hashlib.sha256(student.encode()).hexdigest()[:8]
    write_whole(folder / f"{name}.json", text)


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
