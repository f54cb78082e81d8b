"""Whole processes: how they start, fork, fail and end with telemetry in them."""

import subprocess
import sys
import textwrap

import pytest

from mfu_sdk.export.worker import EXIT_S

from .conftest import attributes_of

PATIENT = 120.0

# What a user's program has to do with us, with five steps of it done. The parent gives the endpoint by environment.
PROGRAM = """
    import os, sys, time
    sys.path.insert(0, sys.argv[1])
    from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
    from mfu_sdk.export import worker
    from mfu_sdk.export.telemetry import Telemetry
    from mfu_sdk.settings import Settings
    import atexit
    leaving = []
    atexit.register(lambda: leaving and print(time.monotonic() - leaving[0]))
    worker.EXIT_S = float(sys.argv[2])
    telemetry = Telemetry.open(IDENTITY, Settings(spans="all"), unix_ns=lambda: EPOCH_NS)
    for index in range(5):
        telemetry.step(make_step(index))
"""


@pytest.fixture
def python(request, monkeypatch):
    """Runs PROGRAM and then `body` in a fresh interpreter: (what it wrote, also as errors, and its exit status).

    Its end may take `exit_s` for us: `PATIENT` where what it delivers is looked at, on a machine however busy.
    """

    def run(body, *, url, exit_s=EXIT_S):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        program = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(request.path.parent), str(exit_s)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.stdout, done.stderr, done.returncode

    return run


def test_delivered_at_exit(python, collector):
    """A program that closes its run and ends at once has told everything."""
    _, errors, status = python("telemetry.close(SUMMARY)", url=collector.url, exit_s=PATIENT)
    assert (errors, status) == ("", 0)
    assert len(collector.spans("mfu.step")) == 5
    assert len(collector.spans("mfu.run")) == 1
    assert collector.points()["mfu.model.flop"][0][1] == 200.0


def test_not_closed(python, collector):
    """A program that forgot to close its run still delivers its windows and counters, not a made-up summary."""
    _, errors, status = python("", url=collector.url, exit_s=PATIENT)
    assert (errors, status) == ("", 0)
    assert len(collector.spans("mfu.step")) == 5
    assert collector.spans("mfu.run") == []
    assert collector.points()["mfu.step.count"][0][1] == 5.0


@pytest.mark.parametrize("trouble", ["refused", "hung", "503"])
def test_exit_is_bounded(python, collector, refused, trouble):
    """Whatever the collector does, the end of the process takes 2 s for us, however many runs are open.

    On a busy machine they are more, and fewer than the 10 s of one request or the 18 s of nine runs in turn. The stock
    exporters take 28 s.
    """
    collector.hung = trouble == "hung"
    collector.status = 503
    body = """
        others = [Telemetry.open(IDENTITY, Settings(), unix_ns=lambda: EPOCH_NS) for _ in range(8)]
        for other in others:
            other.step(make_step(0))
        telemetry.close(SUMMARY)
        # Exit handlers run backwards: the one that tells the time was the first, and is the last to run.
        leaving.append(time.monotonic())
    """
    out, errors, status = python(body, url=refused if trouble == "refused" else collector.url)
    assert status == 0
    assert "Traceback" not in errors
    assert float(out) < 9.0


def test_user_exception(python, collector):
    """The user's exception ends the program as it always did."""
    _, errors, status = python("raise LookupError('the user own')", url=collector.url, exit_s=PATIENT)
    assert status == 1
    assert errors.rstrip().endswith("LookupError: the user own")
    assert "mfu" not in errors


def test_fork(python, collector):
    """Children that are forked while we export are inert, end at once, and send nothing a second time."""
    body = """
        import threading
        pids = []
        for n in range(8):
            for index in range(20):
                telemetry.step(make_step(5 + 20 * n + index))
            pid = os.fork()
            if pid == 0:
                telemetry.step(make_step(0, model_flops=10**9))
                telemetry.flush(60.0)
                telemetry.close(SUMMARY)
                assert threading.active_count() == 1
                # The interpreter's own way out, with its exit handlers.
                sys.exit(0)
            pids.append(pid)
        began = time.monotonic()
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
        assert time.monotonic() - began < 40
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
    """
    _, errors, status = python(body, url=collector.url)
    assert (errors, status) == ("", 0)
    assert len(collector.spans("mfu.step")) == 165
    assert len(collector.spans("mfu.run")) == 1
    assert collector.points()["mfu.model.flop"][0][1] == 165 * 40.0
    instances = {
        attributes_of(resource.resource.attributes)["service.instance.id"]
        for request in collector.trace_requests()
        for resource in request.resource_spans
    }
    assert len(instances) == 1


def test_fork_loader(python, collector):
    """PyTorch's forked data-loading workers neither hang nor double anything."""
    body = """
        import torch
        loader = torch.utils.data.DataLoader(
            torch.arange(32), batch_size=4, num_workers=2, multiprocessing_context="fork"
        )
        for index, batch in enumerate(loader):
            telemetry.step(make_step(5 + index, tokens=int(batch.sum())))
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
    """
    _, errors, status = python(body, url=collector.url)
    assert (errors, status) == ("", 0)
    assert collector.points()["mfu.step.count"][0][1] == 13.0


def test_random_streams(python, collector, other_collector):
    """The user's seeded streams are the same with telemetry delivered, with telemetry retried, and with none."""
    other_collector.status = 503
    body = f"""
        import random
        import numpy as np, torch

        def drawn(during):
            random.seed(1); np.random.seed(1); torch.manual_seed(1)
            during()
            return random.random(), np.random.rand(), torch.rand(1).item(), random.getrandbits(64)

        def told(url, wait_s):
            env = {{"OTEL_EXPORTER_OTLP_ENDPOINT": url}}
            telemetry = Telemetry.open(IDENTITY, Settings(spans="all"), env=env, unix_ns=lambda: EPOCH_NS)
            for index in range(45):
                telemetry.step(make_step(index))
                if index % 20 == 0:
                    telemetry.flush(wait_s)
            telemetry.close(SUMMARY)
            telemetry.flush(wait_s)

        alone = drawn(lambda: None)
        assert drawn(lambda: told("{collector.url}", 120.0)) == alone
        assert drawn(lambda: told("{other_collector.url}", 0.3)) == alone
        print("the same")
    """
    out, errors, status = python(body, url=collector.url)
    assert (out, status) == ("the same\n", 0), errors
    assert len(collector.requests) > 2
    assert other_collector.wait_for(lambda: len(other_collector.requests) > 0)


def test_global_providers(python, collector):
    """The user's global tracer and meter providers, exit handlers of theirs and logging are left alone."""
    body = """
        import logging
        from opentelemetry import metrics, trace
        before = trace._TRACER_PROVIDER, metrics._internal._METER_PROVIDER
        telemetry.close(SUMMARY)
        assert telemetry.flush(120.0)
        assert (trace._TRACER_PROVIDER, metrics._internal._METER_PROVIDER) == before == (None, None)
        assert logging.getLogger().handlers == []
        assert logging.getLogger("mfu_sdk").handlers == []
        assert not any(name.startswith("requests") for name in sys.modules)
    """
    _, errors, status = python(body, url=collector.url)
    assert (errors, status) == ("", 0)


def test_own_exit_handlers_run(python, refused):
    """The user's exit handlers run as well, before and after ours, and the exit status is theirs."""
    body = """
        atexit.register(print, "bye")
        telemetry.close(SUMMARY)
        sys.exit(7)
    """
    out, _, status = python(body, url=refused)
    assert (out.strip(), status) == ("bye", 7)
