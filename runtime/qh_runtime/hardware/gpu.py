"""NVIDIA cards through NVML, which needs a driver and no toolkit; "none" comes with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from qh_runtime.hardware.facts import Fact

__all__ = ["GpuFacts", "read_gpus"]


@dataclass(frozen=True)
class GpuFacts:
    """One card. free_bytes: what other processes have left at the time of asking."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str


def read_gpus() -> Fact[tuple[GpuFacts, ...]]:
    """Return the NVIDIA cards; an empty tuple when the driver finds none, no value without one."""
    try:
        import pynvml
    except ImportError as error:
        return Fact(None, f"none: NVML bindings are not installed ({error})")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Fact(None, f"none: NVML: {error}")
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            cards.append(GpuFacts(index, name, int(memory.total), int(memory.free), driver))
    except pynvml.NVMLError as error:
        return Fact(None, f"none usable: NVML: {error}")
    finally:
        pynvml.nvmlShutdown()
    return Fact(tuple(cards), f"NVML, driver {driver}")


def _text(value: str | bytes) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
