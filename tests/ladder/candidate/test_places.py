"""Which files are the user's: no library's, however the interpreter or gptladder is installed beside them."""

import contextlib
from pathlib import Path

import pytest

import gptladder
from gptladder.ladder.candidate.places import Code
from gptladder.ladder.candidate.source import load


def test_files_in_the_same_folders_are_the_users(tmp_path: Path) -> None:
    code = Code(tmp_path / "mine.py")
    assert code.owns(str(tmp_path / "mine.py"))
    assert code.owns(str(tmp_path / "parts" / "attention.py"))
    assert not code.owns(str(tmp_path.parent / "attention.py"))


def test_the_whole_package_around_a_file_is_the_users(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "models"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent):
        (each / "__init__.py").touch()
    code = Code(folder / "block.py")
    assert code.owns(str(tmp_path / "mine" / "layers" / "attention.py"))
    assert not code.owns(str(tmp_path / "other" / "attention.py"))


def test_a_file_that_was_read_for_an_import_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "scale.py").write_text("def scaled(x):\n    return 2 * x\n")
    block = "from layers.scale import scaled\nfrom torch import nn\n\n\nclass Block(nn.Module):\n    scaled = scaled\n"
    (tmp_path / "models" / "block.py").write_text(block)
    assert load(tmp_path / "models" / "block.py").code.owns(str(tmp_path / "layers" / "scale.py"))


def test_gptladder_is_not_the_users_even_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "gptladder").symlink_to(Path(gptladder.__file__).parent, target_is_directory=True)
    assert not Code(tmp_path / "mine.py").owns(str(tmp_path / "gptladder" / "ladder" / "candidate" / "trace.py"))


def test_pythons_own_modules_below_the_folder_are_not_the_users() -> None:
    home = Path(contextlib.__file__).parents[3]
    assert not Code(home / "mine.py").owns(contextlib.__file__)


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_installed_packages_are_not_the_users(tmp_path: Path, folder: str) -> None:
    assert not Code(tmp_path / "mine.py").owns(str(tmp_path / "lib" / folder / "einops" / "layers.py"))


def test_code_without_a_file_is_not_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not Code(tmp_path / "mine.py").owns("<string>")
