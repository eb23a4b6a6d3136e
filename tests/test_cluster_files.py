"""The files that make a cluster: cloud, own machines, Kubernetes; one source, each judged by its own validator.

KubeRay's published CRDs are not shipped: tests/kuberay_fields.yaml holds what they say of the fields in use. Where the
variable KUBERAY_CRDS names a folder with the CRDs themselves (ray.io_rayclusters.yaml, ray.io_rayjobs.yaml), or
kubernetes-validate is installed, which brings Kubernetes's own schemas, the manifests are held against those too.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from benchmarks.cluster import A_HEAD_MAY_BE_AWAY, LOST_HOSTS_ARE_FOUND
from tests.conftest import script

from planaria.job import load_job

REPOSITORY = Path(__file__).parent.parent
MANIFESTS = ("raycluster", "rayjob")
CRDS = {"raycluster": "ray.io_rayclusters.yaml", "rayjob": "ray.io_rayjobs.yaml"}
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    return script(REPOSITORY / "cluster" / "write_files.py")


def read(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((REPOSITORY / name).read_text())
    return found


def manifest(name: str) -> Manifest:
    return read(f"kuberay/{name}.yaml")


def cluster_spec(name: str) -> Manifest:
    spec: Manifest = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


# -- one source


def test_every_file_is_what_the_templates_make_of_the_lock_and_the_makefile(writer: ModuleType) -> None:
    for name, template in writer.FILES.items():
        assert (REPOSITORY / name).read_text() == writer.text_of(template), f"{name}: run `make cluster-files`"


def test_all_of_them_name_the_ray_of_the_lock_and_set_up_as_the_makefile_does(writer: ModuleType) -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    (ray,) = re.findall(r"^ray==(.+)$", lock, re.MULTILINE)
    (torch,) = re.findall(r"^torch==(.+)$", lock, re.MULTILINE)
    calls = [line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith("\t@$(PIP) ")]
    assert len(writer.setup_arguments()) == len(calls) and writer.setup_arguments()[0] == f"torch=={torch}"
    for name in ("cluster.yaml", "cluster.local.yaml", "kuberay/Dockerfile"):
        text = (REPOSITORY / name).read_text()
        assert text.count("pip install ") == len(calls) + (name == "cluster.yaml"), name  # and once for boto3
        assert f"torch=={torch}" in text
    assert f"ray:{ray}-" in read("cluster.yaml")["docker"]["image"]
    assert [cluster_spec(name)["rayVersion"] for name in MANIFESTS] == [ray, ray]


def test_a_makefile_that_sets_up_in_another_way_is_noticed(writer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_read", lambda name: "\n$(READY): pyproject.toml\n\t@uv sync\n\n")
    with pytest.raises(ValueError, match=r"the recipe of \$\(READY\) calls \$\(PIP\) no more"):
        writer.setup_arguments()


def test_nodes_of_all_three_demand_the_token_and_are_given_up_quickly(writer: ModuleType) -> None:
    cloud, local = read("cluster.yaml"), read("cluster.local.yaml")
    head = {**writer.ENVIRONMENT, **writer.HEAD_ENVIRONMENT}
    assert head["RAY_AUTH_MODE"] == "token" and int(head["RAY_health_check_period_ms"]) <= 1_000
    assert head.items() >= {**LOST_HOSTS_ARE_FOUND, **A_HEAD_MAY_BE_AWAY}.items(), "what the chaos suite is run with"
    docker = cloud["docker"]
    for name, value in writer.ENVIRONMENT.items():
        assert f"-e {name}={value}" in docker["run_options"]
        assert f"{name}={value}" in local["worker_start_ray_commands"][-1]
    for name, value in writer.HEAD_ENVIRONMENT.items():
        assert f"-e {name}={value}" in docker["head_run_options"]
        assert f"{name}={value}" in local["head_start_ray_commands"][-1]
    for config in (cloud, local):
        assert "~/.ray/auth_token" in config["file_mounts"].values()
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    for name in MANIFESTS:
        spec = cluster_spec(name)
        assert spec["authOptions"] == {"mode": "token"}
        (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
        given = {one["name"]: one["value"] for one in container["env"]}
        assert {**given, "RAY_AUTH_MODE": "token"}.items() >= head.items()


# -- Ray's cluster launcher


def launch(config: Manifest) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_ray_accepts_the_file_and_would_refuse_a_mistake_in_it(name: str) -> None:
    launch(read(name))
    with pytest.raises(Exception, match="idle_minutes"):
        launch({**read(name), "idle_minutes": 10})


def test_gpu_workers_are_paid_for_only_while_they_are_used() -> None:
    worker = read("cluster.yaml")["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert worker["resources"]["GPU"] == 1
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


# -- KubeRay


def check(found: Manifest) -> None:
    """Raises jsonschema.ValidationError for a field that KubeRay does not know, or of another type."""
    schema = yaml.safe_load((REPOSITORY / "tests" / "kuberay_fields.yaml").read_text())
    jsonschema.validate(found, {**schema, "$ref": f"#/$defs/{found['kind']}"})


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field(name: str) -> None:
    check(manifest(name))


def _misspell(spec: Manifest) -> None:
    spec["autoscalerOptions"]["idleTimeoutMinutes"] = 10


def _number(spec: Manifest) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _text(spec: Manifest) -> None:
    spec["workerGroupSpecs"][0]["maxReplicas"] = "8"


def _choice(spec: Manifest) -> None:
    spec["authOptions"]["mode"] = "tokens"


def _nameless(spec: Manifest) -> None:
    del spec["workerGroupSpecs"][0]["groupName"]


def _misplaced(spec: Manifest) -> None:
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["fsGroup"] = 100


@pytest.mark.parametrize("mistake", [_misspell, _number, _text, _choice, _nameless, _misplaced])
def test_a_mistake_would_be_refused(mistake: Callable[[Manifest], None]) -> None:
    for name in MANIFESTS:
        found = manifest(name)
        mistake(found["spec"].get("rayClusterSpec", found["spec"]))
        with pytest.raises(jsonschema.ValidationError):
            check(found)


def pods(name: str) -> Iterator[Manifest]:
    spec = cluster_spec(name)
    yield from (group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]))


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_no_rights_and_no_secrets_written_out(name: str) -> None:
    for pod in pods(name):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    text = (REPOSITORY / "kuberay" / f"{name}.yaml").read_text()
    assert not re.search(r"(?i)(password|secret_access_key|token): *[\"']?\w{12,}", text)
    password = cluster_spec(name)["gcsFaultToleranceOptions"]["redisPassword"]
    assert password == {"valueFrom": {"secretKeyRef": {"name": "planaria-redis", "key": "password"}}}


def test_the_job_of_the_ray_job_is_one_that_loads() -> None:
    entry = manifest("rayjob")["spec"]["entrypoint"]
    (path,) = re.findall(r"/home/ray/planaria/(jobs/\S+)", entry)
    settings = [setting.replace('"', "") for setting in re.findall(r"scale\.\S+=[^\s;]+", entry)]
    assert load_job(REPOSITORY / path, settings).scale.bounds == (1, 8)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_published_crds_accept_the_manifests(name: str) -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS does not name a folder with KubeRay's CRDs")
    crd = yaml.safe_load((Path(folder) / CRDS[name]).read_text())
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1"]
    jsonschema.validate(manifest(name), _strict(schema))


def _strict(schema: Any) -> Any:
    """A CRD's schema that refuses fields it does not name, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict


def test_kubernetes_knows_every_field_of_pods_and_of_what_goes_with_them() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = [{"apiVersion": "v1", "kind": "Pod", **pod} for name in MANIFESTS for pod in pods(name)]
    for name in ("redis", "storage"):
        found += list(yaml.safe_load_all((REPOSITORY / "kuberay" / f"{name}.yaml").read_text()))
    for each in found:
        validator.validate(each, "1.34", strict=True)
    broken = copy.deepcopy(found[0])
    broken["spec"]["containers"][0]["imagePull"] = "Always"
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, "1.34", strict=True)
