"""Which bias the keys get in the place of b_K: none of them shows in what attention gives."""

from dataclasses import replace

from ..candidate.trace import Trace
from ..formula.quantities import quantities
from ..formula.same_numbers import equal, sorted_numbers
from ..results import Diagnosis, Finding
from ..rungs import Trial

_UNREAD = "b_K not added to the keys"


def with_key_bias(found: Diagnosis, trial: Trial, trace: Trace) -> Diagnosis:
    """Return the diagnosis with the bias that the keys get for b_K, and its line, if the trace of attention has one."""
    if _UNREAD not in found.mistakes or not len(found.mistakes) == len(found.what) == len(found.fix):
        return found
    bare = next(each.value for each in quantities(trial) if each.key == "K0")
    for name in ("b_Q", "b_V"):
        numbers = sorted_numbers(bare + trial.parameters[name])
        at = next((each.at for each in trace.events if each.at and equal(sorted_numbers(each.value), numbers)), None)
        if at is None:
            continue
        place = found.mistakes.index(_UNREAD)
        said = f"The keys get {name} for their bias (line {at[0].rpartition(':')[2]}), and b_K is never read: "
        said += "no output shows it, as a bias of the keys moves all of a query's scores alike."
        fix = "Add b_K to them."
        mistakes, what, fixes = (list(each) for each in (found.mistakes, found.what, found.fix))
        mistakes[place], what[place], fixes[place] = f"{name} added to the keys", said, fix
        return replace(found, mistakes=tuple(mistakes), what=tuple(what), fix=tuple(fixes))
    return found


def beside_key_bias(finding: Finding | None, found: Diagnosis) -> Finding | None:
    """Return a finding that leaves out a wrong bias of the keys, if that is one of two mistakes: no output shows it."""
    if finding is None or not finding.wrong or not any(each.endswith("added to the keys") for each in found.mistakes):
        return finding
    return replace(finding, wrong=f"{finding.wrong}, the bias of the keys apart")
