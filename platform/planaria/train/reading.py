"""The readout of a run: sums over its rows, concept by concept, and what is solved from them.

Equal on every worker: rows are described where they are learned from, and the descriptions summed with the gradients.
Legend: B fresh and judged rows, D features and the constant 1, V voices (the experts and the transformer), C outputs,
W = D + V x C.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from planaria.learn import DOUBTFUL, UNSETTLED, Products, Sums, nested_ridge, ridge, row_error, row_loss
from planaria.model import ElasticTransformer
from planaria.policy import Learner
from planaria.signals import LOOK_BACK_ROWS, Rows, Stream, Task

_SUMS, _ABOUT = "readout.safetensors", "readout.json"
_REST = -3
"""Rows of concepts that are no longer told apart."""
_REDRAWN_AT = (64, 256, 1_024)
"""Rows of the stream from which the random features are drawn anew: more rows know better what rows look like."""
_SOLVED_AGAIN, _SOLVED_AFTER_ROWS = 1.2, 1_000
"""Solve again when the present concept has this many times the rows, or so many rows more."""
_FADING_SOLVES = 16
"""In a half-life."""
_TRUST_PULL = 1.0
_LEAST_CHANCE = 0.03
"""Of a class, where the loss's curvature is taken: where all rows are sure, it would vanish, and steps be too long."""
_JUDGED_SHARE = 4
"""Fresh rows to each remembered one on which is judged."""
_CHUNK_ROWS = 512


Decode = Callable[[Rows], tuple[dict[str, Tensor], Tensor]]
"""Features and targets of those rows that the readout learns from."""


class Passed(NamedTuple):
    """What a pass of the model brings, row by row."""

    trained_BC: Tensor
    """What the transformer is trained on, which is all it says beside the readout."""
    loss_B: Tensor
    """Of that."""
    cost: Tensor
    """Sum of these losses, each times the row's share."""
    answered_loss_B: Tensor
    """Of what is answered."""
    answered_error_B: Tensor
    told_BW: Tensor | None
    """Where there is a readout, each row's description, and what the voices say of it."""


def pass_through(
    model: ElasticTransformer, features: Mapping[str, Tensor], target_B: Tensor, share_B: Tensor
) -> Passed:
    """All that a step computes of its rows: one function, so that it can be compiled as one."""
    task: Task = "regression" if model.output.regression else "classification"
    spread = model.output.spread
    if model.readout is None:
        trained_BC = model(features)
        loss_B = row_loss(task, trained_BC, target_B, spread)
        with torch.no_grad():
            error_B = row_error(task, trained_BC, target_B)
        return Passed(trained_BC, loss_B, torch.dot(loss_B, share_B), loss_B.detach(), error_B, None)
    described_BD = model.readout.describe(features)
    said_BEC = model.readout.experts(described_BD)
    read_BC = model.readout.answer(said_BEC)
    alone_BC = model.output.standard(model.hidden(features))
    trained_BC = model.output.in_units(alone_BC + read_BC)
    loss_B = row_loss(task, trained_BC, target_B, spread)
    with torch.no_grad():
        answered_BC = model.output.in_units(alone_BC * model.readout.trust_V[-1] + read_BC)
        answered_loss_B = row_loss(task, answered_BC, target_B, spread)
        error_B = row_error(task, answered_BC, target_B)
        told_BW = torch.cat((described_BD, said_BEC.flatten(1), alone_BC), 1)
    return Passed(trained_BC, loss_B, torch.dot(loss_B, share_B), answered_loss_B, error_B, told_BW)


