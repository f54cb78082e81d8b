"""Why MFU changed: splits by hand that leave nothing over, and causes with their evidence."""

import math
import random
from dataclasses import replace

import pytest

from mfu_sdk.drift.account import Account
from mfu_sdk.drift.attribution import attribute, split

# Ten steps of 1 s: 0.2 s of data, 0.1 s of communication, 0.05 s of late ranks, 0.05 s of host, 0.6 s of work.
BEFORE = Account(
    10, 10.0, 4000, 5000, available_flops=10_000.0, data_s=2.0, comm_s=1.0, skew_s=0.5, host_s=0.5, batch_sum=80.0,
    clock=1.0,
)  # fmt: skip


def after(**changed: float) -> Account:
    """The same but for `changed`; whatever is longer makes the steps longer, against the same peak."""
    found = replace(BEFORE, **changed)  # type: ignore[arg-type]
    if "time_s" not in changed:
        parts = (("data_s", 2.0), ("comm_s", 1.0), ("skew_s", 0.5), ("host_s", 0.5))
        found = replace(found, time_s=10.0 + sum(changed.get(name, old) - old for name, old in parts))
    return replace(found, available_flops=changed.get("available_flops", 1000.0 * found.time_s))


def change(one: Account, other: Account) -> float:
    assert one.mfu
    assert other.mfu
    return math.log(other.mfu / one.mfu)


def test_a_wait_by_hand() -> None:
    """0.2 s more of data in a step of 1 s: all of log(1 / 1.2) is data's."""
    parts = split(BEFORE, after(data_s=4.0))
    assert parts["data"] == pytest.approx(math.log(1 / 1.2), abs=1e-12)
    assert sum(abs(part) for name, part in parts.items() if name != "data") == pytest.approx(0.0, abs=1e-12)


def test_two_parts_by_hand() -> None:
    """+0.2 s of data and +0.3 s of work in a step that went from 1 s to 1.5 s: 2/5 and 3/5 of log(1 / 1.5)."""
    slower = replace(after(data_s=4.0), time_s=15.0, available_flops=15_000.0)
    parts = split(BEFORE, slower)
    assert parts["data"] == pytest.approx(0.4 * math.log(1 / 1.5), abs=1e-12)
    assert parts["compute"] == pytest.approx(0.6 * math.log(1 / 1.5), abs=1e-12)


def test_flops_and_peak_by_hand() -> None:
    """Half of the FLOPs at a quarter of the peak in the same time: log ½ and log 4."""
    parts = split(BEFORE, after(model_flops=2000, time_s=10.0, available_flops=2500.0))
    assert parts["flops"] == pytest.approx(-math.log(2), abs=1e-12)
    assert parts["peak"] == pytest.approx(math.log(4), abs=1e-12)


def test_clock_by_hand() -> None:
    """All of a step is work, at half of the clock it takes twice as long: log ½ is the clock's, nothing the work's."""
    before = Account(1, 1.0, 100, 100, available_flops=1000.0, clock=1.0)
    parts = split(before, Account(1, 2.0, 100, 100, available_flops=2000.0, clock=0.5))
    assert parts["clock"] == pytest.approx(-math.log(2), abs=1e-12)
    assert parts["compute"] == pytest.approx(0.0, abs=1e-12)


def test_parts_always_sum_to_the_change() -> None:
    """10,000 random pairs, with zeros and unknown parts among them: the sum is Δlog MFU to 1e-9."""
    generator = random.Random(0)

    def account() -> Account:
        steps = generator.randint(1, 500)
        waits = [generator.choice((0.0, generator.uniform(0, 3))) for _ in range(4)]
        known = [wait if generator.random() < 0.8 else None for wait in waits]
        time_s = sum(waits) + generator.lognormvariate(0, 3)
        flops = generator.randint(1, 10**15)
        clock = generator.choice((None, generator.uniform(0.2, 1.2)))
        peak = generator.lognormvariate(20, 4)
        return Account(
            steps, time_s, flops, flops, available_flops=peak * time_s, data_s=known[0], comm_s=known[1],
            skew_s=known[2], host_s=known[3], clock=clock,
        )  # fmt: skip

    for _ in range(10_000):
        one, other = account(), account()
        assert math.fsum(split(one, other).values()) == pytest.approx(change(one, other), abs=1e-9)


def test_nothing_to_split() -> None:
    """Without time there is no MFU."""
    with pytest.raises(ValueError, match="steps, FLOPs and time must be above 0"):
        split(BEFORE, replace(BEFORE, time_s=0.0))


@pytest.mark.parametrize(
    ("now", "diff", "cause", "evidence"),
    [
        (after(data_s=6.0), (), "input_bound", "waiting for data went from 20.0% to 42.9% of a step"),
        (after(data_s=6.0), ("threads: 4 → 2",), "input_bound", "waiting for data"),
        (after(skew_s=4.0), (), "straggler", "waiting for late ranks went from 5.0% to 29.6% of a step"),
        (after(time_s=14.0, clock=0.6), (), "thermal_or_power", "the clock went to 60% of what it was"),
        (after(time_s=14.0), ("batch: 8 → 4",), "configuration_drift", "batch: 8 → 4"),
        (after(time_s=14.0), (), "unknown", "nothing that is known of the run changed with it"),
        # A peak that is half as high does not make steps faster.
        (after(time_s=14.0, available_flops=7000.0), ("dtype: a → b",), "configuration_drift", "dtype: a → b"),
        # What grew by a little is not why it is slower.
        (after(time_s=14.0, data_s=2.1), (), "unknown", "nothing that is known"),
    ],
)
def test_causes_of_drops(now: Account, diff: tuple[str, ...], cause: str, evidence: str) -> None:
    """Each cause by what it alone shows, in words."""
    found = attribute(BEFORE, now, kind="drop", diff=diff)
    assert found.cause == cause
    assert evidence in found.evidence[0]
    assert found.evidence[-1].startswith("log MFU changed by")
    assert math.fsum(found.parts.values()) == pytest.approx(change(BEFORE, now), abs=1e-9)


def test_throttling_is_named() -> None:
    """Without a clock to compare, the device's own reason stands, unless the configuration changed."""
    now = replace(after(time_s=14.0), clock=None)
    found = attribute(BEFORE, now, kind="drop", throttled=("software thermal slowdown",))
    assert (found.cause, found.evidence[0]) == ("thermal_or_power", "software thermal slowdown")
    changed = attribute(BEFORE, now, kind="drop", diff=("batch: 8 → 4",), throttled=("software thermal slowdown",))
    assert changed.cause == "configuration_drift"


def test_load_is_of_requests() -> None:
    """A smaller batch of requests is load; in training it is configuration, and told by the fingerprint."""
    now = after(time_s=14.0, batch_sum=40.0)
    assert attribute(BEFORE, now, kind="drop", phase="decode").cause == "load"
    assert attribute(BEFORE, now, kind="drop", phase="train").cause == "unknown"


def test_an_unexplained_rise_is_accounting() -> None:
    """Faster for no reason: is all of the work still done? A loader that has caught up is a reason."""
    assert attribute(BEFORE, after(time_s=7.0), kind="rise").cause == "accounting"
    assert attribute(BEFORE, after(time_s=7.0), kind="rise", diff=("compile: False → True",)).cause == (
        "configuration_drift"
    )
    assert attribute(BEFORE, after(data_s=0.1), kind="rise").cause == "input_bound"
