"""Fetching models in the picker from a hub of our own: card, progress, pause, stop, next start."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.store.disk import disk_use
from qh_runtime.store.manifest import read_manifest
from tests.support.hub_stub import HubStub
from tests.support.model_screen import ModelPilot, model_app
from tests.unit.store.published_models import ternary

NAME = "org/model"
# Weights of 32 MB, so that what is fetched twice tells; at 6 MB/s nobody is late for a key.
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
VAST = {"num_hidden_layers": 64, "num_key_value_heads": 4, "max_position_embeddings": 1 << 24}
MIB = 1 << 20


def sent_bytes(hub: HubStub) -> int:
    """Bytes of large files that were asked for."""
    total = 0
    for asked in hub.asked:
        if asked.server == "content" and asked.status == 206 and asked.span:
            begin, _, end = asked.span.removeprefix("bytes=").partition("-")
            total += int(end) + 1 - int(begin)
    return total


def left_bytes(models: ModelPilot, home: Path) -> int:
    """What the store takes, locks left out."""
    return disk_use(models.layout, home / "cache" / "packed").total_bytes


async def test_a_pulled_model_is_loaded_and_answers(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add(NAME, ternary())
    async with model_app(tmp_path, monkeypatch) as models:
        # The address of its page, as people paste it.
        await models.pull(f"{hub.endpoint}/{NAME}", agree=False)
        for word in (NAME, "apache-2.0", repo.branches["main"][:12], "fits", "free afterwards"):
            assert word in models.asked
        assert not models.layout.manifest(NAME).exists()
        await models.press("f")
        job = await models.ended(NAME)
        assert job.state == "done"
        await models.until(lambda: models.states[NAME] == "ready")
        assert models.said.startswith(f"{NAME} is ready (")
        await models.press("enter")
        await models.until(lambda: models.app.loaded_name == NAME and not models.app.loading)
        await models.chat.say("a b c")
        assert models.chat.views[-1].record.model == models.app.model_name
        assert models.chat.views[-1].record.state == "complete"


async def test_no_is_no(tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, ternary())
    async with model_app(tmp_path, monkeypatch) as models:
        await models.pull(NAME, agree=False)
        # The focus is on what changes nothing.
        await models.press("enter")
        await models.ended(NAME)
        await models.until(lambda: NAME not in models.states)
        assert not models.layout.manifest(NAME).exists()
        assert sum(x.server == "content" for x in hub.asked) <= 2


async def test_what_does_not_fit_says_so_and_needs_a_second_thought(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(**VAST))
    async with model_app(tmp_path, monkeypatch) as models:
        models.app.settings = models.app.settings.with_value("models.context_length", 1 << 24)
        await models.pull(NAME, agree=False)
        assert "does not fit" in models.asked
        assert "DOES NOT FIT" in models.asked
        assert "all the same" in models.asked
        await models.press("f")
        assert (await models.ended(NAME)).state == "done"


async def test_a_pause_outlives_the_app(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(**LARGE))
    async with model_app(tmp_path, monkeypatch, download_limit_mb_s=6.0) as models:
        await models.pull(NAME)
        await models.moved(NAME, 9 * MIB)
        assert models.states[NAME].startswith("fetching ")
        await models.press("space")
        job = await models.ended(NAME)
        assert job.state == "stopped"
        await models.until(lambda: models.states[NAME].startswith("paused "))
        assert "are here; enter goes on" in models.detail
        # A pause is no failure.
        assert models.said == ""
    hub.repos[NAME].push({**ternary(**LARGE), "new.md": b"x"})
    hub.asked.clear()
    async with model_app(tmp_path, monkeypatch) as models:
        assert models.states[NAME].startswith("paused ")
        models.mark(NAME)
        await models.until(lambda: "are here; enter goes on" in models.detail)
        await models.press("enter")
        assert (await models.ended(NAME)).state == "done"
    manifest = read_manifest(models.layout.manifest(NAME))
    assert sent_bytes(hub) <= manifest.total_bytes - job.done_bytes + 8 * MIB
    # Of the commit that it began with.
    assert "new.md" not in [x.path for x in manifest.files]


@pytest.mark.parametrize("key", ["f", "k", "escape"])
async def test_a_stop_asks_what_is_to_become_of_what_is_here(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    hub.add(NAME, ternary(**LARGE))
    async with model_app(tmp_path, monkeypatch, download_limit_mb_s=6.0) as models:
        before = left_bytes(models, tmp_path)
        await models.pull(NAME)
        await models.moved(NAME, 5 * MIB)
        await models.press("c")
        await models.until(lambda: models.dialog is not None)
        assert "MB are here" in models.asked
        await models.press(key)
        if key == "escape":
            job = models.job(NAME)
            assert job is not None
            await models.moved(NAME, job.done_bytes + MIB)
            return
        assert (await models.ended(NAME)).state == "stopped"
        if key == "f":
            await models.until(lambda: NAME not in models.states)
            assert left_bytes(models, tmp_path) == before
        else:
            await models.until(lambda: models.states[NAME].startswith("paused "))
            models.mark(NAME)
            await models.press("x")
            await models.until(lambda: models.dialog is not None)
            assert "unfinished files" in models.asked
            await models.press("y")
            await models.until(lambda: NAME not in models.states)
            assert left_bytes(models, tmp_path) == before


async def test_leaving_keeps_what_is_here_and_is_quick(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(**LARGE))
    async with model_app(tmp_path, monkeypatch, download_limit_mb_s=6.0) as models:
        await models.pull(NAME)
        await models.moved(NAME, 5 * MIB)
        await models.press("escape")
        # One chats meanwhile, and the status line says how far it is.
        await models.until(lambda: models.chat.facts.jobs.startswith("↓ "))
        models.app.put_away()
        assert models.app.downloads.close(0)
    async with model_app(tmp_path, monkeypatch) as models:
        assert models.states[NAME].startswith("paused ")
        models.mark(NAME)
        await models.press("space")
        assert (await models.ended(NAME)).state == "done"


async def test_a_silent_hub_is_left_at_once(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaks = threading.Event()

    def lie(answer: dict[str, Any]) -> None:
        speaks.wait(30)

    hub.add(NAME, ternary(), lie=lie)
    async with model_app(tmp_path, monkeypatch) as models:
        await models.press("p")
        await models.type(NAME)
        await models.until(lambda: models.states.get(NAME) == "looking")
        begin = time.monotonic()
        await models.press("c")
        assert (await models.ended(NAME)).state == "stopped"
        await models.until(lambda: NAME not in models.states)
        assert time.monotonic() - begin < 5
        speaks.set()
        # Nothing of the first attempt is in the way of a second one.
        hub.repos[NAME].lie = None
        await models.pull(NAME)
        assert (await models.ended(NAME)).state == "done"


async def test_who_is_in_a_chat_is_told(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary())
    async with model_app(tmp_path, monkeypatch) as models:

        def told(text: str) -> bool:
            return any(text in x.message for x in models.app._notifications)

        await models.press("escape")
        downloads, settings = models.app.downloads, models.app.settings
        # A card does not open while somebody writes.
        assert downloads.pull(NAME, settings)
        await models.until(lambda: told(f"f3 shows what fetching {NAME} means"))
        assert models.chat.facts.jobs == "card f3"
        assert models.app.screen is models.app.chat
        await models.open()
        await models.until(lambda: models.dialog is not None)
        await models.press("f")
        await models.ended(NAME)
        await models.press("escape")
        assert downloads.pull(NAME, settings)
        await models.until(lambda: told(f"{NAME} is up to date"))
        assert downloads.verify(NAME, settings)
        await models.until(lambda: told("sound, 4 files"))
        assert downloads.pull("org/none", settings)
        await models.until(lambda: told("org/none: expected a model on"))
        # The palette's way in.
        models.app.action_pull()
        await models.type("org/nowhere")
        await models.until(lambda: "org/nowhere: expected a model on" in models.said)


async def test_one_fetch_moves_and_the_next_one_waits_with_its_card_seen(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(**LARGE))
    hub.add("org/next", ternary())
    async with model_app(tmp_path, monkeypatch, download_limit_mb_s=6.0) as models:
        await models.pull(NAME)
        await models.moved(NAME, MIB)
        await models.pull("org/next")
        await models.until(lambda: models.states.get("org/next", "").startswith("waiting"))
        job = models.job("org/next")
        assert job is not None
        assert job.text == f"waits for {NAME}"
        # Asked for a second time, it says so.
        await models.press("p")
        await models.type("org/next")
        await models.until(lambda: "already" in models.said)
        models.mark(NAME)
        await models.press("space")
        assert (await models.ended("org/next")).state == "done"
        assert (await models.ended(NAME)).state == "stopped"


async def test_a_busy_server_is_waited_for_and_said(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(**LARGE))
    seen: list[str] = []
    async with model_app(tmp_path, monkeypatch) as models:
        await models.pull(NAME, agree=False)
        hub.failures = [503] * 2
        await models.press("f")

        def waits() -> bool:
            job = models.job(NAME)
            if job is not None and job.text:
                seen.append(job.text)
            return job is None

        await models.until(waits)
        assert (await models.ended(NAME)).state == "done"
    assert any("again: " in text and "503" in text for text in seen)


async def test_what_fails_says_why_and_what_to_do(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/gated", ternary(), gated="manual")
    async with model_app(tmp_path, monkeypatch) as models:
        for text, words in (
            ("org/none", "org/none"),
            ("not a name", "expected letters"),
            ("https://example.org/org/model", "expected a page of"),
            ("org/gated", "terms"),
        ):
            await models.press("p")
            await models.type(text)
            await models.until(lambda words=words: words in models.said)
        assert "→" in models.said
        assert models.app.downloads.jobs == ()


async def test_offline_refuses_before_it_asks(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with model_app(tmp_path, monkeypatch, offline=True) as models:
        await models.press("p")
        await models.until(lambda: "--offline refuses" in models.said)
        assert models.app.screen is models.screen
    assert hub.asked == []


async def test_strangers_texts_stay_inert(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary(), card={"license": "other", "license_name": "\x1b]0;x\x07[red]free"})
    async with model_app(tmp_path, monkeypatch) as models:
        await models.pull(NAME, agree=False)
        assert "licence other" in models.asked
        assert "\x1b" not in models.app.export_screenshot()
        await models.press("escape")
        for text in ("org/\x1b[2J", "[@click=app.quit]x[/]", "https://\x1b[2J/a/b"):
            await models.press("p")
            await models.type(text)
            await models.until(lambda: models.app.screen is models.screen)
            assert "\x1b" not in models.said
        assert models.app.downloads.jobs == ()


async def test_a_folder_is_imported(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stick" / "own model (1)"
    folder.mkdir(parents=True)
    for name, content in ternary().items():
        (folder / name).write_bytes(content)
    home = tmp_path / "home"
    home.mkdir()
    async with model_app(home, monkeypatch) as models:
        await models.press("i")
        await models.type(str(folder))
        # Its folder's name cannot be that of a model.
        await models.type("org/own")
        await models.until(lambda: models.dialog is not None)
        assert "to copy" in models.asked
        await models.press("y")
        assert (await models.ended("org/own")).state == "done"
        await models.until(lambda: models.states["org/own"] == "ready")
    assert hub.asked == []
