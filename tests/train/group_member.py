"""One worker of a group over gloo, for test_group: `group_member.py RANK SIZE MEETING_FILE` prints what it was told."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from planaria.train.group import TorchGroup, own_shards, tree_sum

rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
group = TorchGroup()
shards = [torch.randn(1_000, generator=torch.Generator().manual_seed(s)) * 10.0**s for s in range(4)]
total = group.sum(tree_sum([shards[s] for s in own_shards(rank, size, 4)]))
answers = [total.tolist(), group.share(f"from {rank}"), group.spread(5, lambda at: (at, at**2)), group.gather(rank)]
sys.stdout.write(json.dumps(answers))
dist.destroy_process_group()
