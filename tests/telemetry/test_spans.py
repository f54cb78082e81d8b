"""Spans as they go over the wire: names, ids, links, and no attribute that is not registered."""

import dataclasses
import math

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from mfu_sdk import semconv
from mfu_sdk.export.attributes import attributes
from mfu_sdk.export.encode import encode
from mfu_sdk.export.identity import Ids, window_slot
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import sums

from .conftest import BARS, DRIFT, EPOCH_NS, PEAKS, RATE, REQUEST, SERVED, STREAMED, attributes_of, make_step

ALL = Kept("all", 1.0)

TYPES = {"string": str, "int": int, "double": float, "boolean": bool}


def wire(*made):
    """The spans as a collector decodes them."""
    return [Span.FromString(encode(span)) for span in made]


def test_registered(every_span):
    """Every attribute of every span is registered for that place, with that type; every registered one can appear."""
    seen = set()
    for span in wire(*every_span):
        assert span.name in semconv.SPANS
        place = span.name.removeprefix("mfu.")
        for name, value in attributes_of(span.attributes).items():
            registered = semconv.ATTRIBUTES[name]
            assert place in registered.on
            if registered.type.endswith("[]"):
                element = TYPES[registered.type.removesuffix("[]")]
                assert all(type(entry) is element for entry in value)
            else:
                assert type(value) is TYPES[registered.type]
            seen.add((place, name))
    wanted = {
        (place, attribute.name)
        for attribute in semconv.ATTRIBUTES.values()
        for place in attribute.on
        if place not in ("resource", "metric")
    }
    assert wanted == seen


def test_misplaced():
    """An attribute in the wrong place, or of no registry, is an error of ours that tests find."""
    with pytest.raises(ValueError, match=r"mfu\.step\.index: is not registered on window"):
        attributes("window", {semconv.STEP_INDEX: 1})
    with pytest.raises(KeyError, match=r"mfu\.surprise"):
        attributes("step", {"mfu.surprise": 1})


def test_unknown_left_out():
    """None, what is not finite, and what an int64 cannot hold are left out; zero is not."""
    found = attributes(
        "step",
        {
            semconv.UTILIZATION: None,
            semconv.EXPECTED: float("nan"),
            semconv.MODEL_FLOP: 0,
            semconv.TOKEN_COUNT: 2**63,
            semconv.SAMPLE_COUNT: 2**63 - 1,
        },
    )
    assert found == {semconv.MODEL_FLOP: 0.0, semconv.SAMPLE_COUNT: 2**63 - 1}


def test_unknown_of_a_step(spans, window, step):
    """The same goes for a step, whose attributes are typed by a table of their own."""
    made = spans.step(step(0, mfu=None, expected_mfu=math.inf, model_flops=0, tokens=2**63), window, Kept("all", 1.0))
    assert {semconv.UTILIZATION, semconv.EXPECTED, semconv.TOKEN_COUNT}.isdisjoint(made.attributes)
    assert made.attributes[semconv.MODEL_FLOP] == 0.0


def test_huge(spans, window, step):
    """FLOPs beyond int64 are doubles."""
    (span,) = wire(spans.step(step(0, model_flops=10**19), window, Kept("all", 1.0)))
    assert attributes_of(span.attributes)["mfu.model.flop"] == 1e19


def test_step(spans, window, step, identity):
    """A step is its window's child, over its own time, and tells how it was sampled."""
    ids = Ids.of(identity)
    (span,) = wire(spans.step(step(1), window, Kept("periodic", 0.125)))
    assert int.from_bytes(span.trace_id, "big") == ids.window_trace(window_slot(EPOCH_NS))
    assert int.from_bytes(span.parent_span_id, "big") == ids.window_span(window.slot, step(0))
    assert int.from_bytes(span.span_id, "big") == ids.step_span(step(1))
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (EPOCH_NS + 10**9, EPOCH_NS + 2 * 10**9)
    found = attributes_of(span.attributes)
    assert (found["mfu.sample.reason"], found["mfu.sample.ratio"]) == ("periodic", 0.125)
    assert span.status.code == 0


def test_untimed_step(spans, window, step):
    """A step whose time means nothing has no available FLOPs, so no sum over spans can take it in."""
    (span,) = wire(spans.step(step(1, error_type="ValueError"), window, Kept("error", None)))
    found = attributes_of(span.attributes)
    assert "mfu.available.flop" not in found
    assert "mfu.sample.ratio" not in found
    assert found["error.type"] == "ValueError"
    assert span.status.code == 2


def test_counted_step(spans, window, step):
    """A step that was counted while it ran tells what it did, which its missing error lets into those sums."""
    (span,) = wire(spans.step(step(1, count_source="measured", **SERVED), window, Kept("all", 1.0)))
    found = attributes_of(span.attributes)
    assert {"mfu.available.flop", "error.type"}.isdisjoint(found)
    assert (found["mfu.token.count"], found["mfu.sample.count"], found["mfu.request.count"]) == (16, 2, 3)


