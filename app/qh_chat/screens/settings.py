"""The settings screen, generated from the typed settings; each valid change is saved at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Select, Static, Switch

from qh_chat.inert import inert
from qh_chat.settings import SettingsError, SettingSpec, Value, parse_value, specs

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp

__all__ = ["SettingsScreen"]

TITLES = {
    "sampling": "Sampling of new chats",
    "chat": "Chats",
    "models": "Models (from the next load on)",
    "look": "Look",
}


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class SettingsScreen(ModalScreen[None]):
    """Every setting with its prose, its range and its value."""

    app: QhChatApp

    CSS_PATH = "settings.tcss"
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f6", "leave", show=False, priority=True),
    ]

    def compose(self) -> ComposeResult:
        section = ""
        with Vertical(id="settings"):
            with VerticalScroll(can_focus=False):
                for spec in specs().values():
                    if spec.section != section:
                        section = spec.section
                        yield Static(TITLES[section], classes="heading", markup=False)
                    with Horizontal(classes="field"):
                        yield Static(spec.name.replace("_", " "), classes="name", markup=False)
                        yield self._field(spec)
                        yield Static(spec.range_text, classes="range", markup=False)
                    yield Static(spec.prose, classes="prose", markup=False)
                    yield Static("", id=f"wrong-{_id(spec)}", classes="wrong", markup=False)
            yield Static("", id="where", markup=False)

    def _field(self, spec: SettingSpec) -> Input | Switch | Select[str]:
        value = self.app.settings.get(spec.key)
        if spec.kind is bool:
            return Switch(value is True, id=_id(spec), animate=False)
        if spec.choices:
            options = [(choice, choice) for choice in spec.choices]
            return Select(options, value=str(value), allow_blank=False, id=_id(spec), compact=True)
        placeholder = "not set" if spec.optional else ""
        return Input(inert(_shown(value)), id=_id(spec), compact=True, placeholder=placeholder)

    def on_mount(self) -> None:
        """Name the box."""
        box = self.query_one("#settings")
        box.border_title = "Settings"
        box.border_subtitle = "saved as you leave a field · esc closes"
        self.query_one("#where", Static).update(inert(f"kept in {self.app.places.settings}"))

    def action_leave(self) -> None:
        """Save the field with the focus, then close."""
        if isinstance(self.focused, Input) and not self._keep_input(self.focused):
            self.set_focus(None)
            return
        self.dismiss(None)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._keep_input(event.input):
            self.focus_next()

    @on(Input.Blurred)
    def _blurred(self, event: Input.Blurred) -> None:
        event.stop()
        self._keep_input(event.input)

    @on(Switch.Changed)
    def _switched(self, event: Switch.Changed) -> None:
        event.stop()
        self._keep(_spec(event.switch.id), event.value)

    @on(Select.Changed)
    def _chosen(self, event: Select.Changed) -> None:
        event.stop()
        self._keep(_spec(event.select.id), str(event.value))

    def _keep_input(self, field: Input) -> bool:
        spec = _spec(field.id)
        try:
            value = parse_value(spec, field.value)
        except SettingsError as error:
            return self._say(spec, error.message)
        return self._keep(spec, value)

    def _keep(self, spec: SettingSpec, value: Value) -> bool:
        if self.app.settings.get(spec.key) == value:
            return self._say(spec, "")
        try:
            self.app.change_setting(spec.key, value)
        except SettingsError as error:
            return self._say(spec, error.message)
        return self._say(spec, "")

    def _say(self, spec: SettingSpec, text: str) -> bool:
        wrong = self.query_one(f"#wrong-{_id(spec)}", Static)
        wrong.update(inert(text))
        wrong.set_class(bool(text), "-shown")
        return not text


def _id(spec: SettingSpec) -> str:
    return spec.key.replace(".", "-")


def _spec(widget_id: str | None) -> SettingSpec:
    return next(spec for spec in specs().values() if _id(spec) == widget_id)
