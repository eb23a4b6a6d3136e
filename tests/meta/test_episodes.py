"""Streams lived through: alone or side by side, followed further or not, it is the same life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planaria.control.judge import Look, Outcome, Situation, Verdict
from planaria.control.look_ahead import Trial
from planaria.errors import InputError
from planaria.meta.episodes import BLOCK_STEPS, BLOCKS, Branching, Life, Start, live, policy_for
from planaria.meta.experience import MOST_CANDIDATES, experience_of, joined
from planaria.meta.explore import Exploring
from planaria.meta.families import SimStream, make_stream
from planaria.meta.script import BATCH_ROWS, write_script
from planaria.policy import Policy
from planaria.signals import Candidate, Shift
from planaria.stream import fetch

Short = Callable[[str, int, int], SimStream]


class Keeps(Exploring):
    """Keeps the model as it is, whatever happens."""

    def __init__(self) -> None:
        super().__init__(None, 0, 0.0, 0.0)

    def judge(self, situation: Situation, look: Look) -> Verdict:
        return Verdict(situation.candidates, situation.candidates[0], "as always")


def restless(seed: int, share: float = 0.0) -> Exploring:
    """Chooses at random, and looks ahead on everything in that share of the decisions."""
    return Exploring(None, seed, share, 1.0)


def without_limit(stream: SimStream, **controller: Any) -> Policy:
    policy = policy_for(stream, thrift_every_samples=800, **controller)
    return policy.model_copy(update={"budget": policy.budget.model_copy(update={"decision_fraction": 1.0})})


def start(stream: SimStream, judge: Exploring, **controller: Any) -> Start:
    return Start(stream, write_script(stream), judge, without_limit(stream, **controller))


def test_streams_lived_side_by_side_come_to_what_they_come_to_alone(short: Short) -> None:
    streams = [short("digits", seed, rows) for seed, rows in ((1, 2_000), (2, 1_600))]
    together = live([start(stream, restless(stream.seed)) for stream in streams])
    for stream, life in zip(streams, together, strict=True):
        alone = live([start(stream, restless(stream.seed))])[0]
        assert [d.chosen.name for d in alone.decisions] == [d.chosen.name for d in life.decisions]
        assert len(life.loss_S) == len(stream.target) // BATCH_ROWS
        assert np.array_equal(alone.heads_S, life.heads_S)
        assert np.allclose(alone.loss_S, life.loss_S, atol=2e-3)
    assert any(d.chosen.edit is not None for life in together for d in life.decisions), "one of them has edited itself"
    assert together[0].loss_S[-20:].mean() < together[0].loss_S[:20].mean(), "and they learn"


def test_a_judge_that_always_keeps_is_as_good_as_none(short: Short) -> None:
    stream = short("tables", 1, 1_600)
    kept, none = live([start(stream, Keeps())])[0], live([start(stream, Keeps(), kind="none")])[0]
    assert {d.chosen.name for d in kept.decisions} == {"keep"} and none.decisions == []
    assert np.array_equal(kept.loss_S, none.loss_S) and np.array_equal(kept.error_S, none.error_S)
    assert kept.extra > 0 == none.extra


@pytest.fixture(scope="module")
def followed(short: Short) -> Life:
    """A stream just long enough for one decision to be followed to its horizon."""
    return live([start(short("tables", 4, 9_000), restless(4, share=1.0))], branch=True)[0]


@pytest.fixture(scope="module")
def branching(followed: Life) -> Branching:
    assert len(followed.branchings) == 1
    return followed.branchings[0]


def test_following_candidates_does_not_touch_the_episode(short: Short, followed: Life) -> None:
    plain = live([start(short("tables", 4, 2_400), restless(4, share=1.0))])[0]
    steps, decisions = len(plain.loss_S), len(plain.decisions)
    assert plain.branchings == [] and plain.decisions[0].sample == followed.branchings[0].row
    assert np.array_equal(plain.loss_S, followed.loss_S[:steps])
    assert np.array_equal(plain.heads_S, followed.heads_S[:steps])
    assert [d.chosen.name for d in plain.decisions] == [d.chosen.name for d in followed.decisions[:decisions]]


def test_every_candidate_is_followed_over_the_whole_horizon(branching: Branching) -> None:
    count = len(branching.decision.candidates)
    assert 1 < count <= MOST_CANDIDATES
    assert branching.loss_KZ.shape == (count, BLOCKS) and np.isfinite(branching.loss_KZ).all()
    assert len(branching.trials) == count
    assert len({block.tobytes() for block in branching.loss_KZ}) == count, "each candidate has a life of its own"


def test_the_branch_of_what_was_chosen_begins_as_the_episode_went_on(followed: Life, branching: Branching) -> None:
    names = [candidate.name for candidate in branching.decision.candidates]
    chosen, first = names.index(branching.decision.chosen.name), branching.row // BATCH_ROWS
    went_on = followed.loss_S[first : first + BLOCK_STEPS].mean()
    assert branching.loss_KZ[chosen, 0] == pytest.approx(went_on, abs=2e-3)
    others = np.delete(branching.loss_KZ[:, 0], chosen)
    assert np.abs(others - went_on).max() > 4e-3


def test_what_was_followed_becomes_experience(followed: Life, branching: Branching) -> None:
    known, count = experience_of([followed]), len(branching.decision.candidates)
    assert len(known) == 1 and known.there_DK[0].sum() == count
    fall = (branching.loss - branching.loss_KZ.mean(1)) / known.scale_D[0]
    assert np.allclose(known.return_DK[0, :count], fall) and not known.return_DK[0, count:].any()
    assert np.allclose(known.falls_DKZ.mean(-1), known.return_DK, atol=1e-6)
    assert known.price_DK[0, 0] == known.memory_DK[0, 0] == 0
    assert branching.decision.candidates[known.chosen_D[0]].name == branching.decision.chosen.name
    assert known.task_D[0] == f"tables/{followed.stream.label_noise:g}" and known.seed_D[0] == 4
    assert len(joined([known, known])) == 2
    assert len(experience_of([replace(followed, branchings=[])])) == 0


def spliced(family: str, seed: int, *parts: tuple[int, int]) -> SimStream:
    """So many rows of each of those phases."""
    whole = make_stream(family, seed)
    rows = np.concatenate([np.arange(whole.starts[phase], whole.starts[phase] + count) for phase, count in parts])
    return replace(
        whole,
        features={name: column[rows] for name, column in whole.features.items()},
        target=whole.target[rows],
        starts=(0, *np.cumsum([count for _, count in parts])[:-1].tolist()),
        contexts=tuple(whole.contexts[phase] for phase, _ in parts),
        gradual_rows=(0,) * len(parts),
    )


def test_an_episode_restores_what_it_knew_of_a_concept_that_returns() -> None:
    try:
        fetch("fashion_mnist")
    except InputError as error:
        pytest.skip(str(error))
    stream = spliced("recurring", 16, (0, 2_400), (1, 2_400), (3, 1_200))
    assert stream.contexts == (0, 1, 0)
    shifts = {
        at // BATCH_ROWS - 1: Shift(at // BATCH_ROWS - 1, at, "pairs", "abrupt", 1.0, 1.0, onset_sample=at - 160)
        for at in (2_560, 4_960)
    }
    script = replace(write_script(stream), shifts=shifts)
    life = live([Start(stream, script, Keeps(), without_limit(stream))])[0]
    restored = [d for d in life.decisions if d.chosen.edit is not None and d.chosen.edit["kind"] == "restore"]
    assert len(restored) == 1 and restored[0].sample > 4_800
    step = restored[0].sample // BATCH_ROWS
    assert life.loss_S[step : step + 20].mean() < life.loss_S[4_800 // BATCH_ROWS : step].mean() - 0.3
    assert restored[0].chosen.loss_recent < restored[0].candidates[0].loss_recent


def test_exploring_looks_at_everything_in_its_share_and_never_learns_of_itself() -> None:
    judge = restless(0)
    judge.learn(Outcome(0, "thrift", "keep", 0.0, 0.0, 0.0))
    judge.inherit({"anything": 1})
    assert judge.state() == {} and judge.least_looks == 0


def test_exploring_follows_also_what_its_judge_does_not_know() -> None:
    """So that a kind of edit that was rare in one round of gathering can be learned of in the next."""

    class KnowsLess(Keeps):
        def judge(self, situation: Situation, look: Look) -> Verdict:
            return Verdict(situation.candidates[:1], situation.candidates[0], "the others are unknown")

    candidates = tuple(Candidate(name, None, name, (3,), 100) for name in ("keep", "reset", "temper"))
    looked: list[int] = []

    def look(numbers: Sequence[int]) -> list[Trial]:
        looked.extend(numbers)
        return []

    verdict = Exploring(KnowsLess(), 0, share=1.0, randomness=0.0).judge(
        Situation(0, 0, "abrupt shift", 1.0, {}, candidates, 9), look
    )
    assert looked == [0, 1, 2] and verdict.candidates == candidates and verdict.chosen is candidates[0]
