"""Repositories that carry code: refused, or pulled without it; it is never fetched or run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_stub import HubStub
from tests.unit.store.code_repositories import CODE_REPOSITORIES
from tests.unit.store.published_models import dense

_PROBE = """
import json, sys
from pathlib import Path
seen = []
def watch(event, args):
    first = str(args[0]) if args else ""
    if event in ("pickle.find_class", "os.system", "subprocess.Popen"):
        seen.append(event)
    elif event == "open" and first.startswith(sys.argv[2]):
        with_code = first.lower().endswith((".py", ".pyc", ".so", ".bin", ".pt", ".pkl", ".ckpt"))
        seen.extend([first] if with_code else [])
    elif event == "import" and first.partition(".")[0] in ("torch", "transformers"):
        seen.append(first)
    elif event in ("import", "exec", "compile") and "evil" in repr(args):
        seen.append(repr(args)[:200])

import huggingface_hub.hf_api, pickle
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.errors import QhError
from qh_runtime.hardware.profile import probe
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.pull import PullRequest, pull
from qh_runtime.store.transfer import FetchOptions
import qh_runtime.architectures, qh_runtime.store.download, qh_runtime.tokenizers.from_hf
from qh_runtime.loader import load_model

endpoint, root, names = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
profile = probe(root)
layout = StoreLayout(root / "store")
options = FetchOptions(retry_delay_s=0.001, tries=1)
sys.addaudithook(watch)
pickle.loads(pickle.dumps(print))
assert seen == ["pickle.find_class"]
seen.clear()
outcomes = {}
for name in names:
    try:
        pull(PullRequest(name, endpoint=endpoint), layout, options, profile)
        open_checkpoint(layout.snapshot(name))
        outcomes[name] = "pulled"
    except QhError as error:
        assert str(error).isprintable() and error.hint, error
        outcomes[name] = type(error).__name__
modules = [x for x in ("torch", "transformers") if x in sys.modules]
print(json.dumps([outcomes, seen, modules]))
"""


@pytest.fixture
def outcomes(hub: HubStub, store_root: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Name to "pulled" or the error, what was noticed, and modules that must not be there."""
    for number, files in enumerate(CODE_REPOSITORIES.values()):
        hub.add(f"org/code-{number}", files)
    settings = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}}
    hub.add(
        "org/harmless",
        {
            **dense(),
            "config.json": json.dumps({**json.loads(dense()["config.json"]), **settings}).encode(),
            "modeling_evil.py": b"raise SystemExit('code of the checkpoint ran')",
            "pytorch_model.bin": CODE_REPOSITORIES["pickle"]["pytorch_model.bin"],
        },
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment["PYTHONPATH"] = os.pathsep.join(x for x in sys.path if x)
    environment["HF_HOME"] = str(store_root / "hf")
    arguments = [hub.endpoint, str(store_root), json.dumps(list(hub.repos))]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout)
    return found[0], found[1], found[2]


def test_every_one_is_refused_and_nothing_of_it_runs(
    hub: HubStub, store_root: Path, outcomes: tuple[dict[str, str], list[str], list[str]]
) -> None:
    results, seen, modules = outcomes
    assert len(CODE_REPOSITORIES) >= 20
    for number, kind in enumerate(CODE_REPOSITORIES):
        assert results[f"org/code-{number}"].endswith("Error"), kind
    # Sound weights of a supported type count; the code beside them does not.
    assert results["org/harmless"] == "pulled"
    assert seen == []
    assert modules == []
    fetched = {x for name in hub.repos for x in hub.fetched(name)}
    assert "config.json" in fetched
    assert not any(
        x.endswith((".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".so", ".gguf")) for x in fetched
    )
    store = store_root / "store"
    manifests = [x.name for x in (store / "manifests").glob("*.json")]
    assert manifests == ["org--harmless.json"]
