"""``gptladder grade``."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ... import __version__
from ...files import user_path
from ...options import parse
from ..rungs import RUNGS, rung
from ..sandbox import Limits
from ..sandbox.processes import probe
from .grade import Settings
from .grade import grade as grade_all
from .judge import judge
from .outcome import Outcome
from .result_files import write_results
from .submissions import Submission, find_submissions


@dataclass(frozen=True, kw_only=True)
class GradeArguments:
    """Judge a folder of submissions: each on each rung, in a sandbox of its own. It can be stopped and run again."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder with one folder, .py file or notebook for each student."""
    rungs: str
    """Layers to judge, separated by commas, such as attention,mlp; attention=10 gives a rung 10 points (default: 1)."""
    out: Path = Path("results")
    """Folder for results.csv, results.json, index.html, and what is needed to continue."""
    single: bool = False
    """The folder is one student's submission."""
    gradescope: bool = False
    """Write Gradescope's results.json for each student too: OUT/gradescope/STUDENT.json."""
    classroom: bool = False
    """Write GitHub Classroom's result for each student too: OUT/classroom/STUDENT.json."""
    hint: Literal["where", "what", "fix"] = "what"
    """How much the students are shown."""
    withhold_hints: bool = False
    """Keep hints out of what Gradescope shows; they stay in results.json."""
    jobs: int | None = None
    """Submissions judged at a time (default: as many as there are processors)."""
    time_limit: float = 20.0
    """Seconds that a layer has for one case; the whole rung may take 30 seconds more."""
    memory_mb: int = 2048
    """Memory of one submission on one rung, in MB (2^20 bytes)."""
    processes: int = 32
    """Processes that a submission may have at a time."""
    cases: int = 25
    """Random configurations for each layer."""
    seed: int = 0
    """Seed of the configurations and of every number in them."""


# Larger numbers are mistakes, and do not fit into what the system counts with.
_LARGEST = {"jobs": 10_000, "time_limit": 86_400, "memory_mb": 2**30, "processes": 100_000, "cases": 1_000_000}


def grade(argv: list[str]) -> int:
    """Run ``gptladder grade`` and return 0, or 1 if something could not be graded.

    Raises:
        ValueError, OSError: a folder, a rung or a number that cannot be used.
    """
    arguments = parse(GradeArguments, argv, prog="gptladder grade")
    # Check the options, and what this system can isolate.
    points = _points(arguments.rungs)
    for name, most in _LARGEST.items():
        value = getattr(arguments, name)
        if value is not None and not 0 < value <= most:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be above 0 and at most {most:,}")
    able = probe()
    isolation = _described(able)
    settings = Settings(
        points=points,
        version=__version__,
        seed=arguments.seed,
        cases=arguments.cases,
        time_limit=arguments.time_limit,
        limits=Limits(memory=arguments.memory_mb * 2**20, processes=arguments.processes),
        hint=arguments.hint,
        unlimited=tuple(each for each in ("processes", "memory") if not able[each]),
    )
    folder, out = user_path(arguments.folder), user_path(arguments.out)
    if out.exists() and (not out.is_dir() or os.path.realpath(out) == os.path.realpath(folder)):
        what = "the folder of the submissions" if out.is_dir() else "a file"
        raise ValueError(f"--out {out} is {what}: give another folder for the results")
    # Judge, and write the results.
    with tempfile.TemporaryDirectory(prefix="gptladder-unpacked-", ignore_cleanup_errors=True) as unpacked:
        submissions = find_submissions(folder, single=arguments.single, leave_out=[out], unpack_into=Path(unpacked))
        out.mkdir(parents=True, exist_ok=True)
        outcomes = _judged(submissions, settings, out, arguments.jobs or os.cpu_count() or 1, isolation)
    write_results(
        out,
        outcomes,
        isolation=isolation,
        gradescope=arguments.gradescope,
        classroom=arguments.classroom,
        withhold_hints=arguments.withhold_hints,
    )
    failed = sum(each.status == "not graded" for each in outcomes)
    total = len(outcomes)
    print(f"{out / 'results.csv'}: {len(submissions)} submissions, {total - failed} of {total} graded")
    return 1 if failed else 0


def _judged(
    submissions: Sequence[Submission], settings: Settings, out: Path, jobs: int, isolation: str
) -> list[Outcome]:
    """Judge all, print each as it ends, and return the outcomes in the order of the students and rungs."""
    console = Console(stderr=True, highlight=False)
    console.print(isolation, soft_wrap=True)

    total, outcomes = len(submissions) * len(settings.points), []
    judging = grade_all(submissions, judge, settings, folder=out / "outcomes", jobs=jobs)
    try:
        for outcome in judging:
            outcomes.append(outcome)
            text = f"{len(outcomes)}/{total} {outcome.student} {outcome.rung}: {outcome.status}"
            console.print(text, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        print(f"{len(outcomes)} of {total} are graded; run the same command again to continue", file=sys.stderr)
        raise
    finally:
        judging.close()
    order = {name: place for place, name in enumerate(each.student for each in submissions)}
    rungs = list(settings.points)
    return sorted(outcomes, key=lambda each: (order[each.student], rungs.index(each.rung)))


def _points(rungs: str) -> dict[str, float]:
    """Return what each rung is worth.

    Raises:
        ValueError: an unknown rung, a rung twice, or points that are not a number above 0.
    """
    points: dict[str, float] = {}
    for part in rungs.split(","):
        name, _, number = part.strip().partition("=")
        try:
            name = rung(name).name
        except ValueError:
            known = ", ".join(each.name for each in RUNGS)
            raise ValueError(f"--rungs names {name!r}; the rungs are {known}") from None
        if name in points:
            raise ValueError(f"--rungs names {name} twice")
        try:
            points[name] = float(number or 1)
        except ValueError:
            points[name] = 0.0
        if not 0 < points[name] < float("inf"):
            raise ValueError(f"--rungs gives {name} {number!r} points; give a number above 0, such as {name}=10")
    return points


def _described(able: Mapping[str, bool]) -> str:
    """Return how submissions are isolated, as a sentence or two."""
    what = {
        "processes": "nothing of a submission outlives it",
        "network": "it has no network",
        "files": "it reads no other submission and writes to a folder of its own alone",
        "memory": "its memory is limited",
    }
    text = "Sandbox: " + "; ".join([*(what[name] for name in able if able[name]), "its time is limited"]) + "."
    missing = ", ".join(name for name in able if not able[name])
    if missing:
        text += f" Not available on this system: isolation of {missing}; grade in a container (docs/teachers.md)."
    return text
