"""A job that lives for a second, a campaign over its settings, and a made-up folder of one that has tried some."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planaria.plain_yaml import dump_yaml
from planaria.search import load_campaign
from planaria.search.campaign import dump_campaign
from planaria.search.places import folder_of
from planaria.search.searcher import StudySearcher
from planaria.search.space import open_study

JOB: dict[str, Any] = {
    "stream": {"source": "bananas", "task": "classification"},
    "model": {"width": 8, "layers": 2, "head_width": 4, "mlp_width": 8},
    "policy": {"heads": {"start": 2, "max": 4}, "controller": {"kind": "none"}},
    "samples": 320,
    "batch_rows": 32,
    "storage": {"checkpoint_every_s": 0.001},
}
CAMPAIGN: dict[str, Any] = {
    "name": "test",
    "job": "job.yaml",
    "search": {
        "policy.learner.learning_rate": {"between": [0.0001, 0.01], "log": True},
        "policy.sharing.attention": {"one_of": ["none", "all"]},
        "policy.sharing.difference_rank": {"one_of": [0, 2], "when": {"policy.sharing.attention": ["all"]}},
    },
    "objectives": {"prequential_accuracy": "max", "parameters_mean": "min"},
    "trials": 4,
    "seeds": [3, 4],
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes the job and the campaign, with changes; the campaign's path."""

    def write(**changes: Any) -> Path:
        (tmp_path / "job.yaml").write_text(dump_yaml(JOB))
        path = tmp_path / "campaign.yaml"
        path.write_text(dump_yaml({**CAMPAIGN, **changes}))
        return path

    return write


@pytest.fixture
def made_up(written: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a campaign that has tried ten settings: eight are done, one failed, one is begun."""

    def make(status: str | None = "stopped", **changes: Any) -> Path:
        campaign = load_campaign(written(**{"trials": 12, **changes}))
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "campaign.yaml").write_text(dump_campaign(campaign))
        searcher = StudySearcher(open_study(campaign, folder), campaign)
        for number in range(10):
            handed = searcher.suggest(str(number))
            assert handed is not None
            place = folder_of(folder, number)
            (place / "seed-3").mkdir(parents=True)
            (place / "seed-3/cpu_seconds.json").write_text(json.dumps({"cpu_seconds": 30.0 + number}))
            metrics = {
                "prequential_accuracy": 0.5 + number / 50,
                "parameters_mean": 900.0 if number == 2 else 1_000.0 + number,
            }
            told: dict[str, Any] = {"status": "done", "metrics": {**metrics, "cpu_seconds": 30.0 + number}}
            if number == 4:
                told = {"status": "failed", "reason": "model: <b>too large</b>; lower width"}
                searcher.on_trial_complete(str(number), None, error=True)
            elif number != 9:
                searcher.on_trial_complete(str(number), {"finished": True, **metrics})
            if number != 9:
                content = {"number": number, "settings": handed["settings"], **told}
                (place / "trial.json").write_text(json.dumps(content))
        if status is not None:
            (folder / "summary.json").write_text(json.dumps({"status": status, "seconds": 200.0}))
        return folder

    return make
