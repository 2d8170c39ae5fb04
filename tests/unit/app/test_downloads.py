"""Jobs without a screen: who waits for whom, how fast they end, what a bug becomes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.message import Message

from qh_chat.downloads import Downloads
from qh_chat.jobs import Job
from qh_chat.messages import JobChanged
from qh_chat.paths import app_paths
from qh_chat.settings import Settings
from qh_chat.shelf import Shelf
from qh_chat.widgets.job_lines import job_rows, job_share, jobs_text, state_text
from qh_runtime.errors import StoreError
from qh_runtime.store.manifest import Manifest
from qh_runtime.store.snapshot import link_snapshot
from tests.support.cli import write_tiny_model
from tests.support.stored_models import store_model

FILES = {f"{x}.safetensors": bytes([x]) * 2_000_000 for x in range(3)}


class Told:
    """Keeps what was posted, and waits for what is expected."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._changed = threading.Condition()

    def __call__(self, message: Message) -> None:
        assert isinstance(message, JobChanged)
        with self._changed:
            self.jobs.append(message.job)
            self._changed.notify_all()

    def wait(self, check: Callable[[Job], bool]) -> Job:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(check, self.jobs)), 30)
            return next(filter(check, self.jobs))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def downloads(tmp_path: Path, told: Told) -> Downloads:
    shelf = Shelf(app_paths({"QH_HOME": str(tmp_path)}), dict(os.environ))
    store_model(shelf.layout, "org/one", FILES)
    store_model(shelf.layout, "org/two", {**FILES, "more": b"x"})
    return Downloads(shelf, told)


def test_checks_go_one_after_the_other_and_end_once(downloads: Downloads, told: Told) -> None:
    assert downloads.verify("org/one", Settings())
    assert not downloads.verify("org/one", Settings())
    assert downloads.verify("org/two", Settings())
    for name in ("org/one", "org/two"):
        end = told.wait(lambda job, name=name: job.name == name and job.ended)
        assert (end.state, end.text.startswith(f"{name}: sound")) == ("done", True)
    assert sum(job.ended for job in told.jobs) == 2
    assert downloads.jobs == ()
    moving = [job for job in told.jobs if job.state == "moving"]
    assert all(0 < job.done_bytes <= job.total_bytes for job in moving)


def test_a_stop_is_the_end_whatever_comes_after(downloads: Downloads, told: Told) -> None:
    downloads.verify("org/one", Settings())
    downloads.stop("org/one")
    end = told.wait(lambda job: job.ended)
    assert end.state in ("stopped", "done")
    # Late words of the screen's thread change nothing.
    downloads.stop("org/one")
    downloads.answer("org/one", agreed=True)
    assert told.jobs[-1] == end


def test_who_waits_can_be_stopped(downloads: Downloads, told: Told) -> None:
    line = downloads._reads
    assert downloads.verify("org/one", Settings())
    told.wait(lambda job: job.ended)
    blocker = downloads._running["org/one"]
    assert line.enter(blocker)
    downloads.verify("org/two", Settings())
    told.wait(lambda job: job.text == "waits for org/one")
    begin = time.monotonic()
    downloads.stop("org/two")
    end = told.wait(lambda job: job.name == "org/two" and job.ended)
    assert (end.state, time.monotonic() - begin < 1) == ("stopped", True)
    line.leave(blocker)


def test_closing_ends_everything_and_nothing_is_said_after_it(
    downloads: Downloads, told: Told
) -> None:
    downloads.verify("org/one", Settings())
    downloads.verify("org/two", Settings())
    assert downloads.close(30)
    count = len(told.jobs)
    assert not downloads.verify("org/two", Settings())
    assert len(told.jobs) == count


def test_a_refusal_keeps_its_hint_and_a_bug_names_the_log(
    downloads: Downloads, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads.verify("org/none", Settings())
    end = told.wait(lambda job: job.ended)
    assert (end.state, "org/none" in end.text, bool(end.hint)) == ("failed", True, True)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Shelf, "whole", broken)
    downloads.verify("org/one", Settings())
    end = told.wait(lambda job: job.name == "org/one" and job.ended)
    assert end.text == "ZeroDivisionError: by zero"
    assert "log" in end.hint


def test_words_of_a_job() -> None:
    job = Job("org/model", "pull", "moving", 1, "", "", 999, 1000, 2e6, 70.0)
    assert (job_share(job), state_text(job)) == ("99 %", "fetching 99 %")
    assert jobs_text([job]) == "↓ 99 %"
    head, progress = (row.plain for row in job_rows(job, 72))
    assert head.startswith("org/model is being fetched ")
    assert head.endswith("pause (space)  stop (c)")
    assert progress.endswith("999 B of 1.0 kB · 2.0 MB/s · 1 min 10 s left")
    for width in (20, 40, 72, 200):
        assert all(row.cell_length <= max(width, 40) for row in job_rows(job, width))
    asking = Job("org/b", "pull", "asking", 2, total_bytes=5)
    assert jobs_text([job, asking]) == "card f3"
    assert len(job_rows(asking, 72)) == 1
    assert jobs_text([]) == ""
    check = Job("org/b", "verify", "moving", 3, "", "", 1, 4)
    assert (jobs_text([check]), state_text(check)) == ("✓ 25 %", "checking 25 %")
    assert "pause" not in job_rows(check, 72)[0].plain


def test_a_stop_that_comes_too_late_ends_with_a_model_that_is_ready(
    tmp_path: Path, tiny_folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(app_paths({"QH_HOME": str(tmp_path)}), {})
    downloads = Downloads(shelf, told)

    def at_the_end(layout: Any, manifest: Manifest) -> Path:
        downloads.stop("org/tiny", free=True)
        return link_snapshot(layout, manifest)

    monkeypatch.setattr("qh_runtime.store.import_folder.link_snapshot", at_the_end)
    assert downloads.copy(tiny_folder, "org/tiny", Settings(), ask=False)
    end = told.wait(lambda job: job.ended)
    assert (end.state, end.text.startswith("org/tiny is ready")) == ("done", True)
    assert shelf.whole("org/tiny", Settings()).state == "ready"


def test_what_cannot_be_freed_is_said(
    tmp_path: Path, tiny_folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(app_paths({"QH_HOME": str(tmp_path)}), {})
    downloads = Downloads(shelf, told)

    def in_the_middle(*args: Any) -> None:
        downloads.stop("org/tiny", free=True)

    def refuses(*_: object) -> None:
        raise StoreError("org/tiny: another process is fetching it", hint="stop that first")

    monkeypatch.setattr("qh_runtime.store.import_folder.copy_file", in_the_middle)
    monkeypatch.setattr(Shelf, "remove", refuses)
    downloads.copy(tiny_folder, "org/tiny", Settings(), ask=False)
    end = told.wait(lambda job: job.ended)
    assert (end.state, end.hint) == ("failed", "stop that first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model: no such model", "org/model: no such model → look it up"),
        ("the disk is full", "org/model: the disk is full → look it up"),
    ],
)
def test_a_failure_names_the_model_once(text: str, expected: str) -> None:
    assert Job("org/model", "pull", "failed", text=text, hint="look it up").failure == expected
