"""A policy: how a run detects shifts, edits its model, learns and what capacity costs. One YAML file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from planaria.blueprint import PARTS, Activations, Blueprint, GateKind, Gates, GateScope, Part, Quantisation
from planaria.plain_yaml import read_yaml
from planaria.ranges import Range, check_conditions, check_types
from planaria.settings import Settings, parse


class Heads(Settings):
    """How many attention heads a layer may have."""

    start: int = Field(8, ge=1)
    """Heads of each layer when the run begins; where it is not given, the nearest to its default within min and max."""
    min: int = Field(1, ge=1)
    """No layer goes below."""
    max: int = Field(10, ge=1)
    """No layer goes above."""
    cooldown_samples: int = Field(2_000, ge=0)
    """No second edit before this many samples have been learned from after the first."""

    @model_validator(mode="before")
    @classmethod
    def _start_within(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "start" in given:
            return given
        low, start, high = (given.get(name, cls.model_fields[name].default) for name in ("min", "start", "max"))
        if not (isinstance(low, int) and isinstance(high, int)):
            return given  # whatever they are is told where they are read
        return {**given, "start": min(max(low, start), max(low, high))}

    @model_validator(mode="after")
    def _ordered(self) -> Heads:
        if self.max < self.min:
            raise ValueError(f"max is {self.max} but min is {self.min}; raise max or lower min")
        if not self.min <= self.start <= self.max:
            raise ValueError(f"start is {self.start}, outside min {self.min} to max {self.max}; change one")
        return self


Grouping = Literal["none", "all", "pairs", "cycle", "sandwich"] | tuple[int, ...]


class Regrouping(Settings):
    """Sharing that changes while the model learns: after a shift a layer may get weights of its own, and between shifts
    layers that have stayed alike may share theirs."""

    price: float = Field(0.05, ge=0)
    """Nats per row that a model whose layers share nothing must earn over one without parameters."""
    gain: float = Field(0.01, ge=0, lt=1)
    """Share of the present loss that twice the parameters take away in the long run, where they come from layers that
    no longer share: a short look-ahead cannot see it."""


class Sharing(Settings):
    """Which layers use one set of weights."""

    attention: Grouping = "none"
    """none: each layer has its own. all: one for all. pairs: one for two neighbours. cycle: the second half of the
    layers goes through those of the first again. sandwich: one for all but the first and the last. Or the layer, for
    each layer, whose weights it uses: [0, 0, 2, 2] is pairs of four."""
    mlp: Grouping = "none"
    """The same for the MLP weights."""
    difference_rank: int = Field(0, ge=0)
    """Hierarchical sharing: what each layer adds to weights that it shares, as a product of matrices of this rank; 0
    adds nothing."""
    regroup: Regrouping | None = None
    """Let the controller change the groups, which begin as said above; null leaves them as they are."""

    def owners(self, part: Part, layers: int) -> tuple[int, ...]:
        """For each layer the layer whose weights of that part it uses. Raises ValueError where the setting has another
        number of layers."""
        given = getattr(self, part)
        if isinstance(given, tuple):
            if len(given) != layers or any(not 0 <= o <= at or given[o] != o for at, o in enumerate(given)):
                raise ValueError(
                    f"policy.sharing.{part} is {list(given)}; name for each of the {layers} layers the first layer of "
                    f"its group"
                )
            return given
        half = -(-layers // 2)
        of: dict[str, Callable[[int], int]] = {
            "none": lambda layer: layer,
            "all": lambda layer: 0,
            "pairs": lambda layer: layer - layer % 2,
            "cycle": lambda layer: layer % half,
            "sandwich": lambda layer: layer if layer in (0, layers - 1) else 1,
        }
        return tuple(of[given](layer) for layer in range(layers))


class Gate(Settings):
    """Gates: which heads, and which blocks of the MLPs, are used. What is closed is not computed."""

    kind: GateKind = "hard_concrete"
    """straight_through: open or closed, learned with the gradient of the probability. hard_concrete: also between, and
    drawn at random while it is learned, so that closed gates are tried again."""
    per: GateScope = "row"
    """row: each row opens what it needs. stream: all rows of a step use the same, which follows what the stream's rows
    are like now; it saves more time, as nothing has to be gathered."""
    mlp_blocks: int = Field(2, ge=1)
    """Equal parts of a layer's hidden units that have a gate each. Per row, blocks of fewer than about 64 units cost
    as much to gather as to compute."""
    active_fraction: float = Field(0.6, gt=0, lt=1)
    """Share of the parameters behind gates that a row is to use, on average over rows and layers."""
    weight: float = Field(4.0, gt=0)
    """Of the pull towards that: nats per row that using the whole model costs over using none of it, where it is used
    whole and nothing of it should be."""
    warm_up_samples: int = Field(2_000, ge=0)
    """Rows of the stream before the pull begins."""

    @property
    def gates(self) -> Gates:
        """For the blueprint."""
        return Gates(self.kind, self.per, self.mlp_blocks)


class Prune(Settings):
    """Pruning: the heads and hidden units that matter least go for good. First those of the smallest weights, at once;
    then, in steps between which the others learn on, those that the loss depends on least."""

    from_samples: int = Field(10_000, ge=0)
    """Rows to learn from before any of them go."""
    coarse: float = Field(0.2, ge=0, lt=1)
    """Share of the parameters of heads and hidden units that goes first, by magnitude; 0 is none."""
    fine: float = Field(0.8, ge=0, lt=1)
    """Share that is gone at the end, with the coarse one; the same is no fine steps."""
    fine_by: Literal["sensitivity", "magnitude"] = "sensitivity"
    """sensitivity: |weight x gradient| on recent and remembered rows. magnitude: as in the coarse step."""
    steps: int = Field(8, ge=1)
    """In which the rest goes."""
    every_samples: int = Field(1_000, ge=1)
    """Rows to learn from between two steps."""
    unstructured: float = Field(0.0, ge=0, lt=1)
    """Share of the weights of the heads and MLPs that are left then, the smallest ones, which stay at zero from there
    on. It saves bytes where files are compressed, and no time."""

    @model_validator(mode="after")
    def _prunes_something(self) -> Prune:
        if self.fine < self.coarse:
            raise ValueError(
                f"fine is {self.fine:g} but coarse is {self.coarse:g}, and fine counts all that goes; raise fine or "
                "lower coarse"
            )
        if not self.fine and not self.unstructured:
            raise ValueError("coarse, fine and unstructured are 0, so that nothing goes; raise one or remove prune")
        return self


_LAST_FRACTION = 0.2


class Quantise(Settings):
    """A last phase in which attention and MLPs compute as an INT8 export does, so that the model learns under its
    rounding. Predictions are then those of the quantised model."""

    bits: int = Field(8, ge=4, le=8)
    """Of weights; activations have 8. An exported file packs 4 bits in half a byte; 5 to 7 take a byte as 8 do."""
    activations: Activations = "token"
    """token: each token's values have a scale of their own. tensor: one for all rows that are computed together, which
    ONNX Runtime is faster with; but then a row's answer depends on the rows beside it."""
    from_samples: int | None = Field(None, ge=0)
    """Rows of the stream before it begins; null goes by last_fraction."""
    last_fraction: float | None = Field(None, gt=0, le=1)
    """Share of the job's samples, at their end, that is learned so; where neither is given, a fifth."""

    @model_validator(mode="after")
    def _begins_once(self) -> Quantise:
        if self.from_samples is not None and self.last_fraction is not None:
            raise ValueError(
                f"from_samples is {self.from_samples} and last_fraction is {self.last_fraction:g}, which both say when "
                "it begins; remove one"
            )
        return self

    @property
    def quantisation(self) -> Quantisation:
        """For the blueprint."""
        return Quantisation(self.bits, self.activations)

    def first_row(self, samples: int | None) -> int:
        """From which on the model is quantised, in a job of so many samples."""
        if self.from_samples is not None:
            return self.from_samples
        assert samples is not None, "as the job sees to"
        return round((1 - (self.last_fraction or _LAST_FRACTION)) * samples)


