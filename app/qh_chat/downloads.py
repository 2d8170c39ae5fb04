"""Long work on stored models in threads of its own: pulls, imports, checks, repairs.

Each job has a thread, so that the card of one model can be looked at while another one arrives. But
one job at a time moves bytes into the store, and one reads what is there: the others wait in line.
Nothing here knows the screen: what happens is posted as `JobChanged`, at most about ten times a
second for each job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from qh_chat.jobs import Job, JobState, Line, Running
from qh_chat.messages import JobChanged
from qh_chat.model_words import (
    DROP_STAGES,
    dropped_text,
    ready_text,
    repaired_text,
    sound_text,
    transfer_note,
)
from qh_chat.shelf import stored_manifest
from qh_runtime.errors import QhError
from qh_runtime.store.rate import RateMeter
from qh_runtime.store.transfer import StopSignal
from qh_runtime.units import gigabytes

if TYPE_CHECKING:
    from qh_chat.settings import Settings
    from qh_chat.shelf import Shelf
    from qh_runtime.store.dropping import DropProgress
    from qh_runtime.store.integrity import Finding, VerifyProgress
    from qh_runtime.store.manifest import Manifest
    from qh_runtime.store.preflight import Preflight
    from qh_runtime.store.pull import PullEvent
    from qh_runtime.store.transfer import TransferProgress

__all__ = ["Downloads"]

log = logging.getLogger(__name__)


class Downloads:
    """Every long job on stored models; all methods may be called on the screen's thread.

    Args:
        shelf: does the work. post: takes each message, called on other threads.
    """

    def __init__(self, shelf: Shelf, post: Callable[[Message], object]) -> None:
        self._shelf = shelf
        self._post_to = post
        self._running: dict[str, Running] = {}
        self._moves, self._reads = Line(), Line()
        self._closed = False
        self._count = 0

    def job(self, name: str) -> Job | None:
        """The running job of a model."""
        running = self._running.get(name)
        return running.job if running is not None and not running.job.ended else None

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Everything that runs, oldest first."""
        return tuple(x.job for x in self._running.values() if not x.job.ended)

    def pull(self, name: str, settings: Settings, *, ask: bool = True) -> bool:
        """Fetch a model of the hub, or go on with that; False if a job of this model runs.

        Args:
            ask: show the card first; a pull that goes on needs no second word.
        """

        def work(running: Running) -> None:
            self._end_fetch(
                running,
                self._shelf.pull(name, settings, *self._fetch_means(running, ask)),
            )

        return self._start(Job(name, "pull", "looking", text="asks the hub"), settings, work)

    def copy(self, path: Path, name: str, settings: Settings, *, ask: bool = True) -> bool:
        """Import a folder under a name; as `pull`."""

        def work(running: Running) -> None:
            self._end_fetch(
                running,
                self._shelf.copy(path, name, settings, *self._fetch_means(running, ask)),
            )

        return self._start(Job(name, "import", "looking", text="reads headers"), settings, work)

    def go_on(self, name: str, settings: Settings) -> bool:
        """Go on with a fetch that was stopped; False if it runs, or nothing of it is here."""
        there = stored_manifest(self._shelf.layout, name)
        if there is None:
            return False
        if there.origin == "import":
            return self.copy(Path(there.endpoint), name, settings, ask=False)
        return self.pull(name, settings, ask=False)

    def verify(self, name: str, settings: Settings) -> bool:
        """Read every byte of a model; False if a job of this model runs."""
        return self._start(Job(name, "verify", "waiting"), settings, self._verify)

    def repair(self, name: str, findings: tuple[Finding, ...], settings: Settings) -> bool:
        """Put right what a check has found; False if a job of this model runs."""
        job = Job(name, "repair", "waiting", findings=findings)
        return self._start(job, settings, self._repair)

    def drop_source(self, name: str, settings: Settings) -> bool:
        """Remove the weights that a packed form stands for; False if a job of this model runs."""
        return self._start(Job(name, "source", "waiting"), settings, self._drop_source)

    def answer(self, name: str, agreed: bool) -> None:
        """The person's word on the card of a job."""
        running = self._running.get(name)
        if running is not None and not running.answered.is_set():
            running.agreed = agreed
            running.update(state="waiting" if agreed else "stopping")
            running.answered.set()

    def stop(self, name: str, *, free: bool = False) -> None:
        """End a job soon; what a fetch has brought stays and goes on later, unless it is freed."""
        running = self._running.get(name)
        if running is not None and not running.job.ended:
            running.free = free
            running.stop.stop()
            # Before there is a card nothing has arrived: nobody need wait for a silent hub.
            looks = running.job.state == "looking"
            running.update(state="stopped" if looks else "stopping", text="")

    def close(self, timeout_s: float = 1.0) -> bool:
        """End every job and keep what arrived; True when that was done within the time."""
        self._closed = True
        for running in self._running.values():
            running.stop.stop()
        end = time.monotonic() + timeout_s
        threads = [x.thread for x in self._running.values() if x.thread is not None]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(x.is_alive() for x in threads)

    def _start(self, job: Job, settings: Settings, work: Callable[[Running], None]) -> bool:
        if self.job(job.name) is not None or self._closed:
            return False
        self._count += 1
        running = Running(replace(job, number=self._count), settings, self._post)
        self._running[job.name] = running
        running.thread = threading.Thread(
            target=self._run, args=(running, work), name="qh-job", daemon=True
        )
        self._post(JobChanged(running.job))
        running.thread.start()
        return True

    def _run(self, running: Running, work: Callable[[Running], None]) -> None:
        try:
            work(running)
        except Exception as error:  # noqa: BLE001 - a worker turns every failure into one message
            if running.stop.stopped:
                # What was stopped in the middle of its work may call that a failure.
                log.info("%s %s stopped: %s", running.job.kind, running.job.name, error)
                self._end(running, "stopped")
            else:
                self._fail(running, error)
        finally:
            self._moves.leave(running)
            self._reads.leave(running)

    def _post(self, message: Message) -> None:
        if not self._closed:
            self._post_to(message)

    # Pulls and imports

    def _fetch_means(
        self, running: Running, ask: bool
    ) -> tuple[StopSignal, Callable[[PullEvent], None], Callable[[Preflight], bool]]:
        def confirm(preflight: Preflight) -> bool:
            running.update(
                done_bytes=preflight.total_bytes - preflight.download_bytes,
                total_bytes=preflight.total_bytes,
            )
            if ask and preflight.download_bytes and not running.ask(preflight):
                return False
            if not self._moves.enter(running):
                return False
            running.update(state="moving", text="")
            return True

        return running.stop, lambda event: self._show(running, event), confirm

    def _show(self, running: Running, event: PullEvent) -> None:
        from qh_runtime.store.pull import Checking, Finished, Listed, Transfer

        # What is said after a stop would hide that it ends.
        if running.stop.stopped:
            return
        match event:
            case Listed(listing=listing):
                running.update(text=f"reads headers of commit {listing.commit[:12]}")
            case Checking(file=file):
                running.update(state="looking", text=f"looks at {file.path}")
            case Transfer(file=file):
                running.update(
                    state="moving",
                    text=transfer_note(file),
                    done_bytes=event.done_bytes,
                    total_bytes=event.total_bytes,
                    bytes_per_s=event.bytes_per_s,
                    left_s=event.left_s,
                )
            case Finished(manifest=manifest, up_to_date=up_to_date):
                self._end(running, "done", ready_text(manifest, up_to_date=up_to_date))

    def _end_fetch(self, running: Running, manifest: Manifest | None) -> None:
        if manifest is not None:
            # Where a stop came too late nobody has said so yet.
            self._end(running, "done", ready_text(manifest, up_to_date=False))
            return
        freed = ""
        if running.free:
            try:
                freed = self._free(running.job.name)
            except QhError as error:
                self._fail(running, error)
        self._end(running, "stopped", freed)

    def _free(self, name: str) -> str:
        """Take what has arrived of a stopped fetch away; a model that was whole before stays."""
        there = stored_manifest(self._shelf.layout, name)
        if there is not None and there.state == "pulling":
            freed = self._shelf.remove(name).freed_bytes
        else:
            # Nobody names what has arrived, so that it is what no model needs.
            freed = self._shelf.prune().freed_bytes
        return f"{name} is stopped: {gigabytes(freed)} freed"

    # Checks and repairs

    def _verify(self, running: Running) -> None:
        from qh_runtime.store.integrity import Verifier

        manifest = self._shelf.whole(running.job.name, running.settings)
        if not self._reads.enter(running):
            return self._end(running, "stopped")
        meter = RateMeter()

        def show(progress: VerifyProgress) -> None:
            meter.add(progress.done_bytes)
            self._measured(running, meter, progress.done_bytes, progress.total_bytes)

        findings = Verifier(self._shelf.layout, show, running.stop).verify(manifest)
        if findings is None:
            return self._end(running, "stopped")
        if findings:
            return self._end(running, "damaged", findings=findings)
        return self._end(running, "done", sound_text(manifest))

    def _repair(self, running: Running) -> None:
        manifest = self._shelf.whole(running.job.name, running.settings)
        if not self._moves.enter(running):
            return self._end(running, "stopped")
        meters: dict[str, RateMeter] = {}

        def show(file: TransferProgress) -> None:
            meter = meters.setdefault(file.path, RateMeter())
            text = f"{file.path} {transfer_note(file)}".rstrip()
            meter.add(file.fetched_bytes)
            self._measured(running, meter, file.done_bytes, file.total_bytes, text)

        findings = running.job.findings
        done = self._shelf.repair(manifest, findings, running.settings, show, running.stop)
        if done is None:
            return self._end(running, "stopped")
        return self._end(running, "done", "\n".join(repaired_text(manifest.name, x) for x in done))

    def _drop_source(self, running: Running) -> None:
        if not self._reads.enter(running):
            return self._end(running, "stopped")
        meters: dict[str, RateMeter] = {}

        def show(progress: DropProgress) -> None:
            meter = meters.setdefault(progress.stage, RateMeter())
            text = DROP_STAGES[progress.stage]
            meter.add(progress.done_bytes)
            self._measured(running, meter, progress.done_bytes, progress.total_bytes, text)

        name = running.job.name
        done = self._shelf.drop_source(name, running.settings.models.pack, show, running.stop)
        if done is None:
            return self._end(running, "stopped")
        return self._end(running, "done", dropped_text(name, done.pack_format, done.freed_bytes))

    def _measured(
        self, running: Running, meter: RateMeter, done: int, total: int, text: str = ""
    ) -> None:
        """Show how far it is, with the rate of the last few seconds."""
        if not running.stop.stopped:
            running.update(
                state="moving", text=text, done_bytes=done, total_bytes=total,
                bytes_per_s=meter.bytes_per_s, left_s=meter.left_s(total - done),
            )  # fmt: skip

    # The end of a job

    def _end(
        self,
        running: Running,
        state: JobState,
        text: str = "",
        hint: str = "",
        findings: tuple[Finding, ...] = (),
    ) -> None:
        running.update(
            state=state, text=text, hint=hint, findings=findings, bytes_per_s=None, left_s=None
        )

    def _fail(self, running: Running, error: Exception) -> None:
        job = running.job
        if isinstance(error, QhError):
            log.warning("%s of %s failed: %s", job.kind, job.name, error)
            return self._end(running, "failed", error.message, error.hint or "")
        log.error("%s of %s failed", job.kind, job.name, exc_info=error)
        if isinstance(error, OSError):
            return self._end(running, "failed", error.strerror or str(error))
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return self._end(running, "failed", text, "a bug; the log has more")
