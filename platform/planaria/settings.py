"""What jobs and policies have in common: frozen values read from YAML, where a mistake names file, key and fix."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from planaria.addresses import holds_secret
from planaria.errors import InputError, nearest
from planaria.plain_yaml import one_line, shown


class Settings(BaseModel):
    """Base of every part of a job or policy: immutable, unknown keys refused.

    The line of text under a field is its description, in error messages and in docs/jobs.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _within_a_folder(name: str) -> str:
    if not _FOLDER_NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} cannot name a folder; give 1 to 100 characters without / and \\, the first of them no dot"
        )
    return name


_FOLDER_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}")
FolderName = Annotated[str, AfterValidator(_within_a_folder)]
"""A name that a folder gets: it does not lead out of the one that holds it."""

S = TypeVar("S", bound=Settings)
Origin = Callable[[str], tuple[str, str]]
"""From a dotted key to where the user wrote it, and what the key is called there."""


def parse(kind: type[S], values: dict[str, Any], where: str) -> S:
    """`values` as a `kind`; every mistake becomes one InputError line: where, key, what, what to do."""
    return parse_from(kind, values, lambda key: (where, key))


def parse_from(kind: type[S], values: dict[str, Any], origin: Origin) -> S:
    """As `parse`, for values that come from several places; `origin` says where a key was written."""
    _refuse_secrets(values, origin)
    try:
        # JSON is the strict reading: "3" is not a number and true is not 1, but a list may be a tuple.
        return kind.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InputError(_first_of(kind, values, found, origin)) from None
    except (ValueError, TypeError, RecursionError) as error:
        where, _ = origin("")
        raise InputError(f"{where}: cannot be read as plain data: {one_line(str(error))}") from None


def _refuse_secrets(values: Any, origin: Origin, key: str = "") -> None:
    """What is read here is written into folders, records and pages, and shown by Ray."""
    if isinstance(values, dict | list):
        for step, value in values.items() if isinstance(values, dict) else enumerate(values):
            _refuse_secrets(value, origin, f"{key}.{step}".removeprefix("."))
    elif isinstance(values, str) and holds_secret(values):
        where, key_there = origin(key)
        raise InputError(
            f"{where}: {key_there}: holds a password or a token, and would be recorded; write ${{NAME}} in its place, "
            "which is taken from the environment variable NAME wherever it is needed"
        )


