"""torch.export: a .pt2 file that torch alone runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from planaria.deploy.formats import Answer, Array, answer_of
from planaria.deploy.plain import PlainModel
from planaria.model import ElasticTransformer


class TorchExport:
    suffix = ".pt2"
    exact = True

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        torch.export.save(traced(PlainModel(model), inputs), path)

    def read(self, path: Path) -> Answer:
        return answer_of(torch.export.load(path).module())


def traced(plain: PlainModel, inputs: Sequence[Array]) -> torch.export.ExportedProgram:
    """The model's operations for any number of rows."""
    rows = torch.export.Dim("rows")
    shapes = (tuple({0: rows} for _ in inputs),)
    return torch.export.export(plain, tuple(map(torch.from_numpy, inputs)), dynamic_shapes=shapes)


FORMAT = TorchExport()
