"""Layouts: every combination of the parts', in order, each made when it is read."""

from gptladder.ladder.candidate.layouts import Layout, Layouts, joined


def part(name: str, count: int, made: list[str]) -> Layouts:
    def make(index: int) -> Layout:
        made.append(f"{name}{index}")
        return Layout(lambda given: {name: given[name] + index}, frozenset({name.upper()}), f"{name}{index}")

    return Layouts(count, make)


def test_parts_are_joined_in_every_combination_in_order() -> None:
    made: list[str] = []
    both = joined([part("a", 2, made), [Layout(lambda given: {}, label="b")], part("c", 3, made)])
    assert made == []
    assert both[4].label == "a1; b; c1"
    assert made == ["c1", "a1"]
    assert [each.label for each in both] == [f"a{i}; b; c{j}" for i in range(2) for j in range(3)]
    assert both[5].missing == {"A", "C"}


def test_no_more_than_300_layouts_are_tried() -> None:
    assert len(list(joined([part("a", 20, []), part("c", 20, [])]))) == 300
