"""Typed settings: prose, unit, range and default live with each field, and everything else is
generated from them (the settings screen, the help of the command line, the messages of errors).

One TOML file; precedence: command line > QH_* variables > file > default. Importing this module
reads no environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qh_runtime.errors import QhError
from qh_runtime.options import ContextPolicy, KvChoice, LoadOptions, SamplingParams

__all__ = [
    "ChatSettings",
    "LookSettings",
    "ModelSettings",
    "SamplingSettings",
    "SettingSpec",
    "Settings",
    "SettingsError",
    "check_value",
    "load_settings",
    "parse_value",
    "specs",
]

NO_REAL_BOUND = 1e12
"""A bound from here on is one of the representation, and not worth telling."""

Value = bool | int | float | str | tuple[str, ...] | None


class SettingsError(QhError):
    """A setting is unknown or out of range. Facts: key, path, and value or nearest."""


@dataclass(frozen=True)
class SettingSpec:
    """What is known about one field.

    Attributes:
        key: "section.name", as in the file and in errors.
        kind: bool, int, float, str or tuple. optional: None is allowed and means "not set".
        low, high: inclusive range, None for no bound. env: environment variable that sets it.
    """

    key: str
    kind: type
    optional: bool
    default: Value
    prose: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    env: str | None

    @property
    def section(self) -> str:
        """Table of the file."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """Key within its table."""
        return self.key.partition(".")[2]

    @property
    def range_text(self) -> str:
        """The allowed values in a few words, "" when anything goes."""
        if self.choices:
            return ", ".join(self.choices)
        unit = f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None and self.high < NO_REAL_BOUND:
            return f"{_number(self.low)} to {_number(self.high)}{unit}"
        if self.low is not None:
            return f"at least {_number(self.low)}{unit}"
        return self.unit


def _number(value: float) -> str:
    return f"{value:,}" if float(value).is_integer() else f"{value:g}"


def _setting(
    default: Any,
    prose: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    env: str | None = None,
) -> Any:
    facts = {"prose": prose, "unit": unit, "low": low, "high": high, "choices": choices, "env": env}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are drawn in new chats; each chat can differ."""

    temperature: float = _setting(
        0.8, "How daring the choice of words is; 0 always takes the likeliest.", low=0, high=5
    )
    top_k: int = _setting(
        40, "Only the k likeliest tokens are candidates; 0 keeps all.", low=0, high=1_000_000
    )
    top_p: float = _setting(
        0.95, "Only the likeliest tokens that together have this probability.", low=0, high=1
    )
    min_p: float = _setting(
        0.05, "Drops what is less likely than this share of the likeliest.", low=0, high=1
    )
    repetition_penalty: float = _setting(
        1.0, "Makes tokens that were used lately less likely; 1 is off.", low=0.1, high=10
    )
    presence_penalty: float = _setting(
        0.0, "Subtracted once for each token that was used lately.", low=-10, high=10
    )
    frequency_penalty: float = _setting(
        0.0, "Subtracted each time a token was used lately.", low=-10, high=10
    )
    penalty_window: int = _setting(
        256, "How many of the last tokens count as used lately.", unit="tokens", low=0, high=1 << 20
    )
    seed: int | None = _setting(
        None, "Fixes the dice: same seed, same answer. Empty rolls anew.", low=0, high=2**63 - 1
    )
    max_tokens: int | None = _setting(
        None, "Longest answer; empty is as long as the context lasts.", unit="tokens", low=1,
        high=1 << 24,
    )  # fmt: skip
    stop: tuple[str, ...] = _setting((), "Texts that end an answer, and are left out of it.")


@dataclass(frozen=True)
class ChatSettings:
    """How chats behave."""

    system_prompt: str = _setting("", "What every new chat tells the model first.")
    context_policy: ContextPolicy = _setting(  # noqa: RUF009 - a field, like the others
        "drop",
        "When the context is full: drop leaves out the oldest turns, stop ends the answer.",
        choices=("drop", "stop"),
    )


