"""The loop that planaria is measured against: what one would write by hand for the same model, data and replay.

Rows in order, a forward pass over new and replayed rows, cross-entropy, clipping, AdamW, a reservoir. No detector, no
controller, no record, no evaluation but running sums. It is written to be fast, not to be general.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from planaria.model import ElasticTransformer


class BareLoop:
    """`images` [N, channels, height, width] uint8 and `labels` [N], gone through in order, again and again."""

    def __init__(
        self,
        model: ElasticTransformer,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        batch: int,
        memory_rows: int,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        self.model, self.images, self.labels, self.batch = model, images, labels, batch
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.order = np.random.default_rng(0).permutation(len(labels))
        self.random = np.random.default_rng(1)
        self.memory = np.zeros((memory_rows, *images.shape[1:]), np.uint8)
        self.memory_label = np.zeros(memory_rows, np.int64)
        self.seen = 0
        self.loss_sum = self.errors = 0.0

    def take_step(self) -> None:
        rows = self.order[np.arange(self.seen, self.seen + self.batch) % len(self.order)]
        image, label = self.images[rows], self.labels[rows]
        slots = self.random.integers(0, min(self.seen, len(self.memory)), self.batch if self.seen else 0)
        both = torch.from_numpy(np.concatenate((image, self.memory[slots])))
        target = torch.from_numpy(np.concatenate((label, self.memory_label[slots])))
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model({"image": both})
        loss = F.cross_entropy(output, target, reduction="none")
        fresh = loss[: self.batch].mean()
        objective = fresh + loss[self.batch :].mean() if len(slots) else fresh
        objective.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.loss_sum += float(fresh.detach()) * self.batch
        self.errors += float((output[: self.batch].argmax(1) != target[: self.batch]).sum())
        self._remember(image, label)

    def _remember(self, image: npt.NDArray[np.uint8], label: npt.NDArray[np.int64]) -> None:
        """Reservoir sampling of a whole batch; a slot drawn twice keeps the later row."""
        number = np.arange(self.seen, self.seen + len(label))
        capacity = len(self.memory)
        slot = np.where(number < capacity, number, self.random.integers(0, number + 1))
        kept = slot < capacity
        self.memory[slot[kept]], self.memory_label[slot[kept]] = image[kept], label[kept]
        self.seen += len(label)
