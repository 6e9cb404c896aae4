"""Generate short children's stories from a grammar, for training without a network and without other text.

``story(seed, index)`` is a pure function: it returns the same story on every machine, and needs no earlier story.

A story has a hero, a wish, a mishap and a remedy. The remedy is introduced before the mishap: a thing that the hero
carries, a friend with a skill, or a stranger whom the hero helped. There are three smaller plots too: learning a skill,
a noise in the night, and something lost. The file ``stories.txt`` holds the sentences. A function for each plot
(`_adventure`, …) chooses among them, paragraph by paragraph, and fills in the names in braces.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["HELPERS", "HEROES", "stories", "story"]

Words = dict[str, str]  # values for the names in braces
Beat = list[str]  # alternative sentences, of which a story has one
Paragraphs = list[list[Beat]]


def _parsed(kind: str, text: str) -> Any:
    """Return a table of ``stories.txt``; the kinds of tables are described there."""
    if kind == "words":
        return text.split()
    if kind == "beats":
        return [_parsed("lines", block) for block in text.split("\n\n")]
    lines = ["" if line == "-" else line for line in text.splitlines()]
    if kind == "lines":
        return lines
    rows = [line.split(" | ") for line in lines]
    if kind == "pairs":
        return dict(rows)
    if kind == "table":
        return {key: [cells for first, *cells in rows if first == key] for key, *_ in rows}
    return rows


def _tables(text: str) -> SimpleNamespace:
    """Return the tables of a text by name."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    tables = SimpleNamespace()
    for section in text.split("== ")[1:]:
        heading, body = section.split("\n", 1)
        name, kind = heading.split(": ")
        setattr(tables, name, _parsed(kind, body.strip()))
    return tables


T = _tables(Path(__file__).with_name("stories.txt").read_text(encoding="utf-8"))
HEROES = tuple(name for name, *_ in T.heroes)
"""The names of heroes and their playmates."""
HELPERS = tuple(T.helpers.values())
"""The names of helpers."""
_PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}
_GIFTS = [thing for thing in T.things if "gift" in thing[-1]]
_SMALL_THINGS = [thing for thing in T.things if "small" in thing[-1]]


def story(seed: int, index: int) -> str:
    """Return story ``index`` of a seed: four to six paragraphs, separated by blank lines, about 870 characters."""
    rng = random.Random(f"{seed} {index}")  # text as a seed gives the same numbers in every version of Python
    words = _cast(rng)
    paragraphs = _pick(rng, _PLOTS)(rng, words)
    text = "\n\n".join(
        " ".join(sentence for beat in paragraph if (sentence := _pick(rng, beat))) for paragraph in paragraphs
    )
    return text.format_map(words)


def stories(seed: int) -> Iterator[str]:
    """Return stories 0, 1, 2, … of a seed, without end."""
    return (story(seed, index) for index in count())


def _pick(rng: random.Random, options: Sequence[Any]) -> Any:
    return options[int(rng.random() * len(options))]


def _pick_two(rng: random.Random, options: Sequence[Any]) -> tuple[Any, Any]:
    first, step = int(rng.random() * len(options)), 1 + int(rng.random() * (len(options) - 1))
    return options[first], options[(first + step) % len(options)]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _person(prefix: str, pronoun: str) -> Words:
    words = {f"{prefix}{base}": form for base, form in zip(_PRONOUNS["he"], _PRONOUNS[pronoun], strict=True)}
    return words | {word[0].upper() + word[1:]: form.capitalize() for word, form in words.items()}


def _cast(rng: random.Random) -> Words:
    """Choose the hero, the family, a playmate and the weather, for any plot."""
    (hero, pronoun, kind, home), (pal, pal_pronoun, _, _) = _pick_two(rng, T.heroes)
    elder, elder_pronoun = _pick(rng, T.elders)
    words = _person("", pronoun) | _person("p", pal_pronoun) | _person("e", elder_pronoun)
    elder = f"{words['his']} {elder}"
    like, like_too = _pick_two(rng, T.likes)
    return words | {
        "hero": hero,
        "kind": kind,
        "trait": _pick(rng, T.traits),
        "home": home,
        "like": like,
        "like_too": like_too,
        "weather": _pick(rng, T.weathers),
        "pal": pal,
        "elder": elder,
        "Elder": elder.capitalize(),
    }


def _helper(rng: random.Random, kind: str) -> Words:
    names = {"friend": T.helpers[kind], "fkind": kind, "a_fkind": _a(kind)}
    return _person("f", _pick(rng, ("she", "he"))) | names