class Adapters(Settings):
    """A base that all concepts share, and beside every layer's MLP an adapter for each concept. The detector tells
    which concept's adapter is learned; the model itself tells from a row's inputs which one answers for it."""

    units: int = Field(8, ge=1)
    """Hidden units of an adapter, in each layer."""
    most: int = Field(8, ge=1)
    """Adapters that there may be; concepts that come later use the one whose rows are most like theirs."""


class Budget(Settings):
    """Limits, and the price of what is used below them."""

    parameters: int | None = Field(None, ge=1)
    """No edit may take the model above this many parameters."""
    flops_per_sample: int | None = Field(None, ge=1)
    """No edit may take one forward pass above this."""
    price: float = Field(0.12, ge=0)
    """Nats per row that a model with every head in use must earn over one with none."""
    mean_heads: float | None = Field(None, gt=0)
    """Heads of a layer that the run may use on average: the price rises while it uses more, and falls while it uses
    less. Without it the price stays what it is."""
    decision_credit: int = Field(60_000, ge=0)
    """Passes of a row through the model that decisions may spend before they have earned them."""
    decision_fraction: float = Field(0.05, gt=0, le=1)
    """Passes that decisions may spend, as a share of those that training spends, once that is more than the credit:
    passes, not seconds, so that a run is reproducible."""

    def allows(self, blueprint: Blueprint) -> bool:
        """Whether a model of these shapes stays within the limits."""
        parameters = self.parameters is None or blueprint.parameters <= self.parameters
        return parameters and (self.flops_per_sample is None or blueprint.flops_per_sample <= self.flops_per_sample)