class Reading:
    """Learns a readout (see planaria.model.readout), where the policy asks for one."""

    def __init__(self, learner: Learner, task: Task, seed: int) -> None:
        self.settings, self.task, self.seed = learner.readout, task, seed
        self.concepts: dict[int, Sums] = {}
        """By the detector's number, UNSETTLED, DOUBTFUL or _REST."""
        self.fading: list[Sums] = []
        self.spans: list[tuple[int, int]] = []
        """(first row, concept) of each run of rows, oldest first."""
        self.excluded: frozenset[int] = frozenset()
        """Concepts that contradict the present one."""
        self.curvature_VV = torch.zeros(0)
        """Of the loss in `Readout.trust_V`: sums over rows, faded."""
        self._present_rows, self._since = 0.0, 0
        """Rows of the present concept when it was last solved, and rows since."""
        self._fading_since: list[int] = []
        self._stale = True
        self.withheld: list[int] = []
        """Newest rows of the stream that are not learned from, so that they can judge."""
        self._names: list[int] = []
        """Concepts in the readout's order."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """For the blueprint: (features, concepts, fading)."""
        return (
            (0, 0, 0)
            if self.settings is None
            else (
                self.settings.features,
                self.settings.concepts,
                2 * len(self.settings.half_lives),
            )
        )

    def begin(self, model: ElasticTransformer, features: Mapping[str, Tensor]) -> None:
        """Draw the random features from the stream's first rows."""
        if model.readout is None:
            return
        model.readout.features.fit(features, self.seed)
        self._forget(model)
        voices = len(model.readout.trust_V)
        self.curvature_VV = torch.zeros(voices, voices, dtype=torch.float64, device=model.output.bias.device)

    def _forget(self, model: ElasticTransformer) -> None:
        assert model.readout is not None and self.settings is not None
        self.concepts = {}
        self._names = []
        self.fading = [self._empty(model) for _ in self.settings.half_lives]
        self._fading_since = [_CHUNK_ROWS] * len(self.fading)
        self._stale = True

    @property
    def judges_memory(self) -> bool:
        """Whether it is remembered rows, too, that say how far each voice is to be trusted."""
        return self.settings is not None and self.settings.memory_weight > 0

    def drawn(self, rows: int) -> int:
        """Remembered rows, never learned from, on which a step of so many fresh rows judges."""
        return max(1, rows // _JUDGED_SHARE) if self.judges_memory else 0

    def width(self, model: ElasticTransformer) -> int:
        """Numbers of each fresh or judged row that the workers sum up."""
        return (
            0 if model.readout is None else model.readout.size + model.readout.trust_V.numel() * model.blueprint.outputs
        )

    def withhold(self, rows: Iterable[int]) -> None:
        """Do not learn from these rows of the stream."""
        self.withheld = (self.withheld + sorted(rows))[-LOOK_BACK_ROWS:]

    @torch.no_grad()
    def learn(
        self,
        model: ElasticTransformer,
        told: Tensor,
        target: Tensor,
        learned: Tensor,
        row: int,
        present: int | None,
        contradicted: frozenset[int],
    ) -> None:
        """After a step: `told` holds the fresh rows and then the judged ones, `target` theirs; `learned` says which
        fresh rows may be learned from. `row` is the first one's number."""
        if model.readout is None or self.settings is None:
            return
        told_BW = told.view(len(target), -1)
        described_BD, said_BW = told_BW[:, : model.readout.size], told_BW[:, model.readout.size :]
        target_BC = self._columns(model, target)
        fresh = len(learned)
        weight_B = torch.ones(len(target), dtype=torch.float64, device=target.device)
        weight_B[fresh:] = self.settings.memory_weight * fresh / max(1, len(target) - fresh)
        self._judge(model, said_BW.reshape(len(target), -1, model.blueprint.outputs), target_BC, weight_B)
        described_BD, target_BC = described_BD[:fresh][learned], target_BC[:fresh][learned]
        key = self._key(present)
        if not self.spans or self.spans[-1][1] != key:
            self.spans.append((row, key))
        rows = len(target_BC)
        if self.fading:
            products = Products.of(
                described_BD, target_BC, self._precision
            )  # once for all sums, which a step needs up to date
            self._sums(model, key).absorb(products)
            for at, half_life in enumerate(self.settings.half_lives):
                self.fading[at].fade(0.5 ** (rows / half_life))
                self.fading[at].absorb(products)
                self._fading_since[at] += rows
        else:
            self._sums(model, key).add(described_BD, target_BC)
        self._since += rows
        excluded = contradicted if self.settings.concepts > 1 else frozenset()
        self._stale |= excluded != self.excluded
        self.excluded = excluded
        self._solve(model, key)

    def redraw(self, model: ElasticTransformer, stream: Stream, before: int, now: int, decode: Decode) -> None:
        """After the step that took the stream from row `before` to `now`: draw the random features anew, and sum up
        what was learned until now again, where that is due."""
        if model.readout is None or not any(before < at <= now for at in _REDRAWN_AT):
            return
        features, _ = decode(stream.read(0, now))
        model.readout.features.fit(features, self.seed)
        self._forget(model)
        ends = [first for first, _ in self.spans[1:]] + [now]
        for (first, key), end in zip(self.spans, ends, strict=True):
            for low, described_BD, target_BC in self._described(model, stream, first, end, decode):
                self._sums(model, key).add(described_BD, target_BC)
                for sums, half_life in zip(self.fading, self.settings.half_lives if self.settings else (), strict=True):
                    age = now - low - len(target_BC) / 2
                    weight = 0.5 ** (age / half_life)
                    sums.add(described_BD, target_BC, weight)
        self._solve(model, self.spans[-1][1])

    def tag_since(
        self, model: ElasticTransformer, stream: Stream, first_row: int, now: int, concept: int | None, decode: Decode
    ) -> None:
        """Rows from `first_row` on turned out to be of this concept (None while it is not known)."""
        if model.readout is None or not self.spans:
            return
        key = self._key(concept)
        first_row = max(first_row, now - LOOK_BACK_ROWS, 0)
        ends = [first for first, _ in self.spans[1:]] + [now]
        kept: list[tuple[int, int]] = []
        for (first, old), end in zip(self.spans, ends, strict=True):
            if end <= first_row or old == key:
                kept.append((first, old))
                continue
            if first < first_row:
                kept.append((first, old))
            self._move(model, stream, max(first, first_row), end, old, key, decode)
            kept.append((max(first, first_row), key))
        self.spans = [span for at, span in enumerate(kept) if at == 0 or kept[at - 1][1] != span[1]]
        recent = [span for span in self.spans if span[0] >= now - LOOK_BACK_ROWS]
        self.spans = self.spans[-len(recent) - 1 :]
        self._stale = True

    def _move(
        self, model: ElasticTransformer, stream: Stream, low: int, high: int, old: int, new: int, decode: Decode
    ) -> None:
        if old in (UNSETTLED, DOUBTFUL) and sum(key == old for _, key in self.spans) == 1 and (low, old) in self.spans:
            if old in self.concepts:
                self._sums(model, new).merge(self.concepts.pop(old))
            return
        for _, described_BD, target_BC in self._described(model, stream, low, high, decode):
            self._sums(model, old).add(described_BD, target_BC, -1.0)
            self._sums(model, new).add(described_BD, target_BC)

    def _described(
        self, model: ElasticTransformer, stream: Stream, low: int, high: int, decode: Decode
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        assert model.readout is not None
        for at in range(low, high, _CHUNK_ROWS):
            features, target = decode(stream.read(at, min(_CHUNK_ROWS, high - at)))
            yield at, model.readout.describe(features), self._columns(model, target)

    def _sums(self, model: ElasticTransformer, key: int) -> Sums:
        if key not in self.concepts:
            self.concepts[key] = self._empty(model)
        self.concepts[key] = self.concepts.pop(key)  # the one used last is last
        return self.concepts[key]

    def _key(self, concept: int | None) -> int:
        """Of its rows, among the sums."""
        if self.settings is not None and self.settings.concepts == 1:
            return 0
        return UNSETTLED if concept is None else concept

    def _empty(self, model: ElasticTransformer) -> Sums:
        assert model.readout is not None
        return Sums.empty(model.readout.size, model.blueprint.outputs, model.output.bias.device, self._precision)

    @property
    def _precision(self) -> torch.dtype:
        return torch.float32 if self.settings is not None and self.settings.sums == "float32" else torch.float64

    def _columns(self, model: ElasticTransformer, target: Tensor) -> Tensor:
        """Shape [rows, C], float32."""
        if self.task == "classification":
            return F.one_hot(target, model.blueprint.outputs).float()
        return target.float()[:, None]

    # -- what answers

    def _judge(self, model: ElasticTransformer, said_BVC: Tensor, target_BC: Tensor, weight_B: Tensor) -> None:
        """How far each expert and the transformer are to be trusted: Newton's method on the loss of their weighted sum,
        on what they said beforehand."""
        readout = model.readout
        assert readout is not None and self.settings is not None
        fade = 0.5 ** (len(target_BC) / self.settings.trust_half_life)
        said_VBC = said_BVC.transpose(0, 1).double()
        said_VN = said_VBC.flatten(1)
        answer_BC = (readout.trust_V @ said_VN).view_as(target_BC)
        curve_BC = weight_B[:, None].expand_as(target_BC)
        if self.task == "classification":
            answer_BC = answer_BC.softmax(1)
            said_VN = (said_VBC - (said_VBC * answer_BC).sum(2, keepdim=True)).flatten(1)
            curve_BC = curve_BC * answer_BC.clamp(min=_LEAST_CHANCE)
        wrong_BC = (answer_BC - self._told(model, target_BC)) * weight_B[:, None]
        slope_V = said_VN @ wrong_BC.flatten()
        self.curvature_VV.mul_(fade).addmm_(said_VN * curve_BC.flatten(), said_VN.T)
        pulled_VV = self.curvature_VV.clone()
        pulled_VV.diagonal().add_(_TRUST_PULL)
        readout.trust_V.sub_(torch.linalg.solve(pulled_VV, slope_V))
        readout.trust_V[-1].clamp_(min=0)

    def _told(self, model: ElasticTransformer, target_BC: Tensor) -> Tensor:
        """Targets in the units of the readout's answer."""
        if self.task == "classification":
            return target_BC
        return (target_BC - model.output.mean) / model.output.spread

    def _in_told(self, model: ElasticTransformer, sums: Sums) -> Tensor:
        """Products of features and targets, in the units of the readout's answer."""
        if self.task == "classification":
            return sums.cross_DC
        return (sums.cross_DC - model.output.mean * sums.gram_DD[-1][:, None]) / model.output.spread

    def _solve(self, model: ElasticTransformer, present: int) -> None:
        assert model.readout is not None and self.settings is not None
        readout, pull = model.readout, self.settings.ridge
        for at, half_life in enumerate(self.settings.half_lives):
            if self._fading_since[at] >= half_life / _FADING_SOLVES:
                sums = self.fading[at]
                sums.widen(model.blueprint.outputs)
                told_DC = self._in_told(model, sums)
                whole, columns_alone = nested_ridge(sums.gram_DD, told_DC, pull, readout.features.own)
                readout.fading_DC(2 * at).copy_(whole)
                readout.fading_DC(2 * at + 1).copy_(columns_alone)
                self._fading_since[at] = 0
        rows = self._sums(model, present).rows
        if not self._stale and rows < self._present_rows * _SOLVED_AGAIN and self._since < _SOLVED_AFTER_ROWS:
            return
        self._fold()
        for sums in self.concepts.values():
            sums.widen(model.blueprint.outputs)
        used = {key: sums for key, sums in self.concepts.items() if key not in self._left_out}
        names = [key for key in sorted(used) if key not in (DOUBTFUL, _REST)]
        every_concept = self._stale or names != self._names
        total = next(iter(used.values()))
        if len(used) > 1:
            total = self._empty(model)
            for key in sorted(used):
                total.merge(used[key])
        belongs_DK = torch.stack([used[key].gram_DD[-1] for key in names], 1)
        outputs = model.blueprint.outputs
        both = ridge(total.gram_DD, torch.cat((self._in_told(model, total), belongs_DK), 1), pull)
        readout.all_DC.copy_(both[:, :outputs])
        readout.recogniser_DK.zero_()
        readout.recogniser_DK[:, : len(names)] = both[:, outputs:]
        readout.held_K.zero_()
        readout.held_K[: len(names)] = 1.0
        for at, key in enumerate(names):
            if every_concept or key == present:
                own = used[key]
                told_DC = readout.all_DC if own is total else ridge(own.gram_DD, self._in_told(model, own), pull)
                readout.concept_DC(at).copy_(told_DC)
            if key == present:
                readout.present_DC.copy_(readout.concept_DC(at))
        self._present_rows, self._since, self._stale, self._names = rows, 0, False, names

    @property
    def _left_out(self) -> frozenset[int]:
        return self.excluded | {DOUBTFUL} if self.excluded else self.excluded

    def _fold(self) -> None:
        """Tell no more concepts apart than the policy says: those used longest ago go."""
        assert self.settings is not None
        told = [key for key in self.concepts if key not in (DOUBTFUL, _REST)]
        for key in told[: max(0, len(told) - self.settings.concepts)]:
            sums = self.concepts.pop(key)
            if _REST in self.concepts:
                self.concepts[_REST].merge(sums)
            else:
                self.concepts[_REST] = sums
            self._stale = True

    # -- state

    def files(self) -> dict[str, bytes]:
        """What of it belongs into a checkpoint; what answers is in the model."""
        if self.settings is None:
            return {}
        kept = {f"concept/{key}": sums for key, sums in self.concepts.items()}
        kept |= {f"fading/{at}": sums for at, sums in enumerate(self.fading)}
        tensors = {"curvature": self.curvature_VV}
        for name, sums in kept.items():
            tensors |= {f"{name}/{part}": value for part, value in sums.packed().items()}
        about = {
            "concepts": list(self.concepts),
            "spans": self.spans,
            "excluded": sorted(self.excluded),
            "present_rows": self._present_rows,
            "since": self._since,
            "fading_since": self._fading_since,
            "stale": self._stale,
            "names": self._names,
            "withheld": self.withheld,
        }
        content = save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()})
        return {_SUMS: content, _ABOUT: json.dumps(about).encode()}

    def load(self, files: Mapping[str, bytes], device: torch.device) -> None:
        """Inverse of `files`. Raises KeyError, TypeError or ValueError where they are not of such a run."""
        if self.settings is None:
            return
        about = json.loads(files[_ABOUT])
        tensors = {name: value.to(device) for name, value in load_tensors(files[_SUMS]).items()}

        def sums(name: str) -> Sums:
            return Sums.unpacked(
                {key.rpartition("/")[2]: tensors[key] for key in tensors if key.startswith(f"{name}/")}
            )

        self.concepts = {int(key): sums(f"concept/{key}") for key in about["concepts"]}
        self.fading = [sums(f"fading/{at}") for at in range(len(self.settings.half_lives))]
        self.curvature_VV = tensors["curvature"]
        self.spans = [(int(first), int(key)) for first, key in about["spans"]]
        self.excluded = frozenset(int(key) for key in about["excluded"])
        self._present_rows, self._since = float(about["present_rows"]), int(about["since"])
        self._fading_since, self._stale = [int(rows) for rows in about["fading_since"]], bool(about["stale"])
        self._names = [int(key) for key in about["names"]]
        self.withheld = [int(row) for row in about["withheld"]]
