"""What an AMD GPU's driver says of its partitions, in files as amdgpu lays them out."""

from pathlib import Path
from types import SimpleNamespace

from mfu_sdk.peak.partition import partition

MI300 = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xC5, pci_device_id=0)


def lay_out(root: Path, **files: str) -> Path:
    folder = root / "0000:c5:00.0"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return root


def test_both_modes(tmp_path: Path) -> None:
    """A partition of one die of eight, with its quarter of the memory: both are read."""
    root = lay_out(tmp_path, current_compute_partition="CPX\n", current_memory_partition="NPS4\n")
    assert partition(MI300, root) == {"compute_partition": "CPX", "memory_partition": "NPS4"}


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    """An older GPU has no such files, an empty one says nothing, another machine has no such bus."""
    assert partition(MI300, tmp_path) == {}
    root = lay_out(tmp_path, current_compute_partition="\n", current_memory_partition="NPS1")
    assert partition(MI300, root) == {"memory_partition": "NPS1"}
    assert partition(SimpleNamespace(), root) == {}
