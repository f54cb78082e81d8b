"""What an MFU measured on this machine would rest on, and what would be wrong with it."""

from mfu_sdk.doctor.examination import examine
from mfu_sdk.doctor.finding import Finding
from mfu_sdk.doctor.screen import render

__all__ = ["Finding", "examine", "render"]
