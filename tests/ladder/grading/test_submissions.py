"""Which files count as whose submission."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from gptladder.ladder.grading.grade import Settings
from gptladder.ladder.grading.judge import judge
from gptladder.ladder.grading.submissions import find_submissions


def test_folders_and_files_are_students(tmp_path: Path) -> None:
    (tmp_path / "bea").mkdir()
    (tmp_path / "bea" / "layers.py").write_text("b")
    (tmp_path / "bea" / "sub").mkdir()
    (tmp_path / "bea" / "sub" / "work.ipynb").write_text("{}")
    (tmp_path / "ann.py").write_text("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a submission")
    found = find_submissions(tmp_path)
    assert [each.student for each in found] == ["ann", "bea", "empty"]
    assert [file.name for file in found[1].files] == ["layers.py", "work.ipynb"]
    assert found[2].files == ()


@pytest.mark.parametrize("name", [".hidden.py", "._ann.py", "__MACOSX", "__pycache__", ".git"])
def test_what_no_student_wrote_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "mine.py").write_text("a")
    for folder in (tmp_path, tmp_path / "ann"):
        if "." in name[1:]:
            (folder / name).write_text("x")
        else:
            (folder / name).mkdir()
            (folder / name / "x.py").write_text("x")
    (only,) = find_submissions(tmp_path)
    assert [file.name for file in only.files] == ["mine.py"]


def test_links_and_virtual_environments_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "mine.py").write_text("a")
    (tmp_path / "ann" / "venv").mkdir()
    (tmp_path / "ann" / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "ann" / "venv" / "x.py").write_text("x")
    (tmp_path / "other.py").write_text("secret")
    (tmp_path / "ann" / "link.py").symlink_to(tmp_path / "other.py")
    assert [file.name for file in find_submissions(tmp_path)[0].files] == ["mine.py"]


def test_the_hash_changes_with_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.py", "x"), ("a.py", "y"), ("b.py", "x")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        hashes.add(find_submissions(folder, single=True)[0].sha256)
    assert len(hashes) == 3


def test_what_cannot_be_graded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        find_submissions(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no submission"):
        find_submissions(tmp_path)
    (tmp_path / "ann.py").write_text("a")
    (tmp_path / "ann").mkdir()
    with pytest.raises(ValueError, match="two submissions of ann"):
        find_submissions(tmp_path)


def test_names_of_learning_platforms_are_understood(tmp_path: Path) -> None:
    for name in (
        "Ann Lee_12_assignsubmission_file_",
        "Ann Lee_12_assignsubmission_onlinetext_",
        "Bo_3_assignsubmission_file",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name[-3:].strip('_')}.py").write_text("a")
    (tmp_path / "Cem_4_assignsubmission_file_mine.py").write_text("a")
    for name in ("leeann_12_34_a.py", "leeann_12_35_b-1.py", "kimbo_LATE_7_8_work.ipynb", "no_canvas_name.py"):
        (tmp_path / name).write_text("a")
    found = {each.student: [file.name for file in each.files] for each in find_submissions(tmp_path)}
    assert found == {
        "Ann Lee_12": ["le.py", "xt.py"],
        "Bo_3": ["ile.py"],
        "Cem_4": ["Cem_4_assignsubmission_file_mine.py"],
        "kimbo_7": ["kimbo_LATE_7_8_work.ipynb"],
        "leeann_12": ["leeann_12_34_a.py", "leeann_12_35_b-1.py"],
        "no_canvas_name": ["no_canvas_name.py"],
    }


def packed(path: Path, files: dict[str, bytes | str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)


def test_zip_files_are_unpacked_and_stay_in_their_folder(tmp_path: Path) -> None:
    folder, unpacked = tmp_path / "class", tmp_path / "unpacked"
    (folder / "bea").mkdir(parents=True)
    unpacked.mkdir()
    files = {"work/a.py": "a", "work\\b.py": "b", "../c.py": "c", "/d.py": "d", "__MACOSX/e.py": "e", "f.txt": "f"}
    packed(folder / "ann.zip", {**files, "inner.zip": b"x"})
    packed(folder / "bea" / "mine.ZIP", {"a.ipynb": "{}"})
    ann, bea = find_submissions(folder, unpack_into=unpacked)
    assert sorted(file.name for file in ann.files) == ["a.py", "b.py", "d.py"]
    assert [file.name for file in bea.files] == ["a.ipynb"]
    assert all(file.is_relative_to(unpacked) for file in (*ann.files, *bea.files))
    assert {path.name for path in tmp_path.rglob("*.py")} == {"a.py", "b.py", "d.py"}
    assert unpacked in ann.hidden
    assert not ann.fault
    again = tmp_path / "again"
    again.mkdir()
    assert find_submissions(folder, unpack_into=again)[0].sha256 == ann.sha256


def test_damaged_and_huge_zip_files_are_a_fault_of_one_student(tmp_path: Path) -> None:
    folder, unpacked = tmp_path / "class", tmp_path / "unpacked"
    folder.mkdir()
    unpacked.mkdir()
    packed(folder / "bomb.zip", {"a.py": bytes(300 << 20)})
    packed(folder / "many.zip", {f"{i}.py": "" for i in range(5001)})
    (folder / "noise.zip").write_bytes(os.urandom(999))
    packed(folder / "cut.zip", {"a.py": os.urandom(9999)})
    data = (folder / "cut.zip").read_bytes()
    (folder / "cut.zip").write_bytes(data[:500] + bytes(5000) + data[5500:])
    (folder / "right.py").write_text("x")
    faults = {each.student: each.fault for each in find_submissions(folder, unpack_into=unpacked)}
    assert "bomb.zip cannot be unpacked: it unpacks to more than 5,000 files and 200 MB" in faults["bomb"]
    assert "more than" in faults["many"]
    assert "noise.zip cannot be unpacked" in faults["noise"]
    assert "cut.zip cannot be unpacked" in faults["cut"] or "cut.zip is damaged" in faults["cut"]
    assert faults["right"] == ""
    assert sum(path.stat().st_size for path in unpacked.rglob("*") if path.is_file()) < 20_000


def test_a_link_to_another_submission_is_no_submission(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.py").write_text("a")
    (tmp_path / "class" / "ann.py").write_text("a")
    (tmp_path / "class" / "bea.py").symlink_to("ann.py")
    (tmp_path / "class" / "cem").symlink_to(tmp_path / "elsewhere")  # made by the teacher
    (tmp_path / "class" / "dan.py").symlink_to("gone.py")
    (tmp_path / "class" / "eva.py").symlink_to("eva.py")  # a circle
    ann, bea, cem, dan, eva = find_submissions(tmp_path / "class")
    assert bea.fault == "bea.py is a link to another submission"
    assert dan.fault == "dan.py is a link to a file that does not exist"
    assert eva.fault == "eva.py is a link to a file that does not exist"
    assert (bea.files, ann.fault, cem.fault) == ((), "", "")
    assert len(cem.files) == 1


def test_results_in_the_folder_are_no_submission(tmp_path: Path) -> None:
    (tmp_path / "ann.py").write_text("a")
    (tmp_path / "results").mkdir()
    (only,) = find_submissions(tmp_path, leave_out=[tmp_path / "results"])
    assert only.student == "ann"
    assert set(only.hidden) == {tmp_path, tmp_path / "results"}
    (tmp_path / "earlier" / "outcomes").mkdir(parents=True)
    (tmp_path / "earlier" / "results.json").write_text("{}")
    (only,) = find_submissions(tmp_path, leave_out=[tmp_path / "results"])
    assert only.student == "ann"


@pytest.mark.skipif(os.name == "nt", reason="paths of Windows are shorter")
def test_folders_nested_too_deeply_are_a_fault_of_one_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ann.py").write_text("a")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("mine.py").write_text("a")
    monkeypatch.undo()
    try:
        ann, deep = find_submissions(tmp_path)
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "deep")], check=True)  # Python's own calls itself for each folder
    assert (ann.fault, deep.files) == ("", ())
    assert deep.fault


def test_a_part_that_cannot_be_read_is_named_when_no_layer_is_found(tmp_path: Path) -> None:
    (tmp_path / "class" / "ann").mkdir(parents=True)
    for name in ("notes.py", "more.py"):
        (tmp_path / "class" / "ann" / name).write_text("x = 1")
    (tmp_path / "class" / "ann" / "work.zip").write_bytes(b"noise")
    (tmp_path / "unpacked").mkdir()
    (ann,) = find_submissions(tmp_path / "class", unpack_into=tmp_path / "unpacked")
    outcome = judge(ann, "mlp", Settings(points={"mlp": 1.0}, version="1", cases=1))
    assert outcome.status == "no layer"
    assert "not all of it could be read: work.zip cannot be unpacked" in outcome.hint
