"""OTLP in: bytes to rows, and the endpoints, HTTP and gRPC, that answer only once the rows are stored."""

from mfu_sdk.provider.receive.http import routes
from mfu_sdk.provider.receive.intake import Intake
from mfu_sdk.provider.receive.limits import Limits
from mfu_sdk.provider.receive.otlp import Decoded, Encoding, decode_metrics, decode_traces

__all__ = ["Decoded", "Encoding", "Intake", "Limits", "decode_metrics", "decode_traces", "routes"]