class LossChannel(Settings):
    """Watches the prequential loss, row by row."""

    page_hinkley_threshold: float = Field(50.0, gt=0)
    """Standard deviations of a row's loss, summed over the rows of a rise."""
    page_hinkley_delta: float = Field(0.15, ge=0)
    """Standard deviations. Smaller rises are not counted."""
    adwin_delta: float = Field(0.002, gt=0, lt=1)
    """How unlikely a difference of means must be by chance. Smaller is slower and surer."""


class InputChannel(Settings):
    """Compares windows of inputs or predictions, without labels."""

    window_rows: int = Field(256, ge=32)
    """Newest rows that are compared."""
    reference_rows: int = Field(1_024, ge=64)
    """Earlier rows that they are compared with."""
    significance: float = Field(0.0001, gt=0, lt=0.5)
    """How unlikely a difference must be by chance. Smaller is slower and surer."""


class Detector(Settings):
    """Which channels watch the stream. An absent channel is off."""

    boundaries: Literal["detected", "told"] = "detected"
    """detected: the channels find the shifts. told: the stream's contexts tell them, and no channel watches (the
    classic protocol of continual learning)."""
    loss: LossChannel | None = LossChannel()
    """Watches the loss on each row before it is learned from."""
    inputs: InputChannel | None = InputChannel()
    """Watches the inputs, without labels."""
    pairs: InputChannel | None = InputChannel()
    """Inputs together with their targets: sees new labels for the same inputs, which `inputs` cannot."""
    predictions: InputChannel | None = None
    """Watches the model's predictions, without labels."""
    settle_samples: int = Field(1_000, ge=0)
    """After an alarm, how long the detectors gather a new reference before they may alarm again."""
    recurring: bool = True
    """Compare each new concept with the earlier ones."""
    recurring_distance: float = Field(0.5, gt=0)
    """Squared Mahalanobis distance, between the classes' mean inputs, below which two concepts are the same."""


