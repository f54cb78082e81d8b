"""The layout of a flight recorder's file: what is written comes back, and what is torn is told."""

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export import flight
from mfu_sdk.export.sampling import Kept

from .conftest import EPOCH_NS, make_step

WHO = {"mfu.run.id": "run-7", "mfu.run.attempt": 1, "mfu.dist.rank": 3}


def image(steps, *, first_sequence=1, joined=(), arrived=()):
    """A file's bytes with these steps in it."""
    data = bytearray(flight.FILE_BYTES)

    def put(at, part):
        data[at : at + len(part)] = part

    put(0, flight.pack_header(WHO, EPOCH_NS, "auto"))
    put(flight.NAMES_AT, flight.pack_name("float32", "calibrated"))
    for sequence, step in enumerate(steps, first_sequence):
        put(*flight.pack_step(sequence, flight.row_of(step, 0)))
        if sequence in joined:
            put(flight.joined_at(sequence), flight.pack_joined(sequence, steps[0].index, Kept("periodic", 0.25)))
        if sequence in arrived:
            put(flight.arrived_at(sequence), flight.pack_arrived(sequence))
    return data


def test_a_slot_holds_its_parts():
    """The three parts of a slot do not overlap, and a file is a little over two mebibytes."""
    _, part = flight.pack_step(1, flight.row_of(make_step(0), 0))
    assert len(part) <= flight.joined_at(1) - flight.slot_at(1)
    assert len(flight.pack_joined(1, 0, None)) <= flight.arrived_at(1) - flight.joined_at(1)
    assert flight.arrived_at(1) + len(flight.pack_arrived(1)) == flight.slot_at(2)
    assert flight.FILE_BYTES == 28672 + 8192 * 272


def test_round_trip():
    """A step comes back as it was, and with it the window that it joined and why its span was kept."""
    steps = [
        make_step(4),
        make_step(5, phase="decode", requests=3, requests_failed=1, requests_s=0.5, requests_running=1.5,
                  batch_feasible=32.0, queue_waiting=2.0, kv_cache_free_ratio=0.25, latency_target_s=0.05),
        make_step(6, tokens=None, samples=None, data_wait_s=None, batch_running=None, coverage=None,
                  expected_mfu=None, achievable_mfu=None, mfu_by_dtype=None, arithmetic_intensity=None),
        make_step(7, count_source="measured", convention="full"),
        make_step(8, profiled=True),
    ]  # fmt: skip
    found = flight.read(bytes(image(steps, joined={1, 2}, arrived={1})), "x")
    assert [entry.step for entry in found.entries] == steps
    assert [entry.sequence for entry in found.entries] == [1, 2, 3, 4, 5]
    assert [entry.first for entry in found.entries] == [4, 4, None, None, None]
    assert [entry.kept for entry in found.entries[:3]] == [Kept("periodic", 0.25)] * 2 + [None]
    assert [entry.arrived for entry in found.entries] == [True, False, False, False, False]
    assert (found.identity, found.mode, found.torn, found.end) == (WHO, "auto", 0, None)


def test_names_of_errors_stay_out():
    """That a step failed is kept, the class of the user's exception is not."""
    data = bytes(image([make_step(0, error_type="AcmeSecretError")]))
    assert b"Acme" not in data
    assert flight.read(data, "x").entries[0].step == make_step(0, error_type="_OTHER")


def test_nothing_known():
    """A step of which only its time is known."""
    bare = make_step(
        0, model_flops=None, hardware_flops=None, peak_flops_per_s=None, mfu=None, hfu=None, mfu_by_dtype=None,
        expected_mfu=None, achievable_mfu=None, count_source=None, attention_flops_exact=None,
        attention_flops_full=None, arithmetic_intensity=None, expected_low_mfu=None, expected_high_mfu=None,
    )  # fmt: skip
    assert flight.read(bytes(image([bare])), "x").entries[0].step == bare


def test_what_a_step_waited_and_what_would_fit():
    """Both are kept to the bit; of more requests than a slot has room for, as many as fit."""
    step = make_step(0, comm_s=0.1, expected_feasible_mfu=1 / 3, requests=2**31 - 1, requests_failed=0)
    many = make_step(1, requests=2**40, requests_failed=2**32)
    found = flight.read(bytes(image([step, many])), "x").entries
    assert found[0].step == step
    assert (found[1].step.requests, found[1].step.requests_failed) == (2**31 - 1, 2**31 - 1)


