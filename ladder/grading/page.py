"""One page for the teacher: who passed what, and which mistakes are common."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from ..report.html import framed
from .outcome import Outcome

_STYLE = """
:root{color-scheme:light dark}body{font:14px system-ui,sans-serif;max-width:1100px;margin:1.5rem auto;padding:0 1rem}
table{border-collapse:collapse}th,td{border:1px solid color-mix(in srgb,currentColor 20%,transparent);padding:3px 8px}
th{text-align:left;font-weight:600}td.right{background:rgba(0,120,80,.18)}td.wrong{background:rgba(200,80,0,.2)}
td.other{background:rgba(120,120,120,.2)}.scroll{overflow-x:auto}
"""


def class_page(outcomes: Sequence[Outcome], *, isolation: str) -> str:
    """Return the page. It fetches nothing, and nothing runs in it.

    Args:
        outcomes: of all students and rungs.
        isolation: how the submissions were isolated, as a sentence.
    """
    rungs = list(dict.fromkeys(each.rung for each in outcomes))
    students = list(dict.fromkeys(each.student for each in outcomes))
    found = {(each.student, each.rung): each for each in outcomes}
    rows = "".join(
        f"<tr><th>{escape(student)}</th>"
        + "".join(_cell(found.get((student, rung))) for rung in rungs)
        + f"<td>{_total(outcomes, student)}</td></tr>"
        for student in students
    )
    head = "".join(f"<th>{escape(rung)}</th>" for rung in rungs)
    return framed(
        "grades",
        _STYLE,
        f"<h1>{len(students)} submissions</h1><p>{escape(isolation)}</p><h2>By rung</h2>{_by_rung(outcomes, rungs)}"
        f"<h2>Common mistakes</h2>{_mistakes(outcomes)}{_borrowed(outcomes)}"
        f'<h2>By student</h2><div class="scroll"><table><thead><tr><th>student</th>{head}<th>points</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
    )


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "<td></td>"
    kind = "right" if outcome.passed else "wrong" if outcome.status == "wrong" else "other"
    text = outcome.status + (f": {outcome.mistake}" if outcome.status == "wrong" and outcome.mistake else "")
    text += " (borrowed)" if outcome.borrowed else ""
    return f'<td class="{kind}" title="{escape(outcome.hint, quote=True)}">{escape(text)}</td>'


def _total(outcomes: Sequence[Outcome], student: str) -> str:
    own = [each for each in outcomes if each.student == student]
    return f"{sum(each.score for each in own):g} of {sum(each.max_score for each in own):g}"


def _by_rung(outcomes: Sequence[Outcome], rungs: Sequence[str]) -> str:
    rows = ""
    for rung in rungs:
        counts = Counter(each.status for each in outcomes if each.rung == rung)
        listed = ", ".join(f"{status} {count}" for status, count in counts.most_common())
        rows += f"<tr><th>{escape(rung)}</th><td>{escape(listed)}</td></tr>"
    return f"<table>{rows}</table>"


def _mistakes(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(
        (each.rung, mistake) for each in outcomes if each.status == "wrong" for mistake in each.mistake.split("; ")
    )
    if not counts:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><th>{escape(rung)}</th><td>{escape(mistake or 'not in the catalogue')}</td><td>{count}</td></tr>"
        for (rung, mistake), count in counts.most_common(20)
    )
    return f"<table>{rows}</table>"


def _borrowed(outcomes: Sequence[Outcome]) -> str:
    rows = "".join(
        f"<tr><th>{escape(each.student)}</th><td>{escape(each.rung)}</td><td>{escape(each.borrowed)}</td></tr>"
        for each in outcomes
        if each.borrowed
    )
    return f"<h2>Borrowed from a library: look at these</h2><table>{rows}</table>" if rows else ""
