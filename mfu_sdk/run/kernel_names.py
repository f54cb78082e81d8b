"""The name of a kernel as part of a configuration: what chose it stays, what differs between launches goes.

A profiler's name of a kernel holds its template's arguments, its parameters, counters of a compilation and, where it is
mangled, hashes of files. Of all that only what says *which* kernel was chosen may stand in a configuration:

- Of a product's template (CUTLASS, cuBLASLt, flash-attention) the arguments are the choice: tiles, stages, head size.
  Where they are one word, as CUTLASS writes them, that word is the name; else they are a hash.
- Of all others they are functors and widths that follow alignment and shape, which are no choice, and are dropped.
- Numbers that Inductor and Triton append (the kernel's place in a graph, its specialisation) are dropped.
- Names of no family that is known here are a program's own. They are told as a hash, which only tells them from others.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from mfu_sdk.run.kernels import kind_of

MOST_SIGNS: Final = 96
"""A name that is longer is cut, and ends in a hash of the whole."""
_MOST_READ: Final = 4096
# Namespaces of operators, which are no kernels of anybody's: what a profiler sees on a processor.
_OPERATORS: Final = ("aten::", "prim::", "prims::", "c10d::", "c10d_functional::", "_c10d_functional::", "mkldnn::")
_ANONYMOUS: Final = re.compile(r"\((?:anonymous namespace|anonymous class)\)::|<unnamed>::|\{anonymous\}::")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]+")
# A translation unit's own, of which the compiler writes the file and hashes into the name; a library's version.
_HIDDEN: Final = re.compile(r"_(?:GLOBAL__N_|INTERNAL_|_nv_static_)\w*|(?:CUB|THRUST|CCCL)_\d\w*")
_CLONE: Final = re.compile(r"\s*\[clone [^\]]*\]|\.kd$")
_GENERATED: Final = re.compile(r"(triton_|cpp_fused)\w*?(?=_\d+$)")
# Triton 2 wrote its specialisation behind the name: _0d1d2de3.
_SPECIALISED: Final = re.compile(r"_\d+[cde][\dcde]*$")
_ONE_WORD: Final = re.compile(r"[A-Za-z_]\w{15,}", re.ASCII)
_PLAIN: Final = re.compile(r"[\w:.~<>-]+", re.ASCII)
_LENGTH: Final = re.compile(r"\d{1,3}")


@lru_cache(maxsize=2048)
def canonical(name: str) -> str:
    """`name`, as a profiler has it, in the form that is the same in every launch; bounded, of plain signs alone."""
    name = name[:_MOST_READ]
    head, arguments, word = _mangled(name) if name.startswith("_Z") else _written(name)
    if match := _GENERATED.match(head):
        head = match[0]
    head = _SPECIALISED.sub("", head)
    kind = kind_of(head)
    if not (head.startswith(_OPERATORS) or kind != "unknown") or not _PLAIN.fullmatch(head):
        return "kernel~" + _hash(head + "<" + arguments)
    if kind == "product" and arguments:
        head = word or f"{head}<{_hash(arguments)}>"
    return head if len(head) <= MOST_SIGNS else f"{head[: MOST_SIGNS - 9]}~{_hash(head)}"


def _written(name: str) -> tuple[str, str, str | None]:
    """The name without return type and parameters, its templates' arguments, and the word that is all of them."""
    name = _CLONE.sub("", _ADDRESS.sub("", _ANONYMOUS.sub("", name)))
    head: list[str] = []
    arguments: list[str] = []
    depth = 0
    for sign in name:
        if sign == "<":
            depth += 1
            if depth == 1:
                continue
        elif sign == ">" and depth:
            depth -= 1
            if not depth:
                continue
        elif sign == "(" and not depth:
            # Parameters, and whatever comes behind them.
            break
        (arguments if depth else head).append(sign)
    words = "".join(head).split()
    given = "".join("".join(arguments).split())
    word = given if _ONE_WORD.fullmatch(given) else None
    return _shown(words[-1].split("::") if words else []), given, word


def _mangled(name: str) -> tuple[str, str, str | None]:
    """The same of a name as the linker has it (Itanium C++ ABI, 5.1.2): lengths and words, up to the arguments."""
    at = 3 if name.startswith("_ZN") else 2
    words = []
    while (found := _LENGTH.match(name, at)) is not None:
        begin = found.end()
        at = begin + int(found[0])
        words.append(name[begin:at])
    rest = _ADDRESS.sub("", name[at:])
    if not rest.startswith("I"):
        return _shown(words), "", None
    word = None
    if (one := _LENGTH.match(rest, 1)) is not None:
        end = one.end() + int(one[0])
        # I, a word with its length, E: the arguments are that word alone.
        word = rest[one.end() : end] if rest[end : end + 1] == "E" else None
    return _shown(words), rest, word if word and _ONE_WORD.fullmatch(word) else None


def _shown(words: list[str]) -> str:
    return "::".join(word for word in words if word and not _HIDDEN.fullmatch(word))


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()
