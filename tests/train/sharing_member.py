"""One worker of runs over gloo, one after the other, for test_shares: `sharing_member.py RANK SIZE MEETING_FILE
FOLDER...`, where each folder has its job.yaml. Prints a line for each: the bytes of the memory that lie with this
worker, and what it came to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from planaria.errors import InputError, RunError
from planaria.job import load_job
from planaria.train import worker
from planaria.train.folder import RunFolder
from planaria.train.group import TorchGroup
from planaria.train.lifelong import Lifelong

rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
runs: list[Lifelong] = []


class Watched(Lifelong):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        runs.append(self)


worker.Lifelong = Watched  # type: ignore[misc]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
for path in sys.argv[4:]:
    folder = RunFolder(Path(path))
    try:
        ended = worker.live(load_job(folder.job), folder, Path.cwd(), TorchGroup(), torch.device("cpu"))
    except (InputError, RunError) as error:
        ended = {"status": str(error)}
    sys.stdout.write(json.dumps([runs[-1].memory.held_bytes, ended.get("status")]) + "\n")
    sys.stdout.flush()
dist.destroy_process_group()
