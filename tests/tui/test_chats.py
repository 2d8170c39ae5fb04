"""The list of chats and what the mouse can do: search, titles, deleting, links, the status line."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from textual.geometry import Offset
from textual.widgets import Button, Input, OptionList

from qh_chat.app import QhChatApp
from qh_chat.history.store import HistoryStore
from qh_chat.screens.dialogs import ConfirmDialog, TextDialog
from qh_chat.screens.help import HelpScreen
from qh_chat.screens.models import ModelsScreen
from qh_chat.screens.options import ChatOptionsDialog
from qh_chat.widgets.code_block import CodeBlock
from qh_chat.widgets.status_bar import StatusBar
from qh_runtime.options import SamplingParams
from tests.support.chat_app import NOW, ChatPilot, chat_app
from tests.support.fake_engine import Script
from tests.support.sample_text import CHISEL

SIZE = (120, 40)


def screen_words(app: QhChatApp, word: str) -> list[Offset]:
    """Where a word stands on the screen."""
    found = []
    for y, strip in enumerate(app.screen._compositor.render_strips()):
        x = strip.text.find(word)
        if x >= 0:
            found.append(Offset(x, y))
    return found


async def click(chat: ChatPilot, word: str, index: int = -1) -> None:
    await chat.until(lambda: bool(screen_words(chat.app, word)))
    at = screen_words(chat.app, word)[index]
    await chat.pilot.click(offset=(at.x, at.y))
    await chat.pilot.pause()


async def copied(chat: ChatPilot, folder: Path, start: str) -> None:
    """Wait until the last copy begins so."""
    path = folder / "last-copy.txt"
    await chat.until(lambda: path.exists() and path.read_text().startswith(start))


def titles(chat: ChatPilot) -> list[str]:
    return [summary.title for summary in chat.app.history.conversations()]


def long_chat(folder: Path) -> None:
    """A history with one conversation of 120 short messages."""
    store = HistoryStore(folder / "history" / "history.db", lambda: NOW)
    record = store.create("long", "m", "", SamplingParams())
    parent = None
    for number in range(120):
        message = store.add(record.id, parent, "user", f"message {number:03}")
        parent = message.id
    store.close()


async def two_chats(chat: ChatPilot) -> None:
    await chat.say("about foxes")
    await chat.press("ctrl+n")
    await chat.say("about hens")


async def test_links_below_an_answer(tmp_path: Path) -> None:
    scripts = (Script("first answer"), Script("second answer"))
    async with chat_app(tmp_path, *scripts, size=SIZE) as chat:
        await chat.say("question")
        await click(chat, "again")
        await chat.until(lambda: chat.texts == ["question", "second answer"])
        await chat.idle()
        # The links move aside for the arrows.
        await chat.until(lambda: bool(screen_words(chat.app, "2 of 2")))
        await click(chat, "copy", 0)
        await copied(chat, tmp_path, "second answer")
        # A click on a message selects it, and shows what can be done with it.
        await click(chat, "question")
        await click(chat, "edit", 0)
        assert chat.app.chat.composer.text == "question"


async def test_an_answer_is_stopped_by_a_click(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script(CHISEL, hold=threading.Semaphore(5))) as chat:
        await chat.say("sharpen", wait=False)
        await chat.until(lambda: chat.texts[-1].startswith("Start with a **flat back**."))
        assert str(chat.app.chat.composer.border_subtitle) == "esc stops the answer"
        await click(chat, "stop", 0)
        await chat.idle()
        assert chat.mark() == "stopped"
        assert str(chat.app.chat.composer.border_subtitle) == "enter send · ctrl+j newline"


async def test_code_blocks_have_numbers_and_are_copied_by_click_and_key(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script(CHISEL), size=SIZE) as chat:
        await chat.say("sharpen")
        assert len(chat.views[-1].query(CodeBlock)) == 2
        await click(chat, "copy (2)")
        await copied(chat, tmp_path, "def strokes(grit: int) -> int:\n    return 10")
        chat.app.chat.transcript.focus()
        await chat.press("1")
        await copied(chat, tmp_path, "1000 → 3000 → 8000 grit\n")


async def test_new_rename_and_delete_by_mouse(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two"), size=SIZE) as chat:
        await two_chats(chat)
        await click(chat, "about foxes", 0)
        await chat.until(lambda: chat.texts == ["about foxes", "one"])
        await click(chat, "rename")
        await chat.until(lambda: isinstance(chat.app.screen, TextDialog))
        chat.app.screen.query_one(Input).value = "Reynard"
        await chat.press("enter")
        await chat.until(lambda: titles(chat) == ["about hens", "Reynard"])
        assert str(chat.app.chat.transcript.border_title) == "Reynard"
        await click(chat, "delete")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmDialog))
        # Enter is no.
        assert chat.app.focused is chat.app.screen.query_one("#no", Button)
        await chat.press("enter")
        assert titles(chat) == ["about hens", "Reynard"]
        await click(chat, "delete")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmDialog))
        await chat.press("y")
        await chat.until(lambda: titles(chat) == ["about hens"])
        await chat.until(lambda: chat.texts == ["about hens", "two"])
        await click(chat, "+ new")
        await chat.until(lambda: chat.texts == [])


async def test_keys_of_the_list_act_on_the_marked_chat(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two")) as chat:
        await two_chats(chat)
        await chat.press("f2", "j", "f8")
        await chat.until(lambda: isinstance(chat.app.screen, TextDialog))
        assert chat.app.screen.query_one(Input).value == "about foxes"
        chat.app.screen.query_one(Input).value = "Reynard"
        await chat.press("enter")
        await chat.until(lambda: titles(chat) == ["about hens", "Reynard"])
        assert str(chat.app.chat.transcript.border_title) == "about hens"
        await chat.press("d")
        await chat.until(lambda: isinstance(chat.app.screen, ConfirmDialog))
        await chat.press("y")
        await chat.until(lambda: titles(chat) == ["about hens"])
        assert chat.texts == ["about hens", "two"]


async def test_a_search_hit_opens_at_the_message_that_was_found(tmp_path: Path) -> None:
    long_chat(tmp_path)
    async with chat_app(tmp_path) as chat:
        await chat.press("ctrl+n", "ctrl+f")
        await chat.press(*"MESSAGE", "space", *"003", "enter", "down", "enter")
        transcript = chat.app.chat.transcript
        await chat.until(lambda: transcript.selected is not None)
        assert transcript.selected is not None
        assert transcript.selected.text == "message 003"
        assert chat.app.focused is transcript


async def test_a_search_hit_on_another_branch_shows_that_branch(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("amber"), Script("basalt")) as chat:
        await chat.say("stones")
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.texts == ["stones", "basalt"])
        await chat.idle()
        await chat.press("ctrl+f", *"amber", "down", "down", "enter")
        await chat.until(lambda: chat.texts == ["stones", "amber"])


async def test_escape_leaves_the_search_then_the_list(tmp_path: Path) -> None:
    async with chat_app(tmp_path) as chat:
        await chat.say("foxes")
        await chat.press("ctrl+f", *"fox")
        rows = chat.app.chat.query_one(OptionList)
        await chat.until(lambda: rows.option_count == 2)
        await chat.press("escape")
        assert chat.app.chat.query_one("#search", Input).value == ""
        assert chat.app.chat.chats_shown
        await chat.press("escape")
        assert not chat.app.chat.chats_shown
        assert chat.app.focused is chat.app.chat.composer


async def test_the_status_line_opens_what_it_is_about(tmp_path: Path) -> None:
    async with chat_app(tmp_path, size=SIZE) as chat:
        line = chat.app.chat.query_one(StatusBar).region.y
        for word, kind in (
            ("scripted", ModelsScreen),
            ("context ", ChatOptionsDialog),
            ("f1 help", HelpScreen),
        ):
            at = next(at for at in screen_words(chat.app, word) if at.y == line)
            await chat.pilot.click(offset=(at.x + 1, at.y))
            await chat.until(lambda kind=kind: isinstance(chat.app.screen, kind))
            await chat.press("escape")
            await chat.until(lambda: chat.app.screen is chat.app.chat)


async def test_the_draft_of_before_comes_back_when_an_edit_is_sent(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two")) as chat:
        await chat.say("questoin")
        chat.app.chat.composer.put("a draft")
        await chat.until(lambda: chat.app.chat.conversation.draft == "a draft")
        chat.app.chat.transcript.focus()
        await chat.press("e")
        chat.app.chat.composer.put("question")
        await chat.press("enter")
        await chat.idle()
        assert chat.texts == ["question", "two"]
        assert chat.app.chat.composer.text == "a draft"


@pytest.mark.parametrize(("key", "focus"), [("f5", "system"), ("f6", "sampling-temperature")])
async def test_a_dialog_is_ready_to_type_in(tmp_path: Path, key: str, focus: str) -> None:
    async with chat_app(tmp_path) as chat:
        await chat.press(key)
        await chat.until(lambda: chat.app.screen is not chat.app.chat)
        assert chat.app.focused is not None
        assert chat.app.focused.id == focus


async def test_the_mouse_wheel_leaves_the_end_while_an_answer_streams(tmp_path: Path) -> None:
    hold = threading.Semaphore(60)
    text = " ".join(f"word{number}" for number in range(400))
    async with chat_app(tmp_path, Script(text, hold=hold)) as chat:
        await chat.say("long\n" * 30, wait=False)
        await chat.until(lambda: "word59" in chat.texts[-1])
        transcript = chat.app.chat.transcript
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        for _ in range(4):
            transcript.scroll_up(animate=False)
        await chat.pilot.pause()
        at = transcript.scroll_y
        assert at < transcript.max_scroll_y
        hold.release(300)
        await chat.until(lambda: "word350" in chat.texts[-1])
        assert transcript.scroll_y == at
        await chat.press("escape")
        await chat.idle()


async def test_a_long_chat_opens_at_its_end_and_grows_upwards(tmp_path: Path) -> None:
    long_chat(tmp_path)
    async with chat_app(tmp_path, size=(80, 60)) as chat:
        transcript = chat.app.chat.transcript
        # More than are mounted at first, since these do not fill the window.
        await chat.until(lambda: transcript.max_scroll_y > 0)
        assert chat.texts[-1] == "message 119"
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        before = len(chat.views)
        assert before < 60
        first = chat.views[0]
        transcript.scroll_relative(y=-1, animate=False)
        transcript.scroll_home(animate=False)
        await chat.until(lambda: len(chat.views) > before)
        # What was at the top stays in sight.
        await chat.until(lambda: transcript.scroll_y > 0)
        assert chat.app.screen.find_widget(first).visible_region.height > 0
        chat.app.chat.transcript.focus()
        # Far away other messages take the place of these.
        await chat.press("g")
        await chat.until(lambda: chat.texts[0] == "message 000")
        assert transcript.selected is chat.views[0]
        assert len(chat.views) < 60
        assert "▾ " in str(transcript.children[-1].render())
        # Down from the last of them more follow.
        mounted = len(chat.views)
        transcript.select(chat.views[-1])
        await chat.press("j")
        await chat.until(lambda: len(chat.views) > mounted)
        assert transcript.selected.text == f"message {mounted:03}"
        await chat.press("G")
        await chat.until(lambda: chat.texts[-1] == "message 119")
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        assert chat.views[-1].has_class("-last")
        # A new message is always below everything.
        await chat.press("g")
        await chat.until(lambda: chat.texts[0] == "message 000")
        await chat.say("and now")
        assert chat.texts[-2:] == ["and now", "Hello there."]
        await chat.until(lambda: transcript.scroll_y == transcript.max_scroll_y)


async def test_a_selection_is_copied_like_everything_else_and_it_is_said_where(
    tmp_path: Path,
) -> None:
    async with chat_app(tmp_path, Script("Flatten the back, then hone.")) as chat:
        await chat.say("sharpen")
        # ctrl+c copies what the mouse selected; the next one is no longer about that.
        at = screen_words(chat.app, "Flatten")[0]
        await chat.pilot.mouse_down(offset=(at.x, at.y))
        await chat.pilot.hover(offset=(at.x + 7, at.y))
        await chat.pilot.mouse_up(offset=(at.x + 7, at.y))
        await chat.press("ctrl+c")
        await copied(chat, tmp_path, "Flatten")
        (notice,) = chat.app._notifications
        assert "terminal clipboard" in notice.message
        assert str(tmp_path / "last-copy.txt") in notice.message
        assert not chat.app.screen.get_selected_text()
        # The message box.
        chat.app.chat.composer.focus()
        await chat.press(*"hone it", "shift+left", "shift+left", "ctrl+c")
        await copied(chat, tmp_path, "it")


async def test_the_list_follows_the_width_of_the_window(tmp_path: Path) -> None:
    async with chat_app(tmp_path) as chat:
        chats, main = chat.app.chat.chats, chat.app.chat.query_one("#main")
        assert (chats.display, main.display) == (False, True)
        await chat.press("f2")
        assert (chats.display, main.display) == (True, False)
        await chat.pilot.resize_terminal(*SIZE)
        await chat.until(lambda: (chats.display, main.display) == (True, True))
        assert chats.size.width < 40
        await chat.press("f2")
        assert (chats.display, main.display) == (False, True)
        await chat.press("f2", "escape")
        await chat.pilot.resize_terminal(80, 24)
        await chat.press(*"typed")
        await chat.until(lambda: chat.app.chat.composer.text.endswith("typed"))
