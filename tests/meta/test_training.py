"""The outer loop, on experience that is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from planaria.control.features import NAMES
from planaria.control.value import Outcomes, ValueEnsemble
from planaria.errors import RunError
from planaria.meta.experience import MOST_CANDIDATES, Experience
from planaria.meta.job import OuterLoop
from planaria.meta.training import LEAST_SEEN, regret, train

MadeUp = Callable[..., Experience]
QUICK = OuterLoop(members=2, iterations=70, learning_rate=1e-2)


@pytest.fixture(scope="module")
def value(made_up: MadeUp) -> ValueEnsemble:
    return train(made_up(), QUICK, seed=1)


def test_where_growing_always_pays_the_value_prefers_to_grow(value: ValueEnsemble, made_up: MadeUp) -> None:
    unseen = made_up(seed=9)
    mean_K, _ = value.gains(unseen.before_DKX[0, :3].astype(np.float64), value.adapted(None), 0.0)
    assert mean_K[1] > 0.05 > -0.05 > mean_K[2]
    for support in (0, 8):
        lost_D = regret(value, unseen, looked=False, support=support, draws=2)
        assert lost_D.shape == (len(unseen),) and lost_D.max() < 1e-6
    keeping = (unseen.return_DK[:, 1] - unseen.return_DK[:, 0]).mean()
    assert keeping == pytest.approx(0.1, abs=1e-6), "which is what keeping would lose"


@pytest.mark.parametrize("mode", ["anil", "maml", "pooled"])
def test_equal_seeds_give_equal_values_and_others_others(mode: str, made_up: MadeUp) -> None:
    short = QUICK.model_copy(update={"iterations": 3, "mode": mode})
    one, again, other = (train(made_up(), short, seed).to_bytes() for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(("mode", "moves"), [("anil", {"head"}), ("maml", {"body", "head"})])
def test_what_adapts_to_a_deployment(mode: str, moves: set[str], made_up: MadeUp) -> None:
    trained = train(made_up(), QUICK.model_copy(update={"iterations": 2, "mode": mode}), 0)
    value = ValueEnsemble.from_bytes(trained.to_bytes())
    rows_SX = made_up(seed=5).before_DKX[:16, 1].astype(np.float64)
    (member, *_), (adapted, *_) = value.members, value.adapted(Outcomes(rows_SX, np.full(16, 0.5)))
    own = [*member.body.parameters(), *member.head.parameters()]
    names = ["body"] * 4 + ["head"] * 2
    pairs = zip(names, own, adapted.parameters(), strict=True)
    assert {name for name, before, after in pairs if not torch.equal(before, after)} == moves


def test_members_are_the_same_however_they_are_spread(made_up: MadeUp) -> None:
    short = QUICK.model_copy(update={"iterations": 3})
    backwards = train(made_up(), short, 1, lambda make, numbers: [make(n) for n in reversed(numbers)][::-1])
    assert backwards.to_bytes() == train(made_up(), short, 1).to_bytes()


def test_members_differ_since_they_have_seen_other_streams(value: ValueEnsemble) -> None:
    first, second = (member.body[0].weight for member in value.members)
    assert not torch.equal(first, second)


def test_only_kinds_of_edit_that_were_followed_often_enough_are_known(value: ValueEnsemble, made_up: MadeUp) -> None:
    assert value.edits == {"grow_heads", "shrink_heads"}
    rare = made_up()
    rare.before_DKX[LEAST_SEEN - 1 :, :, NAMES.index("option_shrink_heads")] = 0
    assert train(rare, QUICK.model_copy(update={"iterations": 1}), 0).edits == {"grow_heads"}


def test_gains_that_are_all_alike_give_finite_weights(made_up: MadeUp) -> None:
    alike = made_up(worth=(0.0, 0.1))
    alike.return_DK[:] = np.where(np.arange(MOST_CANDIDATES) == 1, 0.1, 0.0)
    trained = train(alike, QUICK.model_copy(update={"iterations": 3}), 0)
    assert all(torch.isfinite(parameter).all() for member in trained.members for parameter in member.parameters())
    assert trained.unit > 0


def test_regret_of_a_perfect_order_is_nothing_and_of_the_reverse_all_that_there_is(
    value: ValueEnsemble, made_up: MadeUp
) -> None:
    known = made_up()
    assert regret(value, known, looked=True, support=0) == pytest.approx(0, abs=1e-6)
    reverse = ValueEnsemble.from_bytes(value.to_bytes())
    for member in reverse.members:
        with torch.no_grad():
            member.head.weight.neg_()
    lost_D = regret(reverse, known, looked=True, support=0)
    assert lost_D == pytest.approx(0.2, abs=1e-6), "it shrinks where it should grow"


def test_regret_counts_the_price_and_the_scale(value: ValueEnsemble, made_up: MadeUp) -> None:
    dear = made_up()
    dear.price_DK[:, 1] = 0.3
    assert regret(value, dear, looked=False, support=0) == pytest.approx(0, abs=1e-6), "keeping is best, and is chosen"
    cheap = replace(dear, scale_D=np.full(len(dear), 10, np.float32))
    assert regret(value, cheap, looked=False, support=0) == pytest.approx(0, abs=1e-5), (
        "ten times the nats, the same price"
    )
    dear.price_DK[:, 1] = 0.0
    dear.return_DK[:, 1] = dear.return_DK[:, 0] - 0.25
    assert regret(value, dear, looked=False, support=0) == pytest.approx(0.25, abs=1e-5), "what the value cannot know"


def test_few_decisions_of_many_deployments_are_learned_from_as_one(made_up: MadeUp) -> None:
    many = replace(made_up(40), task_D=np.array([f"made_up/{at}" for at in range(40)]))
    trained = train(many, QUICK.model_copy(update={"iterations": 2}), 0)
    assert all(torch.isfinite(parameter).all() for member in trained.members for parameter in member.parameters())


def test_too_few_decisions_are_refused_in_one_line(made_up: MadeUp) -> None:
    with pytest.raises(RunError, match=r"meta-training: 23 decisions were followed, and it takes 24 .*; raise streams"):
        train(made_up(23), QUICK, 0)
