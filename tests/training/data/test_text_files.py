"""Which files of a folder are read, which are left out and counted, and what is refused by name."""

import os
import socket
from pathlib import Path

import pytest

from gptladder.training.data.text_files import find_text_files


def fill(folder: Path, *names: str, text: str = "Some words.") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(*paths: Path) -> tuple[list[str], str]:
    result = find_text_files(paths)
    return [str(file.path.relative_to(paths[0])) for file in result.files], result.left_out


def test_every_known_kind_is_read_whatever_the_case_of_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "B.TXT", "c.md", "d.py", "e", "f.csv", "g.tar.gz", "h.gz")
    fill(tmp_path, "i.jsonl", text='{"text": "words"}')
    files, left_out = found(tmp_path)
    assert files == ["B.TXT", "a.txt", "c.md", "i.jsonl"]
    assert left_out.startswith("left out: 5 of other kinds (")


def test_what_programs_leave_in_a_folder_is_left_out_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "._a.txt", ".hidden.txt", ".git/b.txt", ".ipynb_checkpoints/c.txt")
    fill(tmp_path, "venv/pyvenv.cfg", "venv/lib/license.txt", "conda/conda-meta/x.json", "conda/share/licence.txt")
    fill(tmp_path, "__pycache__/d.txt", "node_modules/e/README.md", "__MACOSX/f.txt")
    fill(tmp_path, "runs/x/config.json", "runs/x/metrics.jsonl", "runs/x/samples.md", "runs/x/final/README.md")
    fill(tmp_path, "data/x/prepared.json", "data/x/notes.txt")
    fill(tmp_path, "empty.txt", text="")
    fill(tmp_path, "blank.txt", text=" \n\n\t\n")
    files, left_out = found(tmp_path)
    assert files == ["a.txt"]
    parts = set(left_out.removeprefix("left out: ").split(", "))
    assert parts == {"4 hidden", "2 virtual environments", "3 caches", "2 runs or prepared data", "2 empty"}


def test_a_named_file_is_read_whatever_its_name_ends_in(tmp_path: Path) -> None:
    fill(tmp_path, "input", "book.rst", ".notes")
    for name in ("input", "book.rst", ".notes"):
        assert [file.kind for file in find_text_files([tmp_path / name]).files] == ["text"]


def test_a_folder_named_directly_is_read_though_hidden(tmp_path: Path) -> None:
    fill(tmp_path, ".texts/a.txt")
    assert found(tmp_path / ".texts") == (["a.txt"], "")


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    fill(tmp_path / "texts", "a.txt", "sub/b.txt")
    fill(tmp_path / "elsewhere", "c.txt")
    (tmp_path / "texts" / "sub" / "up").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "z.txt").symlink_to("a.txt")
    files, left_out = found(tmp_path / "texts")
    assert files == ["a.txt", "linked/c.txt", "sub/b.txt"]
    assert left_out == "left out: 1 folders found twice, 1 found twice"


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.txt")
    files, left_out = found(tmp_path, tmp_path / "a.txt")
    assert (files, left_out) == (["a.txt", "b.txt"], "left out: 1 found twice")


def test_pipes_and_sockets_in_a_folder_do_not_block(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.txt"))
        assert found(tmp_path) == (["a.txt"], "left out: 2 pipes or devices")


def test_a_pipe_given_as_the_text_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"pipe\.txt is a pipe or device, and a text is read twice: save it in a file"):
        find_text_files([tmp_path / "pipe.txt"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.txt", r"^there is no file or folder .*nothing\.txt$"),
        ("a.txt/b.txt", r"there is no file or folder .*a\.txt/b\.txt"),
        ("nul\0.txt", r"cannot be read \(.*null"),
        ("loop.txt", r"loop\.txt: cannot be read \(Too many levels of symbolic links\)"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path: Path, name: str, message: str) -> None:
    fill(tmp_path, "a.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(ValueError, match=message):
        find_text_files([f"{tmp_path}/{name}"])


def test_a_file_of_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(ValueError, match=r"gone\.txt: cannot be read \(No such file or directory\)"):
        find_text_files([tmp_path])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.txt", "sub/b.txt")
    listing = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"sub: cannot be read \(Permission denied\)"):
        find_text_files([tmp_path])


def test_a_folder_without_text_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, "a.py", "b.csv", ".c.txt")
    with pytest.raises(ValueError, match=r"there is no text in .*: files that end in \.txt, .* are read; left out: "):
        find_text_files([tmp_path])
    fill(tmp_path, "empty.txt", text="")
    with pytest.raises(ValueError, match=r"empty\.txt is empty, or holds nothing but white space"):
        find_text_files([tmp_path / "empty.txt"])


def test_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"https://x\.org/a\.txt is an address, not a file: fetch it first"):
        find_text_files(["https://x.org/a.txt"])


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_text_files(["~/a.txt"]).files[0].path == tmp_path / "a.txt"


def test_names_that_are_not_utf8_can_be_shown(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/a.txt", "w") as file:
        file.write("words")
    with pytest.raises(ValueError, match=r"caf\ufffd/b\.txt"):
        find_text_files([os.fsdecode(folder + b"/b.txt")])
    assert len(find_text_files([os.fsdecode(folder)]).files) == 1
