"""YAML as plain data: mappings, lists, text, numbers, true, false and null, and nothing that hides a mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from planaria.errors import InputError, nearest

LARGEST_FILE_BYTES = 250_000
"""Some 20 seconds of reading, of the worst that fits."""
_LONGEST_NUMBER = 100
"""Characters. Numbers in base 60 (1:30:00), which YAML 1.1 has, take time that grows with the square of that."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Tags that build objects are refused (safe loader)."""
    values = load_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds {shown(values)}"
        raise InputError(f"{path}: {found}; give keys and values, such as 'name: my-run'")
    return values


def load_yaml(text: str, where: str) -> Any:
    """What a YAML text holds: mappings, lists, strings, numbers, true, false or null. InputError for all else."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise InputError(f"{where}:{at} {_plain(error)}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: is not YAML: {one_line(str(error))}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply to be read; flatten it") from None
    except ValueError as error:  # such as 2024-13-45, which looks like a date
        raise InputError(f"{where}: {one_line(str(error))}; put quotes around the value") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `load_yaml` reads back as equal values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def shown(value: Any) -> str:
    """A value as an error message shows it: short, on one line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list) and (len(value) > 8 or any(isinstance(item, dict | list) for item in value)):
        return "a list"
    text = json.dumps(value, default=str, ensure_ascii=False) if not isinstance(value, str) else f"'{value}'"
    return one_line(text if len(text) <= 60 else text[:57] + "...")


def one_line(text: str) -> str:
    return " ".join(text.split())


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses what hides mistakes or costs: keys given twice, keys that are no text, and aliases.

    A few nested aliases in a small file can stand for billions of values.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = "'*' repeats a value by its anchor, which is not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
                raise ValueError(f"a number has at most {_LONGEST_NUMBER} characters")
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # 2024-13-45 looks like a date, and what has a tag need not look like that at all
            problem = f"{shown(node.value)} cannot be read ({one_line(str(error))}); put quotes around it"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text; write 'name: value'", problem_mark=key_node.start_mark
                )
            key = key_node.value  # as written: 'on' and 'no' are words here, and so is 1
            if key in values:
                problem = f"'{key}' is given twice; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            values[key] = self.construct_object(value_node, deep=deep)
        return values


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1 reads 1e-3 as text, because it lacks a dot. Nobody means that.
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))


def read_text(path: Path) -> str:
    """Of a small file. InputError where it cannot be had."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a YAML file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
        if len(content) > LARGEST_FILE_BYTES:
            raise InputError(f"{path}: is larger than {LARGEST_FILE_BYTES:,} bytes; this is not a job or policy")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_neighbour(path)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _neighbour(path: Path) -> str:
    folder = path.parent
    return nearest(path.name, [p.name for p in folder.glob("*.y*ml")]) if folder.is_dir() else "; check the path"


def _plain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not YAML"
    if problem.startswith("could not determine a constructor for the tag"):
        tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag} is not allowed; remove it: a job or policy is plain data"
    if "cannot start any token" in problem and "\\t" in problem:
        return "a tab; indent with spaces"
    if isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError | yaml.composer.ComposerError):
        return f"is not YAML: {one_line(problem)}"
    return one_line(problem)
