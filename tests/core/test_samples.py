"""What sampled steps show of two sides of an onset, by hand and by law."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.drift.samples import BIN_STEPS, KEPT_BINS, MOST_NAMES, Change, Ran, Samples

ONSET = 1000


def kernels(**seconds: float) -> Mapping[str, float]:
    return seconds


def sampled(samples: Samples, steps: range, seconds: Mapping[str, float], worked_s: float | None = None) -> None:
    for step in steps:
        samples.add(step, Ran(seconds, worked_s, 100))


def test_another_kernel() -> None:
    """One product's kernel is another's; what runs beside them stays, however long it takes."""
    samples = Samples()
    sampled(samples, range(0, 1000, 8), kernels(flash=3.0, gemm=6.0, add=1.0))
    sampled(samples, range(1000, 1200, 8), kernels(math=9.0, gemm=6.0, add=0.01))
    assert samples.changed(ONSET, ONSET) == Change(("flash",), ("math",))


def test_nothing_is_known_of_one_side() -> None:
    """Without samples on both sides nothing is said, which is not that nothing changed."""
    samples = Samples()
    assert samples.changed(ONSET, ONSET) is None
    sampled(samples, range(0, 992, 8), kernels(a=1.0))
    assert samples.known(ONSET, ONSET) == (True, False)
    assert samples.changed(ONSET, ONSET) is None
    assert samples.seconds_a_flop(ONSET, ONSET) == (None, None)
    samples.add(1008, Ran({}, None, 100))
    assert samples.known(ONSET, ONSET) == (True, False)
    samples.add(1008, Ran({"a": 1.0}, None, 100))
    assert samples.changed(ONSET, ONSET) == Change((), ())


def test_what_comes_and_goes() -> None:
    """Kernels that shapes choose by turns, and one that logs now and then, have not changed."""
    samples = Samples()
    for step in range(0, 2000, 8):
        shape = kernels(short=1.0) if step // 8 % 2 else kernels(long=1.0)
        log = kernels(log=0.5) if step % 200 == 0 else {}
        samples.add(step, Ran({**shape, **log, "gemm": 1.0}, None, 100))
    assert samples.changed(ONSET, ONSET) == Change((), ())


def test_what_does_not_matter() -> None:
    """A kernel that takes less than a hundredth of a step has neither gone nor come."""
    samples = Samples()
    sampled(samples, range(0, 1000, 8), kernels(gemm=1.0, small=0.005))
    sampled(samples, range(1000, 1200, 8), kernels(gemm=1.0, other=0.005))
    assert samples.changed(ONSET, ONSET) == Change((), ())


def test_a_bin_of_both_sides_is_of_neither() -> None:
    """The onset lies within a bin; a sample that was asked for begins its own."""
    samples = Samples()
    for step, name in ((960, "a"), (992, "a"), (1008, "b")):
        samples.add(step, Ran({name: 1.0}, None, 100))
    assert samples.changed(ONSET, ONSET) is None
    samples.begin_anew()
    samples.add(1016, Ran({"b": 1.0}, None, 100))
    assert samples.changed(ONSET, ONSET) == Change(("a",), ("b",))


def test_seconds_of_work() -> None:
    """Sums over sums on either side: 5 steps of 2 s and 5 of 4 s, a hundred FLOPs each; then of 6 s."""
    samples = Samples()
    sampled(samples, range(0, 160, 32), {}, 2.0)
    sampled(samples, range(160, 320, 32), {}, 4.0)
    sampled(samples, range(1024, 1100, 32), {}, 6.0)
    assert samples.seconds_a_flop(ONSET, ONSET) == (0.03, 0.06)


def test_memory_does_not_grow() -> None:
    """A hundred thousand steps take as many bins as are kept, which share the names of the same kernels."""
    samples = Samples()
    many = {f"kernel{number}": 1.0 for number in range(3 * MOST_NAMES)}
    sampled(samples, range(0, 100_000, BIN_STEPS // 2), many)
    assert len(samples._bins) == KEPT_BINS
    assert len({id(each.names) for each in samples._bins}) == 1
    assert len(samples._bins[0].names) == MOST_NAMES


names = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 10.0), min_size=1)


@given(st.lists(st.tuples(st.integers(1, 40), names), min_size=1, max_size=60), st.integers(0, 1500))
def test_gone_and_come(steps: list[tuple[int, Mapping[str, float]]], onset: int) -> None:
    """What has gone ran in a step before and in none since, and the reverse; nothing is both."""
    samples, at, seen = Samples(), 0, []
    for gap, seconds in steps:
        at += gap
        samples.add(at, Ran(seconds, None, 1))
        seen.append((at, seconds))
    change = samples.changed(onset, onset + BIN_STEPS)
    if change is None:
        return
    before = {name for step, seconds in seen if step < onset for name in seconds}
    # Bins may leave out steps behind the onset, never the last one's.
    last = set(seen[-1][1])
    assert set(change.gone) <= before - last
    assert set(change.come) <= last
    assert not set(change.gone) & set(change.come)
