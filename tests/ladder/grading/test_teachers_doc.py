"""docs/teachers.md runs as it stands: its files are written, its commands run, its outputs are the ones shown."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def run(*program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(program, capture_output=True, text=True, env=ENV, cwd=folder, timeout=240, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the page shows Linux")
def test_the_session_gives_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "submissions").mkdir()
    file, reading = blocks("python")
    name, content = file.removeprefix("# ").split("\n", 1)
    (tmp_path / name).write_text(file)
    for change in blocks("diff"):
        _, target, old, new = (line[1:] for line in change.splitlines())
        assert content.count(f"{old}\n") == 1
        (tmp_path / target.removeprefix("++ ")).write_text(file.replace(f"{old}\n", f"{new}\n"))

    (session,) = blocks("console")
    command, *shown = session.splitlines()
    words = command.removeprefix("$ gptladder ").split()
    # The page's class hangs for as long as a submission may by default.
    done = run(sys.executable, "-m", "gptladder", *words, "--time-limit", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if not line.startswith("Sandbox: ")]
    assert [*printed, *done.stdout.splitlines()] == shown

    listed = run(sys.executable, "-c", reading, folder=tmp_path).stdout
    expected = blocks("text")[0]
    assert [line.rstrip() for line in listed.splitlines()] == expected.splitlines(), list(
        difflib.unified_diff(listed.splitlines(), expected.splitlines())
    )
    for name in ("results.csv", "results.json", "index.html", "outcomes"):
        assert (tmp_path / "results" / name).exists()


def test_commands_of_the_recipes_have_options_that_exist() -> None:
    from gptladder.ladder.grading.command import GradeArguments
    from gptladder.options import parse

    recipes = "\n".join([*blocks("bash"), *blocks("yaml"), *blocks("text")]).replace("\\\n", " ")
    lines = re.findall(r"(?:gptladder grade|grader) (.*)", recipes)
    assert len(lines) == 3
    for line in lines:
        assert (
            parse(GradeArguments, line.replace('"', "").split(), prog="gptladder grade").rungs == "attention=10,mlp=5"
        )


@pytest.mark.skipif(sys.platform != "linux", reason="a recipe for Linux")
def test_the_recipe_for_gradescope_puts_the_results_in_place(tmp_path: Path) -> None:
    (tmp_path / "submission").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "submission" / "attention.py").write_text(blocks("python")[0])
    recipe = next(block for block in blocks("bash") if "run_autograder" in block)
    recipe = recipe.replace("/autograder", str(tmp_path)).replace(
        "gptladder grade", f"{sys.executable} -m gptladder grade"
    )
    done = run("bash", "-c", recipe, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"score": 10.0' in (tmp_path / "results" / "results.json").read_text()
