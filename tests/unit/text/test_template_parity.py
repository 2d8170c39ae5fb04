"""Real chat templates, rendered as transformers renders them, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import TemplateError
from qh_runtime.tokenizers.chat_template import ChatTemplate
from qh_runtime.tokenizers.template_source import (
    PLAIN_SOURCE,
    TemplateSource,
    find_template,
    portable_source,
)

reference = pytest.importorskip("transformers.utils.chat_template_utils")

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": 'Hello <b>&amp;</b> "x" \u65e5\u672c \U0001f44b'}],
    "system": [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "Hi"},
    ],
    "turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "  Hi \n"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "\ttab\n\nlines"},
    ],
    "thinking": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello there"},
        {"role": "user", "content": "b"},
    ],
    "reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "hmm"},
        {"role": "user", "content": "b"},
    ],
    "order": [
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": ""},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "part one"}]}],
    "tool": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "b"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get <weather>",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city"},
                    "n": {"type": "integer", "enum": [1, 2]},
                },
                "required": ["city"],
            },
        },
    }
]
# Concatenating a string with a |safe one escapes HTML in jinja2, so with tools this template writes
# {&#34;name&#34;: ...} there; plain JSON here, which is what its author meant.
DIFFERENT_WITH_TOOLS = {"meetkai-functionary-medium-v3.1"}


def _names() -> list[str]:
    folder = Path(__file__).resolve().parents[4] / "shared" / "tokenizers" / "templates"
    # Without the collection one name is left, and the fixture skips with the reason.
    return sorted(path.stem for path in folder.glob("*.jinja")) or ["none"]


def _compare(
    source: str, messages: list[dict[str, Any]], tools: Sequence[Any] | None, *, prompt: bool
) -> None:
    try:
        wanted: str | None = reference.render_jinja_template(
            [messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=prompt,
            **SPECIAL,
        )[0][0]
    except Exception:  # noqa: BLE001 - a template may refuse with anything
        wanted = None
    template = ChatTemplate(
        TemplateSource("file", "chat_template.jinja", source),
        special_tokens=SPECIAL,
        control_tokens=["<s>", "</s>"],
    )
    try:
        found = template.render(messages, tools=tools, add_generation_prompt=prompt).text
    except TemplateError as error:
        found = f"TemplateError: {error}"
    # Where jinja2 fails (a loop over none) minijinja may go on: no prompt to differ from.
    assert wanted is None or found == wanted


@pytest.mark.parametrize("name", _names())
def test_real_template_equals_reference(name: str, shared_data: Path) -> None:
    source = (shared_data / "tokenizers" / "templates" / f"{name}.jinja").read_text("utf-8")
    for kind in ("turns", "thinking", "parts"):
        _compare(source, CONVERSATIONS[kind], None, prompt=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", _names())
def test_real_template_equals_reference_in_every_case(name: str, shared_data: Path) -> None:
    source = (shared_data / "tokenizers" / "templates" / f"{name}.jinja").read_text("utf-8")
    for messages in CONVERSATIONS.values():
        for prompt in (True, False):
            _compare(source, messages, None, prompt=prompt)
            if name not in DIFFERENT_WITH_TOOLS:
                _compare(source, messages, TOOLS, prompt=prompt)


PIECES = [
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{%- generation -%}\n  a\n{%- endgeneration -%} b",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ '{% generation %}' }}{# {% generation %} #}{% raw %}{% generation %}{% endraw %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
    "  {% if true %}\n    x\n  {% endif %}\n",
    "{{ messages|tojson }}{{ messages|tojson(indent=2) }}",
    "{{ {'b': 1, 'a': '<\u00e9>'}|tojson(sort_keys=true, ensure_ascii=true) }}",
    "{{ [1, 2]|tojson(separators=(',', ':')) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "{{ dict(a=1).items()|list }}",
    "{{ ' a b '.strip().split(' ')|join('-') }}{{ 'abc'[::-1] }}{{ 'ab'.title().upper() }}",
    "{{ 'xay'.replace('a', 'b') }}{{ 'abc'.startswith('a') }}{{ 'abc'.endswith('bc') }}",
    "{{ messages[0].get('content') }}{{ messages[0].get('x', 'd') }}{{ messages[0].keys()|list }}",
    "{{ '\\n\\n x \\n'.lstrip('\\n') }}{{ 'xx-'.rstrip('-') }}{{ 'a</t>b'.split('</t>')[-1] }}",
    "{{ messages[1:]|length }}{{ messages[-1].role }}",
    "{{ messages|map(attribute='role')|join(',') }}",
    "{{ none is iterable }}{{ 'a' is iterable }}{{ messages is iterable }}{{ {} is sequence }}",
    "{{ 'a' is sequence }}{{ [] is sequence }}{{ {} is mapping }}",
    "{{ 1 is number }}{{ x is defined }}",
    "{{ 1.0 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ true }} {{ none }} {{ [1, 'a', none, {'k': true}] }}",
    "{{ tools is none }}{{ documents is defined }}{{ bos_token + eos_token }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}",
    "{{ 'a'|default('b') }}{{ zz|default('b') }}{{ ''|default('b', true) }}",
    "{{ strftime_now('%Y') }}",
    "{{ 'line\nline2'|indent(2) }}{{ ' x '|trim }}{{ messages|first }}{{ messages|last }}",
]


@pytest.mark.parametrize("source", PIECES)
def test_construct_equals_reference(source: str) -> None:
    _compare(source, CONVERSATIONS["turns"], None, prompt=True)


def test_generation_blocks_keep_their_whitespace_marks() -> None:
    assert portable_source("{%- generation -%}a{%+ endgeneration %}") == (
        "{%- with -%}a{%+ endwith %}"
    )
    assert portable_source("no such block") == "no such block"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('"one"', "one"),
        ('[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]', "d"),
        ('[{"name": "only", "template": "o"}]', "o"),
        ('{"default": "d", "rag": "r"}', "d"),
    ],
)
def test_template_in_tokenizer_config(tmp_path: Path, value: str, wanted: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {value}}}')
    source = find_template(tmp_path)
    assert (source.kind, source.text) == ("config", wanted)


@pytest.mark.parametrize("value", ["1", "[]", '[{"name": "a"}]', '{"a": "x", "b": "y"}', "true"])
def test_wrong_template_in_tokenizer_config(tmp_path: Path, value: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {value}}}')
    with pytest.raises(TemplateError) as caught:
        find_template(tmp_path)
    assert caught.value.facts["reason"] == "source"


def test_template_file_wins(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    (tmp_path / "chat_template.jinja").write_text("file")
    assert find_template(tmp_path) == TemplateSource("file", "chat_template.jinja", "file")


def test_template_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError):
        find_template(tmp_path)


def test_model_without_template_gets_a_plain_transcript(tmp_path: Path) -> None:
    source = find_template(tmp_path)
    assert (source.kind, source.text) == ("plain", PLAIN_SOURCE)
    template = ChatTemplate(
        source, special_tokens={"bos_token": "<s>"}, control_tokens=["<s>"], add_bos=True
    )
    prompt = template.render(CONVERSATIONS["turns"])
    assert prompt.text == (
        "<s>S\n\nUser:   Hi \n\n\nAssistant: Hello there\n\nUser: \ttab\n\nlines\n\nAssistant:"
    )
