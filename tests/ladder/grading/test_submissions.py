"""Which files count as whose submission."""

from pathlib import Path

import pytest

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
