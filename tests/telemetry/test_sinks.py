"""Two collectors: the provider's gets aggregates, as an allow-list has it, the tenant's gets all; neither waits."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from mfu_sdk import semconv
from mfu_sdk.doctor.exporter import exporter_findings
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export import allowed, flight
from mfu_sdk.export.destination import Destination, configured, for_replay, of_provider
from mfu_sdk.export.resource import resource as resource_of
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.records import Peaks, Rate, Uncounted
from mfu_sdk.requests import InferenceRecord, PhaseRecord
from mfu_sdk.settings import Provider, Settings

from .conftest import EPOCH_NS, IDENTITY, SEEN, attributes_of

SECRET = "SECRET"


@pytest.fixture
def both(identity, collector, other_collector):
    """Opens a run that tells the tenant's collector and the provider's (`other_collector`)."""
    opened = []

    def make(provider_url=None, tenant_url=None, **changes):
        provider = Provider(endpoint=provider_url or other_collector.url, **changes)
        found = Telemetry.open(
            identity,
            Settings(spans="all", gen_ai="chat", provider=provider),
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": tenant_url or collector.url},
            unix_ns=lambda: EPOCH_NS,
        )
        opened.append(found)
        return found

    yield make
    for telemetry in opened:
        # What a test has left undelivered is not waited for, only the end of the request that is under way.
        telemetry.stop(0.1)
        telemetry.stop(120.0)


class Saw:
    """An observer that has seen what it is told; a reason of the tenant's own cannot be, and would not go either."""

    def __init__(self, *throttled):
        self.throttled = throttled

    def look(self, now_unix_ns):
        pass

    def signals(self, window, total):
        return dataclasses.replace(SEEN, throttled=self.throttled)

    def close(self):
        pass


def everything(telemetry, step, summary, *throttled):
    """All that a run can tell, with a secret wherever the tenant's own words could be."""
    telemetry.observe(lambda: Saw(*(throttled or (SECRET,))))
    rate = Rate(1e12, 9e11, 1.1e12, "calibrated", 0.0)
    telemetry.calibration(
        Peaks("cpu", {}, {"float32": rate}, rate, "c0ffee", {"tier": "burst", "degraded": SECRET}),
        EPOCH_NS,
        EPOCH_NS + 9,
    )
    telemetry.step(step(0, requests=1, requests_failed=0, requests_s=0.5, requests_running=1.0, batch_feasible=8.0,
                        queue_waiting=1.0, kv_cache_free_ratio=0.5, latency_target_s=0.1))  # fmt: skip
    telemetry.step(step(1, error_type=f"Acme{SECRET}Error"))
    telemetry.step(step(2, error_type="ValueError"))
    telemetry.step(step(3, peak_source=f"/models/{SECRET}", peak_dtype=SECRET))
    telemetry.inference(
        InferenceRecord(SECRET, EPOCH_NS, 0.5, 1, 1, "cached", 1, 1, 1, error_type=f"{SECRET}Error", parent_trace_id=7,
                        parent_span_id=8, phases=(PhaseRecord("prefill", 0.0, 0.1, 1, 1, 1),))
    )  # fmt: skip
    telemetry.close(
        dataclasses.replace(summary, uncounted=(Uncounted(f"{SECRET}::kernel", 1, f"layers.{SECRET}"),), name=SECRET),
        error_type=f"{SECRET}Error",
    )
    assert telemetry.flush(120.0)


NAMES_OF_WORDS = {
    "mfu.phase", "mfu.peak.dtype", "mfu.peak.source", "mfu.count.source", "mfu.convention", "mfu.sample.reason",
    "mfu.calibration.tier", "mfu.calibration.id", "error.type", "mfu.drift.kind", "mfu.drift.measure",
    "mfu.drift.detector", "mfu.drift.cause", "mfu.throttle.reasons",
}  # fmt: skip


