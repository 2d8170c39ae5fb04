"""Where things are kept: QH_HOME, the platform's folders, the shipped models; and the log file."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_chat.logs import LogLevelError, set_up_logging
from qh_chat.paths import app_paths, assets_dir


def test_qh_home_holds_everything(tmp_path: Path) -> None:
    paths = app_paths({"QH_HOME": str(tmp_path / "one")})
    found = [paths.models_dir, paths.store_dir, paths.packed_dir, *vars(paths.places).values()]
    assert all(x.is_relative_to(tmp_path / "one") for x in found)
    assert not (tmp_path / "one").exists(), "asking for paths makes no folders"


def test_a_relative_or_tilde_home_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert app_paths({"QH_HOME": "here"}).models_dir == tmp_path / "here" / "models"
    assert app_paths({"QH_HOME": "~/qh"}).models_dir == tmp_path / "me" / "qh" / "models"


def test_without_it_the_platform_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    paths = app_paths({})
    if sys.platform == "linux":
        assert paths.places.settings == tmp_path / "CONFIG" / "qh-chat" / "settings.toml"
        assert paths.models_dir == tmp_path / "DATA" / "qh-chat" / "models"
        assert paths.packed_dir == tmp_path / "CACHE" / "qh-chat" / "packed"
    assert app_paths({"QH_HOME": ""}) == paths


def test_shipped_files_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("qh_chat.assets")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "__init__.py").write_text("")
    from importlib.machinery import ModuleSpec, SourceFileLoader

    loader = SourceFileLoader("qh_chat.assets", str(tmp_path / "__init__.py"))
    package.__spec__ = ModuleSpec(
        "qh_chat.assets", loader, origin=str(tmp_path / "__init__.py"), is_package=True
    )
    package.__spec__.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "qh_chat.assets", package)
    assert assets_dir() == (tmp_path, "package qh_chat.assets")


def test_shipped_files_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = assets_dir()
    if source == "source tree":
        assert folder is not None
        assert (folder / "__init__.py").is_file()
    else:
        assert source == "package qh_chat.assets"


@pytest.fixture
def loggers() -> Iterator[None]:
    """Undo what set_up_logging changes in this process."""
    names = ("qh_chat", "qh_runtime", "qh_kernels")
    before = {x: (logging.getLogger(x).handlers[:], logging.getLogger(x).level) for x in names}
    raised = logging.raiseExceptions
    yield
    logging.raiseExceptions = raised
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            handler.close()
        logger.handlers, logger.level, logger.propagate = handlers, level, True


@pytest.mark.usefixtures("loggers")
def test_the_log_is_private_inert_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "qh-chat.log"
    assert set_up_logging(file, {}) is None
    logging.getLogger("qh_runtime.x").info("name \x1b]0;owned\x07 \u202e")
    logging.getLogger("qh_runtime.x").debug("not at this level")
    text = file.read_text("utf-8")
    assert "owned" in text
    assert not set(text) & set("\x1b\x07\u202e")
    assert "not at this level" not in text
    for _ in range(60):
        logging.getLogger("qh_chat").info("x" * 100_000)
    files = sorted(file.parent.iterdir())
    assert len(files) == 4
    assert sum(x.stat().st_size for x in files) < 5 << 20
    assert {x.stat().st_mode & 0o777 for x in files} == {0o600}
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("loggers")
def test_levels(tmp_path: Path) -> None:
    assert set_up_logging(tmp_path / "log", {"QH_LOG": "DEBUG"}) is None
    logging.getLogger("qh_chat").debug("now it is")
    assert "now it is" in (tmp_path / "log").read_text()
    with pytest.raises(LogLevelError) as caught:
        set_up_logging(tmp_path / "log", {"QH_LOG": "loud"})
    assert caught.value.facts["found"] == "loud"


@pytest.mark.usefixtures("loggers")
def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    problem = set_up_logging(tmp_path / "in-the-way" / "log", {})
    assert problem is not None
    assert "in-the-way" in problem
    logging.getLogger("qh_chat").error("goes nowhere and hurts nobody")
