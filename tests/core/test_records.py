"""Records: frozen, whichever way they are made."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from mfu_sdk.records import StepRecord, step_record

VALUES = {field.name: number for number, field in enumerate(fields(StepRecord), 1)}
NEEDED = [field.name for field in fields(StepRecord)][:19]


def test_step_record():
    """The quick way makes what the class makes: equal, hashable, of the class itself, with the same defaults."""
    quick, own = step_record(**VALUES), StepRecord(**VALUES)
    assert type(quick) is StepRecord
    assert (quick, hash(quick), repr(quick)) == (own, hash(own), repr(own))
    assert {name: getattr(quick, name) for name in VALUES} == VALUES
    needed = {name: VALUES[name] for name in NEEDED}
    assert step_record(**needed) == step_record(*needed.values()) == StepRecord(**needed)
    assert not step_record(**needed).profiled


def test_frozen():
    """It is as frozen as one made by the class, and copies, pickles and replaces like it."""
    quick = step_record(**VALUES)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'mfu'"):
        quick.mfu = 0.5
    with pytest.raises((AttributeError, TypeError)):
        quick.surprise = 1
    assert copy.deepcopy(quick) == pickle.loads(pickle.dumps(quick)) == quick
    assert replace(quick, mfu=0.5) == StepRecord(**VALUES | {"mfu": 0.5})


def test_missing():
    """A field that is left out, or is none, is named as the class would."""
    with pytest.raises(TypeError, match="missing 18 required positional arguments"):
        step_record(1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'surprise'"):
        step_record(**VALUES, surprise=1)
