"""How the native extension was built, for `doctor` and bug reports."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BuildInfo", "build_info"]


@dataclass(frozen=True)
class BuildInfo:
    """Facts of the build.

    Attributes:
        compiler: name and version of the compiler.
        build_type: CMake build type.
        flags: extra compiler flags given to the build, often empty.
        sanitizer: value of -fsanitize=, empty in normal builds.
        isas: instruction sets compiled in; `isa.available` tells which of them run here.
    """

    compiler: str
    build_type: str
    flags: str
    sanitizer: str
    isas: tuple[str, ...]


def build_info() -> BuildInfo:
    """Return the facts of the loaded extension."""
    from qh_kernels import _native

    facts = _native.build_info()
    return BuildInfo(
        compiler=facts["compiler"],
        build_type=facts["build_type"],
        flags=facts["flags"],
        sanitizer=facts["sanitizer"],
        isas=tuple(facts["isas"].split()),
    )
