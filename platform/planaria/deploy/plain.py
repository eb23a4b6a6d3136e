"""A model as one function of plain tensors, so that a compiler can follow it whatever the rows are.

Legend: B rows, T tokens, D width, N heads, K blocks of the MLP, C outputs.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.model import ElasticTransformer
from planaria.model.blocks import Mlp
from planaria.model.differences import Difference
from planaria.model.rounding import product


def input_names(shape: Blueprint) -> tuple[str, ...]:
    """The groups of columns that it reads, in the order in which an exported model takes them."""
    tables = (("numeric", shape.numeric), ("categorical", shape.categorical))
    return ("image",) if shape.image_shape else tuple(name for name, columns in tables if columns)


class PlainModel(nn.Module):
    """Inputs in the order of `names`, each with rows first; logits, or one number in the target's own units."""

    def __init__(self, model: ElasticTransformer) -> None:
        super().__init__()
        shape = model.blueprint
        self.names = input_names(shape)
        self.model = copy.deepcopy(model).cpu().eval()
        for layer in range(shape.layers):
            block = self.model.block(layer)
            if block.gate is not None:
                # what is closed to a row is multiplied by 0 instead of left out: a compiler cannot count open gates
                block.attention.head_scale_BN = torch.ones(1, shape.heads[layer])
                block.own("mlp", MaskedMlp(block.mlp))
        self.requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        output_BC: Tensor = self.model(dict(zip(self.names, inputs, strict=True)))
        return output_BC


class MaskedMlp(nn.Module):
    """An MLP whose closed hidden units are computed and multiplied by 0."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x_BQD: Tensor, difference: Difference | None, open_BK: Tensor) -> Tensor:
        into, out = self.mlp.into.weight, self.mlp.out.weight
        if difference is not None:
            into, out = difference.added("into", into), difference.added("out", out)
        hidden_BQM = F.gelu(product(x_BQD, into, self.mlp.into.bias, self.mlp.quantisation))
        open_BM = open_BK.repeat_interleave(len(into) // open_BK.shape[1], 1)
        return product(hidden_BQM * open_BM[:, None], out, self.mlp.out.bias, self.mlp.quantisation)