class Controller(Settings):
    """When and how edits are chosen."""

    kind: Literal["learned", "look_ahead", "none"] = "learned"
    """learned values edits by what was meta-learned, and looks ahead where that is unsure; look_ahead tries every edit
    on a copy, at every decision; none leaves the model as it starts."""
    value: str | None = None
    """learned: file of a value that `planaria meta-train` made; null is the one that planaria ships with."""
    from_run: str | None = None
    """learned: begin with what another run's controller has learned from its own edits: that run's folder, its MLflow
    id in this job's store, or the name of a run that goes on in this cluster."""
    shared: str | None = None
    """learned: share what edits brought, while they run, with all runs of this cluster that give the same name."""
    doubt: float = Field(0.1, ge=0)
    """learned: an edit is looked ahead on where its value may be the best within so many standard deviations."""
    most_looks: int = Field(2, ge=1)
    """learned: edits that a decision looks ahead on, at most."""
    thrift_every_samples: int = Field(4_000, ge=100)
    """Between shifts: how often the controller looks for heads that can go."""
    wait_samples: int = Field(768, ge=64)
    """Rows of the new distribution to gather between a shift and its decision."""
    library: int = Field(8, ge=0)
    """Concepts whose model is kept, to be restored when they return; 0 keeps none."""
    recall_samples: int = Field(128, ge=32)
    """Rows of the new distribution on which kept models are scored after an alarm."""
    inner_steps: int = Field(6, ge=1)
    """Steps for which each candidate is adapted."""
    inner_rows: int = Field(24, ge=8)
    """Rows of each of these steps."""
    scoring_rows: int = Field(128, ge=8)
    """Rows on which importance of heads and worth of growth are measured, half of them remembered ones."""
    held_back: float = Field(0.33, gt=0, lt=1)
    """Share of the recent rows on which candidates are scored rather than adapted."""
    memory_weight: float = Field(1.0, ge=0)
    """How much the loss on remembered rows counts beside the loss on recent ones."""
    capacity_gain: float = Field(0.07, ge=0, lt=1)
    """look_ahead: share of the present loss that doubling all heads takes away in the long run, which a short
    look-ahead cannot see."""
    look_ahead_weight: float = Field(0.4, gt=0, le=1)
    """look_ahead: how much of what the look-ahead sees after its few steps is left on average until the next decision:
    losses and gains of a treatment or a removal fade as learning goes on, prices do not."""
    certainty: float = Field(2.0, ge=0)
    """An edit must beat keeping by this many standard errors."""

    @model_validator(mode="after")
    def _learns_what_it_shares(self) -> Controller:
        if self.shared is not None and self.kind != "learned":
            raise ValueError(
                f"shared is '{self.shared}' but kind is {self.kind}, which learns nothing that others could use; set "
                "kind: learned or remove shared"
            )
        return self


class Memory(Settings):
    kind: Literal["reservoir", "class_balanced", "ring", "loss_aware"] = "class_balanced"
    """Which rows are kept: reservoir, a fair sample of all; class_balanced, equally many of each class, each a fair
    sample; ring, the newest ones of each class; loss_aware, as class_balanced, but those of low loss go first."""
    rows: int = Field(2_000, ge=0)
    """How many are kept; 0 is no memory."""
    by_concept: bool = True
    """Where the present labels contradict those of an earlier concept, its rows are not replayed while that lasts."""


_USUAL_WEIGHT = {"si": 0.1, "lwf": 0.3}


class Protection(Settings):
    """What keeps old knowledge beside replay. It takes effect at the shifts that the detector reports or is told."""

    kind: Literal["ewc", "si", "lwf"] = "ewc"
    """ewc, si: pull every weight back to where it was at the newest shift, by how much it mattered until then. lwf:
    keep to what the model of the newest shift says of new rows."""
    weight: float = Field(1.0, ge=0)
    """Of the pull, or of the distance to the earlier model's answers. Where it is not given, what was best beside
    replay: 1 for ewc, 0.1 for si, 0.3 for lwf."""
    decay: float = Field(0.95, ge=0, le=1)
    """ewc: what is left of the importance gathered before, at every shift."""
    temperature: float = Field(2.0, gt=0)
    """lwf: that of the answers; higher ones count the less likely classes more."""

    @model_validator(mode="before")
    @classmethod
    def _usual_weight(cls, given: Any) -> Any:
        kind = given.get("kind") if isinstance(given, Mapping) else None
        if not isinstance(kind, str) or kind not in _USUAL_WEIGHT or "weight" in given:
            return given
        return {**given, "weight": _USUAL_WEIGHT[kind]}


