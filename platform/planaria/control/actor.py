"""The named Ray actor through which others read what a run's controller has learned.

Workers decide from the state in their own memory, which is what the checkpoint holds; the actor is its published
copy, so that another run or a monitor on the cluster can read it while the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ray

NAMESPACE = "planaria"


class PublishedController:
    """Keeps the newest state; an older step never replaces a newer one."""

    def __init__(self) -> None:
        self._step = -1
        self._state = "{}"

    def publish(self, step: int, state: str) -> None:
        if step >= self._step:
            self._step, self._state = step, state

    def read(self) -> tuple[int, str]:
        """(step, state as JSON); step is -1 before anything was published."""
        return self._step, self._state


def start_actor(run_name: str) -> Any:
    """The run's controller actor, made where there is none. It lives as long as the Ray job that made it."""
    remote = ray.remote(num_cpus=0, max_restarts=-1)(PublishedController)
    return remote.options(name=f"controller:{run_name}", namespace=NAMESPACE, get_if_exists=True).remote()


def publish(actor: Any, step: int, state: Mapping[str, Any]) -> None:
    """Send without waiting: a controller that is being restarted must not hold up training."""
    actor.publish.remote(step, json.dumps(state))


def read_controller(run_name: str) -> tuple[int, dict[str, Any]]:
    """What the controller of a running run has learned: (step, state). Raises ValueError where there is none."""
    step: int
    state: str
    step, state = ray.get(ray.get_actor(f"controller:{run_name}", namespace=NAMESPACE).read.remote())
    return step, json.loads(state)
