"""Mutation testing: change the library in one place, run the tests that reach this place, and see whether one fails.

Cosmic Ray makes the mutants. Its own runner starts an interpreter for each of them, and to import torch and collect the
tests takes longer than to run them. This one collects the tests once and forks a process for each mutant, in which the
changed function gets its new code. For what runs at import (a default, a decorator, a constant) the process imports the
package and the tests itself.

mutants.toml lists what is mutated and which tests count, and explains the mutants that no test can kill. Results are
kept for as long as a module's source stays the same: the next run tries what is left, and survivors if tests changed.

    make mutants                                       every module, which takes hours
    python tests/mutants.py components/attention.py    some modules
    python tests/mutants.py --fresh                    without what earlier runs found
    python tests/mutants.py --skip-explained           believe the explanations
    python tests/mutants.py --report                   the table alone
"""

import ast
import gc
import hashlib
import importlib
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # threads do not survive a fork
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # loading all plugins would take half of the time

import coverage
import hypothesis
import pytest

sys.path.insert(1, str(Path(__file__).with_name("helpers")))
from mutations import Functions, Mutant, changes_a_body_alone, mutants, outermost_function, replace_code

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
RESULTS = ROOT / "build/mutants"
STORED = ROOT / "benchmarks/results/cpu/mutants.json"
SCREEN = os.dup(1)


