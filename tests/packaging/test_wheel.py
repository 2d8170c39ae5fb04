"""The built wheel, installed into an empty environment, answers with the network cut off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run to the end; a failure shows both streams."""
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin folder of an empty environment with the wheel and its base dependencies in it."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "-q", wheel)
    return folder / "bin"


def test_wheel_holds_three_packages_one_extension_and_the_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {x.split("/")[0] for x in names}
    assert {"qh_chat", "qh_runtime", "qh_kernels"} <= tops
    assert all(x in ("qh_chat", "qh_runtime", "qh_kernels") or x.endswith("info") for x in tops)
    assert len([x for x in names if x.endswith((".so", ".pyd"))]) == 1
    assert any(x.startswith("qh_chat/assets/models/") and x.endswith(".safetensors") for x in names)
    for package in ("qh_chat", "qh_runtime", "qh_kernels"):
        assert f"{package}/py.typed" in names


def offline(installed: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run qh-chat in a network namespace of its own where the system allows one."""
    cut = ["unshare", "--net", "--map-root-user"]
    allowed = shutil.which("unshare") and subprocess.run([*cut, "true"]).returncode == 0
    environment = {"PATH": os.defpath, "QH_HOME": str(home), "HOME": str(home)}
    prefix = cut if allowed else []
    return run(*prefix, installed / "qh-chat", *arguments, env=environment, cwd=home)


def test_installed_wheel_answers_without_a_network(installed: Path, tmp_path: Path) -> None:
    text = offline(installed, tmp_path, "run", "--temp", "0", "--max-tokens", "12", "Hello!")
    assert text.stdout.strip()
    lines = offline(
        installed, tmp_path, "run", "--offline", "--json", "--max-tokens", "12", "--seed", "1", "Hi"
    ).stdout.splitlines()
    events = [json.loads(x) for x in lines]
    assert events[-1]["type"] == "stats"
    assert events[-1]["tokens"] == sum(x["type"] == "token" for x in events) > 0


def test_installed_wheel_has_no_torch_and_shows_its_version(installed: Path) -> None:
    listed = run(installed / "python", "-m", "pip", "list", "--format", "json").stdout
    names = {x["name"].lower() for x in json.loads(listed)}
    assert not names & {"torch", "transformers", "llama-cpp-python", "jinja2"}
    assert run(installed / "qh-chat", "--version").stdout.startswith("qh-chat ")
