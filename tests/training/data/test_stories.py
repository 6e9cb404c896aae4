"""Generated stories: the same everywhere, grammatical, never twice, and every line of the tables is used."""

import inspect
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

from gptladder.training.data import stories as module
from gptladder.training.data.stories import stories, story

MANY = [story(1337, i) for i in range(3000)]
WORD = re.compile(r"[A-Za-z]+(?:[-'][a-z]+)?")


def test_a_story_is_the_same_on_every_machine() -> None:
    # As far as one machine can tell: in a new process, with other hashes of strings, nothing of this one left.
    script = f"import runpy; print(runpy.run_path({module.__file__!r})['story'](7, 12345))"
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed}
        printed = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        assert printed.stdout == story(7, 12345) + "\n"


def test_the_generator_needs_only_the_standard_library() -> None:
    imports = re.findall(r"^(?:from|import) ([\w.]+)", inspect.getsource(module), re.MULTILINE)
    assert set(imports) == {"random", "collections.abc", "itertools", "pathlib", "types", "typing"}


def test_stories_come_one_by_one_or_as_a_stream() -> None:
    assert list(islice(stories(1337), 50)) == MANY[:50]


@pytest.mark.parametrize("seed", [-1, 0, 1, 2**70])
def test_seeds_give_different_stories(seed: int) -> None:
    others = {story(other, i) for other in (seed + 1, -seed - 7) for i in range(50)}
    assert not {story(seed, i) for i in range(50)} & others


def test_no_story_comes_twice() -> None:
    assert len(set(MANY)) == len(MANY)


def test_stories_that_are_held_back_are_unseen() -> None:
    # Not only as a whole: a good part of their long runs of words is new as well.
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 12]) for i in range(len(words) - 11)}

    seen = set().union(*(runs(text) for text in MANY[:2700]))
    new = [len(runs(text) - seen) / len(runs(text)) for text in MANY[2700:]]
    assert sum(new) / len(new) > 0.5


def test_a_name_always_follows_a_space() -> None:
    # At the beginning of a paragraph or of direct speech, the name would be another token.
    names = "|".join([name for name, *_ in module.T.heroes] + [*module.T.helpers.values()])
    assert not [text for text in MANY if re.search(rf"(?<! )\b(?:{names})\b", text)]


def test_stories_have_the_form_of_stories() -> None:
    for text in MANY:
        paragraphs = text.split("\n\n")
        assert 4 <= len(paragraphs) <= 6
        assert all(re.match(r'["A-Z]', paragraph) for paragraph in paragraphs)
        assert all(paragraph.endswith((".", "!", "?", '"')) for paragraph in paragraphs)
        assert 80 <= len(text.split()) <= 300
        assert text.isascii()


def test_nothing_is_left_unfilled_doubled_or_misfitted() -> None:
    twice = re.compile(r"\b(\w+) \1\b")
    for text in MANY:
        assert not re.search(r"[{}|]|  | [.,!?]|\.\.|\n\n\n|\bNone\b", text), text
        assert {match[1] for match in twice.finditer(text)} <= {"choo"}, text
        assert not re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiou]", text), text
        assert text.count('"') % 2 == 0, text
        assert not re.search(r'"(I can|Then I could) [^"]*\b(he|she|his|her)\b', text), text


def leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))


def test_every_line_of_the_tables_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    def recorded(pick: Callable[..., Any]) -> Callable[..., Any]:
        def picking(rng: random.Random, options: Sequence[Any]) -> Any:
            chosen = pick(rng, options)
            used.update(leaves(chosen))
            return chosen

        return picking

    tables = {name: set(leaves(value)) for name, value in vars(module.T).items()}
    assert sum(map(len, tables.values())) > 900
    monkeypatch.setattr(module, "_pick", recorded(module._pick))
    monkeypatch.setattr(module, "_pick_two", recorded(module._pick_two))
    for index in range(4000):
        story(1337, index)
    for not_picked_from in ("remedy_of", "helpers"):
        del tables[not_picked_from]
    unused = {name: lines - used for name, lines in tables.items()}
    assert {name: lines for name, lines in unused.items() if lines} == {}


def test_the_words_are_a_childs() -> None:
    words = Counter(word.lower() for text in MANY for word in WORD.findall(text))
    assert 600 <= len(words) <= 1500
    assert max(len(word.removesuffix("'s")) for word in words) <= 12


def words_of(index: int) -> tuple[str, dict[str, str]]:
    """Return a story, and the words that were filled into it."""
    words: dict[str, str] = {}
    cast = module._cast

    def remembered(rng: random.Random) -> dict[str, str]:
        words.update(cast(rng))
        return words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_cast", remembered)
        return story(1337, index), words


def test_the_remedy_is_introduced_before_the_mishap() -> None:
    by_tool = by_friend = 0
    for index in range(2000):
        text, words = words_of(index)
        *paragraphs, mend, _ = text.split("\n\n")
        before = " ".join(paragraphs)
        if "tool" in words:
            by_tool += 1
            assert words["a_tool"] in before
            assert words["tool"] in mend
        elif "skill" in words:
            by_friend += 1
            assert words["a_fkind"] in before
            assert words["friend"] in before
            assert f"could {words['skill']}" in before or f"I can {words['i_skill']}" in before
            assert words["friend"] in mend
    assert by_tool > 300
    assert by_friend > 600


def test_the_thing_wished_for_comes_back() -> None:
    for index in range(1500):
        text, words = words_of(index)
        if "tool" in words or "skill" in words:
            opening, wish, *rest = text.split("\n\n")
            assert not re.search(rf"\b{words['thing']}\b", opening)
            assert words["a_thing"] in wish or f"{words['pal']}'s {words['thing']}" in wish
            assert words["the_thing"] in " ".join(rest)


def test_names_and_pronouns_agree() -> None:
    others = {"he": r"\b(she|her|hers|herself)\b", "she": r"\b(he|him|his|himself)\b"}
    pronouns = {name: pronoun for name, pronoun, *_ in module.T.heroes}
    of_one_kind = 0
    for index in range(1500):
        text, words = words_of(index)
        assert pronouns[words["hero"]] == words["he"]
        assert pronouns[words["pal"]] == words["phe"]
        assert words["hero"] != words["pal"]
        assert {"girl": "she", "boy": "he"}.get(words["kind"], words["he"]) == words["he"]
        if {words["he"], words["ehe"], words["phe"], words.get("fhe", words["he"])} == {words["he"]}:
            of_one_kind += 1  # all women and girls, or all men and boys: the other pronouns have no place
            assert not re.search(others[words["he"]], text, re.IGNORECASE), text
    assert of_one_kind > 100


def test_heroes_and_helpers_have_names_of_their_own() -> None:
    names = [name for name, *_ in module.T.heroes] + list(module.T.helpers.values())
    assert len(set(names)) == len(names)
    kinds = {kind for rows in module.T.friends.values() for kind, *_ in rows} | {kind for _, kind, _ in module.T.noises}
    assert set(module.T.helpers) == kinds | set(module.T.wise_animals)


def test_every_mishap_has_a_remedy_and_every_remedy_its_means() -> None:
    assert set(module.T.mishaps) == set(module.T.remedy_of)
    for thing in module.T.things:
        assert set(thing[3].split()) <= set(module.T.mishaps)
    for remedy in module.T.remedy_of.values():
        assert len(module.T.tools[remedy]) >= 3
        assert len(module.T.friends[remedy]) >= 3
        assert len(module.T.in_vain[remedy]) >= 3
