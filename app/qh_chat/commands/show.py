"""`qh-chat show NAME`: what is known of one model, its files, and whether it fits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qh_chat.commands.arguments import load_overrides
from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_runtime.errors import QhError
from qh_runtime.planner.plan import Plan
from qh_runtime.store.entry import ModelEntry
from qh_runtime.units import gigabytes

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the facts; exit code 0 also where the model is broken or does not fit."""
    settings = context.settings(load_overrides(args))
    models = context.models(settings)
    entry = models.store().resolve(args.name)
    plan, problem = _plan(entry, context, settings)
    if args.json:
        print(json.dumps(_facts(entry, plan, problem), allow_nan=False))
        return 0
    for line in _lines(entry, plan, problem):
        print(inert(line.replace("\n", " ")))
    return 0


def _plan(entry: ModelEntry, context: Context, settings: Any) -> tuple[Plan | None, str | None]:
    """The plan of loading it now, or why there is none."""
    from qh_runtime.loader import plan_model
    from qh_runtime.store.integrity import check

    if entry.problem is not None:
        return None, entry.problem
    try:
        if entry.layout is not None and entry.manifest is not None:
            # As a load does: damage is called that, with the command that repairs it.
            check(entry.layout, entry.manifest)
        profile = context.models(settings).profile()
        planned = plan_model(entry, settings.load_options(), profile)
        planned.source.close()
    except QhError as error:
        return None, str(error)
    return planned.plan, None


def _facts(entry: ModelEntry, plan: Plan | None, problem: str | None) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "origin": entry.origin,
        "folder": str(entry.folder),
        "model_type": entry.model_type,
        "format": entry.format,
        "file_bytes": entry.file_bytes,
        "done_bytes": entry.done_bytes if manifest else entry.file_bytes,
        "problem": problem,
        "manifest": None if manifest is None else plain(manifest),
        "plan": None if plan is None else plain(plan.to_dict()),
    }


def _lines(entry: ModelEntry, plan: Plan | None, problem: str | None) -> list[str]:
    manifest = entry.manifest
    rows: list[tuple[str, str]] = [("origin", entry.origin)]
    if manifest is not None:
        if manifest.origin == "hub":
            rows[0] = ("origin", f"{manifest.endpoint}/{manifest.repo}")
        else:
            rows[0] = ("origin", f"imported from {manifest.endpoint}")
        rows += [
            ("licence", manifest.license or "not stated"),
            ("commit", manifest.commit or "none"),
        ]
        if manifest.revision:
            rows.append(("revision", manifest.revision))
        if manifest.gated:
            rows.append(("gated", "its terms had to be accepted on the hub"))
        state = "ready" if manifest.state == "ready" else "incomplete"
        if manifest.dropped:
            state += ", its source was removed and the packed form stands for it"
        rows.append(("state", state))
        if manifest.pulled_at:
            rows.append(("since", manifest.pulled_at))
    rows += [
        ("model", f"{entry.model_type or '?'}, {entry.format or '?'}"),
        ("size", gigabytes(entry.file_bytes)),
        ("folder", str(entry.folder)),
    ]
    lines = [entry.name, *(f"  {name:9} {value}" for name, value in rows)]
    if manifest is not None:
        lines.append("  files")
        width = max(len(x.path) for x in manifest.files) if manifest.files else 0
        for file in manifest.files:
            known = file.sha256[:16] or "not known yet"
            lines.append(f"    {file.path:{width}}  {gigabytes(file.size):>9}  {known}")
    if plan is None:
        lines.append(f"  cannot be loaded: {problem}")
        return lines
    lines.append(f"  {'fits into memory' if plan.fits else 'DOES NOT FIT into memory now'}")
    lines += [f"    {x}" for x in plan.explain()]
    if not plan.fits and plan.alternatives:
        lines.append(f"    would fit: {' or '.join(plan.alternatives)}")
    return lines
