"""Settings of one's own: strict reading, and the words for what may be given."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from planaria.errors import InputError
from planaria.plain_yaml import dump_yaml, load_yaml
from planaria.settings import Settings, expected, fields, parse


class Inner(Settings):
    rate: float = Field(0.5, ge=0, lt=1)
    """How fast."""


class Outer(Settings):
    count: Annotated[int, Field(ge=1)] = 1
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    mixed: tuple[int | str, ...] = ()
    weights: dict[str, float] | None = None
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("count", "a whole number of at least 1"),
        ("kind", "a or b"),
        ("pair", "a list of 2 whole numbers or null"),
        ("names", "a list of texts"),
        ("mixed", "a list, each a whole number or text"),
        ("weights", "keys, each with a number or null"),
        ("inner", "keys under it: rate"),
        ("inner.rate", "a number of at least 0 and below 1"),
        ("many", "a list, each item with keys: rate"),
    ],
)
def test_what_may_be_given_is_said_in_words(key: str, words: str) -> None:
    assert expected(dict(fields(Outer))[key]) == words


def test_the_line_under_a_field_is_its_description() -> None:
    assert dict(fields(Outer))["inner.rate"].description == "How fast."


def test_settings_cannot_be_changed_after_reading() -> None:
    settings = parse(Outer, {}, "x.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        settings.count = 2  # type: ignore[misc]


def test_a_list_becomes_a_tuple_and_a_whole_number_a_float() -> None:
    settings = parse(Outer, {"pair": [1, 2], "inner": {"rate": 0}, "many": [{"rate": 0.1}]}, "x.yaml")
    assert settings == Outer(pair=(1, 2), inner=Inner(rate=0.0), many=(Inner(rate=0.1),))


def test_a_mistake_inside_a_list_of_sections_names_the_item() -> None:
    with pytest.raises(InputError, match=r"^x\.yaml: many\.1\.rate: 3 is not allowed; give a number of at least 0"):
        parse(Outer, {"many": [{}, {"rate": 3}]}, "x.yaml")


def test_text_that_no_file_can_hold_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^x\.yaml: cannot be read as plain data: [^\n]*$"):
        parse(Outer, load_yaml('names: ["\\ud800"]', "x.yaml"), "x.yaml")


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-3", 0.001), ("1E5", 100000.0), ("-2.5e+3", -2500.0), ("1_000", 1000), ("e5", "e5"), ("'1e-3'", "1e-3")],
)
def test_numbers_are_read_as_people_write_them(written: str, read: object) -> None:
    value = load_yaml(written, "x.yaml")
    assert value == read
    assert type(value) is type(read)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc=<~1e", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc1~", min_size=1, max_size=3), plain, max_size=4))
def test_dumped_yaml_reads_back_as_the_same_values(values: dict[str, object]) -> None:
    assert load_yaml(dump_yaml(values), "x.yaml") == values


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_either_read_or_refused_in_one_line(text: str) -> None:
    try:
        load_yaml(text, "x.yaml")
    except InputError as error:
        assert str(error).startswith("x.yaml: ")
        assert len(str(error).splitlines()) == 1