def test_the_ring_goes_round():
    """The newest 8,192 steps are there, in their order; a mark of the step before in a slot does not count."""
    steps = [make_step(index) for index in range(3)]
    data = image(steps, first_sequence=8191, joined={8191, 8192, 8193}, arrived={8192})
    # What lay in slot 1 before, and had arrived.
    data[flight.arrived_at(1) : flight.arrived_at(1) + 8] = flight.pack_arrived(1)
    found = flight.read(bytes(data), "x")
    assert [(entry.sequence, entry.arrived) for entry in found.entries] == [(8191, False), (8192, True), (8193, False)]


def test_a_torn_record_is_skipped_and_counted():
    """A step of which a part is missing is told from an empty slot; the others stay."""
    data = image([make_step(0), make_step(1), make_step(2)], joined={3})
    data[flight.slot_at(2) + 100 :: flight.FILE_BYTES] = b"\xff"
    # A window's mark that is torn leaves the step as one that no window had.
    data[flight.joined_at(3) + 8] ^= 1
    found = flight.read(bytes(data), "x")
    assert [entry.step.index for entry in found.entries] == [0, 2]
    assert found.torn == 1
    assert found.entries[1].first is None


def test_the_end_of_a_run():
    """What the run's span says comes back, numbers that are not known as None."""
    end = flight.End(
        EPOCH_NS + 5, 3, 0.25, 120.0, None, 300.0, 3.0, 0.8, 1.0, 100.0, None, 48, "full", failed=True, name=0,
        calibration_id="ab12",
    )  # fmt: skip
    data = image([])
    data[flight.END_AT : flight.END_AT + len(end.pack())] = end.pack()
    found = flight.read(bytes(data), "x")
    assert found.end == end
    assert found.end_peak == ("float32", "calibrated")
    assert not found.run_arrived


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:100], "header is torn"),
        (lambda data: b"hello", "is no flight recorder's file; give one that ends in .mfurec"),
        (lambda data: b"", "is no flight recorder's file"),
        (lambda data: data[:8] + struct.pack("<H", 1) + data[10:], "has version 1 of the layout and this SDK reads 3"),
        (lambda data: data[:70] + b"x" + data[71:], "header is torn, so nothing tells whose steps it holds; delete it"),
    ],
)
def test_other_files(change, told):
    """What is no recorder's file, or one of another SDK, is refused with the reason."""
    with pytest.raises(ConfigurationError, match=f"x.mfurec: .*{told}"):
        flight.read(bytes(change(bytes(image([])))), "x.mfurec")


def test_an_identity_that_does_not_fit():
    """The identity has 8,128 bytes; ids are hashes of it, so none is cut."""
    flight.pack_header({"mfu.run.id": "x" * 8000}, 0, "auto")
    with pytest.raises(ConfigurationError, match="identity takes 9017 bytes: at most 8128 fit; shorten its names"):
        flight.pack_header({"mfu.run.id": "x" * 9000}, 0, "auto")


def test_a_long_source():
    """A denominator's source of any length leaves its entry whole; beyond what fits it is cut or unknown."""
    assert len(flight.pack_name("float32", "s" * 1000)) <= flight.NAME_BYTES
    assert len(flight.pack_name("float32", "€" * 1000)) <= flight.NAME_BYTES


GOOD = image([make_step(index) for index in range(40)], joined=set(range(1, 30)), arrived=set(range(1, 9)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, flight.RING_AT + 40 * 256), st.integers(1, 255)), min_size=1, max_size=40))
def test_any_damage_is_survived(damage):
    """Whatever bytes are wrong, a file is read or refused: steps that come back are steps that were written."""
    data = bytearray(GOOD)
    for at, bits in damage:
        data[at] ^= bits
    try:
        found = flight.read(bytes(data), "x")
    except ConfigurationError:
        return
    written = {make_step(index).index for index in range(40)}
    assert {entry.step.index for entry in found.entries} <= written
    assert len(found.entries) + found.torn <= 40 + len(damage)
    for entry in found.entries:
        assert dataclasses.replace(entry.step, peak_dtype=None, peak_source=None) == make_step(
            entry.step.index, peak_dtype=None, peak_source=None
        )
