"""The fleet report: built from a store, read from a provider, told as JSON, text or a page."""

from mfu_sdk.provider.report.build import Observed, bucket_seconds, build, observe, report_of
from mfu_sdk.provider.report.model import Report, from_json, to_json
from mfu_sdk.provider.report.source import focus, focus_from_data_dir, focus_from_url, from_data_dir, from_url
from mfu_sdk.provider.report.text import render_text
from mfu_sdk.provider.report.window import iso, parse_range

__all__ = [
    "Observed",
    "Report",
    "bucket_seconds",
    "build",
    "focus",
    "focus_from_data_dir",
    "focus_from_url",
    "from_data_dir",
    "from_json",
    "from_url",
    "iso",
    "observe",
    "parse_range",
    "render_text",
    "report_of",
    "to_json",
]
