"""`qh-chat doctor`: is this installation sound? Ready to paste into a report.

The person's home folder and user name are replaced everywhere, and no conversation is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from qh_chat import __version__
from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_chat.commands.probe import probe_lines
from qh_chat.inert import inert
from qh_chat.loading import Models
from qh_chat.settings import Settings, SettingsError
from qh_kernels import isa as instruction_sets
from qh_kernels.build_info import build_info
from qh_runtime.errors import QhError
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.self_test import FormatCheck, run_self_test

__all__ = ["run"]

# What a report needs to be reproduced; torch and transformers only where they are installed.
_PACKAGES = (
    *("numpy", "textual", "psutil", "platformdirs", "huggingface-hub", "safetensors"),
    *("tokenizers", "minijinja", "msgspec", "filelock", "nvidia-ml-py", "torch", "transformers"),
)


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the report; exit code 0 if everything is sound, 3 if not."""
    report, profile = _report(context)
    hide = _Hider()
    if args.json:
        print(json.dumps(hide.in_data(plain(report)), allow_nan=False))
    else:
        for line in _lines(report, profile):
            print(inert(hide(line)))
    return 0 if report["sound"] else 3


def _report(context: Context) -> tuple[dict[str, Any], HardwareProfile]:
    settings, problem = _settings(context)
    models = context.models(settings)
    profile = models.profile()
    kernels = _kernels()
    model = _default_model(models, settings, profile)
    paths = {
        **dataclasses.asdict(context.paths.places),
        "models": context.paths.models_dir,
        "store": context.paths.store_dir,
        "packed": context.paths.packed_dir,
        "builtin": context.paths.builtin_dir,
        "builtin_found": context.paths.assets_source,
    }
    return {
        "version": __version__,
        "python": sys.version.replace("\n", " "),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": _packages(),
        "settings": problem or "read",
        "kernels": kernels,
        "paths": paths,
        "model": model,
        "profile": profile.to_dict(),
        "sound": kernels["sound"] and model["problem"] is None and problem is None,
    }, profile


def _settings(context: Context) -> tuple[Settings, str | None]:
    """The settings, or the defaults and why they stand in for them."""
    try:
        return context.settings(), None
    except SettingsError as error:
        return Settings(), str(error)


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _kernels() -> dict[str, Any]:
    """The build, the chosen instruction set and why, and the self-test of every format."""
    try:
        build = dataclasses.asdict(build_info())
        available = instruction_sets.available()
        chosen = instruction_sets.best()
        checks = run_self_test(chosen)
    except (QhError, ImportError) as error:
        return {"sound": False, "problem": f"{type(error).__name__}: {error}"}
    forced = os.environ.get(instruction_sets.FORCE_VARIABLE)
    return {
        "sound": all(x.passed for x in checks),
        "problem": None,
        "build": build,
        "available": available,
        "isa": chosen,
        "isa_reason": f"{instruction_sets.FORCE_VARIABLE} is set"
        if forced
        else "fastest of those that processor, operating system and build have",
        "activations": "int8, one scale per token for ternary weights and one per 32 inputs for "
        "int8 and int4; float32 for dense weights and with --exact",
        "self_test": checks,
    }


def _default_model(models: Models, settings: Settings, profile: HardwareProfile) -> dict[str, Any]:
    """The plan of the model that a bare start would load."""
    from qh_runtime.loader import plan_model

    try:
        entry = models.entry(settings.models.model)
        planned = plan_model(entry, settings.load_options(), profile)
        planned.source.close()
        plan = planned.plan
    except (QhError, ImportError) as error:
        return {"problem": f"{type(error).__name__}: {error}"}
    return {
        "problem": None if plan.fits else "does not fit",
        "name": entry.name,
        "format": planned.format,
        "parameters": planned.spec.parameters,
        "plan": plan.to_dict(),
        "explained": plan.explain(),
    }


def _lines(report: dict[str, Any], profile: HardwareProfile) -> list[str]:
    kernels, model = report["kernels"], report["model"]
    lines = [
        f"qh-chat {report['version']}: {'sound' if report['sound'] else 'NOT SOUND'}",
        f"python            {report['python']}",
        f"system            {report['system']}",
        "packages          " + ", ".join(f"{k} {v}" for k, v in report["packages"].items()),
        f"settings          {report['settings']}",
        "",
        *probe_lines(profile, sources=False),
        "",
    ]
    if kernels["problem"] is not None:
        lines.append(f"kernels           {kernels['problem']}")
    else:
        lines += _kernel_lines(kernels)
    lines += ["", *(f"{f'path {name}':17} {value}" for name, value in report["paths"].items()), ""]
    if "plan" not in model:
        lines.append(f"default model     {model['problem']}")
    else:
        verdict = "fits" if model["problem"] is None else model["problem"]
        size = f"{model['parameters'] / 1e6:,.1f} million weights"
        lines.append(f"default model     {model['name']}: {model['format']}, {size}, {verdict}")
        lines += [f"  {line}" for line in model["explained"]]
    return lines


def _kernel_lines(kernels: dict[str, Any]) -> list[str]:
    build = kernels["build"]
    checks: tuple[FormatCheck, ...] = kernels["self_test"]
    total_s = sum(x.elapsed_s for x in checks)
    lines = [
        f"instruction set   {kernels['isa']}: {kernels['isa_reason']}",
        f"  available       {', '.join(kernels['available'])} of {', '.join(build['isas'])}",
        f"  built with      {build['compiler']}, {build['build_type']} {build['flags']}".rstrip(),
        f"  activations     {kernels['activations']}",
        f"self-test         {sum(x.passed for x in checks)} of {len(checks)} formats passed "
        f"in {total_s:.1f} s",
    ]
    for x in checks:
        outcome = "passed" if x.passed else f"FAILED {x.problem or ''}".rstrip()
        lines.append(f"  {x.format:15} {outcome}, error {x.worst_error:.1e} of {x.bound:.0e}")
    return lines


class _Hider:
    """Replaces the home folder by ~ and the user name by a placeholder."""

    def __init__(self) -> None:
        self._pairs: list[tuple[re.Pattern[str], str]] = []
        home = str(Path.home())
        if home not in ("/", ""):
            self._pairs.append((re.compile(re.escape(home) + r"(?![\w.-])"), "~"))
        try:
            user = getpass.getuser()
        except (OSError, KeyError):
            user = ""
        # Names such as root say nothing and would mangle ordinary words.
        if len(user) > 2 and user != "root":
            self._pairs.append((re.compile(rf"(?<![\w-]){re.escape(user)}(?![\w-])"), "USER"))

    def __call__(self, text: str) -> str:
        for pattern, replacement in self._pairs:
            text = pattern.sub(replacement, text)
        return text

    def in_data(self, value: Any) -> Any:
        """The same in every text of JSON data."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {key: self.in_data(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.in_data(item) for item in value]
        return value
