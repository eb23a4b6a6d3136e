"""One worker of a run over gloo, for test_returning: `returning_member.py RANK SIZE MEETING_FILE JOB ROWS` prints what
the run came to."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save

from planaria.job import Job
from planaria.learn import optimizer_tensors
from planaria.stream import open_stream
from planaria.train.group import TorchGroup
from planaria.train.lifelong import Lifelong

rank, size, meeting, rows = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[5])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
job = Job.model_validate_json(Path(sys.argv[4]).read_text())
stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=0.0)
run = Lifelong(job, stream, TorchGroup(), torch.device("cpu"))
run.begin()
while run.row < rows and run.take_step() is not None:
    pass
equal = {
    "model": save(run.model.state_dict()),
    "optimizer": save(optimizer_tensors(run.optimizer, run.model.named_parameters())),
    "library": run.recollection.file(),
    "memory": b"".join(getattr(run.memory, name).tobytes() for name in ("target", "concept", "arrival", "loss")),
}
sums = {name: hashlib.sha256(content).hexdigest() for name, content in equal.items()}
edits = [row["edit"] for row in run.account.records.rows("revisions")]
sys.stdout.write(json.dumps([sums, edits, run.recollection.state()]))
dist.destroy_process_group()
