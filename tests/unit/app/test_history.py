"""The history: what is written is there, whatever happens to the process, the file or the disk."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_chat.history import database
from qh_chat.history.conversation import Conversation, title_of
from qh_chat.history.migrations import SCHEMA_VERSION
from qh_chat.history.store import HistoryStore
from qh_runtime.options import SamplingParams
from qh_runtime.session.events import GenerationStats

REPOSITORY = Path(__file__).resolve().parents[3]

STATS = GenerationStats(10, 2, 5, 0.5, 1.0, 0.6, 4.0, 20.0, 15, 512, 7)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "history.db"


@pytest.fixture
def store(path: Path) -> Iterator[HistoryStore]:
    store = HistoryStore(path, Clock())
    yield store
    store.close()


def filled(store: HistoryStore) -> Conversation:
    """A conversation of two turns, the second with two answers."""
    chat = Conversation(store, None, system_prompt="Be brief.")
    first = chat.say("How do I sharpen a chisel?", "m")
    answer = chat.begin_answer(first.id, "m")
    chat.end_answer(answer.id, "Start flat.", "end", STATS)
    second = chat.say("And then?", "m")
    for text in ("The bevel.", "The Bürste."):
        answer = chat.begin_answer(second.id, "m")
        chat.end_answer(answer.id, text, "end", STATS)
    return chat


def test_everything_is_there_after_reopening(store: HistoryStore, path: Path) -> None:
    chat = filled(store)
    chat.keep_draft("half a thou", "m")
    chat.set_options("Be long.", SamplingParams(temperature=0.1, stop=("x",), seed=3))
    store.close()
    again = HistoryStore(path)
    assert again.notice is None
    record = again.conversation(chat.id or 0)
    assert record is not None
    reopened = Conversation(again, record)
    assert [m.content for m in reopened.path()] == [
        "How do I sharpen a chisel?",
        "Start flat.",
        "And then?",
        "The Bürste.",
    ]
    assert reopened.path()[1].stats == STATS
    assert reopened.alternatives(reopened.path()[-1].id) == (2, 2)
    assert reopened.draft == "half a thou"
    assert reopened.title == "How do I sharpen a chisel?"
    assert reopened.system_prompt == "Be long."
    assert reopened.sampling == SamplingParams(temperature=0.1, stop=("x",), seed=3)
    assert [t.role for t in reopened.turns(reopened.leaf_id)][:2] == ["system", "user"]
    again.close()


def test_only_the_owner_can_read_it(store: HistoryStore, path: Path) -> None:
    filled(store)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_walking_alternatives_moves_the_whole_branch(store: HistoryStore) -> None:
    chat = filled(store)
    last = chat.path()[-1]
    assert not chat.step_alternative(last.id, 1)
    assert chat.step_alternative(last.id, -1)
    assert chat.path()[-1].content == "The bevel."
    edited = chat.say_instead(chat.path()[0].id, "How do I sharpen a plane?", "m")
    assert [m.content for m in chat.path()] == ["How do I sharpen a plane?"]
    assert chat.step_alternative(edited.id, -1)
    assert len(chat.path()) == 4
    assert chat.question_of(chat.path()[-1].id) == chat.path()[2].id


def test_a_conversation_of_an_empty_draft_is_not_kept(store: HistoryStore) -> None:
    chat = Conversation(store, None)
    chat.keep_draft("x", "m")
    assert len(store.conversations()) == 1
    chat.keep_draft(" ", "m")
    assert store.conversations() == []


def test_search_finds_titles_and_text_in_any_case(store: HistoryStore) -> None:
    chat = filled(store)
    other = Conversation(store, None)
    other.say("Postcard to Anna, 100% sure_thing", "m")
    assert [c.id for c in store.search("BÜRSTE")] == [chat.id]
    assert store.search("bürste")[0].excerpt == "The Bürste."
    assert [c.id for c in store.search("anna")] == [other.id]
    assert [c.id for c in store.search("%")] == [other.id]
    assert [c.id for c in store.search("_")] == [other.id]
    assert store.search("nowhere") == []
    assert len(store.search("")) == 2


def test_deleting_takes_the_messages_along(store: HistoryStore, path: Path) -> None:
    chat = filled(store)
    store.delete(chat.id or 0)
    store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    connection.close()


def test_lone_surrogates_and_nul_are_stored(store: HistoryStore) -> None:
    chat = Conversation(store, None)
    chat.say("a\ud800b\x00c", "m")
    assert store.messages(chat.id or 0)[0].content == "a\ufffdb\x00c"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Heading\nmore", "Heading"),
        ("\n\n   \n", "New chat"),
        ("word " * 40, "word " * 11 + "word…"),
        ("x" * 200, "x" * 60 + "…"),
    ],
)
def test_titles(text: str, title: str) -> None:
    assert title_of(text) == title


WRITER = """
import sys
from pathlib import Path
from qh_chat.history.conversation import Conversation
from qh_chat.history.store import HistoryStore
store = HistoryStore(Path(sys.argv[1]))
assert store.saved, store.notice
chat = Conversation(store, None)
turn = 0
while True:
    question = chat.say(f"question {turn}", "m")
    print("question", question.id, flush=True)
    answer = chat.begin_answer(question.id, "m")
    text = ""
    for piece in range(5):
        text += f"piece {piece} "
        chat.flush(answer.id, text)
        print("partial", answer.id, len(text), flush=True)
    chat.end_answer(answer.id, text, "end")
    print("answer", answer.id, flush=True)
    turn += 1
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    acknowledged = 0
    for round_number in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        # By what was said and not by the clock: a busy machine kills at as many places.
        said = [process.stdout.readline() for _ in range(1 + 5 * round_number)]
        time.sleep(0.0007 * round_number)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        began = time.monotonic()
        store = HistoryStore(path)
        assert time.monotonic() - began < 1.0
        assert store.notice is None
        messages = {m.id: m for c in store.conversations() for m in store.messages(c.id)}
        assert all(m.state != "streaming" for m in messages.values())
        for line in said:
            if len(parts := line.split()) < 2 or not line:
                continue
            what, message_id = parts[0], int(parts[1])
            acknowledged += 1
            if what == "answer":
                assert messages[message_id].state == "complete"
            elif what == "partial" and len(parts) == 3:
                assert len(messages[message_id].content) >= int(parts[2])
        check = sqlite3.connect(path)
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        check.close()
        store.close()
    assert acknowledged >= 200