def fields(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting below `kind` with its dotted key, sections before what they hold."""
    for name, field in kind.model_fields.items():
        yield prefix + name, field
        for section in sections(field.annotation):
            yield from fields(section, f"{prefix}{name}.")


def expected(field: FieldInfo) -> str:
    """What may be given for a field, in words: "a whole number of at least 1"."""
    return _expected(field.annotation, list(field.metadata))


def _first_of(kind: type[Settings], values: dict[str, Any], found: list[ErrorDetails], origin: Origin) -> str:
    """The mistake to mend first, and the names of the others: an unknown key often explains a missing one."""
    by_key: dict[str, ErrorDetails] = {}
    for error in sorted(found, key=lambda e: e["type"] != "extra_forbidden"):
        by_key.setdefault(_key(error, values), error)
    (key, error), *others = by_key.items()
    where, key_there = origin(key)
    names = [origin(other)[1] for other, _ in others if not other.startswith(f"{key}.")]
    also = f" (also wrong: {', '.join(names)})" if names else ""
    what = _what(kind, values, error, key, origin)
    if error["type"] == "value_error" and not key:
        where, what = _placed(kind, what, origin)
    return ": ".join(part for part in (where, key_there, what) if part) + also


def _placed(kind: type[Settings], what: str, origin: Origin) -> tuple[str, str]:
    """Where the setting was written with which the words of a check over several sections begin ("batch_rows is 2 but
    ..."), and the words with its name there."""
    key, space, rest = what.partition(" ")
    if key not in {dotted for dotted, _ in fields(kind)}:
        return origin("")[0], what
    where, key_there = origin(key)
    return where, key_there + space + rest


def _key(error: ErrorDetails, values: Any) -> str:
    """The error's place as a dotted key. Pydantic's names for the branches of a union are left out."""
    steps: list[str] = []
    for number, step in enumerate(error["loc"]):
        missing = error["type"] == "missing" and number == len(error["loc"]) - 1 and isinstance(step, str)
        if isinstance(values, dict) and step in values:
            values = values[step]
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        elif not missing:
            continue
        steps.append(str(step))
    return ".".join(steps)


def _what(kind: type[Settings], values: Any, error: ErrorDetails, key: str, origin: Origin) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key" + _suggestion(kind, key, origin)
    if error["type"] == "value_error":
        return one_line(str(error["ctx"]["error"]))
    steps = key.split(".") if key else []
    field, depth = _field(kind, steps)
    if field is None:
        return f"cannot be read as plain data: {one_line(error['msg'])}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        about = f" ({one_line(field.description).rstrip('.')})" if field.description else ""
        return f"is missing; give {expected(field)}{about}"
    value = _value(values, steps)
    hint = nearest(value, _choices(field.annotation)) if isinstance(value, str) else ""
    give = "give" if depth == len(steps) else f"{origin('.'.join(steps[:depth]))[1]} takes"
    leave = ", or leave it out" if value is None and depth == len(steps) else ""
    return f"{shown(value)} is not allowed; {give} {expected(field)}{leave}{hint}"


def _suggestion(kind: type[Settings], key: str, origin: Origin) -> str:
    """The nearest key beside an unknown one, or its right place if another section has it."""
    *above, name = key.split(".")
    beside = _section(kind, above)
    if beside is None:
        return ""
    known = list(beside.model_fields)
    for dotted, _ in fields(kind):
        if dotted.split(".")[-1] == name:
            return f" (did you mean '{origin(dotted)[1]}'?)"
    return nearest(name, known) or f"; known here: {', '.join(known)}"


def _field(kind: type[Settings], steps: list[str]) -> tuple[FieldInfo | None, int]:
    """The setting that a dotted key names or lies in (an item of a list lies in the list's), and its depth."""
    found: tuple[FieldInfo | None, int] = (None, 0)
    section: type[Settings] | None = kind
    for depth, step in enumerate(steps, start=1):
        if section and step in section.model_fields:
            found = section.model_fields[step], depth
            section = next(sections(found[0].annotation), None)
    return found


def _section(kind: type[Settings], steps: list[str]) -> type[Settings] | None:
    section: type[Settings] | None = kind
    for step in steps:
        if section and step in section.model_fields:
            section = next(sections(section.model_fields[step].annotation), None)
        elif not step.isdigit():
            return None
    return section


def sections(annotation: Any) -> Iterator[type[Settings]]:
    """The Settings that an annotation names, in an optional or a list too."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
        return
    for part in get_args(annotation):
        yield from sections(part)


def _value(values: Any, steps: list[str]) -> Any:
    """What lies at a dotted key, some of whose parts may hold dots themselves."""
    while steps:
        used = 1
        while isinstance(values, dict) and used < len(steps) and ".".join(steps[:used]) not in values:
            used += 1
        step = ".".join(steps[:used])
        values, steps = values[int(step) if isinstance(values, list) else step], steps[used:]
    return values


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


_SINGULAR: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURAL: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def _expected(annotation: Any, metadata: list[Any]) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected(parts[0], [*parts[1:], *metadata])
    if origin in (Union, types.UnionType):
        return _joined(["null" if part is type(None) else _expected(part, metadata) for part in _null_last(parts)])
    if origin is Literal:
        return _joined([str(part) for part in parts])
    if origin is tuple:
        return _expected_list(parts)
    if origin is dict:
        if parts[1] is JsonValue:
            return "keys and their values"
        return f"keys, each with {_expected(parts[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"keys under it: {', '.join(annotation.model_fields)}"
    return " ".join([_SINGULAR.get(annotation, str(annotation)), *_bounds(metadata)])


def _expected_list(parts: tuple[Any, ...]) -> str:
    item = parts[0]
    if isinstance(item, type) and issubclass(item, Settings):
        return f"a list, each item with keys: {', '.join(item.model_fields)}"
    if parts[-1] is Ellipsis:
        return f"a list of {_PLURAL[item]}" if item in _PLURAL else f"a list, each {_expected(item, [])}"
    if len(set(parts)) == 1 and item in _PLURAL:
        return f"a list of {len(parts)} {_PLURAL[item]}"
    return f"a list of {', '.join(_expected(part, []) for part in parts)}"


def _bounds(metadata: list[Any]) -> list[str]:
    words: list[str] = []
    for bound in (part for group in metadata for part in _ungrouped(group)):
        match bound:
            case annotated_types.Ge():
                words.append(f"of at least {bound.ge}")
            case annotated_types.Gt():
                words.append(f"above {bound.gt}")
            case annotated_types.Le():
                words.append(f"of at most {bound.le}")
            case annotated_types.Lt():
                words.append(f"below {bound.lt}")
            case annotated_types.MinLen():
                words.append(f"at least {bound.min_length} long")
            case annotated_types.MaxLen():
                words.append(f"at most {bound.max_length} long")
    return [" and ".join(words)] if words else []


def _ungrouped(metadata: Any) -> list[Any]:
    """Field(ge=1) inside Annotated[...] keeps its bounds one level deeper."""
    return list(metadata.metadata) if isinstance(metadata, FieldInfo) else [metadata]


def _null_last(parts: tuple[Any, ...]) -> list[Any]:
    return sorted(parts, key=lambda part: part is type(None))


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
