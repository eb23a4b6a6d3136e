"""What settings may be where they are searched: typed ranges, some of them only under conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from planaria.errors import InputError, nearest
from planaria.plain_yaml import shown
from planaria.settings import Settings, expected, fields, parse, sections

Value = bool | int | float | str | tuple[int, ...] | dict[str, JsonValue] | None


class Range(Settings):
    """What one setting may be: exactly one of one_of, between and integers."""

    one_of: tuple[Value, ...] | None = None
    """These values; for a whole section its keys, or null."""
    between: tuple[float, float] | None = None
    """Any number from the first to the second."""
    integers: tuple[int, int] | None = None
    """Any whole number from the first to the second, both included."""
    log: bool = False
    """Whether equal ratios count as equal steps, rather than equal differences."""
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Search it only in trials where these other searched settings have one of these values; elsewhere it is what the
    job says."""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        given = [name for name in ("one_of", "between", "integers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'no values'}; give exactly one of one_of, between, integers")
        bounds = self.between or self.integers
        if bounds is not None and (bounds[0] >= bounds[1] or (self.log and bounds[0] <= 0)):
            raise ValueError(f"{given[0]} is {list(bounds)}; give the lower one first{' and above 0' * self.log}")
        if self.one_of is not None and (self.log or len(self.one_of) < 2):
            raise ValueError("one_of needs at least two values, and no log")
        return self

    @property
    def extremes(self) -> tuple[Value, ...]:
        """All values, or the ends between which they lie."""
        return self.one_of or self.between or self.integers or ()

    def holds(self, value: object) -> bool:
        """Whether the value is one of those it may be."""
        if self.one_of is not None:
            return value in self.one_of
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.integers is not None:
            return isinstance(value, int) and self.integers[0] <= value <= self.integers[1]
        assert self.between is not None
        return self.between[0] <= value <= self.between[1]


Ranges = Mapping[str, Range]
"""By the dotted key of the setting."""


def check_conditions(search: Ranges) -> None:
    """Raises ValueError where a condition names what is not searched before it, or a value that it never has."""
    keys = list(search)
    for at, (key, values) in enumerate(search.items()):
        for other, wanted in values.when.items():
            if other not in keys[:at]:
                raise ValueError(f"search.{key}.when names '{other}', which is not searched before it; move it up")
            for value in wanted:
                if not search[other].holds(value):
                    raise ValueError(f"search.{key}.when: {other} is never {value!r}")


def check_types(search: Ranges, kind: type[Settings], of: str) -> None:
    """Raises ValueError where a key is no setting below `kind` (called `of` in words), or may not be what it says."""
    known = {key: field for key, field in fields(kind) if "search" not in key.split(".")}
    for key, values in search.items():
        if key not in known:
            same = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
            hint = nearest(key, same or list(known)) or "; docs/jobs.md has them all"
            raise ValueError(f"search.{key}: {of} has no such setting{hint}")
        for value in values.extremes:
            what = _refused(known[key], value, values.between is not None)
            if what is not None:
                raise ValueError(f"search.{key}: {what}")


def _refused(field: FieldInfo, value: Value, continuous: bool) -> str | None:
    """Why the setting may not have the value, if it may not."""
    section = next(sections(field.annotation), None)
    if isinstance(value, dict) and section is not None:
        try:
            parse(section, value, "")
        except InputError as error:
            return str(error).removeprefix(": ")
        return None
    allowed: Any = TypeAdapter(Annotated[(field.annotation, *field.metadata, None)])  # type: ignore[arg-type]
    try:
        allowed.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        whole = continuous and error.errors()[0]["type"].startswith("int_")
        by = ", by integers instead of between" if whole else ""
        return f"{shown(value)} is not allowed; give {expected(field)}{by}"
    return None


def below(search: Ranges, section: str) -> dict[str, Range]:
    """The same ranges for settings that lie in a section: its name before every key."""
    return {
        f"{section}.{key}": values.model_copy(
            update={"when": {f"{section}.{other}": wanted for other, wanted in values.when.items()}}
        )
        for key, values in search.items()
    }