def digest(*parts: str) -> str:
    """Return a short name of texts that changes if they do."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class Plugin:
    """Runs the tests of ``order`` (default: all). Records which failed, how long each took, which lines it reached."""

    def __init__(self, order: list[str] | None = None, lines: coverage.Coverage | None = None) -> None:
        self.order, self.lines = order, lines
        self.seconds, self.failed = dict[str, float](), list[str]()

    def pytest_configure(self) -> None:
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # whether one fails, not the smallest that does
        quickly = hypothesis.settings(max_examples=CONFIG["max_examples"], phases=phases)
        hypothesis.settings.register_profile("mutants", quickly)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order is not None:
            place = {test: index for index, test in enumerate(self.order)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = sum(os.times()[:4])  # of the processor: a clock would count what other processes take
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - before

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.lines:  # fixtures may serve all tests of the file
            self.lines.switch_context(item.nodeid.split("::")[0])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if self.lines:
            self.lines.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed += [report.nodeid] * report.failed


class Session(Plugin):
    """Collects the tests of a module, then runs them for one mutant after the other, each in a process of its own."""

    def __init__(self, trial: "Trial", todo: list[Mutant]) -> None:
        super().__init__()
        self.trial, self.todo = trial, todo

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions: Functions = defaultdict(list)
        for thing in gc.get_objects():
            if isinstance(thing, types.FunctionType) and thing.__code__.co_filename == str(self.trial.path):
                functions[thing.__code__.co_qualname, thing.__code__.co_firstlineno].append(thing)
        gc.collect()
        gc.freeze()
        verdict = self.trial.path.with_suffix(".verdict")
        for mutant in self.todo:
            order = [test for test in self.trial.tests_of(mutant) if test in items]
            verdict.write_text(json.dumps([True, ["the time limit"]]))
            with self.trial.written(mutant):
                if (child := os.fork()) == 0:
                    self.failed.clear()
                    try:
                        limit = 10 + 5 * int(sum(map(self.trial.seconds.__getitem__, order)))
                        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
                        done = replace_code(self.trial.path, mutant.source, functions)
                        for test, following in itertools.pairwise([*order, None]):
                            if done and test and not self.failed:
                                after = items[following] if following else None
                                session.config.hook.pytest_runtest_protocol(item=items[test], nextitem=after)
                        verdict.write_text(json.dumps([done, self.failed]))
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
            done, failed = json.loads(verdict.read_text())
            if done:
                self.trial.keep(mutant, failed, len(order))
        return True


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
            options += ["--basetemp", str(tree.with_name("tmp"))]
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


class Trial:
    """The mutants of one module, tried by tests that reach it, and the results."""

    def __init__(
        self, tree: Path, module: str, reached: dict[int, list[str]], seconds: dict[str, float], tests: str
    ) -> None:
        self.tree, self.path, self.module, self.tests = tree, tree / module, module, tests
        self.source, self.seconds, self.killers = self.path.read_text("utf-8"), seconds, Counter[str]()
        known = {"": {""}} | {test: {test} for test in seconds}
        for test in seconds:
            known.setdefault(test.split("::")[0], set()).add(test)
        self.reached = {
            number: set().union(*(known.get(each, ()) for each in contexts)) for number, contexts in reached.items()
        }
        self.ast, self.results = ast.parse(self.source), read_results(module)

    def todo(self) -> list[Mutant]:
        """Return what was not tried yet, and then survivors of other tests; each in random order."""
        explained = explanations(self.module)
        todo = {}
        for mutant in mutants(self.source, CONFIG["operators"]):
            known = self.results["tried"].get(key := digest(mutant.source))
            is_explained = (self.where(mutant), mutant.line) in explained
            if is_explained and "--skip-explained" in sys.argv:
                if not known:
                    self.keep(mutant, [], 0, skipped=True)
            elif not known or known["skipped"]:
                todo[False, key] = mutant
            elif not known["killed_by"] and not is_explained and known["tests"] != self.tests:
                todo[True, key] = mutant
        return [todo[place] for place in sorted(todo)]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests to run: the fastest of those that reach the line, first those that killed mutants."""
        tests = set(self.seconds)  # for what runs at import: a decorator can raise before a line of the module runs
        if function := outermost_function(self.ast, mutant.number):
            lines = range(function.lineno, (function.end_lineno or 0) + 1)
            around = set[str]().union(*(self.reached.get(number, ()) for number in lines))
            tests = self.reached.get(mutant.number, set()) - {""} or around - {""} or tests
        order = sorted(tests, key=lambda test: (self.seconds[test] / (1 + self.killers[test]), test))
        until = itertools.accumulate(self.seconds[test] for test in order)
        order = [test for test, sum_ in zip(order, until, strict=True) if sum_ < CONFIG["seconds_for_a_mutant"]]
        return order[:10] + sorted(order[10:], key=lambda test: test.split("::")[0])  # fixtures are of a file

    def runs_at_import(self, mutant: Mutant) -> bool:
        """Return whether the change is outside the bodies of functions, or in one that runs during collection."""
        function = outermost_function(self.ast, mutant.number)
        if function is None or not changes_a_body_alone(self.source, mutant):
            return True
        body = range(function.body[0].lineno, (function.end_lineno or 0) + 1)
        return any("" in self.reached.get(number, ()) for number in body)

    @contextmanager
    def written(self, mutant: Mutant) -> Iterator[None]:
        """Hold the mutant in the module's file."""
        before = self.path.stat()
        self.path.write_text(mutant.source, "utf-8")
        try:
            yield
        finally:
            self.path.write_text(self.source, "utf-8")
            os.utime(self.path, (before.st_atime, before.st_mtime))

    def where(self, mutant: Mutant) -> str:
        """Return the class and the function that the changed line is in."""
        definitions = [node for node in ast.walk(self.ast) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        return ".".join(each.name for each in definitions if each.lineno <= mutant.number <= (each.end_lineno or 0))

    def keep(self, mutant: Mutant, failed: list[str], count: int, *, skipped: bool = False) -> None:
        """Write down what came out for a mutant."""
        self.killers.update(failed)
        key, where = digest(mutant.source), self.where(mutant)
        found = {"line": mutant.number, "in": where, "mutant": mutant.line, "killed_by": failed[:1], "skipped": skipped}
        self.results["tried"][key] = {**found, "later": key in self.results["tried"], "tests": self.tests}
        self.write()
        verdict = failed[0] if failed else f"survived {count}" if count else "explained"
        os.write(SCREEN, f"{self.module}:{mutant.number} {where}: {mutant.line}  # {verdict}\n".encode())

    def write(self) -> None:
        file_of(self.module).write_text(json.dumps(self.results, indent=1) + "\n", "utf-8")

    def run(self) -> None:
        """Try each mutant that is to be tried."""
        self.results["mutants"] = sum(1 for _ in mutants(self.source, CONFIG["operators"]))
        self.results["date"] = time.strftime("%Y-%m-%d")
        self.write()
        todo = self.todo()
        if quick := [mutant for mutant in todo if not self.runs_at_import(mutant)]:
            paths = sorted({test.split("::")[0] for mutant in quick for test in self.tests_of(mutant)})
            run(self.tree, paths, Session(self, quick), resource.RLIM_INFINITY)
            self.results = read_results(self.module)
        for mutant in todo:
            if self.results["tried"].get(digest(mutant.source), {}).get("tests") == self.tests:
                continue
            order, failed = self.tests_of(mutant), list[str]()
            with self.written(mutant):
                for part in (order[:10], order[10:]):  # the first ones mostly suffice, and to collect takes time
                    if part and not failed:
                        paths = sorted({test.split("::")[0] for test in part})
                        limit = 30 + 5 * sum(map(self.seconds.__getitem__, part))
                        failed, _ = run(self.tree, paths, Plugin(part), limit)
            self.keep(mutant, failed, len(order))


def file_of(module: str) -> Path:
    """Return the file of a module's results."""
    return RESULTS / (module.removesuffix(".py").replace("/", ".") + ".json")


def read_results(module: str) -> dict[str, Any]:
    """Return what earlier runs found with the module as it is now."""
    now = digest((ROOT / module).read_text("utf-8"))
    results = json.loads(file_of(module).read_text("utf-8")) if file_of(module).exists() else {}
    return results if results.get("source") == now else {"source": now, "tried": {}}


def explanations(module: str) -> set[tuple[str, str]]:
    """Return the mutants of a module that no test can kill: where each is, and its line."""
    entries = (entry for entry in CONFIG["explained"] if entry["module"] == module)
    return {(entry["in"], mutant) for entry in entries for mutant in entry["mutants"]}


def try_group(tests: list[str], modules: list[str], without: str) -> Iterator[str]:
    """Run tests once on a copy of the tree, to learn which lines each of them reaches, then with each mutant."""
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix="run-") as folder:
        tree = Path(folder, "gptladder")
        shutil.copytree(ROOT, tree, ignore=_not_source)
        lines = coverage.Coverage(str(tree.with_name("lines")), include=[str(tree / name) for name in modules])
        failed, seconds = run(
            tree, [*(["-k", f"not ({without})"] if without else []), *tests], Plugin(lines=lines), 3600
        )
        if len(failed) >= len(seconds) / 10:
            raise SystemExit(f"too many tests fail without a mutant:\n{tree.with_name('log').read_text()[-2000:]}")
        print(f"{len(seconds)} tests take {sum(seconds.values()):.0f} s without a mutant; failed: {failed}", flush=True)
        data = coverage.CoverageData(str(tree.with_name("lines")))
        data.read()
        named = [tree / test.split("::")[0] for test in tests]
        files = {file for each in named for file in ([each] if each.suffix else each.rglob("*.py"))}
        as_they_are = digest(
            repr((CONFIG["max_examples"], CONFIG["seconds_for_a_mutant"])),
            *(file.read_text("utf-8") for file in [Path(__file__), *sorted(files)]),
        )
        passed = {test: each for test, each in seconds.items() if test not in failed}
        for module in modules:
            Trial(tree, module, data.contexts_by_lineno(str(tree / module)), passed, as_they_are).run()
            yield module


