"""Writes cluster.yaml, cluster.local.yaml and kuberay/ from one list of versions and set-up commands.

Versions come from requirements.lock, set-up commands from the Makefile: what `make setup` does on a laptop is what
every node of a cluster does. `make cluster-files` runs this.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

REPOSITORY = Path(__file__).parent.parent
FILES = {
    "cluster.yaml": "cluster.yaml.j2",
    "cluster.local.yaml": "cluster.local.yaml.j2",
    "kuberay/Dockerfile": "Dockerfile.j2",
    "kuberay/Dockerfile.dockerignore": "dockerignore.j2",
    "kuberay/redis.yaml": "redis.yaml.j2",
    "kuberay/storage.yaml": "storage.yaml.j2",
    "kuberay/raycluster.yaml": "raycluster.yaml.j2",
    "kuberay/rayjob.yaml": "rayjob.yaml.j2",
}
"""What is written, below the repository, and from which template."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # nobody without the token can run code
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",  # nodes outlive a head that is started anew
    "OMP_NUM_THREADS": "1",  # two threads on small tensors are slower than one
}
"""Of every node."""
HEAD_ENVIRONMENT = {
    # A node that cannot be reached is given up after some 10 seconds; Ray's own defaults take up to a minute.
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Of the head, besides."""


def version_of(package: str) -> str:
    """The exact version in requirements.lock."""
    (found,) = re.findall(rf"^{package}==(.+)$", _read("requirements.lock"), re.MULTILINE)
    return str(found)


def python_version() -> str:
    """The oldest Python that pyproject.toml allows, such as 3.11: the one that planaria is tested with."""
    (found,) = re.findall(r'^requires-python = ">=(\d+\.\d+)"$', _read("pyproject.toml"), re.MULTILINE)
    return str(found)


def setup_arguments() -> list[str]:
    """What `make setup` gives to pip, call by call, in its order."""
    recipe = _read("Makefile").partition("\n$(READY):")[2].partition("\n\n")[0]
    found = re.findall(r"^\t@\$\(PIP\) (.+)$", recipe, re.MULTILINE)
    if len(found) < 2:
        raise ValueError(
            "Makefile: the recipe of $(READY) calls $(PIP) no more; cluster files are made from those lines"
        )
    return found


def setup_commands(pip: str, checkout: str) -> list[str]:
    """The same as shell commands, with planaria's files in `checkout`."""
    commands = [f"{pip} install -q {arguments}" for arguments in setup_arguments()]
    placed = [command.replace("-r requirements.lock", f"-r {checkout}/requirements.lock") for command in commands]
    return [re.sub(r"--editable [.]$", f"--editable {checkout}", command) for command in placed]


def facts() -> dict[str, Any]:
    """What the templates may use."""
    return {
        "ray": version_of("ray"),
        "image": f"rayproject/ray:{version_of('ray')}-py{python_version().replace('.', '')}-gpu",
        "python": python_version(),
        "environment": ENVIRONMENT,
        "head_environment": {**ENVIRONMENT, **HEAD_ENVIRONMENT},
        "exports": _exports(ENVIRONMENT),
        "head_exports": _exports({**ENVIRONMENT, **HEAD_ENVIRONMENT}),
        "setup_commands": setup_commands,
    }


def text_of(template: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(facts())


def _exports(environment: dict[str, str]) -> str:
    return "export " + " ".join(f"{name}={value}" for name, value in environment.items())


def _read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, template in FILES.items():
        (REPOSITORY / name).parent.mkdir(exist_ok=True)
        (REPOSITORY / name).write_text(text_of(template), encoding="utf-8")