def _thing(rng: random.Random, words: Words, name: str, play: str, played: str) -> Words:
    color = _pick(rng, T.colors)
    forms = {"i_play": play.format(he="I", his="my"), "they_play": play.format(he="they", his="their")}
    names = {"thing": name, "the_thing": f"the {name}", "The_thing": f"The {name}", "a_thing": _a(f"{color} {name}")}
    return names | forms | {"color": color, "play": play.format_map(words), "played": played.format_map(words)}


def _adventure(rng: random.Random, words: Words) -> Paragraphs:
    """Tell of a wish, a mishap, and a remedy: a tool, a friend, or a stranger who was helped before."""
    motive = _pick(rng, ("wish", "wish", "present", "borrowed", "shared"))
    name, play, played, mishaps, _ = _pick(rng, _GIFTS if motive == "present" else T.things)
    mishap = _pick(rng, [*mishaps.split(), "dark"])
    remedy = T.remedy_of[mishap]
    words |= _thing(rng, words, name, play, played)
    words |= zip(("to", "at", "through", "tree", "water", "hole"), _pick(rng, T.places), strict=True)
    words["chore"] = _pick(rng, T.chores)

    way = _pick(rng, ("tool", "friend", "kindness"))
    if way == "tool":
        tool, mend = _pick(rng, T.tools[remedy])
        words |= {"tool": tool, "a_tool": _a(tool), "the_tool": f"the {tool}"}
    else:
        kind, skill, mend = _pick(rng, T.friends[remedy])
        words |= _helper(rng, kind)
        words |= {"skill": skill.format_map(words), "i_skill": skill.format(fhis="my")}
        words["plight"] = _pick(rng, T.plights).format_map(words)
    before, met, comes, moral = {
        "tool": ([T.carrying], [], T.remembering, T.tool_morals),
        "friend": ([T.friendship], [], T.coming, T.friend_morals),
        "kindness": ([], [T.meeting, T.thanks], T.returning, T.kindness_morals),
    }[way]
    beginning, out, ending = {
        "wish": (T.wish, T.going_out, T.wish_by_night if mishap == "dark" else T.wish_by_day),
        "present": (T.present, T.setting_out, T.present_ends),
        "borrowed": (T.borrowed, T.borrowed_out, T.borrowed_ends),
        "shared": (T.shared, [], T.shared_ends),
    }[motive]
    opening = [T.openings, T.liking, *before]
    trouble = [[text for (text,) in T.mishaps[mishap]], T.dismay, [text for (text,) in T.in_vain[remedy]]]
    solution = [[comes, [mend]], [ending, moral, T.closings]]
    if motive == "shared":  # the quarrel leads directly to the mishap, so the stranger must appear before it
        return [opening + ([T.meeting_at_home, T.thanks] if met else []), beginning + trouble, *solution]
    return [opening, beginning, [out, *met], trouble, *solution]


def _learning(rng: random.Random, words: Words) -> Paragraphs:
    """Tell of a skill, a failure, an old neighbor's advice, and practice."""
    skill, failure, advice, success, use = _pick(rng, T.skills)
    words |= _helper(rng, _pick(rng, T.wise_animals)) | {"learn": skill, "advice": advice}
    words |= {"failure": failure.format_map(words), "success": success.format_map(words), "use": use.format_map(words)}
    return [[T.openings, T.liking], T.learning, T.trying, T.advice, T.learned]


def _night(rng: random.Random, words: Words) -> Paragraphs:
    """Tell of a noise, a lamp by the bed, a small visitor, and the rest of the supper."""
    noise, kind, doing = _pick(rng, T.noises)
    gift, supper = _pick(rng, T.gifts_at_night)
    words |= _helper(rng, kind)
    words |= {"noise": noise, "doing": doing.format_map(words), "gift": gift, "supper": supper}
    return [[T.openings, T.liking, T.night[0]], T.night[1:], T.hearing, T.looking, T.morning]


def _loss(rng: random.Random, words: Words) -> Paragraphs:
    """Tell of something that was lost on one of two errands, and found by thinking back."""
    name, play, played, _, _ = _pick(rng, _SMALL_THINGS)
    words |= _thing(rng, words, name, play, played)
    (errand, found), (errand_too, found_too) = _pick_two(rng, T.errands)
    words |= {"errand": errand.format_map(words), "errand_too": errand_too.format_map(words)}
    words |= {"i_errand": errand.format(his="my"), "i_errand_too": errand_too.format(his="my")}
    look, look_too = _pick_two(rng, T.hiding_places)
    words |= {"look": look.format_map(words), "look_too": look_too.format_map(words)}
    words["found"] = _pick(rng, (found, found_too))
    return [[T.openings, T.liking], T.owning, [*T.losing, T.dismay], T.thinking_back, T.finding]


_PLOTS = [_adventure] * 8 + [_learning, _night, _loss] * 2