def test_what_the_provider_is_told(both, collector, other_collector, step, summary, monkeypatch):
    """On the wire: no word of the tenant's, four kinds of spans, and every number that the tenant's collector has."""
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES",
        f"process.command_args={SECRET},k8s.pod.label.owner={SECRET},k8s.pod.uid=0815,deployment.environment.name=prod",
    )
    everything(both(), step, summary)
    for request in other_collector.requests:
        assert SECRET.encode() not in request.body
        assert SECRET not in str(request.headers)
    bodies = other_collector.bodies("/v1/traces") + other_collector.bodies("/v1/metrics")
    assert all(SECRET.encode() not in body for body in bodies)
    assert any(SECRET.encode() in body for body in collector.bodies("/v1/traces"))

    theirs = {span.span_id: span for span in other_collector.spans()}
    ours = {span.span_id: span for span in collector.spans()}
    assert {span.name for span in theirs.values()} == {"mfu.run", "mfu.window", "mfu.step", "mfu.calibration"}
    assert {span.name for span in ours.values()} - {span.name for span in theirs.values()} == {
        "mfu.inference",
        "mfu.prefill",
    }
    for span_id, span in theirs.items():
        told = attributes_of(span.attributes)
        for name, value in attributes_of(ours[span_id].attributes).items():
            if isinstance(value, int | float) or (isinstance(value, list) and value and isinstance(value[0], int)):
                assert told[name] == value
        for name, value in told.items():
            assert isinstance(value, int | float | list) or name in NAMES_OF_WORDS
            assert not isinstance(value, list) or name in NAMES_OF_WORDS or all(isinstance(each, int) for each in value)
        assert span.events == []
        assert span.status.message == ""
    resources = [attributes_of(each.resource.attributes) for each in other_collector.trace_requests()[0].resource_spans]
    assert resources[0].keys() <= allowed.RESOURCE
    assert (resources[0]["k8s.pod.uid"], resources[0]["deployment.environment.name"]) == ("0815", "prod")


def test_words_have_a_stand_in(both, other_collector, step, summary):
    """A class of the tenant's own is told as `_OTHER`, one of Python's by its name; a source of its own as `user`."""
    everything(both(), step, summary)
    steps = {
        attributes_of(span.attributes)["mfu.step.index"]: attributes_of(span.attributes)
        for span in other_collector.spans("mfu.step")
    }
    assert (steps[1]["error.type"], steps[2]["error.type"]) == ("_OTHER", "ValueError")
    assert (steps[3]["mfu.peak.source"], "mfu.peak.dtype" in steps[3]) == ("user", False)
    assert attributes_of(other_collector.spans("mfu.run")[0].attributes)["error.type"] == "_OTHER"


def test_labels_of_metrics(both, other_collector, collector, step, summary):
    """The provider's metrics have no labels but device, phase, dtype, component and reason; no `gen_ai.*` ones."""
    everything(both(), step, summary)
    labels, names = set(), set()
    for body in other_collector.bodies("/v1/metrics"):
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            assert attributes_of(resource.resource.attributes).keys() <= allowed.RESOURCE
            for metric in resource.scope_metrics[0].metrics:
                names.add(metric.name)
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    labels |= attributes_of(point.attributes).keys()
    assert labels <= {
        "hw.id", "mfu.phase", "mfu.peak.dtype", "mfu.step.component", "mfu.drop.reason", "mfu.sdk.thread",
    }  # fmt: skip
    assert all(name.startswith("mfu.") for name in names)
    theirs, ours = (
        sorted(value for _, value in each.points()["mfu.model.flop"]) for each in (other_collector, collector)
    )
    assert theirs == ours == [40.0, 40.0]


def test_what_tells_causes_apart(both, collector, other_collector, step, summary):
    """Seconds between ranks, clocks and their reasons and the witness go to both: the provider's causes need them."""
    everything(both(), step, summary, "power brake", "0x800")
    theirs, ours = (
        {span.span_id: attributes_of(span.attributes) for span in each.spans("mfu.window")}
        for each in (other_collector, collector)
    )
    assert theirs
    assert len(theirs) == len(ours)
    for span_id, told in theirs.items():
        assert all(value == ours[span_id][name] for name, value in told.items() if name != "mfu.peak.source")
        assert told["mfu.throttle.reasons"] == ["power brake", "0x800"]
        assert (told["mfu.step.comm_time"], told["mfu.step.skew_time"], told["mfu.step.host_time"]) == (
            0.25,
            0.125,
            0.0625,
        )
        assert (told["mfu.comm.bytes"], told["mfu.comm.bus_rate"], told["mfu.comm.bus_rate.peak"]) == (1e9, 4e9, 8e9)
        assert (told["mfu.comm.ideal_ratio"], told["mfu.clock.ratio"], told["mfu.witness.utilization"]) == (
            0.1,
            0.9,
            0.45,
        )


WHO = {
    "mfu.allocation.id": "slurm-4711",
    "mfu.mig.uuid": "MIG-7",
    "mfu.mig.profile": "3g.40gb",
    "mfu.topology.link": "pcie",
    "mfu.topology.link.best": "nvlink",
    "hw.id": "MIG-7",
    "hw.name": "NVIDIA H100 80GB HBM3",
    "hw.parent": "GPU-7",
    "k8s.node.name": "gpu-17",
}


