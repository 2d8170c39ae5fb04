"""The files around a tokenizer: links that leave the folder, pipes and folders in their place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qh_runtime.errors import QhError, TemplateError, TokenizerError
from qh_runtime.tokenizers import tokenizer_file
from qh_runtime.tokenizers.chat_template import ChatTemplate, load_chat_template
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.token_files import byte_level_file, write_tokenizer

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def load(folder: Path) -> ChatTemplate:
    return load_chat_template(folder, load_tokenizer(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "model", byte_level_file(special=["<s>"]))


def refused(folder: Path, name: str) -> QhError:
    with pytest.raises((TokenizerError, TemplateError)) as caught:
        load(folder)
    assert name in str(caught.value)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    """Also where the file it leads to would do."""
    outside = folder.parent / "secret"
    good = (folder / name).read_bytes() if (folder / name).exists() else b'{"chat_template": "x"}'
    outside.write_bytes(good)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert "link" in str(refused(folder, name))


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_nowhere_is_no_absent_file(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nowhere")
    refused(folder, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_something_that_is_no_file_is_refused_without_waiting(
    folder: Path, name: str, kind: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    refused(folder, name)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "other.json")
    (folder / "tokenizer.json").symlink_to("other.json")
    (folder / "template").write_text("{{ messages[0].content }}")
    (folder / "chat_template.jinja").symlink_to("template")
    assert load(folder).render([{"role": "user", "content": "hello"}]).text == "hello"


def test_links_into_the_blobs_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "blobs", byte_level_file())
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").symlink_to("../../blobs/tokenizer.json")
    assert load(snapshot).kind == "plain"


def test_what_is_loaded_is_what_was_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between check and use the file may become another one."""
    real = tokenizer_file.check_tokenizer

    def check_then_swap(data: dict[str, object], path: Path) -> None:
        real(data, path)
        broken = byte_level_file()
        broken["model"]["merges"].append(["q", "zzz"])
        path.write_text(json.dumps(broken))

    monkeypatch.setattr(tokenizer_file, "check_tokenizer", check_then_swap)
    assert load_tokenizer(folder).token_id("<s>") is not None