class Renew(Settings):
    """Continual backpropagation: hidden units of little use are begun anew, against loss of plasticity."""

    rate: float = Field(1e-4, gt=0, le=1)
    """Share of a layer's mature units that are begun anew at every step."""
    maturity_steps: int = Field(100, ge=1)
    """Steps for which a new unit is left alone."""


class Readout(Settings):
    """Ridge regressions on fixed random features, solved in closed form, whose answer is added to the model's."""

    features: int = Field(512, ge=8)
    """Random features of a row; a table's own columns come beside them."""
    ridge: float = Field(10.0, gt=0)
    """Pull of the solved weights towards 0, in rows of the stream."""
    concepts: int = Field(12, ge=1)
    """Concepts that are told apart, each with a regression of its own; rows of those used longest ago only count in
    the regression over all. 1 tells none apart."""
    sums: Literal["float64", "float32"] = "float64"
    """Of features with each other. float32 takes half the memory, and is sure up to some hundred million rows of a
    concept."""
    memory_weight: float = Field(1.0, ge=0)
    """How much remembered rows count beside fresh ones where it is judged how far each regression, and the
    transformer, are to be trusted. An eighth of the memory is kept apart for that, and not learned from; with 0,
    none."""
    trust_half_life: int = Field(1_000, ge=1)
    """Rows, fresh and remembered ones, after which what a regression or the transformer has shown counts half."""
    half_lives: tuple[int, ...] = ()
    """Rows after which a row counts half, for each further pair of regressions that fade, one of them on a table's
    columns alone: against drift that no alarm tells."""

    @model_validator(mode="after")
    def _half_lives_possible(self) -> Readout:
        if any(rows < 1 for rows in self.half_lives):
            raise ValueError(f"half_lives is {list(self.half_lives)}; each must be at least 1 row")
        return self


