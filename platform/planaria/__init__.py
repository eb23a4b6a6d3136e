"""planaria: continual and meta-learning on Ray, with a model that grows and shrinks its own heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planaria.deploy import export
    from planaria.errors import InputError, RunError
    from planaria.job import Job, load_job
    from planaria.policy import Policy, load_policy
    from planaria.train.launch import resume, run
    from planaria.train.result import RunResult

__all__ = [
    "InputError",
    "Job",
    "Policy",
    "RunError",
    "RunResult",
    "export",
    "load_job",
    "load_policy",
    "resume",
    "run",
]

_HOMES = {
    "InputError": "errors",
    "Job": "job",
    "Policy": "policy",
    "RunError": "errors",
    "RunResult": "train.result",
    "export": "deploy",
    "load_job": "job",
    "load_policy": "policy",
    "resume": "train.launch",
    "run": "train.launch",
}


def __getattr__(name: str) -> Any:
    """What a program calls is imported when it is first used: torch, Ray and MLflow take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'planaria' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"planaria.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
