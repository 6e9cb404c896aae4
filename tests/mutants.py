"""Mutation testing: change the library in one place, run the tests that reach this place, and see whether one fails.

Cosmic Ray makes the mutants. Its own runner starts an interpreter for each of them, and importing torch and the
reference libraries takes longer than the tests: this one imports them once and forks a process for each mutant.
mutants.toml lists what is mutated and which tests count, and explains the mutants that no test can kill.

    make mutants                                       every module, which takes hours
    python tests/mutants.py components/attention.py    some modules
"""

import ast
import gc
import importlib
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # threads do not survive a fork
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # loading all plugins would take half of the time

import coverage
import hypothesis
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
RESULTS = ROOT / "build/mutants.json"
Mutants = list[dict[str, Any]]


class Plugin:
    """Runs the tests of ``order`` (default: all). Records which failed, how long each took, which lines it reached."""

    def __init__(self, order: list[str] | None = None, lines: coverage.Coverage | None = None) -> None:
        self.order, self.lines = order, lines
        self.seconds, self.failed = defaultdict[str, float](float), list[str]()

    def pytest_configure(self) -> None:
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # whether one fails, not the smallest that does
        quickly = hypothesis.settings(max_examples=CONFIG["max_examples"], phases=phases)
        hypothesis.settings.register_profile("mutants", quickly)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            place = {test: index for index, test in enumerate(self.order)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.lines:
            self.lines.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        self.failed += [report.nodeid] * report.failed


def run(tree: Path, paths: list[str], plugin: Plugin, cpu_seconds: float) -> tuple[list[str], dict[str, float]]:
    """Run pytest in a forked process, and return which tests failed and how long each took."""
    record = tree.with_name("record.json")
    record.write_text(json.dumps([["the time limit"], {}]))
    if (child := os.fork()) == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
            os.dup2(os.open(tree.with_name("log"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.chdir(tree)
            sys.path[0] = os.environ["PYTHONPATH"] = str(tree.parent)
            sys.dont_write_bytecode = plugin.lines is None  # a mutant's bytecode would be taken for the original's
            if plugin.lines:
                plugin.lines.start()
            # Of what is imported already (hypothesis), pytest warns that its assertions cannot be rewritten.
            options = ["-q", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
            options += ["-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin", *(["-x"] if plugin.order else [])]
            status = pytest.main([*options, *paths], [plugin])
            if plugin.lines:
                plugin.lines.stop()
                plugin.lines.save()
            failed = plugin.failed or ["the import"] * (status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED))
            record.write_text(json.dumps([failed, plugin.seconds]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return json.loads(record.read_text())


def program(source: str) -> str:
    """Return what Python runs, without what is no operator: annotations, and a star between a function's parameters."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args, node.posonlyargs, node.kwonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], [], []
            node.defaults, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], []
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, None)
    return ast.dump(tree)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield each mutant that is a program: the number of the changed line, the line as it is then, the whole source."""
    seen = {program(source)}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or ("Operator_" in name and name.split("Operator_")[1] not in CONFIG["operators"]):
            continue
        for occurrence in itertools.count():
            if (mutated := mutate_code(source, operator(), occurrence)) is None:
                break
            try:
                new = program(mutated)
            except SyntaxError:
                continue
            if new not in seen:
                seen.add(new)
                pairs = enumerate(itertools.zip_longest(source.splitlines(), mutated.splitlines(), fillvalue=""), 1)
                number, line = next((number, now) for number, (was, now) in pairs if was != now)
                yield number, " ".join(line.split()), mutated


def try_mutants(tree: Path, module: str, reached: dict[int, list[str]], seconds: dict[str, float]) -> Mutants:
    """Try each mutant of a module, and return them, each with the test that killed it, if one did."""
    path, killers, found = tree / module, Counter[str](), Mutants()
    source, before = path.read_text("utf-8"), path.stat()
    definitions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for number, line, mutated in mutants(source):
        where = ".".join(node.name for node in definitions if node.lineno <= number <= (node.end_lineno or 0))
        # A line that runs at import, or that no test is seen to reach, counts as reached by every test of the module.
        tests = seconds.keys() & reached.get(number, ()) or seconds.keys() & set(itertools.chain(*reached.values()))
        order = sorted(tests, key=lambda test: (seconds[test] / (1 + killers[test]), test))
        until = itertools.accumulate(seconds[test] for test in order)
        order = [test for test, sum_ in zip(order, until, strict=True) if sum_ < CONFIG["seconds_for_a_mutant"]]
        path.write_text(mutated, "utf-8")
        failed: list[str] = []
        for part in (order[:10], order[10:]):  # the first ones mostly suffice, and to collect the others takes time
            if part and not failed:
                paths = sorted({test.split("::")[0] for test in part})
                failed, _ = run(tree, paths, Plugin(part), 30 + 5 * sum(seconds[test] for test in part))
        killers.update(failed)
        found.append({"line": number, "in": where, "mutant": line, "killed_by": failed[:1], "tests": len(order)})
        print(f"{module}:{number} {where}: {line}  # {failed[0] if failed else f'survived {len(order)}'}", flush=True)
    path.write_text(source, "utf-8")
    os.utime(path, (before.st_atime, before.st_mtime))
    return found


def try_group(tests: list[str], modules: list[str]) -> Iterator[tuple[str, Mutants]]:
    """Run tests once on a copy of the tree, to learn which lines each of them reaches, then with each mutant."""
    with tempfile.TemporaryDirectory(dir=RESULTS.parent, prefix="mutants-") as folder:
        tree = Path(folder, "gptladder")
        built = {"build", "dist", "runs", "data"}  # at the root; there is a folder training/data too
        shutil.copytree(
            ROOT,
            tree,
            ignore=lambda at, names: [
                n for n in names if n[0] == "." or n == "__pycache__" or (at == str(ROOT) and n in built)
            ],
        )
        lines = coverage.Coverage(str(tree.with_name("lines")), include=[str(tree / name) for name in modules])
        failed, seconds = run(tree, tests, Plugin(lines=lines), 3600)
        if len(failed) >= len(seconds) / 10:
            raise SystemExit(f"too many tests fail without a mutant:\n{tree.with_name('log').read_text()[-2000:]}")
        print(f"{len(seconds)} tests were run without a mutant; failed: {failed}", flush=True)
        data = coverage.CoverageData(str(tree.with_name("lines")))
        data.read()
        for module in modules:
            reached = data.contexts_by_lineno(str(tree / module))
            yield module, try_mutants(tree, module, reached, {t: s for t, s in seconds.items() if t not in failed})


def report(results: dict[str, Mutants]) -> dict[str, dict[str, int]]:
    """Print survivors without an explanation, explanations without a survivor, and the table; return the table."""
    explained = {(entry["module"], entry["in"], mutant) for entry in CONFIG["explained"] for mutant in entry["mutants"]}
    rows, total = {}, Counter[str]()
    for module, found in results.items():
        lived = [(module, mutant["in"], mutant["mutant"]) for mutant in found if not mutant["killed_by"]]
        left = [mutant for mutant in lived if mutant not in explained]
        vain = [mutant for mutant in explained if mutant[0] == module and mutant not in lived]
        print(*(f"survivor: {mutant}\n" for mutant in left), *(f"no survivor: {mutant}\n" for mutant in vain), end="")
        killed, known = len(found) - len(lived), len(lived) - len(left)
        rows[module] = {"mutants": len(found), "killed": killed, "explained": known, "survivors": len(left)}
        total.update(rows[module])
    print(f"{'module':36}   mutants    killed explained survivors   killed of those not explained")
    for module, row in {**rows, "all": total}.items():
        share = row["killed"] / max(row["mutants"] - row["explained"], 1)
        print(f"{module:36}", *(f"{value:9}" for value in row.values()), f"{share:8.1%}")
    return rows


def main() -> None:
    """Try the mutants of the modules named on the command line (default: all of mutants.toml), and print a table."""
    for name in CONFIG["preload"]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each process looks through all of this, and copies it by doing so
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.touch()
    for group in CONFIG["groups"]:
        if modules := [module for module in group["modules"] if module in sys.argv[1:] or not sys.argv[1:]]:
            for module, found in try_group(group["tests"], modules):
                results = json.loads(RESULTS.read_text("utf-8") or "{}") | {module: found}
                RESULTS.write_text(json.dumps(results, indent=1), "utf-8")
    results = json.loads(RESULTS.read_text("utf-8") or "{}")
    modules = [module for group in CONFIG["groups"] for module in group["modules"]]
    rows = report({module: results[module] for module in modules if module in results})
    if len(rows) == len(modules):
        (ROOT / "benchmarks/results/mutants.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
