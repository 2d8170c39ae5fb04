"""pytest plugin: the tests run on another build of the native extension than the installed one.

`pytest -p tests.support.other_extension` with QH_TEST_EXTENSION, the path of the file. Loaded
before anything imports `qh_kernels._native`, which from then on is that file.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import qh_kernels

_NAME = "qh_kernels._native"
_PATH = os.environ["QH_TEST_EXTENSION"]


def pytest_report_header() -> str:
    """Name the build on pytest's first lines."""
    return f"native extension: {_PATH}"


def _load() -> None:
    if _NAME in sys.modules:
        raise RuntimeError(f"{_NAME} was imported before this plugin could replace it")
    spec = importlib.util.spec_from_file_location(_NAME, _PATH)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{_PATH} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    qh_kernels._native = module  # type: ignore[attr-defined]


_load()