def test_an_unclean_exit_is_noticed_and_checked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HistoryStore(path).close()
    checks: list[bool] = []
    real = database.connect_file

    def spy(where: Path, check: bool) -> sqlite3.Connection:
        checks.append(check)
        return real(where, check)

    monkeypatch.setattr("qh_chat.history.store.connect_file", spy)
    HistoryStore(path).close()
    (path.parent / "history-123-abc.lock").touch()
    HistoryStore(path).close()
    HistoryStore(path).close()
    assert checks == [False, True, False]


def test_another_process_that_still_answers_is_left_alone(path: Path) -> None:
    first = HistoryStore(path)
    chat = Conversation(first, None)
    question = chat.say("q", "m")
    answer = chat.begin_answer(question.id, "m")
    second = HistoryStore(path)
    assert second.messages(chat.id or 0)[1].state == "streaming"
    chat.end_answer(answer.id, "done", "end")
    assert second.messages(chat.id or 0)[1].content == "done"
    second.close()
    first.close()


@pytest.mark.parametrize("damage", ["zeros", "text", "middle"])
def test_a_damaged_file_is_moved_aside_with_a_notice(path: Path, damage: str) -> None:
    store = HistoryStore(path)
    chat = Conversation(store, None)
    for number in range(200):
        chat.say(f"message {number} " * 20, "m")
    store.close()
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[:4096] = bytes(4096)
    elif damage == "text":
        data[:] = b"this is not a database\n" * 400
    else:
        data[4096 * 3 : 4096 * 12] = b"\xff" * (4096 * 9)
        (path.parent / "history-1-1.lock").touch()
    path.write_bytes(data)
    store = HistoryStore(path)
    notice = store.take_notice()
    assert notice is not None
    assert "damaged" in notice
    assert store.saved
    (kept,) = path.parent.glob("history.damaged-*.db")
    assert kept.read_bytes() == bytes(data)
    Conversation(store, None).say("goes on", "m")
    store.close()
    again = HistoryStore(path)
    assert [c.title for c in again.conversations()] == ["goes on"]
    again.close()


