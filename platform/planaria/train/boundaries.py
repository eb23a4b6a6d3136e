"""Whether there are boundaries to tell, where a policy wants to be told them."""

from __future__ import annotations

from planaria.errors import InputError
from planaria.job import Job
from planaria.signals import Stream
from planaria.stream import ScenarioStream


def check_boundaries(job: Job, stream: Stream) -> None:
    """Raises InputError where the policy asks for what this stream, just opened, cannot tell."""
    if job.policy.detector.boundaries == "told" and not _tells(job, stream):
        raise InputError(
            "policy.detector.boundaries: is told, but the stream has no contexts that change; name a column as "
            "stream.context, give stream.scenario more than one context, or choose detected"
        )


def _tells(job: Job, stream: Stream) -> bool:
    if isinstance(stream, ScenarioStream):
        return stream.change_before(stream.total_rows - 1) is not None
    if job.stream.follow:  # there may be no row yet
        return job.stream.context is not None
    return stream.read(0, 1).context is not None