def _not_source(folder: str, names: list[str]) -> set[str]:
    built = {"build", "dist", "runs", "data"} if Path(folder) == ROOT else set[str]()  # training/data is source
    return {name for name in names if name[0] == "." or name == "__pycache__" or name in built}


def summary(module: str) -> dict[str, Any]:
    """Print what is wrong: survivors without explanation, and the reverse. Return a module's row of the table."""
    results, explained = read_results(module), explanations(module)
    tried = results["tried"].values()
    alive = [(each["line"], each["in"], each["mutant"]) for each in tried if not each["killed_by"]]
    left = sorted(each for each in alive if each[1:] not in explained)
    for number, where, mutant in left:
        print(f"survivor: {module}:{number} {where}: {mutant}")
    if len(tried) == results["mutants"]:
        for where, mutant in sorted(explained - {each[1:] for each in alive}):
            print(f"no survivor: {module} {where}: {mutant}")
    numbers = {
        "mutants": results["mutants"],
        "tried": sum(not each["skipped"] for each in tried),
        "killed": len(tried) - len(alive),
        "killed by new tests": sum(each["later"] for each in tried if each["killed_by"]),
        "explained": len(alive) - len(left),
        "survivors": len(left),
    }
    return {**numbers, "date": results["date"], "source": results["source"]}


def report() -> None:
    """Store the rows of the modules that were tried, and print all rows."""
    rows = json.loads(STORED.read_text("utf-8"))["modules"] if STORED.exists() else {}
    modules = sorted(module for group in CONFIG["groups"] for module in group["modules"])
    rows |= {module: summary(module) for module in modules if read_results(module)["tried"]}
    rows = {module: rows[module] for module in modules if module in rows}
    stored = json.dumps({"command": "make mutants", "modules": rows}, indent=1)
    STORED.write_text(stored + "\n", "utf-8")

    print(f"{'module':36}  mutants    tried   killed   by new explained survivors   killed of those not explained")
    total = Counter[str]()
    for module, row in rows.items():
        numbers = {name: value for name, value in row.items() if isinstance(value, int)}
        total.update(numbers)
        is_stale = digest((ROOT / module).read_text("utf-8")) != row["source"]
        print(line_of(module, numbers), row["date"], "changed since" if is_stale else "")
    print(line_of("all", total))
    print(*(f"{module:36} not tried\n" for module in modules if module not in rows), sep="", end="")


def line_of(name: str, row: dict[str, int]) -> str:
    """Return a row as text."""
    share = row["killed"] / max(row["killed"] + row["survivors"], 1)
    return f"{name:36}" + "".join(f"{value:9}" for value in row.values()) + f" {share:8.1%} "


def main() -> None:
    """Try the mutants of the modules named on the command line (default: all of mutants.toml), and print a table."""
    options = {argument for argument in sys.argv[1:] if argument.startswith("--")}
    named = set(sys.argv[1:]) - options
    known = {module for group in CONFIG["groups"] for module in group["modules"]}
    if unknown := sorted(named - known) + sorted(options - {"--fresh", "--report", "--skip-explained"}):
        raise SystemExit(f"{', '.join(unknown)}: neither a module of mutants.toml nor an option: see mutants.py")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "--report" not in options:
        for group in CONFIG["groups"]:
            if modules := [module for module in group["modules"] if module in (named or known)]:
                for name in (*CONFIG["preload"], *group.get("preload", ())):
                    importlib.import_module(name)
                gc.collect()
                gc.freeze()  # otherwise each process looks through all of this, and copies it by doing so
                if "--fresh" in options:
                    for module in modules:
                        file_of(module).unlink(missing_ok=True)
                for module in try_group(group["tests"], modules, group.get("without", "")):
                    print(f"{module}: {summary(module)}", flush=True)
    report()


if __name__ == "__main__":
    main()
