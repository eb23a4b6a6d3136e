"""What keeps old knowledge beside replay, in a run: anchors and an earlier self to learn from, if the policy asks.

Equal on every worker: it sees reduced gradients only, and takes effect when the detector reports a shift or a
boundary is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.learn import build_anchors, build_teacher
from planaria.model import ElasticTransformer, build, check_weights
from planaria.policy import Learner
from planaria.signals import Task

_ANCHORS, _TEACHER, _BLUEPRINT = "anchors.safetensors", "teacher.safetensors", "teacher.json"


class Protection:
    """See planaria.learn.learners."""

    def __init__(self, learner: Learner) -> None:
        self.anchors, self.teacher = build_anchors(learner), build_teacher(learner)

    @property
    def teaches(self) -> bool:
        """Whether fresh rows cost something beside their objective."""
        return self.teacher is not None and self.teacher.model is not None

    def cost(self, task: Task, features: Mapping[str, Tensor], output_BC: Tensor, spread: Tensor) -> Tensor:
        """Of fresh rows, beside their objective, where it `teaches`. Shape [B]."""
        assert self.teacher is not None, "as `teaches` says"
        return self.teacher.cost(task, output_BC, self.teacher.answers(features), spread)

    def pull(self, parameters: Sequence[nn.Parameter]) -> None:
        """Before the optimizer's step, with the objective's gradients in place."""
        if self.anchors is not None:
            self.anchors.pull(parameters)

    def stepped(self, parameters: Sequence[nn.Parameter], rows: int) -> None:
        """After it. The gradients were means over `rows` rows."""
        if self.anchors is not None:
            self.anchors.stepped(parameters, rows)

    def settle(self, model: nn.Module) -> None:
        """The stream has shifted: what was learned until now is protected from here on."""
        if self.anchors is not None:
            self.anchors.settle(list(model.parameters()))
        if self.teacher is not None:
            self.teacher.settle(model)

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        """See planaria.morph.Follower."""
        if self.anchors is not None:
            self.anchors.replaced(old, new, kept, dimension)

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        """See planaria.morph.Follower."""
        if self.anchors is not None and source is not None:
            self.anchors.copied(source, new)

    def dropped(self, old: nn.Parameter) -> None:
        """See planaria.morph.Follower."""
        if self.anchors is not None:
            self.anchors.dropped(old)

    def files(self, model: nn.Module) -> dict[str, bytes]:
        """What of it belongs into a checkpoint."""
        files = {}
        if self.anchors is not None:
            files[_ANCHORS] = save_tensors(self.anchors.tensors(list(model.named_parameters())))
        if self.teacher is not None and isinstance(self.teacher.model, ElasticTransformer):
            weights = self.teacher.model.state_dict()
            files[_TEACHER] = save_tensors({name: value.cpu().contiguous() for name, value in weights.items()})
            files[_BLUEPRINT] = self.teacher.model.blueprint.to_json().encode()
        return files

    def load(self, files: Mapping[str, bytes], model: nn.Module, device: torch.device) -> None:
        """Inverse of `files`. Raises KeyError, ValueError, RuntimeError or InputError where they are not of such a
        run."""
        if self.anchors is not None:
            self.anchors.load(dict(model.named_parameters()), load_tensors(files[_ANCHORS]))
        if self.teacher is not None and _TEACHER in files:
            blueprint, weights = Blueprint.from_json(files[_BLUEPRINT].decode()), load_tensors(files[_TEACHER])
            check_weights(blueprint, weights)
            teacher = build(blueprint).to(device)
            teacher.load_state_dict(weights)
            self.teacher.settle(teacher)
