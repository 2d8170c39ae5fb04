"""Runs `qh-chat` as a person does: a process of its own, with its own QH_HOME."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from qh_chat.benchmark.checkpoint import write_bitnet_folder
from qh_chat.benchmark.shapes import BenchShape
from qh_runtime.planner.plan import WeightFormats

__all__ = ["command", "json_lines", "qh_environment", "run_qh", "write_tiny_model"]

REPOSITORY = Path(__file__).resolve().parents[2]


def qh_environment(home: Path, **changes: str) -> dict[str, str]:
    """The environment of the process: this run's packages, and of QH_* only home."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("QH_", "XDG_"))}
    environment["PYTHONPATH"] = os.pathsep.join(x for x in sys.path if x)
    environment["QH_HOME"] = str(home)
    environment["PYTHONWARNINGS"] = "error"
    return environment | changes


def command(*arguments: str) -> list[str]:
    """The command line of a qh-chat process."""
    return [sys.executable, "-m", "qh_chat", *arguments]


def run_qh(
    home: Path, *arguments: str, stdin: bytes | None = None, timeout_s: float = 60, **changes: str
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end; bytes in, bytes out. Without stdin it reads nothing."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout_s,
        env=qh_environment(home, **changes),
        cwd=home,
        check=False,
    )


def json_lines(output: bytes) -> list[dict[str, Any]]:
    """Every line of --json output, parsed."""
    return [json.loads(line) for line in output.decode("ascii").splitlines()]


def write_tiny_model(folder: Path, **changes: Any) -> Path:
    """A sound checkpoint of random ternary weights below 1 MB, with a tokenizer of 400 tokens."""
    config = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 400,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    }
    shape = BenchShape("tiny", {**config, **changes}, WeightFormats("ternary", "bf16", "bf16"))
    write_bitnet_folder(folder, shape)
    return folder
