"""cluster.yaml, judged by Ray's own validator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return config


def validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate(cluster)


def test_ray_would_refuse_a_mistake_in_it(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_minutes"):
        validate({**cluster, "idle_minutes": 10})


def test_gpu_workers_are_paid_for_only_while_they_are_used(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert worker["resources"]["GPU"] == 1
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_every_node_demands_the_token(cluster: dict[str, Any]) -> None:
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_nodes_run_the_ray_and_torch_of_the_lock(cluster: dict[str, Any]) -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    (ray,) = re.findall(r"^ray==(.+)$", lock, re.MULTILINE)
    (torch,) = re.findall(r"^torch==(.+)$", lock, re.MULTILINE)
    assert f"ray:{ray}-" in cluster["docker"]["image"]
    assert f"pip install -q torch=={torch}" in cluster["setup_commands"]