@pytest.mark.parametrize("consent", [False, True])
def test_who_and_where(collector, other_collector, step, summary, consent):
    """Slice, allocation, node and links are on both resources; what kind of model it is goes with consent only."""
    identity = dataclasses.replace(
        IDENTITY,
        device_id="MIG-7",
        device_name="NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        allocation_id="slurm-4711",
        node="gpu-17",
        mig_profile="3g.40gb",
        parent_id="GPU-7",
        link="pcie",
        link_best="nvlink",
        model_class="llama",
    )
    telemetry = Telemetry.open(
        identity,
        Settings(provider=Provider(endpoint=other_collector.url, model_class=consent)),
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        unix_ns=lambda: EPOCH_NS,
    )
    telemetry.step(step(0))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    theirs, ours = (
        attributes_of(each.trace_requests()[0].resource_spans[0].resource.attributes)
        for each in (other_collector, collector)
    )
    assert WHO.items() <= theirs.items()
    assert WHO.items() <= ours.items()
    assert (theirs.get("mfu.model.class"), ours["mfu.model.class"]) == ("llama" if consent else None, "llama")
    # No name of a model's, in neither: it is among OpenTelemetry's names for requests, on the tenant's spans.
    assert "acme/llama-tiny" not in str(theirs) + str(ours)


def test_the_pod_of_the_resource(identity, monkeypatch):
    """Where only the resource's variable names the pod, it is the allocation; what a scheduler said goes before."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.uid=0815,k8s.node.name=gpu-9")
    found = resource_of(identity).attributes
    assert (found["mfu.allocation.id"], found["k8s.node.name"]) == ("0815", "gpu-9")
    mine = resource_of(dataclasses.replace(identity, allocation_id="slot-4", node="gpu-17")).attributes
    assert (mine["mfu.allocation.id"], mine["k8s.node.name"]) == ("slot-4", "gpu-9")


def test_the_list():
    """What may go is written down here a second time: a new name of words goes to the provider by decision only."""
    assert set(allowed._WORDS) == NAMES_OF_WORDS
    assert {"mfu.count.uncounted", "mfu.request.outcome", "mfu.calibration.degraded"}.isdisjoint(allowed.NUMBERS)
    assert all(semconv.ATTRIBUTES[name].type in ("int", "double", "int[]") for name in allowed.NUMBERS)
    assert not any(name.startswith(("process.", "gen_ai.")) for name in allowed.RESOURCE | allowed.NUMBERS)
    assert "mfu.tenant.id" not in allowed.RESOURCE


@pytest.mark.parametrize("hangs", ["tenant", "provider"])
def test_neither_waits(both, collector, other_collector, step, summary, hangs):
    """A collector that never answers keeps nothing from the other."""
    silent, answering = (collector, other_collector) if hangs == "tenant" else (other_collector, collector)
    silent.hung = True
    telemetry = both()
    for index in range(3):
        telemetry.step(step(index))
    telemetry.close(summary)
    assert answering.wait_for(lambda: len(answering.spans("mfu.run")) == 1 and len(answering.spans("mfu.step")) == 3)
    assert not telemetry.flush(0.1)
    silent.let_go()


def test_each_has_its_own_credentials(both, collector, other_collector, step, summary, monkeypatch):
    """Headers and compression of one never go to the other."""
    telemetry = both(headers="authorization=Bearer%20theirs", compression="deflate")
    telemetry.step(step(0))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert {
        (each.headers.get("Authorization"), each.headers["Content-Encoding"]) for each in other_collector.requests
    } == {("Bearer theirs", "deflate")}
    assert {
        (each.headers.get("Authorization"), each.headers.get("Content-Encoding")) for each in collector.requests
    } == {(None, None)}
    assert "theirs" not in repr(telemetry._lanes[0].pipeline.__dict__) + repr(Provider(headers="theirs"))


def test_mutual_tls(both, other_collector, loopback, step, summary, caplog):
    """The provider's certificates are its own variables', and a wrong one is a reason to try again, said once."""
    certificate, key = loopback
    other_collector.speak_tls(certificate, key)
    telemetry = both(certificate=str(certificate), client_certificate=str(certificate), client_key=str(key))
    telemetry.step(step(0))
    assert telemetry.flush(120.0)
    assert len(other_collector.spans("mfu.step")) == 1
    wrong = both()
    wrong.step(step(1))
    # It is tried within half a second, or later on a busy machine.
    assert any(not wrong.flush(0.5) and "CERTIFICATE_VERIFY_FAILED" in caplog.text for _ in range(100))
    assert len(other_collector.spans("mfu.step")) == 1
    with pytest.raises(ConfigurationError, match="MFU_PROVIDER_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY must"):
        both(provider_url=other_collector.url, certificate="/nowhere.pem")


@pytest.mark.parametrize("missing", ["tenant", "provider"])
def test_the_recorder_is_the_providers(both, refused, step, summary, missing):
    """A file stays for what the provider's collector has not got; the tenant's own does not count where it has one."""
    telemetry = both(**{f"{missing}_url": refused})
    path = telemetry.recorder.path
    telemetry.step(step(0))
    telemetry.close(summary)
    telemetry.flush(1.0)
    telemetry.stop(1.0)
    assert path.exists() is (missing == "provider")
    if path.exists():
        assert SECRET.encode() not in path.read_bytes()
        assert flight.read(path.read_bytes(), "x").entries[0].step == step(0)


# --- where it goes -------------------------------------------------------------------------------------------------


def test_endpoints():
    """The signals' paths come after whatever path the endpoint has; OTEL_SDK_DISABLED stops the provider's too."""
    provider = Provider(endpoint="https://mfu.example.org/in/", headers="a=b")
    assert of_provider("traces", provider, {}) == Destination(
        "https://mfu.example.org/in/v1/traces", headers="a=b", compression="gzip", prefix="MFU_PROVIDER_"
    )
    assert configured({}, provider)
    assert not configured({"OTEL_SDK_DISABLED": "true"}, provider)
    # A switch of the tenant's own export says nothing of the provider's.
    assert configured({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, provider)
    with pytest.raises(ConfigurationError, match="MFU_PROVIDER_ENDPOINT='mfu:4318': must be an http or https URL"):
        configured({}, Provider(endpoint="mfu:4318"))


def test_where_a_replay_goes():
    """To the URL with the provider's credentials if it has any, else with the tenant's; without one, provider first."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tenant:4318", "OTEL_EXPORTER_OTLP_HEADERS": "a=tenant"}
    provider = Provider(endpoint="https://provider", headers="a=provider")
    assert for_replay("http://url", Provider(), env).url == "http://url/v1/traces"
    assert for_replay("http://url", Provider(), env).headers == "a=tenant"
    assert for_replay("http://url", provider, env).headers == "a=provider"
    assert for_replay(None, provider, env).url == "https://provider/v1/traces"
    assert for_replay(None, Provider(), env).url == "http://tenant:4318/v1/traces"


