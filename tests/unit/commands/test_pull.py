"""`qh-chat pull` against a hub of our own: card, question, progress, interrupts, and the offer."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_chat.model_words import transfer_text
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from qh_runtime.store.pull import Transfer
from qh_runtime.store.transfer import TransferProgress
from tests.support.cli import command, json_lines, qh_environment, run_qh
from tests.support.hub_stub import HubStub
from tests.support.terminal import TerminalProgram
from tests.unit.store.published_models import ternary

NAME = "org/model"
# Weights of 3.4 MB.
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
# Its KV cache takes 275 GB at this context.
VAST = {
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1 << 24,
}
VAST_CONTEXT = ("--context", str(1 << 24))


def stored(home: Path, name: str = NAME) -> Any:
    return read_manifest(StoreLayout(home / "store").manifest(name))


def blobs(home: Path) -> list[str]:
    return sorted(x.name for x in (home / "store" / "blobs").glob("*") if not x.suffix)


def served_bytes(hub: HubStub) -> int:
    """Bytes of large files that were asked for."""
    total = 0
    for asked in hub.asked:
        if asked.server == "content" and asked.status == 206 and asked.span:
            begin, _, end = asked.span.removeprefix("bytes=").partition("-")
            total += int(end) + 1 - int(begin) if end else 0
    return total


def test_a_pull_ends_with_a_model_that_answers(
    home: Path, hub: HubStub, qh: Callable[..., Any]
) -> None:
    hub.add(NAME, ternary())
    done = run_qh(home, "pull", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{NAME} is ready ({_size(home)})\n"
    card = done.stderr.decode()
    for word in ("licence", "apache-2.0", "commit", "to fetch", "disk", "memory", "fits"):
        assert word in card
    assert "\x1b" not in card
    assert "\r" not in card
    answer = qh("run", "-m", "model", "--raw", "--temp", "0", "--max-tokens", "4", "a")
    assert answer.code == 0, answer.err
    assert qh("pull", NAME).out == f"{NAME} is up to date ({_size(home)})\n"


def _size(home: Path) -> str:
    from qh_runtime.units import gigabytes

    return gigabytes(stored(home).total_bytes)


def test_json_lines(home: Path, hub: HubStub, qh: Callable[..., Any]) -> None:
    repo = hub.add(NAME, ternary())
    done = qh("pull", NAME, "--json")
    assert (done.code, done.err) == (0, "")
    events = json_lines(done.out.encode())
    kinds = list(dict.fromkeys(x["type"] for x in events))
    assert kinds == ["listed", "checking", "checked", "transfer", "linked", "finished"]
    facts = next(x for x in events if x["type"] == "checked")
    assert facts["fits"] is True
    assert facts["commit"] == repo.branches["main"]
    assert facts["download_bytes"] > 0
    last = [x for x in events if x["type"] == "transfer"][-1]
    assert last["done_bytes"] == last["total_bytes"]
    assert events[-1]["model"]["name"] == NAME
    assert events[-1]["up_to_date"] is False
    listed = json.loads(qh("ls", "--json").out)["models"]
    (row,) = (x for x in listed if x["name"] == NAME)
    assert (row["state"], row["origin"], row["problem"]) == ("ready", "store", None)


def test_revisions_and_artifacts_are_part_of_the_name(
    home: Path, hub: HubStub, qh: Callable[..., Any]
) -> None:
    files = ternary()
    small = {f"small/{x}": y for x, y in files.items() if x == "model.safetensors"}
    repo = hub.add(NAME, {**files, **small})
    repo.branches["v2"] = repo.branches["main"]
    assert qh("pull", f"{NAME}@v2", "--artifact", "small").code == 0
    assert stored(home, f"{NAME}@v2:small").artifact == "small"
    # The whole name, as the list and the hints have it.
    assert "up to date" in qh("pull", f"{NAME}@v2:small").out
    assert qh("pull", f"{NAME}@none").code == 3


def test_the_address_of_a_page_is_a_name_too(
    home: Path, hub: HubStub, qh: Callable[..., Any]
) -> None:
    hub.add(NAME, ternary())
    assert qh("pull", f"{hub.endpoint}/{NAME}/tree/main").code == 0
    assert stored(home).repo == NAME
    assert "up to date" in qh("pull", NAME).out
    refused = qh("pull", f"https://example.org/{NAME}")
    assert refused.code == 3
    assert "expected a page of" in refused.err


def test_what_the_hub_does_not_have_is_said_in_a_line(
    home: Path, hub: HubStub, qh: Callable[..., Any]
) -> None:
    done = qh("pull", "org/nothing")
    assert done.code == 3
    assert done.err.count("\n") == 1
    failed = qh("pull", "org/nothing", "--json")
    (error,) = json_lines(failed.out.encode())
    assert (failed.code, error["type"], error["error"]) == (3, "error", "ModelNotFoundError")
    assert qh("pull", "not a name").code == 3
    hub.add(NAME, {"pytorch_model.bin": b"x", "config.json": b"{}"})
    assert "run code" in qh("pull", NAME).err
    assert hub.fetched(NAME) == []


def test_offline_refuses_at_once(home: Path, hub: HubStub, qh: Callable[..., Any]) -> None:
    hub.add(NAME, ternary())
    done = run_qh(home, "--offline", "pull", NAME)
    assert done.returncode == 3
    assert b"--offline" in done.stderr
    assert hub.asked == []


def test_the_hub_of_an_earlier_pull_is_asked_again(
    home: Path, hub: HubStub, qh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_ENDPOINT")
    nobody = "http://127.0.0.1:9"
    at_nobody = f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", at_nobody)
    hub.add(NAME, ternary())
    assert qh("pull", NAME, "--endpoint", hub.endpoint).code == 0
    hub.asked.clear()
    assert "up to date" in qh("pull", NAME).out
    assert hub.asked != []


def test_what_does_not_fit_needs_force(home: Path, hub: HubStub, qh: Callable[..., Any]) -> None:
    hub.add(NAME, ternary(**VAST))
    done = qh("pull", NAME, *VAST_CONTEXT)
    assert done.code == 3
    assert "DOES NOT FIT" in done.err
    assert "kv cache" in done.err
    assert not (home / "store" / "manifests").exists()
    refused = json_lines(qh("pull", NAME, "--json", *VAST_CONTEXT).out.encode())[-1]
    assert refused["error"] == "DoesNotFitError"
    assert refused["facts"]["required_bytes"] > refused["facts"]["available_bytes"]
    assert qh("pull", NAME, "--force", *VAST_CONTEXT).code == 0


def test_quota_and_rate_are_settings(home: Path, hub: HubStub, qh: Callable[..., Any]) -> None:
    hub.add(NAME, ternary(**LARGE))
    (home / "settings.toml").write_text("[models]\nquota_gb = 0.002\n")
    done = qh("pull", NAME)
    assert done.code == 3
    assert "quota" in done.err
    (home / "settings.toml").write_text("[models]\ndownload_limit_mb_s = 8\n")
    begin = time.monotonic()
    assert qh("pull", NAME).code == 0
    assert time.monotonic() - begin > 0.25
    assert qh("pull", NAME, "--limit-rate", "0").code == 2


def pull_in_terminal(home: Path, *arguments: str) -> TerminalProgram:
    environment = qh_environment(home, TERM="xterm-256color")
    return TerminalProgram(command(*arguments), environment, size=(110, 30))


def test_a_person_is_asked(home: Path, hub: HubStub) -> None:
    hub.add(NAME, ternary(**LARGE))
    program = pull_in_terminal(home, "pull", NAME)
    try:
        program.wait_for("[y/N]")
        assert "apache-2.0" in program.text
        program.send("n\n")
        assert program.wait() == 130
        assert "nothing was fetched" in program.text
    finally:
        program.close()
    assert not (home / "store" / "manifests").exists()
    program = pull_in_terminal(home, "pull", NAME, "--limit-rate", "6")
    try:
        program.wait_for("[y/N]")
        program.send("y\n")
        program.wait_for("MB/s")
        assert program.wait() == 0
        assert f"{NAME} is ready" in program.text
        # The line that rewrote itself is gone.
        assert "MB/s" not in program.text
        assert b"\x1b" not in program.output
    finally:
        program.close()


def test_sentences_break_between_words_on_a_terminal(home: Path, hub: HubStub) -> None:
    hub.add(NAME, {"pytorch_model.bin": b"x", "config.json": b"{}"})
    environment = qh_environment(home, TERM="xterm-256color")
    program = TerminalProgram(command("pull", NAME), environment, size=(60, 20))
    try:
        assert program.wait() == 3
    finally:
        program.close()
    lines = [x for x in program.lines if x]
    assert len(lines) > 1
    told = run_qh(home, "pull", NAME).stderr.decode()
    assert told.count("\n") == 1
    # Joined again, these are the words of the one line that a pipe gets.
    assert " ".join(x.strip() for x in lines) == told.strip()


def test_an_interrupt_keeps_what_arrived(home: Path, hub: HubStub, qh: Callable[..., Any]) -> None:
    files = ternary(**LARGE)
    hub.add(NAME, files)
    process = subprocess.Popen(
        command("pull", NAME, "--json", "--limit-rate", "4"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "transfer" and event["file"]["done_bytes"] > 1 << 20:
            break
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert time.monotonic() - sent < 1.5
    assert (process.returncode, errors) == (130, b"")
    assert json.loads(rest.splitlines()[-1])["type"] == "stopped"
    assert stored(home).state == "pulling"
    before = served_bytes(hub)
    hub.asked.clear()
    again = qh("pull", NAME)
    assert again.code == 0, again.err
    assert "going on with" in again.err
    # What had arrived is not fetched again; headers of the weights are looked at anew.
    assert served_bytes(hub) < len(files["model.safetensors"]) - (1 << 20) + (1 << 19)
    assert before > 1 << 20


def test_run_offers_to_fetch_what_is_missing(
    home: Path, hub: HubStub, qh: Callable[..., Any]
) -> None:
    hub.add(NAME, ternary())
    words = ("run", "-m", NAME, "--raw", "--temp", "0", "--max-tokens", "6", "hello")
    refused = qh(*words)
    assert refused.code == 3
    assert f"qh-chat pull {NAME}" in refused.err
    assert hub.asked == []
    # No, the end of input and an interrupt are one answer: there is none from the model.
    for answer in ("n\n", "\x04", "\x03"):
        program = pull_in_terminal(home, *words)
        try:
            program.wait_for("[y/N]")
            program.send(answer)
            assert program.wait(3) == 130
            assert "Traceback" not in program.text
        finally:
            program.close()
    program = pull_in_terminal(home, *words)
    try:
        program.wait_for("[y/N]")
        program.send("y\n")
        assert program.wait(20) == 0
        assert f"{NAME} is ready" in program.text
        assert "6 tokens" in program.text
    finally:
        program.close()
    hub.asked.clear()
    assert qh(*words).code == 0
    assert hub.asked == []


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_pull_goes_on_where_nobody_can_be_told(home: Path, hub: HubStub, redirect: str) -> None:
    hub.add(NAME, ternary())
    line = shlex.join(command("pull", NAME))
    done = subprocess.run(
        ["bash", "-c", f"{line} {redirect}"],
        env=qh_environment(home),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert stored(home).state == "ready"


def test_progress_in_words() -> None:
    file = TransferProgress("model-00001-of-00002.safetensors", "fetch", 5, 10, 5)
    event = Transfer(file, 1_500_000_000, 4_000_000_000, 0, 12_345_678.0, 200.0)
    assert transfer_text(event) == (
        "model-00001-of-00002.safetensors  1.50 GB of 4.00 GB (38%)  12.3 MB/s  3 min 20 s left"
    )
    waits = TransferProgress("a" * 60, "retry", 0, 10, 0, "no answer for 30 s")
    text = transfer_text(Transfer(waits, 0, 0, 0, None, None))
    assert "again: no answer for 30 s" in text
    assert len(text) <= 78
