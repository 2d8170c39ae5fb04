"""The project's own dialogues: deterministic, seeded, simple English, made of the phrase files and
the story grammar.

One index gives one conversation, the same on every machine, so a range of indices is a data set and
another range is held out. No text of anybody else goes in; sentences of public-domain books may be
passed as `prose`, and then serve as messages that the model learns not to understand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from qh_runtime.training.grammar import (
    Exchange,
    blocks,
    exchanges,
    fill,
    polish,
    read_phrases,
    with_article,
    words,
)
from qh_runtime.training.messages import Message, as_typed
from qh_runtime.training.questions import make_question
from qh_runtime.training.stories import (
    Story,
    Topic,
    continuation,
    make_story,
    renamed,
    shorter,
)
from qh_runtime.training.topics import draw_topic

#: Conversations from this index on are for evaluation and are never trained on.
HELD_OUT_START = 1_000_000_000

_SYSTEMS = (
    "You are a (helpful|friendly|kind|small|useful) (assistant|chatbot|model|storyteller).",
    "You are a helpful assistant. "
    "(Answer briefly.|Be kind.|Keep your answers short.|Answer in English.)",
    "Answer (shortly|briefly|in simple words|politely).",
    "You are qh-toy, the small built-in model of qh-chat.",
    "You tell stories (for|to) children.",
)


@lru_cache(maxsize=1)
def _requests() -> dict[str, list[str]]:
    return dict(blocks("requests.txt"))


@lru_cache(maxsize=1)
def _odd_replies() -> list[str]:
    return read_phrases("odd.txt").splitlines()[1:]


class Conversation:
    """A conversation under construction; drawing order alone decides what is said."""

    def __init__(self, rng: Random, prose: Sequence[str] = ()) -> None:
        self.rng = rng
        self.prose = prose
        self.messages: list[Message] = []
        self.story: Story | None = None
        self.user_name = ""

    def say(self, user: str, reply: str, protected: Sequence[str] = ()) -> None:
        """Append one turn of each side."""
        self.messages.append(Message("user", as_typed(user, self.rng, protected)))
        self.messages.append(Message("assistant", reply))

    def exchange(self, file: str) -> None:
        """Append one exchange of a phrase file, drawn by weight."""
        pool: list[Exchange] = exchanges(file)
        (topic,) = self.rng.choices(pool, [e.weight for e in pool])
        slots = {
            k: self.rng.choice(words()[k])
            for k in ("country", "famous", "subject", "language", "code")
        }
        slots |= {
            "n": str(self.rng.randint(21, 999)),
            "m": str(self.rng.randint(11, 999)),
            "k": str(self.rng.randint(2, 9)),
        }
        user = fill(self.rng.choice(topic.users), self.rng, slots)
        reply = polish(fill(self.rng.choice(topic.replies), self.rng, slots))
        self.say(user, reply, list(slots.values()))

    def question(self) -> None:
        """Append an easy question and its answer."""
        user, reply = make_question(self.rng)
        self.say(user, reply, [user])

    def odd(self) -> None:
        """Append a message that the model does not understand."""
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            user = "".join(
                rng.choice("asdfghjklqwertyuiopzxcvbnm ") for _ in range(rng.randint(3, 20))
            ).strip()
        elif kind == 1 or not self.prose:
            pool = words()
            # Numbers and months have answers of their own.
            names = [name for name in pool if name not in ("number", "month")]
            tables = rng.choices(names, k=rng.randint(1, 4))
            user = " ".join(rng.choice(pool[t]) for t in tables)
        else:
            tokens = rng.choice(self.prose).split()
            start = rng.randrange(max(1, len(tokens) - 4))
            user = " ".join(tokens[start : start + rng.randint(1, 12)])
            if kind == 3:
                user = (
                    fill("(what is|why is|how is|who is|explain|tell me why|is it true that) ", rng)
                    + user
                )
        self.say(user or "...", fill(rng.choice(_odd_replies()), rng))

    def introduce(self) -> None:
        """Append the user's name, or the question for it."""
        rng = self.rng
        if self.user_name and rng.random() < 0.7:
            self.say(
                fill(
                    "(what is my name|what's my name|do you know my name"
                    "|do you remember my name|who am i)",
                    rng,
                ),
                fill(f"(Your name is {self.user_name}.|You are {self.user_name}.)", rng),
            )
        elif not self.user_name and rng.random() < 0.3:
            self.say(
                fill("(what is my name|do you know my name|who am i|what's my name)", rng),
                fill(
                    "(I do not know your name yet.|You have not told me yet.) What is your name?",
                    rng,
                ),
            )
        else:
            self.user_name = rng.choice(words()[rng.choice(("girl", "boy"))])
            self.say(
                fill(
                    "(my name is|i am|i'm|call me|hi, i am|hello, my name is|hi i'm) "
                    + self.user_name,
                    rng,
                ),
                fill(
                    f"(Hello|Hi|Nice to meet you), {self.user_name}! (Shall I tell you a story?"
                    "|I am qh-toy.|What would you like to do?|How are you?)",
                    rng,
                ),
                [self.user_name],
            )

    def _told(self, topic: Topic | None, about: str) -> str:
        self.story = make_story(self.rng, topic)
        draw = self.rng.random()
        if draw < 0.12 and about:
            lead = fill("(Here is a story about|This is a story about)", self.rng)
            return f"{lead} {about}.\n\n{self.story.text}"
        if draw < 0.2:
            return (
                fill("(Here is one.|Gladly!|Sure! Here is a story.|Listen!)", self.rng)
                + "\n\n"
                + self.story.text
            )
        return self.story.text

    def tell(self, ask: str = "ask") -> None:
        """Append a request for a story and the story."""
        if self.rng.random() < 0.2 and ask == "ask":
            self.say(fill(self.rng.choice(_requests()["ask_any"]), self.rng), self._told(None, ""))
            return
        topic, about = draw_topic(self.rng)
        if ask == "ask" and topic.hero_kind and self.rng.random() < 0.06:
            self._begun_by_user(topic)
            return
        user = fill(self.rng.choice(_requests()[ask]), self.rng, {"x": about})
        named = " ".join(w for w in about.split() if w not in ("my", "your"))
        self.say(user, self._told(topic, named if named == about else ""), [about])

    def _begun_by_user(self, topic: Topic) -> None:
        """Append an opening sentence by the user and the rest of the story as the reply."""
        self.story = make_story(self.rng, topic)
        opening = polish(self.story.slots["opening"])
        rest = self.story.text[len(opening) :].strip()
        prefix = self.rng.choice(("", "", "continue: ", "go on: ", "finish this story: "))
        self.messages += [Message("user", prefix + opening), Message("assistant", rest)]

    def follow_up(self) -> None:
        """Append one turn about the last story."""
        story = self.story
        if story is None:
            self.tell()
            return
        rng, slots = self.rng, dict(story.slots)
        kinds = (
            "another",
            "another_about",
            "shorter",
            "longer",
            "again",
            "rename",
            "praise",
            "blame",
            "question",
        )
        (kind,) = rng.choices(kinds, (4, 3, 3, 3, 0.7, 0.7, 1, 0.6, 7))
        if kind == "another_about":
            self.tell("another_about")
            return
        if kind == "question":
            self._about_story(story)
            return
        table = "girl" if slots["H"] in words()["girl"] else "boy"
        slots["new"] = rng.choice([n for n in words()[table] if n not in (slots["H"], slots["F"])])
        user = fill(rng.choice(_requests()[kind]), rng, slots)
        if kind == "another":
            reply = self._told(None, "")
        elif kind == "shorter":
            reply = shorter(story, rng)
        elif kind == "longer":
            reply = continuation(story, rng)
        elif kind == "again":
            reply = story.text
        elif kind == "rename":
            self.story = renamed(story, slots["new"])
            reply = self.story.text
        elif kind == "praise":
            reply = fill(
                "(Thank you!|I am glad that you like it.|How nice of you!) "
                "(Shall I tell you another one?|Would you like to hear more?|)",
                rng,
            )
        else:
            reply = fill(
                "(I am sorry.|You may be right.) I am only a small model. "
                "(Shall I try another one?|Shall I try again?)",
                rng,
            )
        self.say(
            user, reply.strip(), [slots["H"], slots["F"], slots["hk"], slots["fk"], slots["new"]]
        )

    def _about_story(self, story: Story) -> None:
        rng, slots = self.rng, dict(story.slots)
        slots["wrong"] = rng.choice([k for k in words()["animal"] if k != slots["hk"]])
        asks = {
            "q_hero_name": "(The {hk} was called {H}.|The name of the {hk} was {H}."
            "|{H}.|It was {H} the {hk}.)",
            "q_hero_kind": "{H} was {a_hk}.",
            "q_friend_name": "(The {fk} was called {F}.|It was {F} the {fk}.|{F}.)",
            "q_friend_kind": "{F} was {a_fk}.",
            "q_place": "(It was {at}.|It happened {at}.)",
            "q_problem": story.plot.problem,
            "q_ending": story.plot.ending,
            "q_title": '(You could call it|How about|Perhaps) "{H} the {hk}".',
        }
        if story.plot.name in ("lost", "found"):
            asks["q_thing"] = (
                "{H} " + ("lost" if story.plot.name == "lost" else "found") + " {a_thing}."
            )
        if slots["hk"] == slots["fk"]:
            asks.pop("q_friend_name")
        kind = rng.choice(list(asks))
        for key, noun in (("a_hk", "hk"), ("a_fk", "fk"), ("a_thing", "thing")):
            slots[key] = with_article(slots[noun])
        user = fill(rng.choice(_requests()[kind]), rng, slots)
        reply = polish(fill(asks[kind], rng, slots))
        if kind == "q_hero_kind" and slots["wrong"] in user:
            reply = f"No, {slots['H']} was {slots['a_hk']}."
        self.say(user, reply, [slots["H"], slots["F"], slots["hk"], slots["fk"]])


def conversation(index: int, prose: Sequence[str] = ()) -> list[Message]:
    """Return conversation `index`; the same index and prose give the same messages."""
    rng = Random(f"qh-chat dialogue {index}")
    talk = Conversation(rng, prose)
    if rng.random() < 0.15:
        talk.messages.append(Message("system", fill(rng.choice(_SYSTEMS), rng)))
    turns = rng.choices((1, 2, 3, 4, 5), (30, 25, 20, 15, 10))[0]
    for _ in range(turns):
        if talk.story is not None and rng.random() < 0.65:
            talk.follow_up()
            continue
        (kind,) = rng.choices(range(7), (24, 16, 16, 9, 24, 6, 5))
        if kind == 0:
            talk.tell()
        elif kind in (1, 2, 3):
            talk.exchange(("smalltalk.txt", "about.txt", "unknown.txt")[kind - 1])
        elif kind == 4:
            talk.question()
        elif kind == 5:
            talk.odd()
        else:
            talk.introduce()
    return talk.messages
