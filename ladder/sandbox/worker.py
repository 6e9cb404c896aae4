"""The process in which a user's layers run: it reads their files, then answers requests until there are none."""

import faulthandler
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..candidate.finder import find_layers, rungs_of
from ..candidate.layer import Candidate
from ..candidate.requests import Reply, Request
from ..candidate.source import CandidateError, Loaded, load, split
from ..own_faults import described
from ..results import Fault
from . import messages
from .processes import take_streams

START = f"{__name__}:main"


@dataclass(frozen=True)
class Start:
    """The first message: what to read. Requests follow, and each message gets a `Reply`.

    Args:
        sources: ``FILE.py:NAME`` by rung; under ``""`` a whole file, in which the layers are to be found.
        chosen: values for what constructors ask for, by name.
        only: the one rung that is wanted (default: all that the sources hold).
        trace: file for the place at which the process was when it hung or crashed.
        reading_limit: seconds for reading.
        time_limit: seconds for each request.
    """

    sources: Mapping[str, str]
    chosen: Mapping[str, Any]
    only: str | None
    trace: str
    reading_limit: float
    time_limit: float


def main() -> None:
    """Run this side: read the sources, then answer requests until the stream of requests ends."""
    requests, replies = take_streams()
    torch.set_num_threads(1)
    start = messages.read(requests, Start)
    with open(start.trace, "r+b") as trace:
        os.set_inheritable(trace.fileno(), False)
        faulthandler.enable(trace)
        faulthandler.dump_traceback_later(start.reading_limit, exit=True, file=trace)
        candidates, reply = read_sources(start)
        while True:
            faulthandler.cancel_dump_traceback_later()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            messages.write(replies, reply)
            try:
                request = messages.read(requests, Request)
            except EOFError:
                return
            faulthandler.dump_traceback_later(start.time_limit, exit=True, file=trace)
            reply = candidates[request.trial.rung].respond(request)


def read_sources(start: Start) -> tuple[dict[str, Candidate], Reply]:
    """Read the sources; return the layers by rung, and what was found or why nothing could be."""
    try:
        return _candidates(start)
    except CandidateError as refused:
        return {}, Reply(fault=Fault(refused.kind, str(refused)))
    except Exception as error:
        return {}, Reply(fault=Fault("internal", described(error)))


def _candidates(start: Start) -> tuple[dict[str, Candidate], Reply]:
    """Read the sources; return the layers, and which class was taken for which rung and what was left out."""
    sources, chosen = start.sources, start.chosen
    found: dict[str, Candidate] = {}
    fitting: dict[str, tuple[str, ...]] = {}
    names: dict[Path, set[str]] = {}
    for source in sources.values():
        path, name = split(source)
        names.setdefault(path, set()).add(name)
    loaded = {path: load(path, () if "" in wanted else wanted) for path, wanted in names.items()}
    for rung, source in sources.items():
        path, name = split(source)
        if rung:
            found[rung] = _candidate(loaded[path], name or _first(loaded[path], rung, chosen, source), source, chosen)
            fitting[rung] = (found[rung].name,)
    if "" in sources:
        path, name = split(sources[""])
        layers = _layers(loaded[path], name, sources[""], chosen, start.only)
        if not layers and not found:
            _check_parsed(loaded[path], sources[""])
            has = ", ".join(loaded[path].classes) or "no nn.Module class"
            why = f" ({'; '.join(loaded[path].notes)})" if loaded[path].notes else ""
            raise CandidateError(
                f"{sources['']}: none of its classes could be taken for {start.only or 'a layer of GPT-2'}; it has "
                f"{has}{why}. Say which is which: --{start.only or 'attention'} FILE.py:CLASS",
                "no layer",
            )
        for rung, classes in layers.items():
            if rung not in found:
                found[rung] = _candidate(loaded[path], classes[0], sources[""], chosen)
                fitting[rung] = tuple(classes)
    notes = dict.fromkeys(note for each in loaded.values() for note in each.notes)
    return found, Reply(layers=fitting, notes=tuple(notes))


def _layers(
    loaded: Loaded, name: str, source: str, chosen: Mapping[str, Any], only: str | None
) -> dict[str, list[str]]:
    """Return the classes for each rung: of the whole file, or the rung of the one that is named."""
    if not name:
        return find_layers(loaded, chosen, only)
    if only:
        loaded.get(name, source)
        return {only: [name]}
    rungs = rungs_of(loaded.get(name, source), name, vars(loaded.module), chosen)
    return {rungs[0]: [name]} if rungs else {}


def _check_parsed(loaded: Loaded, source: str) -> None:
    """Refuse a file that has no class because it does not parse."""
    broken = next((note for note in loaded.notes if "does not parse" in note), None)
    if broken and not loaded.classes:
        raise CandidateError(f"{source}: {broken}")


def _first(loaded: Loaded, rung: str, chosen: Mapping[str, Any], source: str) -> str:
    layers = find_layers(loaded, chosen, rung)
    if rung not in layers:
        _check_parsed(loaded, source)
        has = ", ".join(loaded.classes) or "no nn.Module class"
        raise CandidateError(f"{source}: no class of it could be taken for {rung}; it has {has}: write {source}:CLASS")
    return layers[rung][0]


def _candidate(loaded: Loaded, name: str, source: str, chosen: Mapping[str, Any]) -> Candidate:
    return Candidate(loaded.get(name, source), name, loaded.code, vars(loaded.module), chosen)