def test_a_newer_file_is_left_untouched(path: Path) -> None:
    HistoryStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    store = HistoryStore(path)
    assert not store.saved
    assert "newer" in (store.take_notice() or "")
    Conversation(store, None).say("only in memory", "m")
    assert len(store.conversations()) == 1
    store.close()
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_keeps_chats_in_memory(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    store = HistoryStore(blocker / "history.db")
    assert not store.saved
    assert "memory only" in (store.take_notice() or "")
    chat = Conversation(store, None)
    chat.say("hello", "m")
    assert store.search("hello")
    store.close()


def test_a_full_disk_is_said_and_left_as_soon_as_it_is_not(path: Path) -> None:
    clock = Clock()
    store = HistoryStore(path, clock)
    chat = Conversation(store, None)
    chat.say("before", "m")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limit[1]))
    try:
        chat.say("during " * 5000, "m")
        assert not store.saved
        notice = store.take_notice() or ""
        assert "cannot be written" in notice
        assert "free" in notice
        chat.say("still", "m")
        clock.now += 60
        chat.say("still too", "m")
        assert not store.saved
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    clock.now += 60
    chat.say("after", "m")
    assert store.saved
    assert store.take_notice() == "The history is saved again."
    store.close()
    again = HistoryStore(path)
    texts = [m.content.split()[0] for m in again.messages(chat.id or 0)]
    assert texts == ["before", "during", "still", "still", "after"]
    again.close()


def test_failing_at_every_write_leaves_an_intact_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement of a turn fails once; the file stays sound, the chat goes on."""
    for fail_at in range(1, 9):
        path = tmp_path / f"{fail_at}.db"
        store = HistoryStore(path, Clock())
        chat = Conversation(store, None)
        chat.say("kept", "m")
        count = 0

        def refuse(*_: object, at: int = fail_at) -> int:
            nonlocal count
            count += 1
            return sqlite3.SQLITE_DENY if count == at else sqlite3.SQLITE_OK

        assert store._file is not None
        store._file.set_authorizer(refuse)
        question = chat.say("asked", "m")
        answer = chat.begin_answer(question.id, "m")
        chat.end_answer(answer.id, "answered", "end")
        store._file.set_authorizer(None)
        texts = [m.content for m in store.messages(chat.id or 0)]
        assert texts == ["kept", "asked", "answered"]
        assert "memory" in (store.take_notice() or "")
        store.close()
        check = sqlite3.connect(path)
        assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert check.execute("SELECT content FROM messages").fetchone() == ("kept",)
        check.close()


def test_migrating_backs_up_and_is_all_or_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HistoryStore(path)
    Conversation(store, None).say("old", "m")
    store.close()

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE messages ADD COLUMN extra TEXT")
        if not connection.execute("PRAGMA database_list").fetchone()["file"]:
            return
        raise sqlite3.OperationalError("no")

    steps = (*database.MIGRATIONS, broken)
    monkeypatch.setattr(database, "MIGRATIONS", steps)
    monkeypatch.setattr(database, "SCHEMA_VERSION", len(steps))
    store = HistoryStore(path)
    assert not store.saved
    store.close()
    monkeypatch.undo()
    store = HistoryStore(path)
    assert store.saved
    assert store.conversations()[0].title == "old"
    store.close()
    backup = path.with_name(f"history.v{SCHEMA_VERSION}.backup.db")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    connection = sqlite3.connect(backup)
    assert connection.execute("SELECT content FROM messages").fetchone() == ("old",)
    connection.close()


def test_a_file_of_version_1_opens(tmp_path: Path) -> None:
    """A file as version 1 wrote it, byte for byte of its schema, is read by this version."""
    path = tmp_path / "history.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL,
            created_at REAL NOT NULL, updated_at REAL NOT NULL, model TEXT NOT NULL DEFAULT '',
            system_prompt TEXT NOT NULL DEFAULT '', sampling TEXT NOT NULL DEFAULT '{}',
            draft TEXT NOT NULL DEFAULT '', leaf_id INTEGER) STRICT;
        CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
            role TEXT NOT NULL, content TEXT NOT NULL, state TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
            model TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL,
            stats TEXT NOT NULL DEFAULT '', owner TEXT NOT NULL DEFAULT '') STRICT;
        INSERT INTO conversations (id, title, created_at, updated_at, sampling, leaf_id)
            VALUES (1, 'old', 1.0, 2.0, '{"temperature": "hot", "top_k": 7, "new": 1}', 9);
        INSERT INTO messages (id, conversation_id, parent_id, role, content, state, created_at,
            stats) VALUES (1, 1, NULL, 'user', 'hello', 'complete', 1.0, '{"tokens": 1}');
        PRAGMA user_version=1;
        """
    )
    connection.close()
    store = HistoryStore(path)
    record = store.conversation(1)
    assert record is not None
    assert record.sampling == SamplingParams(top_k=7)
    chat = Conversation(store, record)
    assert [m.content for m in chat.path()] == ["hello"]
    assert chat.path()[0].stats is None
    store.close()
