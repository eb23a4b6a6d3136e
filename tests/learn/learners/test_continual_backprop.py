"""Which hidden units are begun anew."""

from __future__ import annotations

import torch

from planaria.learn import Renewal

USED = torch.tensor([1.0, 3.0, 0.1, 2.0])
OUTGOING = torch.ones(4)


def live(renewal: Renewal, steps: int) -> list[tuple[int, int, float]]:
    return [one for _ in range(steps) for one in renewal.choose(0.5 * USED, USED, OUTGOING, [4])]


def test_nothing_is_chosen_before_units_are_mature() -> None:
    assert live(Renewal(rate=1.0, maturity_steps=20), 20) == []


def test_the_least_useful_unit_goes_first_with_the_mean_that_it_leaves() -> None:
    ((layer, unit, mean), *_) = live(Renewal(rate=0.25, maturity_steps=20), 21)
    assert (layer, unit) == (0, 2)
    assert abs(mean - 0.05) < 1e-6


def test_what_goes_on_does_so_by_outgoing_weights_too() -> None:
    renewal = Renewal(rate=0.25, maturity_steps=5)
    chosen = [one for _ in range(6) for one in renewal.choose(USED, USED, torch.tensor([0.01, 1.0, 1.0, 1.0]), [4])]
    assert [unit for _, unit, _ in chosen] == [0]


def test_the_rate_is_a_share_of_the_mature_units_and_fractions_add_up() -> None:
    chosen = live(Renewal(rate=0.01, maturity_steps=10), 10 + 50)
    assert [unit for _, unit, _ in chosen] == [2]  # 0.04 units a step: one after 25 steps, the next after 33 more


def test_a_new_unit_is_left_alone_until_it_is_mature() -> None:
    chosen = live(Renewal(rate=0.25, maturity_steps=20), 23)
    units = [unit for _, unit, _ in chosen]
    assert units == [2, 0, 3][: len(units)]


def test_it_goes_on_from_what_is_saved() -> None:
    whole, cut = Renewal(0.05, 10), Renewal(0.05, 10)
    expected = live(whole, 60)
    before = live(cut, 30)
    again = Renewal(0.05, 10)
    again.load(cut.tensors(), torch.device("cpu"))
    assert before + live(again, 30) == expected and expected


def test_layers_may_have_different_widths_and_units_that_go_take_their_age_along() -> None:
    used, outgoing = torch.tensor([1.0, 3.0, 0.1, 2.0, 0.2]), torch.ones(5)
    renewal = Renewal(rate=0.5, maturity_steps=20)
    for _ in range(18):
        assert renewal.choose(used, used, outgoing, [2, 3]) == []
    renewal.removed(1, (0,))
    left = used[[0, 1, 3, 4]]
    chosen = [one for _ in range(3) for one in renewal.choose(left, left, outgoing[:4], [2, 2])]
    assert [(layer, unit) for layer, unit, _ in chosen] == [(0, 0), (1, 1)], "the others are as old as they were"


def test_what_was_saved_when_all_layers_had_one_width_still_loads() -> None:
    renewal, again = Renewal(0.05, 10), Renewal(0.05, 10)
    for _ in range(12):
        renewal.choose(torch.ones(6), torch.arange(6.0), torch.ones(6), [3, 3])
    earlier = {name.replace("_U", "_LH"): value for name, value in renewal.tensors().items() if name != "widths_L"}
    again.load({name: v.view(2, 3) if name != "due_L" else v for name, v in earlier.items()}, torch.device("cpu"))
    assert again.widths == [3, 3] and torch.equal(again.age_U, renewal.age_U)
