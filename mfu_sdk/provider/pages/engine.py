"""Templates to HTML: escaping, the words that figures are told in, and the pictures."""

import hashlib
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup, escape

from mfu_sdk.provider.artist import Artist
from mfu_sdk.provider.pages import picture
from mfu_sdk.provider.pages.charts import Chart
from mfu_sdk.provider.report import words

_WEB: Final = resources.files("mfu_sdk.provider") / "web"
ASSETS: Final = {"page.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""What a served page asks for besides itself, from its own address, with the media type of each."""


_WORDS: Final = {
    "under_batched_inference": "under-batched inference",
    "mig_fragmentation": "MIG fragmentation",
    "thermal_or_power": "thermal or power limit",
    "input_bound": "waiting for input",
    "unknown": "a shortfall without a known cause",
    "mig_stranded": "stranded between MIG slices",
    "unavailable": "not available",
    "unobserved": "not observed",
    "input": "waiting for input",
    "skew": "waiting for late ranks",
    "comm_topology": "communication: topology",
    "comm_scale": "communication: scale",
    "under_batch": "under-batching",
    "kernel_gap": "kernels and host",
    "clock": "clock held down",
    "unattainable": "beyond reach, by roofline",
    "on_demand": "on demand",
    "per_token": "by the token",
    "held_by_another": "another tenant holds it, by the records",
    "not_held": "this tenant did not hold it, by the records",
    "claimed_twice": "another tenant tells of it at the same time",
}
"""Names that read otherwise than with blanks for their underscores."""


class Engine:
    """Renders the templates in `web`; `artist` draws their charts."""

    def __init__(self, artist: Artist) -> None:
        self._artist = artist
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mfu_sdk.provider", "web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for spell in (
            words.percent,
            words.flop,
            words.hours,
            words.seconds,
            words.count,
            words.estimate,
            words.name,
            words.moment,
            words.si,
            words.line,
            words.money,
            words.figure,
            words.evidence,
            told,
            coded,
        ):
            self._environment.filters[spell.__name__] = spell
        self._environment.globals |= {"picture": self._picture, "asset": asset, "version": version}

    def render(self, template: str, **context: Any) -> str:
        """The page that `template` makes of `context`."""
        return self._environment.get_template(template).render(**context)

    def _picture(self, chart: Chart | None, caption: str = "") -> Markup:
        """A figure; where the narrow one differs, the style shows whichever fits."""
        if chart is None:
            return Markup()
        wide = self._artist.draw(chart.spec)
        narrow = None if chart.narrow is None else self._artist.draw(chart.narrow)
        if wide is None:
            return Markup('<p class="quiet">This picture could not be drawn; the table has its figures.</p>')
        drawn = picture.finish(wide, chart, "chart wide" if narrow else "chart grid" if chart.is_grid else "chart")
        if narrow is not None:
            drawn += picture.finish(narrow, chart, "chart narrow")
        # Both are finished by us: text in them is escaped by ElementTree.
        told = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup()
        return Markup("<figure>{}{}</figure>").format(Markup(drawn), told)  # noqa: S704


def coded(text: str) -> Markup:
    """A sentence of one line, what stands in `backticks` as code."""
    parts = words.line(text, 600).split("`")
    if len(parts) % 2 == 0:
        return escape("`".join(parts))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts)
    )


def told(name: str) -> str:
    """A name of ours as people read it: of a cause, a stage, a kind of evidence."""
    return _WORDS.get(name, words.name(name.replace("_", " ")))


@cache
def asset(name: str) -> str:
    """The text of a file beside the templates."""
    return (_WEB / name).read_text("utf-8")


@cache
def version(name: str) -> str:
    """A hash of an asset, so that a browser keeps it until it changes."""
    return hashlib.sha256(asset(name).encode()).hexdigest()[:12]
