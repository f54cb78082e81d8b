"""Triton kernels that measure a device: products for its matrix units, chains for its other ones, streams for memory.

`gemm.matmul`, `simd.fma`, `stream.copy`, `stream.triad` and `stream.read` run compiled on a GPU, or on a CPU in
Triton's interpreter where TRITON_INTERPRET=1 was set before the first import; `clock.clock_mhz` needs a GPU.
`reference` states in plain torch what each one computes, `configs` which tile each uses where, and
`python -m mfu_kernels.aot` compiles all of them for all architectures and looks at the machine code.
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
