"""Names and addresses of models as people type and paste them."""

from __future__ import annotations

import pytest

from qh_runtime.errors import StoreError
from qh_runtime.store.hub_name import HubName, hub_name

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", HubName("org/model")),
        (" org/model\n", HubName("org/model")),
        ("org/model@v2:small", HubName("org/model", "v2", "small")),
        ("org/model:small", HubName("org/model", "", "small")),
        ("plain", HubName("plain")),
        (f"{HUB}/org/model", HubName("org/model")),
        (f"{HUB}/org/model/", HubName("org/model")),
        (f"{HUB}/org/model?library=x#files", HubName("org/model")),
        ("http://HuggingFace.co/org/Model", HubName("org/Model")),
        ("hf.co/org/model", HubName("org/model")),
        ("huggingface.co/org/model/tree/main", HubName("org/model")),
        (f"{HUB}/org/model/tree/v2", HubName("org/model", "v2")),
        (f"{HUB}/org/model/tree/main/small", HubName("org/model", "", "small")),
        (f"{HUB}/org/model/blob/{'a' * 40}/config.json", HubName("org/model", "a" * 40)),
        (f"{HUB}/org/model/resolve/main/model.safetensors", HubName("org/model")),
        (f"{HUB}/org/model/discussions/3", HubName("org/model")),
        ("http://127.0.0.1:8/base/org/model", HubName("org/model")),
    ],
)
def test_names_and_addresses(text: str, expected: HubName) -> None:
    assert hub_name(text, "http://127.0.0.1:8/base") == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{HUB}/org",
        HUB,
        f"{HUB}/datasets/org/data",
        f"{HUB}/org/model/settings",
        "https://example.org/org/model",
        "https://huggingface.co.example.org/org/model",
        "https://huggingface.co@example.org/org/model",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(StoreError) as caught:
        hub_name(text)
    assert caught.value.facts["name"] == text
    assert caught.value.hint