@dataclass(frozen=True)
class ModelSettings:
    """Which model is loaded, and how."""

    model: str | None = _setting(
        None, "Name or folder of the model to start with; empty is the built-in one.",
        env="QH_MODEL",
    )  # fmt: skip
    folders: tuple[str, ...] = _setting((), "Folders that are searched for models.")
    threads: int | None = _setting(
        None, "Worker threads; empty lets the machine choose.", unit="threads", low=1, high=1024,
        env="QH_THREADS",
    )  # fmt: skip
    context_length: int | None = _setting(
        None, "Context to make room for; empty lets the plan choose.", unit="tokens", low=16,
        high=1 << 24,
    )  # fmt: skip
    pack: str | None = _setting(
        None,
        "Format that dense weights are packed into (int8, int4_g32, nf4, ...); empty keeps them.",
    )
    kv_cache: KvChoice = _setting(  # noqa: RUF009 - a field, like the others
        "f16",
        "How keys and values of a chat are kept: f16, or int8 in half the memory, less exact.",
        choices=("f16", "int8"),
    )
    exact: bool = _setting(False, "Exact float32 arithmetic: slower, for comparing.")
    quota_gb: float | None = _setting(
        None, "What pulled models may take on the disk in all; empty is no limit.", unit="GB",
        low=0.001, high=1e6,
    )  # fmt: skip
    download_limit_mb_s: float | None = _setting(
        None, "How fast models are fetched at most; empty is no limit.", unit="MB/s", low=0.01,
        high=1e5,
    )  # fmt: skip


@dataclass(frozen=True)
class LookSettings:
    """How it looks."""

    theme: str = _setting(
        "qh-dark", "Colours: qh-dark, qh-light, or any theme of the palette (ctrl+p)."
    )
    blink: bool = _setting(True, "The cursor blinks.")


@dataclass(frozen=True)
class Settings:
    """All settings. `keys` maps an action's id to the keys that trigger it, with commas between."""

    sampling: SamplingSettings = SamplingSettings()
    chat: ChatSettings = ChatSettings()
    models: ModelSettings = ModelSettings()
    look: LookSettings = LookSettings()
    keys: Mapping[str, str] = field(default_factory=dict)

    def sampling_params(self) -> SamplingParams:
        """Sampling settings of a new chat."""
        values = {f.name: getattr(self.sampling, f.name) for f in fields(SamplingSettings)}
        return SamplingParams(**values, context_policy=self.chat.context_policy)

    def load_options(self) -> LoadOptions:
        """How models are loaded."""
        chosen = self.models
        return LoadOptions(
            pack=chosen.pack,
            context_length=chosen.context_length,
            threads=chosen.threads,
            kv_type=chosen.kv_cache,
            exact=chosen.exact,
        )

    def get(self, key: str) -> Value:
        """Value of "section.name". Raises KeyError."""
        spec = specs()[key]
        value: Value = getattr(getattr(self, spec.section), spec.name)
        return value

    def with_value(self, key: str, value: Value) -> Settings:
        """A copy with one value changed. Raises SettingsError."""
        spec = specs()[key]
        section = getattr(self, spec.section)
        changed = replace(section, **{spec.name: check_value(spec, value)})
        return replace(self, **{spec.section: changed})


_SECTIONS: dict[str, type] = {
    "sampling": SamplingSettings,
    "chat": ChatSettings,
    "models": ModelSettings,
    "look": LookSettings,
}


def specs() -> dict[str, SettingSpec]:
    """Every setting by key, in the order of the screen and of the file."""
    return {spec.key: spec for section, kind in _SECTIONS.items() for spec in _of(section, kind)}


def _of(section: str, kind: type) -> Iterator[SettingSpec]:
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        optional = False
        if isinstance(hint, types.UnionType):
            optional = True
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        origin = typing.get_origin(hint)
        plain = tuple if origin is tuple else str if origin is typing.Literal else hint
        default: Any = f.default
        yield SettingSpec(f"{section}.{f.name}", plain, optional, default, **f.metadata)


