"""OTLP in: bytes to rows, and the HTTP endpoint that answers only once the rows are stored."""

from mfu_sdk.provider.receive.http import routes
from mfu_sdk.provider.receive.otlp import Decoded, Encoding, decode_metrics, decode_traces

__all__ = ["Decoded", "Encoding", "decode_metrics", "decode_traces", "routes"]
