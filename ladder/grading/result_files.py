"""The files that a grading leaves: results.csv, results.json, the teacher's page, and one file for each student."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ...files import write_whole
from .outcomes import Outcome, as_classroom, as_csv, as_gradescope, as_json
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
