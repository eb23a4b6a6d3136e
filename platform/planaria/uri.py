"""Places that are named by a URI, such as s3://bucket/runs: which they are, what lies below them, and on what."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from planaria.addresses import filled, holds_secret
from planaria.errors import InputError
from planaria.plain_yaml import one_line

if TYPE_CHECKING:
    from pyarrow import fs

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_QUERY = re.compile(r"\?(?=[a-z_]+=)")
"""Where a URI's query begins; in a glob, ? stands for a letter."""


def is_uri(place: str | os.PathLike[str]) -> bool:
    """Whether a place lies on a filesystem that pyarrow.fs knows by a URI. file:// is a path of this machine."""
    return bool(_SCHEME.match(str(place))) and not str(place).startswith("file://")


def refuse_uri(place: str | os.PathLike[str], what: str) -> None:
    """Raises InputError where a place is no folder of this machine. `what` names the setting."""
    if re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/", str(place)):  # a Path has swallowed the second slash
        raise InputError(f"{what}: {place} is a URI, and only runs are kept at one; give a folder")


def local_path(place: str | os.PathLike[str]) -> Path:
    """The path of a place on this machine."""
    text = str(place)
    return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(text)


def absolute(place: str | os.PathLike[str]) -> str:
    """A place that means the same in every working folder."""
    return str(place) if is_uri(place) else str(local_path(place).expanduser().absolute())


def split_query(uri: str) -> tuple[str, str]:
    """A URI without its query, and the query with its question mark (empty where there is none)."""
    found = _QUERY.search(uri)
    return (uri, "") if found is None else (uri[: found.start()], uri[found.start() :])


def below(place: str, name: str) -> str:
    """What lies in a place, under a name; a URI's query stays at the end."""
    if not is_uri(place):
        return f"{place}/{name}"
    before, query = split_query(place)
    return f"{before.rstrip('/')}/{name}{query}"


def above(place: str) -> str:
    """What a place lies in."""
    if not is_uri(place):
        return place.rstrip("/").rpartition("/")[0]
    before, query = split_query(place)
    return before.rstrip("/").rpartition("/")[0] + query


def name_of(uri: str) -> str:
    """The last part of a URI's path."""
    return split_query(uri)[0].rstrip("/").rpartition("/")[2]


def opened(uri: str, what: str) -> tuple[fs.FileSystem, str]:
    """The filesystem, and the path on it. `what` names the setting in messages.

    Raises InputError where pyarrow.fs does not know the URI, or a secret stands in it.
    """
    import pyarrow as pa
    from pyarrow import fs

    if holds_secret(uri):
        raise InputError(
            f"{what}: {uri}: a password or key in a URI would be recorded; leave it out and give it in the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(_in_one_request(filled(uri)))
    except KeyError as error:
        raise InputError(f"{what}: {uri}: there is no environment variable {error}; set it") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{what}: {uri} cannot be opened ({one_line(str(error))}); see pyarrow.fs for the URIs it knows"
        ) from None
    return filesystem, path.rstrip("/")


def _in_one_request(uri: str) -> str:
    """S3: a small file is put by one request rather than three, and a killed process leaves no unfinished upload."""
    before, query = split_query(uri)
    if not before.startswith("s3://") or "allow_delayed_open=" in query:
        return uri
    return f"{before}{query}{'&' if query else '?'}allow_delayed_open=true"
