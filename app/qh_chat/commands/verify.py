"""`qh-chat verify`: is every byte of the stored models what it was? --repair puts it right."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from qh_chat.commands.context import Context
from qh_chat.commands.fetch_output import ProgressLine, to_stderr
from qh_chat.commands.fetching import Interrupts
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_chat.model_words import finding_text, repaired_text, sound_text
from qh_chat.offline import OfflineError
from qh_runtime.errors import QhError
from qh_runtime.store.entry import ModelEntry
from qh_runtime.store.integrity import Finding, Verifier, VerifyProgress
from qh_runtime.store.manifest import Manifest
from qh_runtime.store.repair_model import Repaired
from qh_runtime.store.transfer import StopSignal, TransferProgress
from qh_runtime.units import gigabytes

__all__ = ["run"]

EXIT_DAMAGED = 3


def run(args: argparse.Namespace, context: Context) -> int:
    """Verify; exit code 0 if all is sound or put right, 3 if not."""
    settings, shelf = context.settings(), context.shelf()
    models = shelf.models(settings)
    if args.name:
        entries = [shelf.stored(x, settings, "verified") for x in args.name]
        for entry in entries:
            shelf.whole(entry.name, settings)
    else:
        entries = [x for x in models.store().list() if x.origin == "store"]
        if not entries and not args.json:
            print("no models are stored: nothing to verify")
    output = _JsonVerify() if args.json else _TextVerify(context.environment)
    with Interrupts(StopSignal()) as interrupts:
        interrupts.raising = False
        damaged = _all(entries, args, context, output, interrupts.stop)
    output.end()
    if interrupts.exit_code:
        output.stopped()
        return interrupts.exit_code
    return EXIT_DAMAGED if damaged else 0


def _all(
    entries: Sequence[ModelEntry],
    args: argparse.Namespace,
    context: Context,
    output: _Output,
    stop: StopSignal,
) -> bool:
    """Whether damage is left."""
    settings, shelf = context.settings(), context.shelf()
    verifier = Verifier(shelf.layout, output.progress, stop)
    damaged = False
    for entry in entries:
        if entry.manifest is None or entry.problem is not None:
            damaged = damaged or entry.manifest is None
            output.skipped(entry)
            continue
        findings = verifier.verify(entry.manifest)
        if findings is None:
            return True
        output.findings(entry.manifest, findings)
        if not findings:
            continue
        if not args.repair:
            damaged = True
            continue
        try:
            done = shelf.repair(entry.manifest, findings, settings, output.transfer, stop)
        except OfflineError:
            raise
        except QhError as error:
            output.fail(entry.manifest, error)
            damaged = True
            continue
        if done is None:
            return True
        for finding in findings:
            verifier.forget(finding.sha256)
        output.repaired(entry.manifest, done)
    return damaged


class _TextVerify:
    """Lines for people: the outcome on standard output, progress on standard error."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._line = ProgressLine(environment)

    def progress(self, progress: VerifyProgress) -> None:
        done, total = gigabytes(progress.done_bytes), gigabytes(progress.total_bytes)
        self._line.show(f"{progress.name}  {progress.path}  {done} of {total}")

    def transfer(self, progress: TransferProgress) -> None:
        done, total = gigabytes(progress.done_bytes), gigabytes(progress.total_bytes)
        self._line.show(f"repairing {progress.path}  {done} of {total}  {progress.note}".rstrip())

    def skipped(self, entry: ModelEntry) -> None:
        self._say(f"{entry.name}: not verified: {entry.problem}")

    def findings(self, manifest: Manifest, findings: tuple[Finding, ...]) -> None:
        if not findings:
            self._say(sound_text(manifest))
        for x in findings:
            self._say(finding_text(manifest.name, x))

    def repaired(self, manifest: Manifest, done: tuple[Repaired, ...]) -> None:
        for x in done:
            self._say(repaired_text(manifest.name, x))

    def fail(self, manifest: Manifest, error: QhError) -> None:
        self._line.clear()
        to_stderr(inert(f"qh-chat: {manifest.name}: not repaired: {error}"))

    def end(self) -> None:
        self._line.clear()

    def stopped(self) -> None:
        to_stderr("qh-chat: stopped; repairs go on with the same command")

    def _say(self, text: str) -> None:
        self._line.clear()
        print(inert(text.replace("\n", " ")), flush=True)


class _JsonVerify:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._last = ("", "")

    def progress(self, progress: VerifyProgress) -> None:
        # One line for each file: whoever reads these wants no line for each MiB.
        if (progress.name, progress.path) != self._last:
            self._last = (progress.name, progress.path)
            self._print("progress", plain(progress))

    def transfer(self, progress: TransferProgress) -> None:
        if progress.state == "done":
            self._print("transfer", plain(progress))

    def skipped(self, entry: ModelEntry) -> None:
        self._print("skipped", {"name": entry.name, "problem": entry.problem})

    def findings(self, manifest: Manifest, findings: tuple[Finding, ...]) -> None:
        facts = {"name": manifest.name, "sound": not findings, "findings": plain(findings)}
        self._print("verified", facts)

    def repaired(self, manifest: Manifest, done: tuple[Repaired, ...]) -> None:
        self._print("repaired", {"name": manifest.name, "repaired": plain(done)})

    def fail(self, manifest: Manifest, error: QhError) -> None:
        facts = {key: plain(value) for key, value in error.facts.items()}
        words = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        self._print("error", {"name": manifest.name, **words, "facts": facts})

    def end(self) -> None:
        """Everything was flushed already."""

    def stopped(self) -> None:
        self._print("stopped", {"message": "repairs go on with the same command"})

    def _print(self, kind: str, fields: Mapping[str, Any]) -> None:
        print(json.dumps({"type": kind, **fields}, allow_nan=False), flush=True)


_Output = _TextVerify | _JsonVerify
