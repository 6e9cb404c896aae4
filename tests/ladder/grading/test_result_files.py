"""The forms that teachers' tools read: CSV, JSON, Gradescope, GitHub Classroom."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from gptladder.ladder.grading.outcome import Outcome
from gptladder.ladder.grading.result_files import as_classroom, as_csv, as_gradescope, as_json

RIGHT = Outcome("ann", "ann.py:Attention", "ab", "attention", "right", 10.0, 10.0, seconds=2.4, version="1", hint="")
WRONG = Outcome(
    "ann", "ann.py:MLP", "ab", "mlp", "wrong", 0.0, 5.0, "gelu missing", "ann.py:7", 0.5, 1e-12, hint="Look at line 7."
)


def test_csv_has_a_line_for_each_and_no_formula() -> None:
    student = dataclasses.replace(RIGHT, student='=HYPERLINK("x")', mistake=" +1", line="\tx")
    text = as_csv([student, WRONG])
    assert text.startswith("\ufeffstudent,file,sha256,rung,status,score,max_score,mistake,line,error,limit,borrowed,")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert rows[0]["student"] == '\'=HYPERLINK("x")'
    assert rows[0]["mistake"] == "' +1"
    assert rows[0]["line"] == "'\tx"
    assert rows[0]["error"] == ""
    assert rows[1]["error"] == "0.5"
    assert rows[1]["status"] == "wrong"
    assert "hint" not in rows[0]


def test_pandas_reads_the_table_with_its_types(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    named = dataclasses.replace(RIGHT, student='\u00e9\u4e2d, "x"\nline')
    hung = dataclasses.replace(WRONG, status="hung", limit="20 s a case, 2048 MB, 32 processes", error=None)
    (tmp_path / "results.csv").write_text(as_csv([named, hung]), encoding="utf-8", newline="")
    table = pandas.read_csv(tmp_path / "results.csv")
    assert list(table.student) == [named.student, "ann"]  # the byte-order mark is no part of the first column's name
    assert table.score.sum() == 10.0
    assert table.groupby("student").max_score.sum().to_dict() == {named.student: 10.0, "ann": 5.0}
    assert list(table.limit.dropna()) == [hung.limit]


def test_json_holds_everything() -> None:
    read = json.loads(as_json([RIGHT, WRONG]))
    assert [Outcome(**each) for each in read["outcomes"]] == [RIGHT, WRONG]


@pytest.mark.parametrize("withhold", [False, True])
def test_gradescope_gives_each_rung_its_points(withhold: bool) -> None:
    read = json.loads(as_gradescope([RIGHT, WRONG], withhold_hints=withhold))
    assert read["score"] == 10.0
    assert [(test["name"], test["score"], test["max_score"], test["status"]) for test in read["tests"]] == [
        ("attention", 10.0, 10.0, "passed"),
        ("mlp", 0.0, 5.0, "failed"),
    ]
    assert all(test["visibility"] == "visible" for test in read["tests"])  # a hidden test would hide the total
    assert ("Look at line 7." in read["tests"][1]["output"]) != withhold
    assert read["stdout_visibility"] == ("hidden" if withhold else "visible")


def test_classroom_passes_only_when_all_is_right() -> None:
    read = json.loads(as_classroom([RIGHT, WRONG]))
    assert read["status"] == "fail"
    assert read["max_score"] == 15.0
    assert [test["status"] for test in read["tests"]] == ["pass", "fail"]
    assert [test["line_no"] for test in read["tests"]] == [0, 7]
    assert read["tests"][1]["test_code"] == "Look at line 7."  # all that the reporter prints of a failed test
    assert json.loads(as_classroom([RIGHT]))["status"] == "pass"
    broken = dataclasses.replace(WRONG, status="not graded")
    assert json.loads(as_classroom([broken]))["tests"][0]["status"] == "error"


def test_right_in_float32_passes() -> None:
    assert dataclasses.replace(WRONG, status="right in float32").passed
    assert not WRONG.passed
