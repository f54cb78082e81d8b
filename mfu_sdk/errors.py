"""Every exception that mfu_sdk raises on purpose.

    MfuError
    ├── ConfigurationError (ValueError)        an option, variable, file or argument is wrong
    │   └── PortInUseError                     an address that should be listened on is taken
    ├── MissingDependencyError (ImportError)   an extra is not installed
    ├── FormulaError (ValueError)              a FLOP formula was given shapes that it cannot price
    ├── CalibrationError (RuntimeError)        the device's peak could not be measured
    ├── NvmlError (RuntimeError)               NVML, which tells about NVIDIA's GPUs, cannot be used here
    ├── DeliveryError (RuntimeError)           a collector does not take what a flight recorder holds
    └── StoreError (RuntimeError)              the provider's store cannot be opened, read or written
        └── StoreAwayError                     the ClickHouse server that holds it does not answer

All but the last five are raised before anything has started. After start nothing of ours reaches user code (see
`guard`). A message gives the value, the rule and the remedy, in one line.
"""


class MfuError(Exception):
    """The root: catch it to catch everything of ours."""


class ConfigurationError(MfuError, ValueError):
    """An option, an environment variable, a file or an argument does not keep its rule."""


class PortInUseError(ConfigurationError):
    """An address that should be listened on is taken already."""


class MissingDependencyError(MfuError, ImportError):
    """A package that this call needs is not installed; the message names the extra."""


class FormulaError(MfuError, ValueError):
    """A FLOP formula was given shapes that it cannot price."""


class CalibrationError(MfuError, RuntimeError):
    """The peak of a device could not be measured."""


class NvmlError(MfuError, RuntimeError):
    """NVML cannot be used here; the message says why."""


class DeliveryError(MfuError, RuntimeError):
    """A collector refuses, or cannot be reached with, what `mfu replay` sends it."""


class StoreError(MfuError, RuntimeError):
    """The provider's store cannot be opened, read or written."""


class StoreAwayError(StoreError):
    """The ClickHouse server that holds the store does not answer, for now."""