def check_value(spec: SettingSpec, value: object) -> Value:
    """The value in the field's own type. Raises SettingsError."""
    if value is None:
        if spec.optional:
            return None
        raise _wrong(spec, value, "a value")
    if spec.kind is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise _wrong(spec, value, "a list of texts")
        return tuple(value)
    if spec.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not spec.kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise _wrong(spec, value, words[spec.kind])
    assert isinstance(value, bool | int | float | str)
    if spec.choices and value not in spec.choices:
        raise _wrong(spec, value, f"one of {spec.range_text}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        below = spec.low is not None and value < spec.low
        above = spec.high is not None and value > spec.high
        if not math.isfinite(value) or below or above:
            expected = spec.range_text or "a finite number"
            if above and spec.high is not None and spec.high >= NO_REAL_BOUND:
                expected = f"at most {_number(spec.high)}"
            raise _wrong(spec, value, expected)
    return value


def parse_value(spec: SettingSpec, text: str) -> Value:
    """A value from what a person typed, or from a variable. Raises SettingsError."""
    stripped = text.strip()
    if not stripped and spec.optional:
        return None
    if spec.kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if spec.kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if stripped.lower() not in words:
            raise _wrong(spec, text, "true or false")
        return words[stripped.lower()]
    if spec.kind in (int, float):
        number = stripped.replace("_", "")
        try:
            return check_value(spec, int(number) if spec.kind is int else float(number))
        except (ValueError, OverflowError):
            words_for = "a whole number" if spec.kind is int else "a number"
            raise _wrong(spec, text, words_for) from None
    return check_value(spec, text)


def load_settings(
    path: Path,
    environment: Mapping[str, str],
    overrides: Mapping[str, Value] | None = None,
    actions: frozenset[str] | None = None,
) -> Settings:
    """Settings as they apply now.

    Args:
        path: the TOML file; it need not exist.
        environment: usually os.environ.
        overrides: values of the command line by "section.name"; None values are not given.
        actions: ids that [keys] may name; None does not check them.

    Raises:
        SettingsError: the file is unreadable, or a key is unknown or its value out of range.
    """
    settings = _from_file(path, actions)
    for key, spec in specs().items():
        if spec.env is not None and environment.get(spec.env):
            try:
                settings = settings.with_value(key, parse_value(spec, environment[spec.env]))
            except SettingsError as error:
                raise SettingsError(
                    f"{spec.env}: {error.message}", hint="change or unset it", **error.facts
                ) from error
    for key, value in (overrides or {}).items():
        if value is not None:
            settings = settings.with_value(key, value)
    return settings


def _from_file(path: Path, actions: frozenset[str] | None) -> Settings:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: cannot be read: {error}", hint="move it away to start anew", path=str(path)
        ) from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"{path}: not valid TOML: {error}", hint="correct that line", path=str(path)
        ) from error
    settings = Settings()
    known = specs()
    for section, table in found.items():
        if section == "keys" and isinstance(table, dict):
            settings = replace(settings, keys=_keys(table, path, actions))
            continue
        if section not in _SECTIONS or not isinstance(table, dict):
            raise _unknown(section, [*_SECTIONS, "keys"], path)
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in known:
                raise _unknown(key, list(known), path)
            try:
                settings = settings.with_value(key, value)
            except SettingsError as error:
                raise SettingsError(
                    f"{path}: {error.message}", hint=error.hint, path=str(path), **error.facts
                ) from error
    return settings


def _keys(table: dict[str, Any], path: Path, actions: frozenset[str] | None) -> dict[str, str]:
    for name, value in table.items():
        if actions is not None and name not in actions:
            raise _unknown(f"keys.{name}", [f"keys.{known}" for known in sorted(actions)], path)
        if not isinstance(value, str) or not value.strip():
            raise SettingsError(
                f'{path}: keys.{name} needs keys such as "f3" or "ctrl+n,f7", found {value!r}',
                hint="write them as one text",
                key=f"keys.{name}",
                value=value,
                path=str(path),
            )
    return dict(table)


def _wrong(spec: SettingSpec, value: object, expected: str) -> SettingsError:
    return SettingsError(
        f"{spec.key} needs {expected}, found {value!r}",
        hint=f"the default is {spec.default!r}",
        key=spec.key,
        value=value,
    )


def _unknown(key: str, known: list[str], path: Path) -> SettingsError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    nearest = near[0] if near else None
    return SettingsError(
        f"{path}: there is no setting {key!r}",
        hint=f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(known)}",
        key=key,
        nearest=nearest,
        path=str(path),
    )
