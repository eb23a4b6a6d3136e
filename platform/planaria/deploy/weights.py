"""safetensors: a folder of weights, blueprint and encoding, which `planaria.model.load_model` reads.

Weights that layers share are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planaria.deploy.formats import Answer, Array, answer_of
from planaria.deploy.plain import input_names
from planaria.model import ElasticTransformer, load_model, save_model


class Weights:
    suffix = ""
    exact = True

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        save_model(model, path, encoding)

    def read(self, path: Path) -> Answer:
        model, _ = load_model(path)
        names = input_names(model.blueprint)
        return answer_of(lambda *tensors: model(dict(zip(names, tensors, strict=True))))


FORMAT = Weights()
