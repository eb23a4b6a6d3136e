"""What is written after --peers: a learner's name and changes to it, and which streams it cannot learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from planaria.errors import InputError, nearest
from planaria.job import Job, read_override
from planaria.settings import Settings, parse
from planaria.stream.sets import IMAGES

Changes = TypeVar("Changes", bound=Settings)


def read_peer(
    library: str, name: str, known: Sequence[str], kind: type[Changes], whatfor: str = ""
) -> tuple[str, Changes]:
    """The learner and its changes, from what was written after "library:". Raises InputError."""
    learner, *changes = name.split(",")
    if learner not in known:
        raise InputError(
            f"--peers: {library}:{learner} is not known{whatfor}{nearest(learner, known)}; "
            f"use one of {', '.join(f'{library}:{one}' for one in known)}"
        )
    for change in changes:
        if "=" not in change:
            raise InputError(f"--peers: '{change}' in '{library}:{name}' is no change; write key=value")
    return learner, parse(kind, dict(map(read_override, changes)), f"--peers: {library}:{name}")


def check_classes(peer: str, job: Job) -> None:
    """Raises InputError where the stream is a regression."""
    if job.stream.task != "classification":
        raise InputError(f"--peers: {peer} learns classes, but stream.task is {job.stream.task}; leave it out")


def check_table(peer: str, job: Job) -> None:
    """Raises InputError where the stream holds pictures."""
    if job.stream.source in IMAGES or job.stream.features.image is not None:
        raise InputError(f"--peers: {peer} learns tables, but the stream holds pictures; leave it out")
