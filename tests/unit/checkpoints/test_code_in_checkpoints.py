"""Repositories that carry code: it is never opened, imported or unpickled, by anything of a load.

Each model is loaded and answers in a process whose every import, open and start of a program an
audit hook sees; its working folder is the model's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint
from tests.support.token_files import byte_level_file, write_tokenizer

_PROBE = """
import json, os, sys
from pathlib import Path
from qh_runtime.errors import QhError
from qh_runtime.hardware.profile import probe
from qh_runtime.loader import load_model
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import Message
from qh_runtime.store.entry import describe_folder

root, cache = (Path(x) for x in sys.argv[1:])
profile = probe(root)
seen = []
data = (".json", ".safetensors", ".jinja")

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(str(root)) and not path.endswith(data):
            seen.append(f"open {path}")
    elif event == "import":
        if str(args[0]).partition(".")[0] in ("torch", "transformers", "pickle", "evil"):
            seen.append(f"import {args[0]}")
        if args[1] and str(args[1]).startswith(str(root)):
            seen.append(f"import {args[1]}")
    elif event in ("exec", "compile"):
        name = args[0].co_filename if event == "exec" else args[1]
        if str(name).startswith(str(root)):
            seen.append(f"{event} {name}")
    elif event in ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen"):
        seen.append(f"{event} {args}")
    elif event == "subprocess.Popen" and not str(args[1]).count("template_worker.py"):
        seen.append(f"{event} {args}")

sys.addaudithook(watch)
for folder in sorted(root.iterdir()):
    seen.clear()
    os.chdir(folder)
    try:
        entry = describe_folder(folder.name, folder, "folder")
        if entry.error is not None:
            raise entry.error
        session = load_model(entry, LoadOptions(context_length=64, threads=1), profile, cache)
        list(session.generate([Message("user", "hello")], SamplingParams(max_tokens=2)))
        session.close()
        outcome = "loaded"
    except QhError as error:
        outcome = str(error)
    print(json.dumps([folder.name, outcome, seen]))
"""
_EVIL = "raise SystemExit('code of the checkpoint ran')\n"
_PICKLE = b"cos\nsystem\n(S'true'\ntR."
_AUTO_MAP = {
    "AutoConfig": "modeling_evil.EvilConfig",
    "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    "AutoTokenizer": ["modeling_evil.EvilTokenizer", None],
}


def _only(*names: str) -> Callable[[Path], object]:
    """Weights in these files and in no other."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(_PICKLE)

    return change


def _beside(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(_PICKLE if not name.endswith(".py") else _EVIL.encode())

    return change


def _config(name: str = "config.json", **keys: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**old, **keys}))

    return change


# Kind -> (what is done to a sound model, a word of the refusal, or None where it loads).
KINDS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "auto_map": (_config(auto_map=_AUTO_MAP), None),
    "auto_map of the tokenizer": (_config("tokenizer_config.json", auto_map=_AUTO_MAP), None),
    "tokenizer class": (
        _config("tokenizer_config.json", tokenizer_class="EvilTokenizer", use_fast=False),
        None,
    ),
    "trust_remote_code": (_config(trust_remote_code=True, custom_pipelines={"x": {}}), None),
    "custom generate": (_beside("custom_generate/generate.py"), None),
    "pickles beside": (_beside("pytorch_model.bin", "training_args.bin", "optimizer.pt"), None),
    "names of our imports": (
        _beside("numpy.py", "json.py", "tokenizers.py", "minijinja.py", "sitecustomize.py"),
        None,
    ),
    "a package": (
        _beside("__init__.py", "setup.py", "conftest.py", "qh_runtime/__init__.py"),
        None,
    ),
    "site files": (_beside("evil.pth", "usercustomize.py"), None),
    "a native library": (_beside("_native.so", "libevil.so"), None),
    "template module": (_beside("chat_template.py", "tool_use.py"), None),
    "unknown type": (_config(model_type="evil", auto_map=_AUTO_MAP), "model_type"),
    "unknown class": (_config(architectures=["EvilForCausalLM"]), "architectures"),
    "unknown quantizer": (_config(quantization_config={"quant_method": "evil"}), "quant_method"),
    "linear class": (
        _config(quantization_config={"quant_method": "bitnet", "linear_class": "evil.Linear"}),
        "linear_class",
    ),
    "only .bin": (_only("pytorch_model.bin"), "run code"),
    "only .pt": (_only("model.pt"), "run code"),
    "only .pth": (_only("consolidated.00.pth"), "run code"),
    "only .ckpt": (_only("model.ckpt"), "run code"),
    "only .pkl": (_only("model.pkl"), "run code"),
    "only .pickle": (_only("weights.pickle"), "run code"),
    "only shards of pickles": (
        _only("pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"),
        "run code",
    ),
    "only NumPy files": (_only("model.npy", "model.npz"), "model.safetensors"),
    "only other frameworks": (_only("tf_model.h5", "flax_model.msgpack"), "model.safetensors"),
    "a pickle as safetensors": (_only("model.safetensors"), "model.safetensors"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """Kind -> what became of it and what the hook saw."""
    top = tmp_path_factory.mktemp("code")
    settings = config("llama", vocab_size=400)
    tensors = random_tensors(spec_of(vocab_size=400))
    for kind, (change, _) in {"sound": (lambda folder: None, None), **KINDS}.items():
        folder = write_checkpoint(top / "models" / kind.replace(" ", "-"), settings, tensors)
        write_tokenizer(folder, byte_level_file())
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
        (folder / "modeling_evil.py").write_text(_EVIL)
        change(folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE, str(top / "models"), str(top / "cache")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (outcome, seen) for name, outcome, seen in rows}


def test_a_sound_model_loads(outcomes: dict[str, tuple[str, list[str]]]) -> None:
    assert outcomes["sound"] == ("loaded", [])
    assert len(outcomes) == len(KINDS) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_code_is_never_reached(kind: str, outcomes: dict[str, tuple[str, list[str]]]) -> None:
    outcome, seen = outcomes[kind.replace(" ", "-")]
    assert seen == []
    word = KINDS[kind][1]
    if word is None:
        assert outcome == "loaded"
    else:
        assert word in outcome


def test_the_hook_sees_code_that_does_run(tmp_path: Path) -> None:
    """Else the tests above would say nothing."""
    folder = tmp_path / "models" / "one"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text("x = 1\n")
    probe = _PROBE.replace(
        'entry = describe_folder(folder.name, folder, "folder")',
        "sys.path.insert(0, str(folder)); import evil; import pickle;"
        "open(folder / 'evil.py').close(); raise QhError('ran')",
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe, str(tmp_path / "models"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
        timeout=60,
        check=True,
    )
    _, outcome, seen = json.loads(done.stdout)
    assert outcome == "ran"
    kinds = {x.split()[0] for x in seen}
    assert {"open", "import", "exec"} <= kinds
