"""What kind of model a run has, and what its authors call it; and what a second measurement of its peak says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch import nn

from mfu_sdk.peak.device import Device
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.identity import _kind, identify
from mfu_sdk.run.opening import _ratios
from mfu_sdk.settings import Settings


class Tiny(nn.Module):
    """A model with a submodule that is called as wrappers call what they wrap."""

    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.config = config
        self.module = nn.Linear(2, 2)


LLAMA = SimpleNamespace(model_type="llama", name_or_path="acme/llama-tiny")


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (None, (None, None)),
        (Tiny(), ("Tiny", None)),
        (Tiny(LLAMA), ("llama", "acme/llama-tiny")),
        (nn.DataParallel(Tiny(LLAMA)), ("llama", "acme/llama-tiny")),
        # A configuration of the user's own, in which the names mean something else.
        (Tiny({"model_type": "llama"}), ("Tiny", None)),
        (Tiny(SimpleNamespace(model_type=3, name_or_path="")), ("Tiny", None)),
    ],
    ids=["none", "a class", "a configuration", "wrapped", "a dictionary", "odd"],
)
def test_kinds(model: nn.Module | None, kind: tuple[str | None, str | None]) -> None:
    """By the configuration's word, else by the class, beneath what wraps it."""
    assert _kind(model) == kind


class DataParallel(nn.Linear):
    """A class of the user's that is called as a wrapper is, and wraps nothing."""

    @property
    def config(self) -> object:
        raise RuntimeError("not loaded")


def test_a_configuration_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the run the kind of its model, and nothing else."""
    monkeypatch.setenv("MFU_GUARD", "log")
    assert _kind(DataParallel(2, 2)) == (None, None)


def test_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on its own, under a scheduler: it has no peers, no slice, and the job that it was given."""
    monkeypatch.delenv("MFU_ALLOCATION_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    who = identify(None, Tiny(LLAMA), Device("cpu", "EPYC", "AMD", None), Settings())
    assert (who.allocation_id, who.link, who.link_best, who.mig_profile) == ("slurm-4711", "none", None, None)
    assert (who.workload, who.model_class, who.model_name) == ("Tiny", "llama", "acme/llama-tiny")
    mine = identify(None, None, Device("cpu", "EPYC", "AMD", None), Settings(allocation_id="slot-4"))
    assert (mine.allocation_id, mine.model_class) == ("slot-4", None)


def test_a_peak_that_was_measured_again() -> None:
    """What was measured between two steps over what was before, for the dtypes that were; nothing for others."""
    rate = Rate(100.0, 90.0, 110.0, "calibrated", 0.0)
    before = Peaks("cpu", {}, {"float32": rate, "bfloat16": replace(rate, flops_per_s=200.0)}, rate, None, {})
    found = replace(before, state={"float32_in_situ_flops_per_s": 90.0, "bfloat16_in_situ_flops_per_s": 100.0})
    assert _ratios(found, before, None) == {"float32": 0.9, "bfloat16": 0.5}
    assert _ratios(found, before, ("float32",)) == {"float32": 0.9}
    assert _ratios(before, before, None) == {}
