"""The configuration as facts: canonical, told apart, and without secrets."""

import pytest

from mfu_sdk.drift.fingerprint import Fact, Fingerprint, env_facts, plain

FACTS: dict[str, Fact] = {
    "model": "1234abcd",
    "batch": 32.0,
    "dtype.products": {"bfloat16", "float32"},
    "torch": "2.13.0",
    "device.name": "Example",
    "env.NCCL_ALGO": None,
}


def test_order_does_not_matter() -> None:
    """The same facts in any order, a set of any kind, are the same fingerprint."""
    turned: dict[str, Fact] = dict(reversed(FACTS.items()))
    turned["dtype.products"] = ["float32", "bfloat16", "float32"]
    assert Fingerprint.of(turned) == Fingerprint.of(FACTS)
    assert len(Fingerprint.of(FACTS).hash) == 16


def test_known_hash() -> None:
    """The hash is part of what is sent: it does not change with a version of ours by accident."""
    assert Fingerprint.of({"a": 1, "b": {"x"}}).facts == (("a", "1"), ("b", '["\\"x\\""]'))
    assert Fingerprint.of({"a": 1}).hash == "70f7937abcd59800"


@pytest.mark.parametrize("name", ["torch", "device.name", "env.NCCL_ALGO"])
def test_the_intent_knows_no_versions_and_no_devices(name: str) -> None:
    """Another torch, device or switch is another fingerprint of the same intent."""
    other = Fingerprint.of({**FACTS, name: "another"})
    assert other.hash != Fingerprint.of(FACTS).hash
    assert other.intent == Fingerprint.of(FACTS).intent


@pytest.mark.parametrize(("name", "value"), [("batch", 16.0), ("dtype.products", {"float32"}), ("model", "x")])
def test_the_intent_is_what_was_chosen(name: str, value: Fact) -> None:
    """Another batch, dtype or model is another intent."""
    assert Fingerprint.of({**FACTS, name: value}).intent != Fingerprint.of(FACTS).intent


def test_diff_in_words() -> None:
    """What changed, by name: values as before → after, sets by what went and what came."""
    later = Fingerprint.of({**FACTS, "batch": 16.0, "dtype.products": {"float32", "float16"}, "threads": 2})
    assert Fingerprint.of(FACTS).diff(later) == (
        "batch: 32.0 → 16.0",
        "dtype.products: −bfloat16 +float16",
        "threads: not set → 2",
    )
    assert Fingerprint.of(FACTS).diff(Fingerprint.of(FACTS)) == ()


def test_a_long_diff_is_short() -> None:
    """Of twenty operators that went and three that came, eight are named."""
    before = Fingerprint.of({"operators": {f"old{number:02}" for number in range(20)}})
    [told] = before.diff(Fingerprint.of({"operators": {"new1", "new2", "new3"}}))
    assert told == "operators: −old00 −old01 −old02 −old03 −old04 +new1 +new2 +new3 and 15 more"


@pytest.mark.parametrize("value", ["Ring", "^mlx5_3:1,mlx5_5:1", "1", "", "expandable_segments:True"])
def test_plain_switches_are_told(value: str) -> None:
    """What is short and harmless is readable."""
    assert plain(value) == value


@pytest.mark.parametrize(
    "value", ["/home/alice/topo.xml", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "https://u:p@host", "a b", "x" * 60]
)
def test_secrets_and_paths_are_not(value: str) -> None:
    """Paths, tokens and URLs are told apart by a hash, and nothing of them is in it."""
    told = plain(value)
    assert told.startswith("hash:")
    assert len(told) == 13
    assert plain(value + "x") != told


def test_only_listed_variables_are_read() -> None:
    """A password in the environment is never looked at."""
    env = {"NCCL_ALGO": "Ring", "AWS_SECRET_ACCESS_KEY": "secret", "TORCH_HOME": "/x", "NCCL_SOCKET_IFNAME": "eth0"}
    assert env_facts(env) == {"env.NCCL_ALGO": "Ring", "env.NCCL_SOCKET_IFNAME": "eth0"}
