"""The fleet report: built from a store, read from a provider, told as JSON, text or a page."""

from mfu_sdk.provider.report.build import Observed, build, observe, report_of
from mfu_sdk.provider.report.html import render_html
from mfu_sdk.provider.report.model import Report, from_json, to_json
from mfu_sdk.provider.report.source import from_data_dir, from_url
from mfu_sdk.provider.report.text import render_text
from mfu_sdk.provider.report.window import parse_range

__all__ = [
    "Observed",
    "Report",
    "build",
    "from_data_dir",
    "from_json",
    "from_url",
    "observe",
    "parse_range",
    "render_html",
    "render_text",
    "report_of",
    "to_json",
]
