"""F4: chat templates written to escape, to run forever or to eat memory; 0 may get away with it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qh_runtime.errors import TemplateError
from qh_runtime.tokenizers import chat_template
from qh_runtime.tokenizers.chat_template import ChatTemplate, RenderLimits
from qh_runtime.tokenizers.template_source import MAX_SOURCE_BYTES, TemplateSource, find_template

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello " * 200},
]

# Each list is a way to do harm; the comment says what jinja2's sandbox or plain Jinja would allow.
_UNDERSCORES = [
    "__class__", "__mro__", "__subclasses__", "__globals__", "__init__", "__builtins__",
    "__import__", "__dict__", "__base__", "__code__", "__reduce__", "__getattribute__",
    "_module", "gi_frame", "f_globals", "func_globals", "mro", "format_map",
]  # fmt: skip
_OBJECTS = ["messages", "messages[0]", "messages[0].content", "bos_token", "namespace", "range"]
_PYTHON_GLOBALS = [
    "os", "sys", "open('/etc/passwd')", "eval('1')", "exec('1')", "__import__('os')",
    "getattr(messages, 'x')", "globals()", "locals()", "vars()", "dir()", "type(messages)",
    "cycler.__init__.__globals__", "lipsum.__globals__", "joiner",
    "self._TemplateReference__context", "request", "config", "get_flashed_messages",
    "url_for", "caller", "loop", "varargs",
]  # fmt: skip


def _escapes() -> list[str]:
    cases = [f"{{{{ {obj}.{name} }}}}" for obj in _OBJECTS[:3] for name in _UNDERSCORES]
    cases += [f"{{{{ {obj}['{name}'] }}}}" for obj in _OBJECTS for name in _UNDERSCORES[:4]]
    cases += [f"{{{{ {obj}|attr('{name}') }}}}" for obj in _OBJECTS for name in _UNDERSCORES[:3]]
    cases += [f"{{{{ {expression} }}}}" for expression in _PYTHON_GLOBALS]
    cases += [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '%(a)s'|format(a=messages.__class__) }}",
        "{% import 'os' as os %}{{ os.system('id') }}",
        "{% from 'os' import system %}{{ system('id') }}",
        "{% include '/etc/passwd' %}",
        "{% include 'chat_template' %}",
        "{% extends '/etc/passwd' %}",
        "{% extends 'chat_template' %}",
        "{% set messages.append = 1 %}",
        "{% do messages.clear() %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages.__setitem__(0, 1) }}",
        "{% set ns = namespace(__class__=1) %}{{ ns.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ strftime_now('%9999999999999d') }}",
        "{{ strftime_now('%s%s' * 100000) }}",
        "{{ messages|tojson(indent=100000000) }}",
        "{{ messages|tojson(separators=['x'*1000000, 'y'*1000000]) }}",
        "{{ debug() }}",
    ]
    return cases


def _loops() -> list[str]:
    cases = []
    for depth in (2, 3, 4, 5):
        for count in (10_000, 99_999):
            head = "".join(f"{{% for a{i} in range({count}) %}}" for i in range(depth))
            cases.append(head + "x" + "{% endfor %}" * depth)
    cases += [
        "{% for i in range(99999) %}{% for c in messages[1].content %}{{ c }}{% endfor %}"
        "{% endfor %}",
        "{% for i in range(1000000000000) %}x{% endfor %}",
        "{{ range(1000000000)|list|length }}",
        "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% set ns = namespace(i=0) %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% set ns.i = ns.i + 1 %}{% endfor %}{% endfor %}{{ ns.i }}",
        "{% filter upper %}{% for a in range(99999) %}{% for b in range(99999) %}a{% endfor %}"
        "{% endfor %}{% endfilter %}",
        "{% for a in range(20000) %}{{ messages|tojson }}{% endfor %}",
        "{% for a in range(20000) %}{% set x = messages|tojson|length %}{% endfor %}",
        "{% for a in range(90000) %}{% set x = messages[1].content.replace('e', 'ee') %}"
        "{% endfor %}",
        "{% for a in range(90000) %}{% set x = messages[1].content|upper|lower|title %}"
        "{% endfor %}",
        "{% for a in range(90000) %}{% set x = messages[1].content.split('l')|join('r') %}"
        "{% endfor %}",
        "{% for a in range(90000) %}{{ strftime_now('%c' * 1000) }}{% endfor %}",
        "{{ ([messages[1].content] * 100000)|map('upper')|join|length }}",
        "{{ ([range(1000)] * 10000)|map('list')|list|length }}",
        "{{ (range(99999)|list|sort(reverse=true)|unique|list * 50)|sort|length }}",
    ]
    return cases


def _big() -> list[str]:
    cases = [f"{{{{ 'a' * {10**power} }}}}" for power in range(5, 13)]
    cases += [f"{{{{ ('ab' * {10**power})|length }}}}" for power in range(6, 12)]
    cases += [f"{{{{ ([0] * {10**power})|length }}}}" for power in range(6, 12)]
    cases += [
        "{{ 9 ** 9 ** 9 }}",
        "{{ 10 ** 1000000 }}",
        "{{ 2 ** 100000 ** 10 }}",
        "{{ 1 // 0 }}",
        "{{ 1 % 0 }}",
        "{{ 1e308 * 1e308 }}",
        "{{ ('a' * 1000).replace('a', 'b' * 100000)|length }}",
        "{{ ('a' * 1000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 2000).replace('', 'b' * 100000)|length }}",
        "{{ (['a' * 1000000] * 1000)|join|length }}",
        "{{ (['a' * 1000000] * 100)|join }}",
        "{{ ('x' * 1000000)|indent(1000000)|length }}",
        "{{ ('x\n' * 100000)|indent(100000)|length }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ 'x'|wordwrap(1) * 100000000 }}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}{{ ns.s|length }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}"
        "{% endfor %}{{ ns.l|length }}",
        "{% set a %}{{ 'x' * 10000000 }}{% endset %}{{ a ~ a ~ a ~ a ~ a ~ a ~ a ~ a ~ a ~ a }}",
        "{{ (range(99999)|list|tojson) * 100 }}",
        "{{ messages|pprint * 100000 }}",
        "{{ range(0, 99999)|batch(1)|list|tojson|length }}",
        "{{ (range(99999)|list,) * 1000 }}",
        "{{ ('\\u4f60' * 1000000) ~ ('\\U0001f44b' * 1000000) }}",
    ]
    return cases


def _nesting() -> list[str]:
    cases = []
    for depth in (100, 1_000, 10_000, 60_000):
        cases += [
            "{{ " + "(" * depth + "1" + ")" * depth + " }}",
            "{{ " + "[" * depth + "]" * depth + " }}",
            "{{ " + "not " * depth + "1 }}",
            "{{ " + "-" * depth + "1 }}",
            "{{ 1" + " + 1" * depth + " }}",
            "{{ a" + ".a" * depth + " }}",
            "{{ 'a'" + "|upper" * depth + " }}",
        ]
        if depth <= 10_000:
            cases += [
                "{% if 1 %}" * depth + "{% endif %}" * depth,
                "{% for a in [1] %}" * depth + "{% endfor %}" * depth,
                "{% with %}" * depth + "{% endwith %}" * depth,
            ]
    return cases


def _broken() -> list[str]:
    return [
        "{{", "{%", "{#", "{{ }}", "{% %}", "{% if %}", "{% for %}{% endfor %}", "{% endfor %}",
        "{% else %}", "{{ 'a }}", "{{ a b }}", "{% raw %}", "{% generation %}",
        "{% endgeneration %}", "{{ 1 +* 2 }}", "{{ a|nosuchfilter }}", "{{ a is nosuchtest }}",
        "{{ nosuchfunction() }}", "{{ none.x.y }}", "{{ messages[999].content }}",
        "{% unknown %}", "\x00", "{{ '\x00' }}", "{{ \ud800 }}", "{% set %}", "{% macro %}",
        "{{ loop.index }}", "{% break %}", "{% continue %}", "{{ raise_exception(messages) }}",
        "{{ raise_exception() }}", "{{ raise_exception('x' * 10000000) }}", "{{ tojson }}",
        "{% call x() %}{% endcall %}", "{{ super() }}", "{{ caller() }}", "{% autoescape true %}<",
    ]  # fmt: skip


CASES = [*_escapes(), *_loops(), *_big(), *_nesting(), *_broken()]
REASONS = frozenset(
    {"none", "syntax", "refused", "fuel", "time", "memory", "output", "render", "crash"}
)
# Nothing that a render may see holds these; they are in the worker or its files.
_LEAKS = (
    "root:x:",
    "<module",
    "<built-in",
    "<function",
    "<class",
    "uid=",
    "object at 0x",
    "site-packages",
)


def _template(source: str, limits: RenderLimits | None = None) -> ChatTemplate:
    return ChatTemplate(
        TemplateSource("file", "hostile.jinja", source),
        special_tokens={"bos_token": "<s>"},
        control_tokens=["<s>"],
        limits=limits,
    )


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 150
    assert len(set(CASES)) == len(CASES)


@pytest.mark.parametrize("block", range(10))
def test_hostile_template_ends_in_bounds(block: int) -> None:
    """Each ends as a small text or a TemplateError that says why, soon, and gives nothing away."""
    for source in CASES[block::10]:
        start = time.perf_counter()
        reason, text = "none", ""
        try:
            text = _template(source).render(MESSAGES).text
        except TemplateError as error:
            reason, text = error.facts["reason"], str(error)[:4_000]
        assert reason in REASONS, source[:200]
        assert len(text.encode("utf-8", "surrogatepass")) <= 4 << 20, source[:200]
        assert not any(leak in text for leak in _LEAKS), (source[:200], text[:500])
        # 250 ms of processor time; the clock of a busy machine may run far ahead of that.
        assert time.perf_counter() - start < 8, source[:200]


def _reason(source: str, limits: RenderLimits | None = None) -> str:
    with pytest.raises(TemplateError) as caught:
        _template(source, limits).render(MESSAGES)
    return str(caught.value.facts["reason"])


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "fuel"),
        ("{{ 'a' * 5000000 }}", "output"),
        ("{% set x = 'a' * 1000 %}{{ x.replace('a', 'b' * 100000)|length }}", "memory"),
        ("{{ raise_exception('no system role') }}", "refused"),
        ("{% if %}", "syntax"),
        ("{{ 1 // 0 }}", "render"),
    ],
)
def test_reason_is_named(source: str, reasons: str) -> None:
    assert _reason(source) == reasons


@pytest.mark.skipif(sys.platform != "linux", reason="the timer that ends the process is POSIX")
def test_cpu_time_is_bounded_without_fuel() -> None:
    """The second line of defence: with fuel for hours the kernel still ends the render."""
    source = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    start = time.perf_counter()
    assert _reason(source, RenderLimits(fuel=1 << 50, memory_bytes=1 << 30)) == "time"
    assert time.perf_counter() - start < 8


def test_refusal_carries_the_words_of_the_template() -> None:
    with pytest.raises(TemplateError) as caught:
        _template("{{ raise_exception('System role not supported') }}").render(MESSAGES)
    assert caught.value.facts["detail"] == "System role not supported"


def test_large_honest_output_passes() -> None:
    text = "\u4f60" * 1_000_000
    prompt = _template("{{ messages[0].content }}").render([{"role": "user", "content": text}])
    assert prompt.text == text


def test_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(chat_template, "_WORKER", worker)
    monkeypatch.setattr(chat_template, "_WALL_S", 0.3)
    assert _reason("x") == "time"


@pytest.mark.parametrize("status", ["os.abort()", "os._exit(3)", "os.kill(os.getpid(), 11)"])
def test_worker_that_dies_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os, sys\nsys.stdin.buffer.read()\n{status}\n")
    monkeypatch.setattr(chat_template, "_WORKER", worker)
    assert _reason("x") in {"memory", "crash"}


def test_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def record(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))  # type: ignore[arg-type]
        return started[-1]

    monkeypatch.setattr(chat_template.subprocess, "Popen", record)
    _template("x").render(MESSAGES)
    assert _reason("{{ 1 // 0 }}") == "render"
    assert [process.returncode for process in started] == [0, 0]


def test_source_too_large(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("x" * (MAX_SOURCE_BYTES + 1))
    with pytest.raises(TemplateError) as caught:
        find_template(tmp_path)
    assert caught.value.facts["reason"] == "source"


def test_variables_are_an_allow_list() -> None:
    with pytest.raises(TemplateError) as caught:
        _template("x").render(MESSAGES, tokenize=True)
    assert caught.value.facts["reason"] == "variables"


def test_only_plain_values_reach_a_template() -> None:
    with pytest.raises(TypeError):
        _template("x").render([{"role": "user", "content": object()}])
