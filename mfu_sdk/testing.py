"""Helpers for tests of code that uses mfu_sdk, ours and our users': a fake clock and a check for leaked hooks."""

import sys
import threading
from dataclasses import dataclass


@dataclass(slots=True)
class FakeClock:
    """A monotonic clock in nanoseconds that moves only when it is told to; call it to read it."""

    now_ns: int = 0

    def __call__(self) -> int:
        """Nanoseconds now."""
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`."""
        self.now_ns += round(seconds * 1e9)


def leaked_hooks() -> list[str]:
    """What is still hooked into this process: hooks, dispatch modes and threads that a closed monitor must not leave.

    Empty where nothing leaked. Only modules that are loaded already are looked at; torch is never imported.
    """
    leaks = [f"thread {t.name}" for t in threading.enumerate() if t.name.startswith("mfu-") and t.is_alive()]
    sigterm = sys.modules.get("mfu_sdk.export.sigterm")
    if sigterm is not None and sigterm._watch is not None:
        leaks.append("SIGTERM handled")
    torch = sys.modules.get("torch")
    if torch is None:
        return leaks
    module = sys.modules["torch.nn.modules.module"]
    optimizer = sys.modules["torch.optim.optimizer"]
    tables = {
        "global forward pre-hook": module._global_forward_pre_hooks,
        "global forward hook": module._global_forward_hooks,
        "global backward hook": module._global_backward_hooks,
        "global backward pre-hook": module._global_backward_pre_hooks,
        "global optimizer pre-hook": optimizer._global_optimizer_pre_hooks,
        "global optimizer post-hook": optimizer._global_optimizer_post_hooks,
    }
    leaks += [f"{name} ×{len(table)}" for name, table in tables.items() if table]
    depth = torch._C._len_torch_dispatch_stack()
    if depth:
        leaks.append(f"dispatch mode ×{depth}")
    compiled = sys.modules.get("mfu_sdk.counting.compiled")
    if compiled is not None and compiled._originals:
        leaks.append(f"compiled graphs watched ×{len(compiled._originals)}")
    graphs = sys.modules.get("mfu_sdk.counting.cuda_graphs")
    if graphs is not None and graphs._patched:
        leaks.append("captures of CUDA graphs watched")
    provenance = sys.modules.get("mfu_sdk.counting.provenance")
    if provenance is not None and provenance._original is not None:
        leaks.append("Inductor's compiler watched")
    threads = sys.modules.get("mfu_sdk.counting.threads")
    if threads is not None and threads._replaced:
        leaks.append(f"methods of threads watched ×{len(threads._replaced)}")
    waits = sys.modules.get("mfu_sdk.run.collective_waits")
    if waits is not None and waits._original is not None:
        leaks.append("waiting for collectives watched")
    depth = torch._C._len_torch_function_stack()
    if depth:
        leaks.append(f"function mode ×{depth}")
    return leaks
