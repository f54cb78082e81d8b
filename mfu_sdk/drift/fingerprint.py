"""A run's configuration as facts: canonical, hashed, told apart in words, with no secrets in it.

Facts are named by dotted words ("torch", "env.NCCL_ALGO") and are text, numbers, truth values, or sets of text. The
*fingerprint* is the hash of all of them. The *intent* is the hash of what a tenant chose (model, batch, sequence,
dtype, parallel strategy), with neither versions nor devices: the same work on other machines has the same one.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

Value = str | int | float | bool | None
Fact = Value | Collection[Value]

INTENT: Final = ("model", "batch", "sequence", "dtype", "autocast", "parallel")
"""First words of the facts that are a tenant's choice."""

ENV: Final = (
    "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING", "KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "NCCL_ALGO", "NCCL_BUFFSIZE",
    "NCCL_COLLNET_ENABLE", "NCCL_CROSS_NIC", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX", "NCCL_IB_HCA",
    "NCCL_MAX_NCHANNELS", "NCCL_MIN_NCHANNELS", "NCCL_NET", "NCCL_NET_GDR_LEVEL", "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_PROTO", "NCCL_SHM_DISABLE", "NCCL_SOCKET_IFNAME",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_V8_API_DISABLED", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_AVOID_RECORD_STREAMS", "TORCH_NCCL_BLOCKING_WAIT", "TORCHINDUCTOR_MAX_AUTOTUNE", "TRITON_INTERPRET",
)  # fmt: skip
"""Switches that change how fast a run is. No other variable is ever read."""

MOST_WORDS: Final = 5
"""Of a set that changed, so many of what went and of what came are named."""
_PLAIN = re.compile(r"[A-Za-z0-9_.,:^=+-]{0,48}", re.ASCII)
_LONG = re.compile(r"[A-Za-z0-9_+-]{21,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Facts in their canonical form: sorted by name, each value as JSON; what is not known is left out."""

    facts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, facts: Mapping[str, Fact]) -> "Fingerprint":
        """The canonical form of `facts`: collections are sets, floats have six digits, None is not known."""
        known = ((name, _canonical(fact)) for name, fact in facts.items() if fact is not None)
        return cls(tuple(sorted(known)))

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that stand for all facts."""
        return _hash(self.facts)

    @property
    def intent(self) -> str:
        """16 hexadecimal digits that stand for what a tenant chose."""
        return _hash(tuple(fact for fact in self.facts if fact[0].partition(".")[0] in INTENT))

    def words(self, name: str) -> frozenset[str]:
        """The set of words that a fact is; empty where it is none."""
        found = json.loads(dict(self.facts).get(name, "[]"))
        return frozenset(str(json.loads(each)) for each in found) if isinstance(found, list) else frozenset()

    def replaced(self, other: "Fingerprint") -> "Fingerprint":
        """The same with what `other` knows as `other` has it."""
        return Fingerprint(tuple(sorted({**dict(self.facts), **dict(other.facts)}.items())))

    def diff(self, later: "Fingerprint") -> tuple[str, ...]:
        """What `later` has that this has not: "name: before → after", by name."""
        before, after = dict(self.facts), dict(later.facts)
        changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
        return tuple(f"{name}: {_words(name, before, after)}" for name in changed)


def of_sets(name: str, gone: Sequence[str], come: Sequence[str]) -> tuple[str, ...]:
    """What went of a set and what came, in the words of `Fingerprint.diff`; nothing where nothing did."""
    return (f"{name}: {_sets(gone, come)}",) if gone or come else ()


def env_facts(env: Mapping[str, str]) -> dict[str, Fact]:
    """The switches of `ENV` that are set. What is no short plain word (a path, a long token) is told as a hash only."""
    return {f"env.{name}": plain(env[name]) for name in ENV if name in env}


def plain(value: str) -> str:
    """`value` where it is a short word of harmless signs, else "hash:" and 8 digits that only tell it from others."""
    if _PLAIN.fullmatch(value) and not _LONG.search(value):
        return value
    return "hash:" + blake2b(value.encode(), digest_size=4).hexdigest()


def _canonical(fact: Fact) -> str:
    if isinstance(fact, str | bool | int | float) or fact is None:
        return json.dumps(_rounded(fact))
    return json.dumps(sorted({json.dumps(_rounded(each)) for each in fact}))


def _rounded(value: Value) -> Value:
    # What is no number is text: JSON has none.
    return (float(f"{value:.6g}") if abs(value) < float("inf") else str(value)) if isinstance(value, float) else value


def _hash(facts: object) -> str:
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _words(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    old, new = (None if name not in facts else json.loads(facts[name]) for facts in (before, after))
    if isinstance(old, list) and isinstance(new, list):
        gone, come = (
            [json.loads(each) for each in one if each not in other] for one, other in ((old, new), (new, old))
        )
        return _sets(gone, come)
    return f"{_said(old)} → {_said(new)}"


def _sets(gone: Sequence[object], come: Sequence[object]) -> str:
    more = max(0, len(gone) - MOST_WORDS) + max(0, len(come) - MOST_WORDS)
    named = [*(f"−{each}" for each in gone[:MOST_WORDS]), *(f"+{each}" for each in come[:MOST_WORDS])]
    return " ".join([*named, *([f"and {more} more"] if more else [])])


def _said(value: object) -> str:
    if value is None:
        return "not set"
    return ", ".join(str(json.loads(each)) for each in value) if isinstance(value, list) else str(value)
