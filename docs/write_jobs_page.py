"""Writes docs/jobs.md from the settings themselves, so that the page cannot say what the code does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from planaria.job import Job
from planaria.settings import Settings, expected, fields, sections

PAGE = Path(__file__).parent / "jobs.md"

INTRODUCTION = """\
# Jobs and policies

<!-- Written by docs/write_jobs_page.py (`make docs`) from the settings themselves. Change those, not this page. -->

A **job** is a YAML file: which stream, which model, which policy, at what scale, kept where. A **policy** is a YAML
file too: how a run detects shifts, edits its model, learns, and what capacity costs. Both hold data and nothing else:
unknown keys, keys given twice, tags and anchors are refused.

```yaml
name: elec
stream:
  source: parquet
  path: data/elec/*.parquet
  features: {numeric: [nswprice, nswdemand], categorical: [day]}
  target: class
policy: thrifty
```

- `policy` is a name (`thrifty`: a file in a `policies` folder in or beside the job file's, in the current folder, or in
  planaria's checkout), a path relative to the job file, or the policy's keys written in place.
- `stream.path` and `storage.folder` are relative to the folder in which the command is given.
- Everything can be changed from the command line, by its dotted key and a value in YAML:
  `planaria run job.yaml seed=1 policy.heads.max=8 scale.workers=[1,4] policy.detector.inputs=null`.
- What a run was really given, defaults included, is in its folder as `job.yaml`.
- A mistake is one line that says where, what, and what to do, and nothing is started:
  `policies/mine.yaml: heads: max is 2 but min is 4; raise max or lower min`.

Units are in the names: `_samples` and `_rows` count rows of the stream, `_s` is seconds. A *sample* is one row.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, section("The job", "", Job)]
    for key, field in fields(Job):
        for kind in sections(field.annotation):
            parts.append(section(f"`{key}`", key, kind, field))
    return "\n".join(parts)


def section(title: str, key: str, kind: type[Settings], field: FieldInfo | None = None) -> str:
    """A heading, what the section is for, and a row for each of its keys."""
    lines = [f"## {title}", ""]
    about = kind.__doc__ or (field.description if field else None)
    if about and kind is not Job:
        lines += [" ".join(about.split()), ""]
    lines += ["| key | meaning | may be | default |", "|---|---|---|---|"]
    for name, entry in kind.model_fields.items():
        lines.append(
            f"| `{name}` | {meaning(f'{key}.{name}'.lstrip('.'), entry)} | {allowed(entry)} | {default(entry)} |"
        )
    return "\n".join([*lines, ""])


def meaning(key: str, field: FieldInfo) -> str:
    inner = next(sections(field.annotation), None)
    text = " ".join((field.description or (inner.__doc__ if inner else None) or "").split())
    link = f" See [`{key}`](#{anchor(key)})." if inner else ""
    return cell(re.sub(r"\bNone\b", "null", text) + link)


def allowed(field: FieldInfo) -> str:
    if not next(sections(field.annotation), None):
        return cell(expected(field))
    if get_origin(field.annotation) is tuple:
        return "a list of sections"
    return "a section or null" if type(None) in get_args(field.annotation) else "a section"


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, Settings):
        return "its own defaults"
    return f"`{cell(json.dumps(plain(value)))}`"


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def anchor(key: str) -> str:
    """What the page's heading for a section is linked by."""
    return key.replace(".", "").lower()


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