def test_doctor(monkeypatch, collector, refused):
    """The doctor looks at both, and tells a wrong variable by its name."""
    found = {each.what: each for each in exporter_findings()}
    assert [found[what].state for what in ("traces", "metrics", "provider")] == ["note"] * 3
    monkeypatch.setenv("MFU_PROVIDER_ENDPOINT", collector.url)
    assert {each.what: each.state for each in exporter_findings()}["provider"] == "good"
    monkeypatch.setenv("MFU_PROVIDER_ENDPOINT", refused)
    assert {each.what: each.state for each in exporter_findings()}["provider"] == "bad"
    monkeypatch.setenv("MFU_PROVIDER_ENDPOINT", "nowhere")
    assert "MFU_PROVIDER_ENDPOINT='nowhere'" in {each.what: each.text for each in exporter_findings()}["provider"]


def test_a_tenants_program(collector, other_collector):
    """A whole program with both variables: the same windows in both, and nothing said."""
    program = """
        import torch
        import mfu_sdk as mfu
        from mfu_sdk.records import Peaks, Rate
        peaks = Peaks("cpu", {}, {"float32": Rate(1e12, 1e12, 1e12, "user", 0.0)}, None, None, {})
        model = torch.nn.Linear(64, 32, bias=False)
        with mfu.monitor(model, name="train", peaks=peaks) as run:
            for _ in range(6):
                with run.step(tokens=8):
                    model(torch.randn(8, 64))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "MFU_PROVIDER_ENDPOINT": other_collector.url},
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    windows = {span.span_id: span for span in collector.spans("mfu.window")}
    assert {span.span_id for span in other_collector.spans("mfu.window")} == windows.keys() != set()
    assert sum(attributes_of(span.attributes)["mfu.token.count"] for span in windows.values()) == 48
