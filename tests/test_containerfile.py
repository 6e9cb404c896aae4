"""The Containerfile cannot be built in a test; what it names must be there, and reach the build."""

import fnmatch
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_it_begins_from_a_python_that_the_project_supports() -> None:
    (image,) = instructions("FROM")
    found = re.fullmatch(r"docker\.io/library/python:3\.(\d+)-slim", image)
    assert found is not None
    assert f"Programming Language :: Python :: 3.{found[1]}" in PROJECT["project"]["classifiers"]


def test_what_it_installs_and_starts_exists() -> None:
    (extras,) = re.findall(r"/tmp/gptladder\[([\w,]+)\]", "\n".join(LINES))
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    assert instructions("ENTRYPOINT") == ['["gptladder"]']
    assert "gptladder" in PROJECT["project"]["scripts"]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_everything_of_the_package_reaches_the_build() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    needed = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "py.typed", "__init__.py"]
    for package in PROJECT["tool"]["setuptools"]["packages"][1:]:
        folder = Path(*package.split(".")[1:])
        assert (ROOT / folder).is_dir()
        needed += [(folder / "__init__.py").as_posix()]
    for package, files in PROJECT["tool"]["setuptools"]["package-data"].items():
        needed += [Path(*package.split(".")[1:], file).as_posix() for file in files]
    for name in needed:
        assert (ROOT / name).exists(), name
        # A pattern without "**" stands for a path from the root, and hides what is below it.
        parts = name.split("/")
        starts = ["/".join(parts[: length + 1]) for length in range(len(parts))]
        assert not any(fnmatch.fnmatch(start, pattern) for start in starts for pattern in ignored), name
