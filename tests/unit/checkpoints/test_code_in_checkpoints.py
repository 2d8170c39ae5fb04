"""Repositories that carry code: it is never opened, imported or unpickled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

_PROBE = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import QhError
from qh_runtime.packing import load_packed_model

seen = []
def watch(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].endswith((".py", ".bin", ".pkl")):
        seen.append(args[0])
    if event in ("pickle.find_class", "subprocess.Popen", "os.system"):
        seen.append(event)
    top = str(args[0]).partition(".")[0] if args else ""
    if event == "import" and top in ("torch", "transformers", "modeling_evil"):
        seen.append(args[0])
    if event == "exec" and "modeling" in str(args[0]):
        seen.append(str(args[0]))
sys.addaudithook(watch)
try:
    settings = read_config(folder).model
    spec = spec_from_config(settings)
    model = load_packed_model(spec, open_checkpoint(folder), layout_for(settings))
    print("loaded")
except QhError as error:
    print("refused:", error)
print([entry for entry in seen if str(folder) in entry or not entry.endswith(".py")])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
_AUTO_MAP = {
    "AutoConfig": "modeling_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
}


def probe(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["auto_map", "unknown type", "pickle only", "pickle beside"])
def test_code_is_never_reached(kind: str, tmp_path: Path) -> None:
    settings = config(auto_map=_AUTO_MAP, architectures=["LlamaForCausalLM"])
    folder = write_checkpoint(tmp_path / "model", settings, random_tensors(spec_of()))
    (folder / "modeling_evil.py").write_text("raise SystemExit('code of the checkpoint ran')")
    pickled = b"cos\nsystem\n(S'true'\ntR."
    if kind == "unknown type":
        (folder / "config.json").write_text(json.dumps({**settings, "model_type": "evil"}))
    elif kind == "pickle only":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickled)
    elif kind == "pickle beside":
        (folder / "pytorch_model.bin").write_bytes(pickled)
    outcome, seen, imported = probe(folder)
    assert seen == "[]"
    assert imported == "[]"
    if kind in ("auto_map", "pickle beside"):
        assert outcome == "loaded"
    else:
        assert outcome.startswith("refused:")
    if kind == "pickle only":
        assert "run code" in outcome
