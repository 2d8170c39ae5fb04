"""Builds and runs the native tests; the command behind the native parts of `make test`.

Default: an optimised build and a debug build (which adds the symbol check). `--preset NAME` runs a
sanitizer preset of kernels/CMakePresets.json. `--aarch64` cross-compiles for 64-bit Arm and runs
under qemu user emulation. `--twins` builds the extension with instruction sets that few processors
have by instructions of this one (QH_TEST_TWINS) and runs the kernel tests on it. `--old-x86` runs
the x86-64 tests on emulated processors without AVX-512 and without AVX. Exit code 77: a tool for it
is not on this machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
BUILD = REPOSITORY / "build"
SKIPPED = 77
CROSS_COMPILER = "aarch64-linux-gnu-g++"
# (emulated processor, the best instruction set that runs on it, one that must not). An instruction
# that the processor lacks ends the process, so a table that runs there holds none.
OLD_X86 = (("max,-avx512f", "avx2", "avx512vnni"), ("qemu64", "scalar", "avx2"))
# Python tests that run every instruction set of the build.
TWIN_TESTS = ("tests/unit/kernels", "tests/unit/first_load/test_layer.py")
# Emulated processors without dot products, and with those but without I8MM.
OLD_ARM = ("cortex-a53", "neoverse-n1")
# Where Debian's cross compiler keeps the target's libraries.
TARGET_ROOT = Path("/usr/aarch64-linux-gnu")


def tool(name: str) -> str:
    """Path of a tool: beside this Python first, then on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def emulator(processor: str) -> str | None:
    """The user emulator of a processor family, in either of the forms that Debian packages."""
    names = (f"qemu-{processor}", f"qemu-{processor}-static")
    return next((name for name in names if shutil.which(name) is not None), None)


def run(
    folder: str, settings: dict[str, str], *, environment: dict[str, str], only: str = "."
) -> int:
    """Configures, builds and tests in build/<folder>; the first non-zero exit code, or 0.

    Args:
        folder: name under build/.
        settings: CMake cache entries.
        environment: added to this process's own.
        only: regular expression of the tests to run.
    """
    build = BUILD / folder
    defines = [f"-D{key}={value}" for key, value in settings.items()]
    commands = [
        [tool("cmake"), "-S", "kernels", "-B", str(build), "-G", "Ninja", *defines,
         f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"],
        [tool("cmake"), "--build", str(build), "--parallel", "2"],
        [tool("ctest"), "--test-dir", str(build), "--output-on-failure", "--no-tests=error",
         "--tests-regex", only],
    ]  # fmt: skip
    for command in commands:
        quiet = command is not commands[-1]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
        )
        if done.returncode != 0:
            print(done.stdout or "", f"failed: {' '.join(command)}", sep="\n")
            return done.returncode
    return 0


def native(build_type: str, sanitize: str = "") -> dict[str, str]:
    """CMake settings of a build of the native tests alone."""
    return {
        "CMAKE_BUILD_TYPE": build_type,
        "QH_MODULE": "OFF",
        "QH_NATIVE_TESTS": "ON",
        "QH_SANITIZE": sanitize,
    }


def aarch64() -> int:
    """Cross-compiles and runs under emulation, with and without products of bytes."""
    qemu = emulator("aarch64")
    if qemu is None or shutil.which(CROSS_COMPILER) is None:
        missing = CROSS_COMPILER if qemu is not None else "qemu-aarch64"
        print(
            f"skipped: {missing} is not on this machine "
            "(Debian packages g++-aarch64-linux-gnu and qemu-user)"
        )
        return SKIPPED
    settings = {
        **native("Release"),
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": CROSS_COMPILER,
        "CMAKE_CROSSCOMPILING_EMULATOR": qemu,
    }
    environment = {"QEMU_LD_PREFIX": str(TARGET_ROOT)}
    code = run("aarch64", settings, environment={**environment, "QEMU_CPU": "max"})
    # On a CPU that lacks products of bytes those instances are reported as skipped, others run.
    for processor in OLD_ARM:
        code = code or run(
            "aarch64", settings, environment={**environment, "QEMU_CPU": processor}, only="isa_neon"
        )
    return code or run(
        "aarch64-debug", {**settings, "CMAKE_BUILD_TYPE": "Debug"}, environment={}, only="symbols"
    )


def twins() -> int:
    """Runs native and Python kernel tests on the twins of instruction sets this machine lacks."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print("skipped: the twins are instruction sets of x86-64")
        return SKIPPED
    settings = {
        **native("Release"),
        "QH_MODULE": "ON",
        "QH_TEST_TWINS": "ON",
        "Python_EXECUTABLE": sys.executable,
    }
    if code := run("twins", settings, environment={}):
        return code
    (extension,) = (BUILD / "twins").glob("_native*.so")
    # No faulthandler: it would take SIGILL from the handler that does the work of AMX.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
               "no:faulthandler", "-p", "tests.support.other_extension", *TWIN_TESTS]  # fmt: skip
    environment = {**os.environ, "QH_TEST_EXTENSION": str(extension)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment).returncode


def old_x86() -> int:
    """Runs the optimised native tests on processors that lack instruction sets of this build."""
    qemu = emulator("x86_64")
    if qemu is None or platform.machine().lower() not in ("x86_64", "amd64"):
        print("skipped: needs an x86-64 machine and qemu-x86_64 (Debian package qemu-user)")
        return SKIPPED
    if code := run("native", native("Release"), environment={}, only="format_info"):
        return code
    for processor, _, _ in OLD_X86:
        command = [qemu, "-cpu", processor, str(BUILD / "native/native_tests/test_mac_peak")]
        if code := subprocess.run(command).returncode:
            return code
    for processor, best, missing in OLD_X86:
        for isa, expected in ((best, 0), (missing, SKIPPED)):
            for test in ("test_isa", "test_decoder"):
                command = [qemu, "-cpu", processor, str(BUILD / "native/native_tests" / test), isa]
                code = subprocess.run(command).returncode
                if code != expected:
                    print(f"failed: {' '.join(command)}: expected exit code {expected}, not {code}")
                    return code or 1
    return 0


def main() -> int:
    """Runs what was asked for; exit code 0, 77 for skipped, or that of the failed command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=["asan-ubsan", "tsan"])
    parser.add_argument("--aarch64", action="store_true")
    parser.add_argument("--old-x86", action="store_true")
    parser.add_argument("--twins", action="store_true")
    args = parser.parse_args()
    if args.aarch64:
        return aarch64()
    if args.old_x86:
        return old_x86()
    if args.twins:
        return twins()
    if args.preset == "asan-ubsan":
        return run(
            "asan-ubsan",
            {**native("RelWithDebInfo", "address,undefined"), "QH_TEST_TWINS": "ON"},
            environment={"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )  # fmt: skip
    if args.preset == "tsan":
        return run("tsan", native("RelWithDebInfo", "thread"), environment={})
    return run("native", native("Release"), environment={}) or run(
        "debug", native("Debug"), environment={}, only="symbols"
    )


if __name__ == "__main__":
    sys.exit(main())
