"""Triton kernels that measure a device: a matrix product for its arithmetic, two streams for its memory.

`gemm.matmul`, `stream.copy` and `stream.triad` run compiled on a GPU, or on a CPU in Triton's interpreter where
TRITON_INTERPRET=1 was set before the first import. `reference` states in plain torch what each one computes.
The package knows nothing of mfu_sdk. Importing it without torch or Triton raises ImportError with the remedy.
"""

try:
    import torch as _torch  # noqa: F401 - imported to learn whether it is there
    import triton as _triton  # noqa: F401 - likewise
except ModuleNotFoundError as error:
    raise ImportError(
        f"mfu_kernels needs {error.name}, which is not installed: pip install 'mfu-sdk[torch]' "
        "(Triton has wheels for Linux on x86-64 only)",
        name=error.name,
    ) from error
