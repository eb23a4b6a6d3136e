"""The learned value of candidates: an ensemble of small networks, meta-learned, that adapt to the run.

A network predicts two returns of a candidate, the relative fall of the loss over the next rows and that on remembered
rows at their end, from what the decision shows and, where there was a look-ahead, from that too. What counts is the
difference from the returns of keeping.

Legend: K candidates, X features, W hidden units, S outcomes known, M members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from planaria.control.adapt import adapted_to
from planaria.control.features import NAMES
from planaria.errors import InputError

HIDDEN = 32
INNER_STEPS = 3
SHIPPED = Path(__file__).parent / "value.safetensors"
"""What `planaria meta-train jobs/meta_train.yaml` made."""


class ValueNetwork(nn.Module):
    """Features [..., X], standardised -> returns [..., 2] (recent, remembered): `body`, then the `head` that adapts, or
    both of them where the `whole` network adapts."""

    def __init__(self, features: int = len(NAMES), hidden: int = HIDDEN, *, whole: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, 2)
        self.whole = whole
        moving = list(self.parameters()) if whole else list(self.head.parameters())
        self.rates = nn.ParameterList([nn.Parameter(torch.full_like(p, 0.01)) for p in moving])
        """Of the inner steps, learned with the rest (Meta-SGD)."""

    def forward(self, features: Tensor) -> Tensor:
        returned: Tensor = self.head(self.body(features))
        return returned

    def adapted(self, features_SX: Tensor, return_S: Tensor) -> nn.Module:
        """What answers after the outcomes of a deployment. Differentiable."""
        rates = list(self.rates)
        if self.whole:
            return adapted_to(nn.Sequential(self.body, self.head), rates, features_SX, return_S, INNER_STEPS)
        head = adapted_to(self.head, rates, self.body(features_SX), return_S, INNER_STEPS)
        return nn.Sequential(self.body, head)


@dataclass(frozen=True)
class Outcomes:
    """What a run has seen of its own decisions."""

    features_SX: npt.NDArray[np.float64]
    """Of the candidates that were chosen."""
    return_S: npt.NDArray[np.float64]
    """Relative fall of the loss that followed."""


class ValueEnsemble:
    """Predicts; nothing in it changes after it was made. float64, so that machines agree on the choice."""

    def __init__(
        self, members: Sequence[ValueNetwork], mean_X: Tensor, spread_X: Tensor, about: Mapping[str, object]
    ) -> None:
        self.members = [member.double().eval() for member in members]
        self.mean_X, self.spread_X = mean_X.double(), spread_X.double()
        self.about = dict(about)
        """How it was made: families, seeds, figures, and the `unit` of its returns."""

    @property
    def edits(self) -> frozenset[str]:
        """Kinds of edit that it has learned of."""
        return frozenset(str(kind) for kind in cast(list[str], self.about["edits"]))

    @property
    def unit(self) -> float:
        """A network's 1 in relative fall of the loss."""
        return float(str(self.about["unit"]))

    def adapted(self, outcomes: Outcomes | None) -> list[nn.Module]:
        """Each member, adapted to the outcomes."""
        if outcomes is None or not len(outcomes.return_S):
            return list(self.members)
        features_SX = self._standardised(outcomes.features_SX)
        return_S = torch.from_numpy(outcomes.return_S) / self.unit
        return [member.adapted(features_SX, return_S) for member in self.members]

    @torch.no_grad()
    def gains(
        self, features_KX: npt.NDArray[np.float64], members: Sequence[nn.Module], memory_weight: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Relative gain of each candidate over the first one, that on remembered rows weighted: mean and standard
        deviation over the members. Shapes [K]."""
        standardised = self._standardised(features_KX)
        weights = torch.tensor([1.0, memory_weight], dtype=torch.float64)
        returns = [member(standardised) @ weights for member in members]
        gain_MK = torch.stack([r - r[0] for r in returns]) * self.unit
        # Rounded, so that a last bit that differs between machines cannot make them choose differently.
        return gain_MK.mean(0).numpy().round(9), gain_MK.std(0, correction=0).numpy().round(9)

    def _standardised(self, features: npt.NDArray[np.float64]) -> Tensor:
        return ((torch.from_numpy(features) - self.mean_X) / self.spread_X).clamp(-6, 6)

    def to_bytes(self) -> bytes:
        """safetensors, with `about` as JSON in its header."""
        tensors = {"mean": self.mean_X.float(), "spread": self.spread_X.float()}
        for number, member in enumerate(self.members):
            tensors.update({f"{number}.{name}": t.float().contiguous() for name, t in member.state_dict().items()})
        return _ordered(save(tensors, {"about": json.dumps(self.about), "features": json.dumps(NAMES)}))

    @staticmethod
    def from_bytes(content: bytes) -> ValueEnsemble:
        """Inverse of `to_bytes`. Raises ValueError, KeyError or RuntimeError where that is not what it is."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        about, names, tensors = json.loads(header["about"]), json.loads(header["features"]), load(content)
        if tuple(names) != NAMES:
            raise ValueError("it was learned from other features")
        count = 1 + max(int(name.split(".")[0]) for name in tensors if name[0].isdigit())
        members = []
        for number in range(count):
            member = ValueNetwork(whole=about["mode"] == "maml")
            prefix = f"{number}."
            member.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            members.append(member)
        ensemble = ValueEnsemble(members, tensors["mean"], tensors["spread"], about)
        scales_fit = ensemble.mean_X.shape == ensemble.spread_X.shape == (len(NAMES),)
        if not scales_fit or not {"unit", "edits", "mode"} <= set(about):
            raise ValueError("its header or its scales are not those of a learned value")
        return ensemble


def _ordered(content: bytes) -> bytes:
    """safetensors writes the entries of a header in any order, and equal values would not be equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def load_value(path: Path = SHIPPED) -> ValueEnsemble:
    """Raises InputError where the file is not a learned value for the features that are observed today."""
    try:
        return ValueEnsemble.from_bytes(path.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: no usable learned value ({reason}); make one with `planaria meta-train`") from None
