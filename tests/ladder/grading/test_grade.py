"""Grading goes on after any fault of one submission, and never judges the same thing twice."""

import dataclasses
import sys
from pathlib import Path

import pytest

from gptladder.ladder.grading import grade as grading
from gptladder.ladder.grading.grade import Settings, grade
from gptladder.ladder.grading.result_files import as_csv
from gptladder.ladder.grading.submissions import Submission, find_submissions

sys.path.insert(0, str(Path(__file__).parent))
from fake_judges import judge

SETTINGS = Settings(points={"attention": 10.0, "mlp": 5.0}, version="1", time_limit=2.0)


@pytest.fixture
def submissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    monkeypatch.setattr(grading, "_GRACE_SECONDS", 3.0)
    folder = tmp_path / "class"
    folder.mkdir()
    for name in ("right", "wrong", "hang", "exit", "raise"):
        (folder / f"{name}.py").write_text(name)
    return find_submissions(folder)


def test_every_submission_gets_an_outcome(submissions: list[Submission], tmp_path: Path) -> None:
    outcomes = list(grade(submissions, judge, SETTINGS, folder=tmp_path / "outcomes", jobs=4))
    assert len(outcomes) == 10
    found = {(each.student, each.rung): each for each in outcomes}
    for rung, points in SETTINGS.points.items():
        assert (found["right", rung].status, found["right", rung].score) == ("right", points)
        assert (found["wrong", rung].status, found["wrong", rung].score) == ("wrong", 0.0)
        assert (found["hang", rung].status, found["hang", rung].score) == ("hung", 0.0)
        assert found["exit", rung].status == "not graded"
        assert "status 7" in found["exit", rung].hint
        assert found["raise", rung].hint == "RuntimeError: a fault of the grader's own"
        assert all(found[student, rung].max_score == points for student in ("hang", "exit", "raise"))


def test_what_is_judged_is_not_judged_again(submissions: list[Submission], tmp_path: Path) -> None:
    some = [each for each in submissions if each.student in ("right", "wrong", "raise")]
    log, outcomes = tmp_path / "log", tmp_path / "outcomes"
    first = list(grade(some, judge, SETTINGS, folder=outcomes, jobs=2))
    log.unlink()
    again = list(grade(some, judge, SETTINGS, folder=outcomes, jobs=2))
    assert sorted(map(str, again)) != []
    assert {line.split()[0] for line in log.read_text().splitlines()} == {"raise"}  # the grader's fault, tried again
    assert {each for each in first if each.student != "raise"} == {each for each in again if each.student != "raise"}

    # Another seed, another file, a damaged outcome: judged anew.
    log.unlink()
    list(grade(some[:1], judge, dataclasses.replace(SETTINGS, seed=1), folder=outcomes, jobs=2))
    right = next(each for each in some if each.student == "right")
    right.files[0].write_text("wrong")
    changed = find_submissions(right.files[0].parent)
    changed = [each for each in changed if each.student == "right"]
    assert [each.status for each in grade(changed, judge, SETTINGS, folder=outcomes, jobs=2)] == ["wrong", "wrong"]
    assert log.exists()
    for path in outcomes.iterdir():
        path.write_text(path.read_text()[:-20])
    assert [each.status for each in grade(changed, judge, SETTINGS, folder=outcomes, jobs=2)] == ["wrong", "wrong"]


def test_stopping_ends_what_runs_and_keeps_what_is_judged(submissions: list[Submission], tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes"
    stopped = grade(submissions, judge, SETTINGS, folder=outcomes, jobs=1)
    first = next(stopped)
    stopped.close()
    assert len(list(outcomes.iterdir())) == 1
    assert next(grade(submissions, judge, SETTINGS, folder=outcomes, jobs=1)).student == first.student


def test_limits_are_named_where_a_layer_met_them() -> None:
    assert SETTINGS.limit_of("wrong") is None
    assert SETTINGS.limit_of("hung") == "2 s a case, 2048 MB, 32 processes"
    lacking = dataclasses.replace(SETTINGS, unlimited=("processes", "memory"))
    assert lacking.limit_of("crashed") == "2 s a case; processes and memory not limited on this system"


def test_characters_that_no_file_takes_are_escaped(submissions: list[Submission], tmp_path: Path) -> None:
    odd = dataclasses.replace(submissions[0], student="a\udcff\x1b")
    outcome = next(grade([odd], judge, SETTINGS, folder=tmp_path / "outcomes", jobs=1))
    assert outcome.student == "a\\udcff\\x1b"
    as_csv([outcome]).encode()
