"""The repository's own rules: where things lie, what may import what, and that what is shipped loads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from planaria.job import load_job
from planaria.meta.job import load_meta_job
from planaria.policy import load_policy
from planaria.search.campaign import check, load_campaign

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "platform" / "planaria"
STAGES = ("stream", "detect", "control", "model", "morph", "learn", "record")
ALLOWED = {("record/serve.py", "model"), ("morph", "model")}
"""Serving needs the model, and surgery its parts; nothing else of a stage needs another. `train` wires them all."""


def test_the_source_root_is_not_a_package() -> None:
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


def test_platform_is_the_standard_librarys_even_from_the_repository() -> None:
    command = [sys.executable, "-c", "import platform; print(platform.system(), platform.__file__)"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert str(REPOSITORY / "platform") not in done.stdout


def test_every_folder_of_the_package_is_a_package() -> None:
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_job_loads(path: Path) -> None:
    if path.stem.startswith("meta_train"):
        load_meta_job(path)
    elif path.stem.startswith("search_"):
        check(load_campaign(path))
    else:
        load_job(path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "policies").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_policy_loads(path: Path) -> None:
    load_policy(path)


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which stage it is from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    others = [other for other in (*STAGES, "train", "search") if other != stage]
    for path in (PACKAGE / stage).rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        for name in imported(path):
            for other in others:
                if re.match(rf"planaria\.{other}(\.|$)", name):
                    assert {(place, other), (stage, other)} & ALLOWED, f"{place} imports {name}"


def test_what_stages_share_imports_no_stage() -> None:
    for path in (PACKAGE / f"{name}.py" for name in ("signals", "errors", "blueprint", "job", "policy", "settings")):
        for name in imported(path):
            assert not re.match(rf"planaria\.({'|'.join((*STAGES, 'train'))})(\.|$)", name), f"{path} imports {name}"


TEXT_SUFFIXES = {".md", ".py", ".yaml", ".toml", ".j2", ".lock", ""}


def committed_text() -> Iterator[Path]:
    """Files that a user reads or runs: not caches, data or results."""
    for folder, inside, files in os.walk(REPOSITORY):
        inside[:] = [name for name in inside if not name.startswith(".") and name not in {"runs", "data", "build"}]
        wanted = [name for name in files if Path(name).suffix in TEXT_SUFFIXES and name != ".git"]  # that of a worktree
        yield from (Path(folder) / name for name in wanted)


def test_no_file_names_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.~-])/(?:work|root|home/(?!ray\b)\w+|Users/\w+)/")
    for path in committed_text():
        if path != Path(__file__):
            found = machine.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(REPOSITORY)} names {found and found.group()}"


def test_nothing_is_pickled() -> None:
    for path in PACKAGE.rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