def test_window(spans, window, step, identity):
    """A window is a root, linked to the run's span, and holds sums and arrays."""
    ids = Ids.of(identity)
    (span,) = wire(spans.window(window, sums(window.steps)))
    assert span.parent_span_id == b""
    assert int.from_bytes(span.links[0].span_id, "big") == ids.run_span()
    assert int.from_bytes(span.links[0].trace_id, "big") == ids.run_trace()
    found = attributes_of(span.attributes)
    assert (found["mfu.model.flop"], found["mfu.available.flop"], found["mfu.utilization"]) == (80.0, 200.0, 0.4)
    assert found["mfu.window.step.durations"] == [1_000_000, 1_000_000]
    assert found["mfu.window.step.utilizations"] == [4000, 4000]
    assert (found["mfu.request.count"], found["mfu.request.failed"], found["mfu.request.time"]) == (3, 1, 1.5)


def test_run(spans, summary, identity):
    """The run lasts from its start to its close, and says so where the user's code ended it."""
    (span,) = wire(spans.run(summary, Totals(), EPOCH_NS + 7, "ValueError"))
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (EPOCH_NS, EPOCH_NS + 7)
    assert span.status.code == 2
    found = attributes_of(span.attributes)
    assert found["error.type"] == "ValueError"
    assert found["mfu.run.step.count"] == 3
    # No window, no sums: not zeros.
    assert {"mfu.model.flop", "mfu.step.time", "mfu.utilization", "mfu.calibration.id"}.isdisjoint(found)
    (span,) = wire(spans.run(summary, Totals(), EPOCH_NS + 7, None))
    assert span.status.code == 0


def test_where_a_runs_time_went(spans, summary):
    """The waterfall's seconds, as far as they are known: nothing timed the host here, and that is not zero."""
    bars = tuple(bar for bar in BARS if bar.name != "host_gap")
    (span,) = wire(spans.run(dataclasses.replace(summary, bars=bars), Totals(), EPOCH_NS + 7, None))
    found = attributes_of(span.attributes)
    assert {name: found[name] for name in found if name.startswith("mfu.step.")} == {
        "mfu.step.data_time": 0.3,
        "mfu.step.comm_time": 0.6,
        "mfu.step.skew_time": 0.15,
    }
    # What its windows said adds up to what the run says, where all of them said it.
    totals = Totals(comm_s=0.5, skew_s=0.25)
    (span,) = wire(spans.run(dataclasses.replace(summary, bars=bars), totals, EPOCH_NS + 7, None))
    found = attributes_of(span.attributes)
    assert (found["mfu.step.comm_time"], found["mfu.step.skew_time"], found["mfu.step.data_time"]) == (0.5, 0.25, 0.3)


def test_request(spans):
    """A request is its caller's child, or alone in a trace of its own; its name is not told."""
    child, alone, other = wire(
        *spans.inference(dataclasses.replace(REQUEST, parent_trace_id=77, parent_span_id=88), Kept("all", 1.0)),
        *spans.inference(REQUEST, Kept("all", 1.0)),
        *spans.inference(REQUEST, Kept("all", 1.0)),
    )
    assert int.from_bytes(child.trace_id, "big") == 77
    assert int.from_bytes(child.parent_span_id, "big") == 88
    assert alone.parent_span_id == b""
    assert len({child.span_id, alone.span_id, other.span_id}) == 3
    assert alone.trace_id != other.trace_id
    assert "handle" not in str(alone)


def test_phases_of_a_request(spans):
    """Prefill and decode are children of the request's span, where they began and as long as they lasted."""
    request, prefill, decode = wire(*spans.inference(STREAMED, Kept("all", 1.0)))
    assert (prefill.name, decode.name) == ("mfu.prefill", "mfu.decode")
    for child in (prefill, decode):
        assert (child.trace_id, child.parent_span_id) == (request.trace_id, request.span_id)
    assert prefill.start_time_unix_nano == EPOCH_NS + 125_000_000
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano == EPOCH_NS + 375_000_000
    assert attributes_of(decode.attributes) == {
        "mfu.phase": "decode",
        "mfu.model.flop": 7.0,
        "mfu.hardware.flop": 8.0,
        "mfu.inference.model_calls": 3,
    }


def test_gen_ai_names_are_opt_in(identity):
    """OpenTelemetry's names for generative AI are on a request's span where an operation is set, and else not."""
    for operation, expected in (
        ("off", set()),
        (
            "chat",
            {
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.provider.name", "mfu_sdk"),
                ("gen_ai.request.model", "acme/llama-tiny"),
                ("gen_ai.usage.input_tokens", 2),
                ("gen_ai.usage.output_tokens", 1),
            },
        ),
    ):
        made = Spans(identity, operation).inference(STREAMED, Kept("all", 1.0))
        found = attributes_of(wire(*made)[0].attributes)
        assert {item for item in found.items() if item[0].startswith("gen_ai")} == expected


