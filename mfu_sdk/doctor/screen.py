"""Findings as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from mfu_sdk.doctor.finding import Finding

_MARKS = {"good": "ok  ", "note": "note", "bad": "BAD "}
_NARROWEST = 40


def render(findings: Iterable[Finding], width: int | None = None) -> str:
    """One finding a line, or with `width` columns, as many lines as it takes, the text under itself."""
    lines = []
    for finding in findings:
        head = f"{_MARKS[finding.state]}  {finding.what:<12} "
        if width is None:
            lines.append(head + finding.text)
        else:
            # Paths and addresses stay whole, however long.
            lines += textwrap.wrap(
                finding.text, max(width, _NARROWEST), initial_indent=head, subsequent_indent=" " * len(head),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)
