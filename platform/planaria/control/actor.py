"""The named Ray actors through which others read what a run's controller has learned.

Workers decide from the state in their own memory, which is what the checkpoint holds; the actor is its published
copy, so that another run or a monitor on the cluster can read it while the run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import ray

from planaria.control.judge import Exchange, Known

NAMESPACE = "planaria"
_SHARED_WITHIN_S = 5.0
logger = logging.getLogger(__name__)


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


class SharedOutcomes:
    """What the edits of several runs brought: each run's newest, for all the others."""

    def __init__(self) -> None:
        self._of_run: dict[str, list[Known]] = {}

    def exchange(self, run: str, lent: list[Known]) -> list[Known]:
        """Take in what a run lends in place of what it lent before, and answer with what the others lent."""
        self._of_run[run] = lent
        return [known for other, theirs in self._of_run.items() if other != run for known in theirs]


def share_outcomes(name: str, run: str) -> Exchange:
    """How a run exchanges with all that share under the name. The actor is made by the first of them and outlives
    them; while it does not answer, None comes back, and the run goes on with what it has."""
    remote = ray.remote(num_cpus=0, max_restarts=-1)(SharedOutcomes)
    options = remote.options(name=f"shared:{name}", namespace=NAMESPACE, get_if_exists=True, lifetime="detached")
    actor: Any = options.remote()

    def exchange(lent: list[Known]) -> list[Known] | None:
        try:
            others: list[Known] = ray.get(actor.exchange.remote(run, lent), timeout=_SHARED_WITHIN_S)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
            logger.warning("controller shared as '%s' does not answer (%s); going on alone", name, type(error).__name__)
            return None
        return others

    return exchange


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