def test_gen_ai_names_are_opentelemetrys():
    """Every name that we take from OpenTelemetry's conventions for generative AI is one of theirs."""
    theirs = {
        value
        for module in (gen_ai_attributes, gen_ai_metrics)
        for name, value in vars(module).items()
        if name.startswith("GEN_AI_")
    }
    ours = {name for name in (*semconv.ATTRIBUTES, *semconv.METRICS) if name.startswith("gen_ai")}
    assert len(ours) == 8
    assert ours <= theirs


def test_what_a_calibration_hung_on(spans):
    """A rate comes with its interval, its tier, the clock in Hz and the share of it; what is older was sent before."""
    old = dataclasses.replace(RATE, age_s=60.0)
    (found,) = wire(
        *spans.calibration(
            dataclasses.replace(PEAKS, achievable={"float32": old, "bfloat16": RATE}), EPOCH_NS, EPOCH_NS + 5
        )
    )
    sent = attributes_of(found.attributes)
    assert sent["mfu.peak.dtype"] == "bfloat16"
    assert (sent["mfu.peak.flop_rate.low"], sent["mfu.peak.flop_rate.high"]) == (0.9e12, 1.1e12)
    assert (sent["mfu.calibration.clock"], sent["mfu.calibration.efficiency"]) == (1.4e9, 0.5)
    assert (sent["mfu.calibration.tier"], sent["mfu.calibration.degraded"]) == ("burst", "power brake")


def test_calibration(spans, identity):
    """A calibration is the run's child, one span for each dtype, each with the memory's rate."""
    found = wire(*spans.calibration(PEAKS, EPOCH_NS, EPOCH_NS + 5))
    assert [attributes_of(span.attributes)["mfu.peak.dtype"] for span in found] == ["float32", "bfloat16"]
    for span in found:
        assert int.from_bytes(span.parent_span_id, "big") == Ids.of(identity).run_span()
        assert attributes_of(span.attributes)["mfu.peak.memory_rate"] == 2e10
    (only_memory,) = wire(*spans.calibration(dataclasses.replace(PEAKS, achievable={}), EPOCH_NS, EPOCH_NS + 5))
    assert "mfu.peak.flop_rate" not in attributes_of(only_memory.attributes)


def test_an_excursion_is_a_child_of_its_run(spans, identity):
    """From onset to recovery, in the run's trace; told again, it has the same id, and another onset has another."""
    (made,) = wire(spans.drift(DRIFT, EPOCH_NS + 9 * 10**9))
    ids = Ids.of(identity)
    assert int.from_bytes(made.trace_id, "big") == ids.run_trace()
    assert int.from_bytes(made.parent_span_id, "big") == ids.run_span()
    assert (made.start_time_unix_nano, made.end_time_unix_nano) == (EPOCH_NS, EPOCH_NS + 9 * 10**9)
    found = attributes_of(made.attributes)
    assert (found["mfu.drift.cause"], found["mfu.drift.onset_step"]) == ("configuration_drift", 500)
    assert found["mfu.drift.fingerprint.diff"] == ["batch: 32 → 16"]
    later = dataclasses.replace(DRIFT, onset_step=900)
    assert ids.drift_span(DRIFT) == int.from_bytes(made.span_id, "big") != ids.drift_span(later)


def test_an_excursion_never_ends_before_it_begins(spans):
    """A clock that was set back leaves a span without length, not a negative one."""
    (made,) = wire(spans.drift(DRIFT, EPOCH_NS - 5))
    assert made.end_time_unix_nano == made.start_time_unix_nano


def test_what_steps_have_in_common_is_made_once(spans, window):
    """Steps of the same work share what they have alike, whatever they took; another work or weight is another."""

    def common(step, kept=ALL):
        return spans.step(step, window, kept).attributes.common

    first = common(make_step(0))
    assert common(make_step(1, duration_s=2.0, mfu=0.2, data_wait_s=None), Kept("all", 1.0)) is first
    assert first.attributes["mfu.model.flop"] == 40.0
    assert "mfu.utilization" not in first.attributes
    for step, kept in ((make_step(2, model_flops=41), ALL), (make_step(2), Kept("periodic", 0.5))):
        assert common(step, kept) is not first
    assert dict(spans.step(make_step(3), window, ALL).attributes)["mfu.step.index"] == 3


def test_a_load_is_told_where_there_is_one(spans, window):
    """What only inference has is on a step that has any of it, and is none of a training step's."""
    told = spans.step(make_step(0, requests=3, queue_waiting=2.0), window, ALL).attributes
    assert (told["mfu.request.count"], told["mfu.queue.waiting"]) == (3, 2.0)
    assert "mfu.request.count" not in spans.step(make_step(1), window, ALL).attributes
