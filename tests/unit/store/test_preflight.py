"""The look before a pull: what the loader would refuse is refused for a few small requests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime.errors import (
    CheckpointError,
    DownloadError,
    QhError,
    StoreError,
    TokenizerError,
    UnsupportedArchitectureError,
    UnsupportedTensorError,
)
from qh_runtime.hardware.disk import DiskFacts
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.loader import plan_model
from qh_runtime.options import LoadOptions
from qh_runtime.store import preflight as preflight_module
from qh_runtime.store.entry import ModelEntry
from qh_runtime.store.hub import list_repo
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.preflight import Preflight, PreflightRequest, run_preflight
from qh_runtime.store.transfer import FetchOptions, StopSignal
from tests.support.hub_stub import HubStub
from tests.support.model_tensors import random_tensors, spec_of
from tests.unit.store.published_models import DENSE, INDEX, dense, sharded, ternary

FAST = FetchOptions(retry_delay_s=0.001, max_delay_s=0.01, tries=2)


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def look(
    hub: HubStub, layout: StoreLayout, profile: HardwareProfile
) -> Callable[..., Preflight | None]:
    """Looks at org/model as the hub has it."""

    def run(artifact: str = "", stop: StopSignal | None = None, **request: Any) -> Preflight | None:
        listing = list_repo("org/model", endpoint=hub.endpoint, options=FAST)
        assert listing is not None
        fields = {"load": LoadOptions(), "profile": profile, **request}
        asked = PreflightRequest("org/model", artifact, **fields)
        return run_preflight(layout, listing, asked, FAST, stop or StopSignal())

    return run


Look = Callable[..., Preflight]


def large_bytes(hub: HubStub) -> int:
    """Bytes of large files that were asked for."""
    spans = [x.span for x in hub.asked if x.server == "content"]
    assert None not in spans
    ends = [x.removeprefix("bytes=").split("-") for x in spans if x is not None]
    return sum(int(end) - int(begin) + 1 for begin, end in ends)


def nothing_left(layout: StoreLayout) -> None:
    """No folder of links stays, whatever happened."""
    assert list(layout.snapshots.glob("*")) == []
    assert not layout.manifests.exists()


@pytest.mark.parametrize("model", ["dense", "sharded", "ternary"])
def test_it_says_what_the_loader_will_say(
    model: str, hub: HubStub, layout: StoreLayout, look: Look, tmp_path: Path,
    profile: HardwareProfile,
) -> None:  # fmt: skip
    files = {"dense": dense, "sharded": sharded, "ternary": ternary}[model]()
    hub.add("org/model", {**files, "LICENSE": b"free", "modeling_x.py": b"boom"})
    found = look()
    folder = tmp_path / "plain"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    planned = plan_model(ModelEntry("plain", folder, "folder"), LoadOptions(), profile)
    assert found.plan.items[:4] == planned.plan.items[:4]  # the process itself has grown since
    assert found.plan.context_length == planned.plan.context_length
    assert (found.model_type, found.format) == (planned.spec.model_type, planned.format)
    assert found.parameters == planned.spec.parameters
    assert found.packed_bytes == planned.packed_bytes
    assert (found.packed_bytes > 0) == (model == "ternary")
    assert found.total_bytes == sum(len(x) for x in files.values()) + 4
    sizes = {k: len(v) for k, v in files.items() if k.endswith(".safetensors")}
    assert found.download_bytes == sum(sizes.values())
    assert {x.path for x in found.artifact.weights} == set(sizes)
    assert (found.license, found.gated) == ("apache-2.0", False)
    assert found.free_bytes is not None
    assert set(found.side_hashes) == {*files, "LICENSE"} - set(sizes)
    for sha256 in found.side_hashes.values():
        assert layout.blob(sha256).is_file()
    assert "modeling_x.py" not in hub.fetched("org/model")
    nothing_left(layout)


def test_packing_is_planned_as_asked_and_the_format_is_what_is_held(
    hub: HubStub, look: Look
) -> None:
    hub.add("org/model", dense())
    plain, packed = look(), look(load=LoadOptions(pack="int4_g32"))
    assert (plain.format, packed.format) == ("bf16", "bf16")
    assert plain.packed_bytes == 0
    assert packed.packed_bytes > 0


def test_headers_alone_are_fetched_of_a_large_model(hub: HubStub, look: Look) -> None:
    wide = {**DENSE, "hidden_size": 480, "intermediate_size": 900}
    hub.add("org/model", dense(**wide))
    assert look().download_bytes > 4 << 20
    assert large_bytes(hub) == 128 << 10


def test_what_is_in_the_store_is_neither_fetched_nor_counted(
    hub: HubStub, layout: StoreLayout, look: Look
) -> None:
    hub.add("org/model", sharded())
    first = look()
    shard = first.artifact.weights[0].remote
    layout.blob(shard.sha256).write_bytes(sharded()[shard.path])
    part = layout.part(first.artifact.weights[1].remote.key)
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(bytes(8192))
    known = {x.remote.key: first.side_hashes[x.path] for x in first.artifact.side_files}
    hub.asked.clear()
    second = look(known=known)
    assert second.download_bytes == first.download_bytes - shard.size - 8192
    assert set(hub.fetched("org/model")) == {x.path for x in first.artifact.weights[1:]}


# What is refused, and as what.


def config_of(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    settings = {**json.loads(files["config.json"]), **changes}
    return {**files, "config.json": json.dumps(settings).encode()}


def tensors_with(name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    tensors = random_tensors(spec_of(**DENSE))
    dtype, array = tensors.pop(name)
    changed = change(array)
    if changed is not None:
        tensors[name] = changed if isinstance(changed, tuple) else (dtype, changed)
    return dense(tensors)


_LAYER = "model.layers.1"
REFUSED: dict[str, tuple[Callable[[], dict[str, bytes]], type[QhError]]] = {
    "unknown type": (lambda: config_of(dense(), model_type="evil"), UnsupportedArchitectureError),
    "no type": (lambda: config_of(dense(), model_type=None), UnsupportedArchitectureError),
    "text model inside": (
        lambda: config_of(dense(), model_type="llava", text_config={"model_type": "llama"}),
        UnsupportedArchitectureError,
    ),
    "mathematics that is not there": (
        lambda: config_of(dense(), rope_scaling={"rope_type": "evil", "factor": 2.0}),
        UnsupportedArchitectureError,
    ),
    "another quantization": (
        lambda: config_of(dense(), quantization_config={"quant_method": "gptq", "bits": 4}),
        UnsupportedTensorError,
    ),
    "GPTQ tensors": (
        lambda: dense(
            {
                x.replace("q_proj.weight", "q_proj.qweight"): y
                for x, y in random_tensors(spec_of(**DENSE)).items()
            }
        ),
        UnsupportedTensorError,
    ),
    "matrix of another shape": (
        lambda: tensors_with(f"{_LAYER}.mlp.up_proj.weight", lambda x: x[:-1]),
        CheckpointError,
    ),
    "norm of another shape": (
        lambda: tensors_with(f"{_LAYER}.input_layernorm.weight", lambda x: x[:-1]),
        CheckpointError,
    ),
    "norm missing": (lambda: tensors_with("model.norm.weight", lambda _: None), CheckpointError),
    "matrix missing": (
        lambda: tensors_with(f"{_LAYER}.self_attn.o_proj.weight", lambda _: None),
        CheckpointError,
    ),
    "integers for weights": (
        lambda: tensors_with(f"{_LAYER}.mlp.up_proj.weight", lambda x: ("I16", x.view(np.int16))),
        UnsupportedTensorError,
    ),
    "8-bit floats": (
        lambda: tensors_with("lm_head.weight", lambda x: ("F8_E4M3", x.astype(np.uint8))),
        UnsupportedTensorError,
    ),
    "a layer too many": (
        lambda: dense(random_tensors(spec_of(**DENSE, num_hidden_layers=3))),
        CheckpointError,
    ),
    "a bias that the config denies": (
        lambda: dense(random_tensors(spec_of(**DENSE, attention_bias=True))),
        CheckpointError,
    ),
    "config of another size": (lambda: config_of(dense(), vocab_size=401), CheckpointError),
    "not safetensors": (
        lambda: {**dense(), "model.safetensors": b"PK\x03\x04" + bytes(5000)},
        CheckpointError,
    ),
    "empty weights": (lambda: {**dense(), "model.safetensors": b""}, CheckpointError),
    "cut weights": (
        lambda: {**dense(), "model.safetensors": dense()["model.safetensors"][:-1]},
        CheckpointError,
    ),
    "a scale of nothing": (
        lambda: {
            **ternary(),
            "model.safetensors": ternary()["model.safetensors"].replace(b"\x80\x3f", b"\x80\xff"),
        },
        CheckpointError,
    ),
    "a shard that is not there": (
        lambda: {k: v for k, v in sharded().items() if "00002-of" not in k},
        StoreError,
    ),
    "shards of another index": (
        lambda: {**sharded(), INDEX: sharded()[INDEX].replace(b"00001-of", b"00002-of")},
        CheckpointError,
    ),
    "an index of nonsense": (lambda: {**sharded(), INDEX: b"[]"}, CheckpointError),
    "no tokenizer": (
        lambda: {k: v for k, v in dense().items() if k != "tokenizer.json"},
        StoreError,
    ),
    "tokenizer of nonsense": (lambda: {**dense(), "tokenizer.json": b"{}"}, TokenizerError),
    "tokenizer that panics": (
        lambda: {
            **dense(),
            "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        },
        TokenizerError,
    ),
    "end token out of range": (
        lambda: {**dense(), "generation_config.json": b'{"eos_token_id": -5}'},
        TokenizerError,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_loaded_is_refused_before_anything_large_moves(
    kind: str, hub: HubStub, layout: StoreLayout, look: Look
) -> None:
    make, expected = REFUSED[kind]
    hub.add("org/model", make(), card={"license": "mit", "base_model": "org/base"})
    with pytest.raises(expected) as caught:
        look()
    text = str(caught.value)
    assert text.isprintable()
    assert "org/model" in text or expected is TokenizerError
    assert caught.value.hint
    if isinstance(caught.value, CheckpointError):
        assert "org/base" in text
    assert not any(x.name.endswith(".part") for x in layout.root.rglob("*"))
    nothing_left(layout)


@pytest.mark.parametrize("kind", ["unknown type", "another quantization", "text model inside"])
def test_an_unsupported_architecture_costs_one_request(kind: str, hub: HubStub, look: Look) -> None:
    hub.add("org/model", REFUSED[kind][0]())
    with pytest.raises(CheckpointError):
        look()
    assert hub.fetched("org/model") == ["config.json"]


ODD_JSON: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "text": b'"x"',
    "cut": b'{"model_type": "lla',
    "not UTF-8": b'{"model_type": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "huge integer": b'{"a": ' + b"9" * 5000 + b"}",
    "duplicate key": b'{"model_type": "llama", "model_type": "llama"}',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50 + b"1" + b"}" * 50,
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "page": b"<html><body>Sign in</body></html>",
    "NUL": b"\0" * 100,
    "too large": b'{"a": "' + b"x" * (1 << 20) + b'"}',
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ODD_JSON)
def test_odd_json_is_refused_or_harmless(
    name: str, kind: str, hub: HubStub, layout: StoreLayout, look: Look
) -> None:
    hub.add("org/model", {**dense(), name: ODD_JSON[kind]})
    try:
        look()
    except (CheckpointError, TokenizerError, StoreError):
        refused = True
    else:
        refused = False
    # What breaks no rule of the smaller limits of config.json may pass in the others.
    assert refused or (name, kind) == ("tokenizer_config.json", "too large")
    nothing_left(layout)


CONFIG_VALUES: list[Any] = [None, 0, -1, 1.5, "8", True, [], {}, 1 << 31, 1 << 64, float(1 << 60)]
CONFIG_KEYS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
               "rms_norm_eps", "max_position_embeddings"]  # fmt: skip


@pytest.mark.parametrize("key", CONFIG_KEYS)
def test_odd_settings_are_refused_or_harmless(
    key: str, hub: HubStub, layout: StoreLayout, look: Look
) -> None:
    sound = dense()
    for value in CONFIG_VALUES:
        hub.add("org/model", config_of(sound, **{key: value}))
        try:
            found = look()
        except CheckpointError as error:
            assert str(error).isprintable()  # noqa: PT017
        else:
            assert found.parameters > 0
        assert large_bytes(hub) < 1 << 20
        hub.asked.clear()
    nothing_left(layout)


def test_files_that_are_not_what_the_listing_says(hub: HubStub, look: Look) -> None:
    repo = hub.add("org/model", dense())
    content = repo.commits[repo.branches["main"]]["config.json"]
    repo.swapped["config.json"] = content.replace(b"llama", b"gemma")
    with pytest.raises(QhError) as caught:
        look()
    assert caught.value.facts.get("expected") != caught.value.facts.get("found")
    repo.swapped = {"config.json": content + b" "}
    with pytest.raises(DownloadError):
        look()


@pytest.mark.parametrize("grown_by", [-1, 1])
def test_a_size_of_weights_that_is_a_lie(grown_by: int, hub: HubStub, look: Look) -> None:
    def lie(answer: dict[str, Any]) -> None:
        for entry in answer["siblings"]:
            if "lfs" in entry:
                entry["size"] = entry["lfs"]["size"] = entry["size"] + grown_by

    hub.add("org/model", dense(), lie=lie)
    with pytest.raises((CheckpointError, DownloadError)):
        look()


def test_code_is_named_and_left_alone(hub: HubStub, look: Look) -> None:
    files = config_of(dense(), auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    hub.add("org/model", {**files, "modeling_x.py": b"boom"}, card={})
    notes = " ".join(look().notes)
    assert "code" in notes
    assert "licence" in notes
    assert "modeling_x.py" not in hub.fetched("org/model")


def test_a_model_that_does_not_fit_is_no_reason_to_refuse(
    hub: HubStub, look: Look, profile: HardwareProfile
) -> None:
    hub.add("org/model", dense())
    memory = dataclasses.replace(profile.memory, usable_bytes=Fact(1 << 20, "imagined"))
    small = dataclasses.replace(profile, memory=memory)
    found = look(profile=small)
    assert not found.plan.fits
    assert any("does not fit" in x for x in found.notes)


def test_gated_files_name_the_page_and_the_token(hub: HubStub, look: Look) -> None:
    hub.add("org/model", dense(), gated="manual")
    with pytest.raises(StoreError) as caught:
        look()
    assert caught.value.facts["rule"] == "gated"
    assert caught.value.facts["page"] == f"{hub.endpoint}/org/model"
    assert f"{hub.endpoint}/org/model" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def disk_with(free: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Fact(None, "imagined") if free is None else Fact(DiskFacts("/", free, free), "imagined")
    monkeypatch.setattr(preflight_module, "read_disk", lambda _: facts)


def test_the_disk_must_hold_download_and_packed_weights_and_a_twentieth(
    hub: HubStub, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", ternary())
    found = look()
    needed = int((found.download_bytes + found.packed_bytes) * 1.05)
    disk_with(needed - 1, monkeypatch)
    with pytest.raises(StoreError) as caught:
        look()
    facts = caught.value.facts
    assert (facts["rule"], facts["required_bytes"]) == ("disk", needed)
    assert facts["free_bytes"] == needed - 1
    disk_with(needed, monkeypatch)
    assert look().free_bytes == needed
    disk_with(None, monkeypatch)
    assert look().free_bytes is None


def test_the_quota_counts_what_the_store_holds(
    hub: HubStub, layout: StoreLayout, look: Look
) -> None:
    hub.add("org/model", ternary())
    found = look()
    needed = found.download_bytes + found.packed_bytes
    layout.blob("0" * 64).write_bytes(bytes(40_960))
    held = sum(x.lstat().st_blocks * 512 for x in layout.blobs.iterdir())
    assert held >= 40_960
    with pytest.raises(StoreError) as caught:
        look(quota_bytes=held + needed - 1)
    facts = caught.value.facts
    assert (facts["rule"], facts["required_bytes"]) == ("quota", needed)
    assert (facts["free_bytes"], facts["held_bytes"]) == (needed - 1, held)
    assert look(quota_bytes=held + needed).name == "org/model"
    with pytest.raises(StoreError) as caught:
        look(quota_bytes=1)
    assert caught.value.facts["free_bytes"] == 0


def test_what_is_all_there_needs_no_room(
    hub: HubStub, layout: StoreLayout, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ternary()
    hub.add("org/model", files)
    sha256 = look().artifact.weights[0].remote.sha256
    layout.blob(sha256).write_bytes(files["model.safetensors"])
    disk_with(0, monkeypatch)
    assert look(quota_bytes=0).download_bytes == 0


@pytest.mark.parametrize("count", range(7))
def test_a_stop_at_any_file(
    count: int, hub: HubStub, layout: StoreLayout, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", sharded())
    stop = StopSignal()
    real = preflight_module.fetch_file, preflight_module.fetch_span
    left = [count]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if left[0] == 0:
                stop.stop()
            left[0] -= 1
            return function(*args)

        return call

    monkeypatch.setattr(preflight_module, "fetch_file", counted(real[0]))
    monkeypatch.setattr(preflight_module, "fetch_span", counted(real[1]))
    assert look(stop=stop) is None
    nothing_left(layout)
