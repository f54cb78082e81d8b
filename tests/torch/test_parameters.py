"""Which parameters want a gradient is looked at in turns, so that no step looks at more than a few."""

import gc

import pytest
from torch import nn

from mfu_sdk.run.parameters import LOOKED_AT, REST, STEADY, Parameters

LARGE = 3 * LOOKED_AT
"""Parameters of a model that three steps look through."""


def model_of(parameters: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(parameters))


def test_a_small_model_is_looked_at_whole() -> None:
    """Of `LOOKED_AT` parameters each step sees each; frozen and unfrozen again, it is as before, with no note."""
    model, notes = model_of(LOOKED_AT), list[str]()
    parameters = Parameters(model, notes.append)
    before = parameters.wanted()
    for layer in model:
        layer.weight.requires_grad_(requires_grad=False)
        assert parameters.wanted() != before
        layer.weight.requires_grad_(requires_grad=True)
        assert parameters.wanted() == before
    assert notes == []


@pytest.mark.parametrize("frozen", range(6))
def test_one_of_many_is_seen_within_the_turn(frozen: int) -> None:
    """Of 96 parameters a step looks at 32, so the third step after a change knows of it, and the run says so."""
    model, notes = model_of(LARGE), list[str]()
    parameters = Parameters(model, notes.append)
    before = parameters.wanted()
    model[frozen].weight.requires_grad_(requires_grad=False)
    seen = [parameters.wanted() for _ in range(3)]
    assert seen[-1] != before
    assert set(seen) <= {before, seen[-1]}
    assert ["3 steps late" in note for note in notes] == [True]


def test_a_layer_of_many_is_seen_at_once() -> None:
    """Three parameters in a row are in three steps' shares: whichever comes next sees them."""
    model = model_of(LARGE)
    parameters = Parameters(model, lambda _note: None)
    for first in range(LARGE - 2):
        before = parameters.wanted()
        for layer in model[first : first + 3]:
            layer.weight.requires_grad_(requires_grad=False)
        assert parameters.wanted() != before
        for layer in model[first : first + 3]:
            layer.weight.requires_grad_(requires_grad=True)
        assert parameters.wanted() == before


def test_replaced_weights_are_found() -> None:
    """A layer that is put in another's place is looked at from then on, and the one that went is not kept alive."""
    model = model_of(2)
    parameters = Parameters(model, lambda _note: None)
    before = parameters.wanted()
    model[0] = nn.Linear(1, 1, bias=False)
    gc.collect()
    assert parameters.wanted() == before
    model[0].weight.requires_grad_(requires_grad=False)
    assert parameters.wanted() != before


def test_no_model_has_none() -> None:
    """Without a model there is nothing to look at."""
    parameters = Parameters(None, lambda _note: None)
    assert parameters.wanted() == parameters.wanted()


def test_what_stands_still_is_looked_at_now_and_then() -> None:
    """After so many looks that found nothing, a change shows at the next one, seven steps later at most, with a note;
    from then on every step looks again."""
    model, notes = model_of(4), list[str]()
    parameters = Parameters(model, notes.append)
    before = parameters.wanted()
    for _ in range(STEADY + REST):
        assert parameters.wanted() == before
    first = next(model.parameters())
    first.requires_grad_(requires_grad=False)
    seen = [parameters.wanted() for _ in range(REST + 1)]
    late = seen.index(seen[-1])
    assert seen[-1] != before
    assert seen == [before] * late + [seen[-1]] * (REST + 1 - late)
    assert f"up to {REST + 1} steps late" in notes[0]
    first.requires_grad_(requires_grad=True)
    assert parameters.wanted() == before


def test_weights_that_take_turns_are_seen_in_both_states() -> None:
    """Two halves that are trained in turn, from after the quiet beginning on: a look finds the other half soon."""
    model = model_of(4)
    parameters = Parameters(model, lambda _note: None)
    for _ in range(STEADY + REST):
        parameters.wanted()
    halves = list(model.parameters())[:2], list(model.parameters())[2:]
    seen = []
    for step in range(4 * (REST + 1)):
        for half, weights in enumerate(halves):
            for weight in weights:
                weight.requires_grad_(requires_grad=step % 2 == half)
        seen.append(parameters.wanted())
    # Once it has shown, each step has its own.
    assert seen[-1] != seen[-2]
    assert seen[-3::-2][: REST + 1] == [seen[-1]] * (REST + 1)
