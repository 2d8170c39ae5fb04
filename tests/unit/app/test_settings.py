"""Settings: types, ranges, precedence, errors that name the nearest key, and saving."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qh_chat.actions import action_ids
from qh_chat.settings import (
    Settings,
    SettingsError,
    Value,
    check_value,
    load_settings,
    parse_value,
    specs,
)
from qh_chat.settings_file import save_values, toml_value, updated_toml
from qh_runtime.options import LoadOptions, SamplingParams


def test_defaults_are_those_of_the_runtime() -> None:
    assert Settings().sampling_params() == SamplingParams()
    assert Settings().load_options() == LoadOptions()


def test_every_field_has_prose_and_its_default_is_in_range() -> None:
    for spec in specs().values():
        assert spec.prose.endswith(".")
        assert Settings().with_value(spec.key, spec.default).get(spec.key) == spec.default


def test_precedence(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[models]\nthreads = 2\ncontext_length = 100\nmodel = 'file'\n")
    settings = load_settings(
        path, {"QH_THREADS": "3", "QH_MODEL": "variable"}, {"models.threads": 4}
    )
    assert settings.models.threads == 4
    assert settings.models.model == "variable"
    assert settings.models.context_length == 100
    assert load_settings(path, {}, {"models.threads": None}).models.threads == 2


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[sampling]\ntemprature = 1.0\n", "sampling.temprature", "sampling.temperature"),
        ("[samplng]\ntemperature = 1.0\n", "samplng", "sampling"),
        ("[keys]\nneww = 'f9'\n", "keys.neww", "keys.new"),
        ("top_k = 3\n", "top_k", None),
    ],
)
def test_unknown_keys_name_the_nearest(
    tmp_path: Path, text: str, key: str, nearest: str | None
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {}, actions=action_ids())
    assert caught.value.facts["key"] == key
    assert caught.value.facts["nearest"] == nearest
    assert caught.value.facts["path"] == str(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampling.temperature", 5.1),
        ("sampling.temperature", float("nan")),
        ("sampling.temperature", True),
        ("sampling.top_k", 1.5),
        ("sampling.top_k", True),
        ("sampling.top_p", -0.1),
        ("sampling.stop", "x"),
        ("sampling.stop", ["x", 1]),
        ("chat.context_policy", "forget"),
        ("models.threads", 0),
        ("models.exact", 1),
        ("look.theme", None),
    ],
)
def test_wrong_values_are_refused(key: str, value: Value) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().with_value(key, value)
    assert caught.value.facts["key"] == key


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("sampling.temperature", " 1 ", 1.0),
        ("sampling.top_k", "1_000", 1000),
        ("sampling.seed", "", None),
        ("sampling.stop", "a, b,", ("a", "b")),
        ("models.exact", "Yes", True),
        ("chat.system_prompt", " keep spaces ", " keep spaces "),
    ],
)
def test_values_from_text(key: str, text: str, value: Value) -> None:
    assert parse_value(specs()[key], text) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [("sampling.top_k", "many"), ("models.exact", "perhaps"), ("sampling.temperature", "1e999")],
)
def test_text_that_is_no_value(key: str, text: str) -> None:
    with pytest.raises(SettingsError):
        parse_value(specs()[key], text)


def test_an_environment_variable_is_named_in_its_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="QH_THREADS"):
        load_settings(tmp_path / "none.toml", {"QH_THREADS": "many"})


@pytest.mark.parametrize("content", [b"[sampling\n", b"\xff\xfe", b"[keys]\nnew = 3\n"])
def test_a_broken_file_names_itself(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    assert caught.value.facts["path"] == str(path)


def test_saving_keeps_comments_and_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        "# mine\n[sampling]\ntemperature = 0.3 # warm\nstop = [\n  'a',\n]\n\n# keys\n[keys]\n"
        "new = 'f9'\n"
    )
    save_values(path, {"sampling.top_k": 7, "sampling.stop": ("x",), "look.theme": "nord"})
    save_values(path, {"sampling.temperature": 0.5})
    assert path.read_text() == (
        '# mine\n[sampling]\ntemperature = 0.5\nstop = ["x"]\ntop_k = 7\n\n# keys\n[keys]\n'
        "new = 'f9'\n\n[look]\ntheme = \"nord\"\n"
    )
    save_values(path, {"sampling.stop": None, "sampling.seed": None, "models.model": None})
    settings = load_settings(path, {}, actions=action_ids())
    assert settings.sampling.stop == ()
    assert settings.keys == {"new": "f9"}


def test_saving_over_a_broken_file_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[sampling\n")
    with pytest.raises(SettingsError):
        save_values(path, {"look.theme": "nord"})
    assert path.read_text() == "[sampling\n"
    assert os.listdir(tmp_path) == ["settings.toml"]


def test_a_header_within_a_text_is_no_table() -> None:
    text = '[chat]\nsystem_prompt = """\n[sampling]\ntop_k = 1\n"""\n'
    changed = updated_toml(text, {"sampling.top_k": 9})
    found = tomllib.loads(changed)
    assert found["chat"]["system_prompt"] == "[sampling]\ntop_k = 1\n"
    assert found["sampling"] == {"top_k": 9}


@given(st.text())
def test_any_text_survives_as_toml(text: str) -> None:
    expected = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": expected}


@given(st.dictionaries(st.sampled_from(sorted(specs())), st.integers(0, 3)), st.integers(0, 9))
def test_any_order_of_changes_stays_valid(changes: dict[str, int], seed: int) -> None:
    text = "# top\n[look]\ntheme = 'x'\n"
    for key, value in changes.items():
        text = updated_toml(text, {key: str(value) if seed % 2 else value})
    found = tomllib.loads(text)
    for key in changes:
        section, _, name = key.partition(".")
        assert name in found[section]


def test_a_bound_of_the_representation_is_not_told_but_kept() -> None:
    seed = specs()["sampling.seed"]
    assert seed.range_text == "at least 0"
    with pytest.raises(SettingsError, match="at most 9,223,372,036,854,775,807"):
        check_value(seed, 2**63)
    with pytest.raises(SettingsError, match="at least 0"):
        check_value(seed, -1)
