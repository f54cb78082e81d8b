"""The registry for OpenTelemetry's weaver: the rules of its schema that can be checked here, and that it is true.

That the files are what docs/generate.py makes today is checked with the rest of the reference.
"""

import dataclasses
import importlib
import pkgutil
import typing
from collections import Counter
from pathlib import Path

import opentelemetry.semconv._incubating.attributes as developing
import opentelemetry.semconv.attributes as stable
import pytest
import yaml
from opentelemetry.semconv.schemas import Schemas

from mfu_sdk import semconv
from mfu_sdk.export.resource import resource
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Windows, sums

from .conftest import DRIFT, EPOCH_NS, IDENTITY, PEAKS, PHASES, STREAMED, SUMMARY, make_step

FILES = Path(__file__).parents[2] / "docs" / "reference" / "registry"
STABILITY = {"stable", "development", "alpha", "beta", "release_candidate"}


@pytest.fixture(scope="module")
def groups():
    """Every group by its id, which no two have."""
    found = [
        group
        for path in sorted(FILES.glob("*.yaml"))
        if path.name != "manifest.yaml"
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    assert Counter(group["id"] for group in found).most_common(1)[0][1] == 1
    return {group["id"]: group for group in found}


@pytest.fixture(scope="module")
def defined(groups):
    """Every attribute that is defined here, by its id."""
    found = [each for group in groups.values() for each in group["attributes"] if "id" in each]
    assert len({each["id"] for each in found}) == len(found)
    return {each["id"]: each for each in found}


def upstream():
    """The names of attributes in the installed edition of OpenTelemetry's registry."""
    found = set()
    for package in (developing, stable):
        for module in pkgutil.iter_modules(package.__path__):
            names = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            found |= {value for name, value in names.items() if name.isupper() and isinstance(value, str)}
    return found


def test_manifest():
    """It names itself and the edition of OpenTelemetry's registry that it depends on, which is the installed one."""
    manifest = yaml.safe_load((FILES / "manifest.yaml").read_text(encoding="utf-8"))
    assert manifest["schema_url"].endswith(f"/{semconv.SCHEMA_VERSION}")
    (dependency,) = manifest["dependencies"]
    assert dependency["schema_url"] == list(Schemas)[-1].value


def test_groups(groups):
    """Each group has what its type asks for, and an entity that is named exists."""
    entities = {group["name"] for group in groups.values() if group["type"] == "entity"}
    for group in groups.values():
        assert group["type"] in ("attribute_group", "entity", "span", "metric")
        assert group["brief"]
        assert group["type"] == "attribute_group" or group["stability"] in STABILITY
        assert set(group.get("entity_associations", ())) <= entities
        if group["type"] == "span":
            assert group["span_kind"] == "internal"
        if group["type"] == "metric":
            registered = semconv.METRICS[group["metric_name"]]
            assert group["id"] == f"metric.{registered.name}"
            assert (group["instrument"], group["unit"]) == (registered.kind, registered.unit)


def test_attributes(defined):
    """Each definition is the registered one, typed, with members that differ or with an example of its type."""
    assert defined.keys() == {name for name in semconv.ATTRIBUTES if name.startswith("mfu.")}
    for name, each in defined.items():
        registered = semconv.ATTRIBUTES[name]
        assert each["stability"] in STABILITY
        assert each["brief"] == registered.brief
        assert each.get("annotations", {}).get("unit", "") == registered.unit
        if isinstance(each["type"], dict):
            values = [member["value"] for member in each["type"]["members"]]
            assert len(set(values)) == len(values) > 1
            assert registered.type == "string"
        else:
            assert each["type"] == registered.type
            if registered.type.startswith("string"):
                (example,) = each["examples"]
                assert isinstance(example, list if registered.type == "string[]" else str)


def test_references(groups, defined):
    """A reference resolves, here or in OpenTelemetry's registry, and no group has two of one name."""
    known = defined.keys() | upstream()
    levels = ["required", {"conditionally_required": "where it is known"}]
    for group in groups.values():
        names = [each["ref"] for each in group["attributes"] if "ref" in each]
        assert len(set(names)) == len(names)
        assert set(names) <= known
        assert all(each["requirement_level"] in levels for each in group["attributes"] if "ref" in each)


def test_complete(groups):
    """Every span and metric of ours is there with the attributes that it is registered with; `gen_ai.*` is not ours."""
    spans = {f"span.{name}" for name in semconv.SPANS}
    metrics = {f"metric.{name}" for name in semconv.METRICS if name.startswith("mfu.")}
    assert groups.keys() == {"registry.mfu", "entity.mfu.process"} | spans | metrics
    for name in spans | {"entity.mfu.process"}:
        place = "resource" if name.startswith("entity") else name.removeprefix("span.mfu.")
        registered = {each.name for each in semconv.ATTRIBUTES.values() if place in each.on}
        told = {each["ref"] for each in groups[name]["attributes"]}
        assert told == {each for each in registered if not each.startswith("gen_ai.")}
    for name in metrics:
        registered = semconv.METRICS[name.removeprefix("metric.")]
        assert [each["ref"] for each in groups[name]["attributes"]] == list(registered.labels)
        assert groups[name].get("annotations", {}).get("bucket_bounds", []) == list(registered.bounds)


def bare(record):
    """The record with None, or nothing, for all that may be unknown."""
    kinds = typing.get_type_hints(type(record))
    changes = {}
    for field in dataclasses.fields(record):
        if type(None) in typing.get_args(kinds[field.name]):
            changes[field.name] = None
        elif isinstance(getattr(record, field.name), tuple):
            changes[field.name] = ()
    return dataclasses.replace(record, **changes)


def test_what_is_required_is_always_there(groups):
    """Of records that know nothing, spans and resource have what is called required."""
    spans, least = Spans(IDENTITY), Kept("first", None)
    step = bare(make_step(0))
    unfinished = dataclasses.replace(step, error_type="ValueError")
    window, _ = Windows().add(unfinished)
    request = dataclasses.replace(bare(STREAMED), phases=PHASES)
    made = [
        spans.step(step, window, least),
        spans.window(window, sums(window.steps)),
        spans.run(bare(SUMMARY), Totals(), EPOCH_NS, None),
        *spans.inference(request, least),
        *spans.calibration(dataclasses.replace(bare(PEAKS), achievable={}, state={}), EPOCH_NS, EPOCH_NS),
        spans.drift(bare(DRIFT), EPOCH_NS),
    ]
    assert {span.name for span in made} == semconv.SPANS.keys()
    found = {f"span.{span.name}": span.attributes.keys() for span in made}
    found["entity.mfu.process"] = resource(bare(IDENTITY)).attributes.keys()
    for name, told in found.items():
        required = {each["ref"] for each in groups[name]["attributes"] if each["requirement_level"] == "required"}
        assert required <= told, name
