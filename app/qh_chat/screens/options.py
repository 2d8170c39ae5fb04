"""The dialog for one chat: its system prompt and its sampling settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Select, Static, TextArea

from qh_chat.inert import inert
from qh_chat.settings import SettingsError, SettingSpec, parse_value, specs
from qh_runtime.options import SamplingParams

__all__ = ["ChatOptions", "ChatOptionsDialog"]


@dataclass(frozen=True)
class ChatOptions:
    """What can be chosen for one chat."""

    system_prompt: str
    sampling: SamplingParams


def _fields() -> list[SettingSpec]:
    return [spec for spec in specs().values() if spec.section == "sampling"]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


class ChatOptionsDialog(ModalScreen[ChatOptions | None]):
    """Edits the options of one chat; every field says what it does and its range.

    Args:
        options: as they are now.
    """

    CSS_PATH = "options.tcss"
    AUTO_FOCUS = "#system"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", show=False),
        Binding("f5", "keep", show=False, priority=True),
    ]

    def __init__(self, options: ChatOptions) -> None:
        super().__init__()
        self._options = options

    def compose(self) -> ComposeResult:
        sampling = self._options.sampling
        with Vertical(id="options"):
            with VerticalScroll(can_focus=False):
                system = TextArea(self._options.system_prompt, id="system", tab_behavior="focus")
                system.border_title = "System prompt"
                yield system
                yield Static("What the model is told before the first turn.", classes="prose")
                yield Static("Sampling", classes="heading")
                for spec in _fields():
                    with Horizontal(classes="field"):
                        yield Static(spec.name.replace("_", " "), classes="name")
                        yield Input(
                            inert(_text(getattr(sampling, spec.name))),
                            id=f"field-{spec.name}",
                            compact=True,
                            placeholder="not set" if spec.optional else "",
                        )
                        yield Static(spec.range_text, classes="range", markup=False)
                    yield Static(spec.prose, classes="prose", markup=False)
                with Horizontal(classes="field"):
                    yield Static("context full", classes="name")
                    yield Select(
                        [("drop the oldest turns", "drop"), ("stop the answer", "stop")],
                        value=sampling.context_policy,
                        allow_blank=False,
                        id="policy",
                        compact=True,
                    )
                yield Static(
                    "What happens when the chat gets longer than the model can see.",
                    classes="prose",
                )
                yield Static("", id="wrong", markup=False)
            with Horizontal(id="options-buttons"):
                yield Static("tab next field", classes="hint")
                yield Button("keep (f5)", id="keep", compact=True, variant="primary")
                yield Button("leave (esc)", id="leave", compact=True)

    def on_mount(self) -> None:
        """Name the box."""
        self.query_one("#options").border_title = "This chat"

    def action_leave(self) -> None:
        """End without a change."""
        self.dismiss(None)

    def action_keep(self) -> None:
        """End with what is in the fields, or say which one is wrong."""
        values: dict[str, Any] = {}
        for spec in _fields():
            field = self.query_one(f"#field-{spec.name}", Input)
            try:
                values[spec.name] = parse_value(spec, field.value)
            except SettingsError as error:
                wrong = self.query_one("#wrong", Static)
                wrong.update(inert(error.message))
                wrong.add_class("-shown")
                field.focus()
                return
        values["context_policy"] = self.query_one("#policy", Select).value
        sampling = replace(self._options.sampling, **values)
        system_prompt = self.query_one("#system", TextArea).text
        self.dismiss(ChatOptions(system_prompt, sampling))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_keep()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "keep":
            self.action_keep()
        else:
            self.action_leave()