class Learner(Settings):
    """What is learned from a step's rows and from memory."""

    loss: Literal["naive", "er", "er_ace", "der", "der++", "a_gem"] = "er"
    """naive: learn from new rows alone. er: learn again from remembered rows. er_ace: and let new rows compete among
    the classes of their own batch only. der: instead of learning remembered rows again, stay near the outputs once
    given for them; der++: do both. a_gem: learn from new rows, but in no direction that would raise the loss on
    remembered ones."""
    protect: Protection | None = None
    """What keeps old knowledge beside replay, if anything."""
    renew: Renew | None = None
    """What keeps the model able to learn, if anything."""
    readout: Readout | None = None
    """What answers beside the transformer, if anything."""
    alpha: float | None = Field(None, ge=0)
    """der and der++: weight of the distance to the remembered outputs; null is what was best: 1 for der, 0.1 for
    der++."""
    beta: float = Field(1.0, ge=0)
    """Weight of the loss on remembered rows (not in der)."""
    memory: Memory = Memory()
    """What is remembered."""
    replay_ratio: float = Field(1.0, ge=0)
    """Remembered rows replayed in each step, as a share of batch_rows."""
    optimizer: Literal["adamw", "adabelief", "meta_sgd", "sgd"] = "adamw"
    """How the weights follow the gradient. adamw. adabelief: steps are the longer, the larger a weight's mean
    gradient is beside its standard deviation. meta_sgd: every weight has a rate of its own, learned by looking one step
    ahead; give it a learning_rate of 0.1 to 1 to begin with. sgd: with momentum 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """Length of a step."""
    weight_decay: float = Field(0.01, ge=0)
    """Pull of the weights towards 0."""
    clip_norm: float = Field(1.0, gt=0)
    """Longest gradient that is followed in full."""

    @property
    def distance_weight(self) -> float:
        """`alpha`, or the usual one."""
        usual = 1.0 if self.loss == "der" else 0.1
        return usual if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _has_what_its_loss_needs(self) -> Learner:
        if self.loss not in ("naive", "er") and self.memory.rows == 0:
            raise ValueError(f"loss is {self.loss} but memory.rows is 0; give the memory rows or choose loss: er")
        return self


class Policy(Settings):
    name: str = "balanced"
    """Shown in reports."""
    heads: Heads = Heads()
    sharing: Sharing = Sharing()
    gate: Gate | None = None
    """Gates that let each row use a part of the model, if any."""
    prune: Prune | None = None
    """Heads and hidden units that go on a schedule, if any. Whatever the controller does after that, the model does not
    become larger than pruning left it."""
    quantise: Quantise | None = None
    """A last phase of learning under the rounding of an INT8 export, if any."""
    adapters: Adapters | None = None
    """Adapters of each concept beside a base that all share, if any."""
    initialisation: Literal["normal", "orthogonal"] = "normal"
    """normal: weights begin as independent normal numbers. orthogonal: as orthogonal matrices, those that write into
    the residual stream scaled down by the depth."""
    budget: Budget = Budget()
    detector: Detector = Detector()
    controller: Controller = Controller()
    learner: Learner = Learner()
    search: dict[str, Range] = Field(default_factory=dict)
    """What may be what where the policy is searched, by dotted key: `learner.learning_rate: {between: [0.0003, 0.01]}`.
    For campaigns that have no such block of their own (docs/search.md); a run checks it and leaves it alone."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> Policy:
        if self.search:
            check_conditions(self.search)
            check_types(self.search, Policy, "a policy")
        return self

    @model_validator(mode="after")
    def _difference_has_a_use(self) -> Policy:
        shares = self.sharing.regroup is not None or any(getattr(self.sharing, part) != "none" for part in PARTS)
        if self.sharing.difference_rank and not shares:
            raise ValueError(
                f"sharing.difference_rank is {self.sharing.difference_rank} but no layers share; set sharing.attention "
                "or sharing.mlp, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _somebody_regroups(self) -> Policy:
        if self.sharing.regroup is not None and self.controller.kind == "none":
            raise ValueError(
                "sharing.regroup is given but controller.kind is none, which changes nothing; set controller.kind to "
                "learned or look_ahead, or remove sharing.regroup"
            )
        return self

    @model_validator(mode="after")
    def _gates_leave_what_others_watch(self) -> Policy:
        if self.gate is not None and self.learner.renew is not None:
            raise ValueError(
                "gate and learner.renew are both given, but renew judges hidden units by all rows, and gates leave "
                "rows out; remove one"
            )
        return self

    @model_validator(mode="after")
    def _zeros_stay(self) -> Policy:
        if self.prune is None or not self.prune.unstructured:
            return self
        if self.controller.kind != "none":
            raise ValueError(
                f"prune.unstructured is {self.prune.unstructured:g} but controller.kind is {self.controller.kind}, "
                "which puts back weights that were not zero; set controller.kind to none or remove prune.unstructured"
            )
        if self.learner.renew is not None:
            raise ValueError(
                "prune.unstructured and learner.renew are both given, but hidden units that begin anew have no zeros; "
                "remove one"
            )
        return self

    @model_validator(mode="after")
    def _somebody_finds_concepts(self) -> Policy:
        detector = self.detector
        channels = (detector.loss, detector.inputs, detector.pairs, detector.predictions)
        if self.adapters is not None and detector.boundaries == "detected" and not any(channels):
            raise ValueError(
                "adapters is given, one for each concept, but detector has no channel that would find one; give it one "
                "(inputs: {}), or choose boundaries: told"
            )
        return self

    @model_validator(mode="after")
    def _mean_is_possible(self) -> Policy:
        mean, heads = self.budget.mean_heads, self.heads
        if mean is not None and not heads.min <= mean <= heads.max:
            raise ValueError(
                f"budget.mean_heads is {mean:g}, outside heads.min {heads.min} to heads.max {heads.max}; change one"
            )
        return self


def load_policy(path: Path | str) -> Policy:
    """The policy in a YAML file. Raises InputError, with one line."""
    return parse(Policy, read_yaml(Path(path)), str(path))
