"""The policies of the best trials, as files that `planaria run JOB policy=FILE` takes, and that command in full."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planaria.errors import InputError
from planaria.plain_yaml import dump_yaml
from planaria.record.tables import write_atomically
from planaria.search.campaign import Campaign, job_of

logger = logging.getLogger(__name__)

BEST = "best"
"""Folder of the policies of the best trials."""

Trial = Mapping[str, Any]


def policy_text(campaign: Campaign, trial: Trial) -> str | None:
    """The trial's whole policy as YAML; None where its job is no longer there, or no longer takes it."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in trial["settings"].items()}
    try:
        policy = job_of(campaign, settings, campaign.seeds[0]).policy
    except InputError as error:
        logger.warning("trial %d: %s", trial["number"], error)
        return None
    found = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in campaign.objectives)
    head = f"# Trial {trial['number']} of campaign {campaign.name}: {found}\n"
    other = _beside_the_policy(trial["settings"])
    if other:
        head += f"# With these settings of the job besides: {other}\n"
    return head + dump_yaml(
        {**policy.model_dump(mode="json", exclude={"search"}), "name": f"{campaign.name}-{trial['number']}"}
    )


def policy_path(folder: Path, trial: Trial) -> Path:
    return folder / BEST / f"trial-{trial['number']:04d}.yaml"


def write_policies(folder: Path, best: Sequence[Trial], texts: Sequence[str | None]) -> None:
    """A file for each of the best trials; those of trials that were the best ones once are removed."""
    wanted = {policy_path(folder, trial): text for trial, text in zip(best, texts, strict=True) if text is not None}
    for path in (folder / BEST).glob("trial-*.yaml"):
        if path not in wanted:
            path.unlink(missing_ok=True)
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            content = text.encode()
            write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]


def run_command(campaign: Campaign, folder: Path, trial: Trial) -> str:
    """What runs the job with the trial's policy, and with what the trial had beside it."""
    settings = {**_beside_the_policy(campaign.settings), **_beside_the_policy(trial["settings"])}
    words = [f"policy={policy_path(folder.resolve(), trial)}"]
    words += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    return " ".join(["planaria", "run", *map(shlex.quote, [campaign.job, *words])])


def _beside_the_policy(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.partition(".")[0] != "policy"}
