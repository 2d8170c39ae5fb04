"""Little stories made by a grammar: somebody in some place, a friend, a thing, a trouble and its
end.

A story remembers who and what it is about, so that later turns can ask for a name, a place or the
ending, and so that the same story can be told shorter, or with another name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random

from qh_runtime.training.grammar import blocks, fill, polish, with_article, words

_FEMALE = {
    "girl",
    "mother",
    "mermaid",
    "queen",
    "princess",
    "witch",
    "fairy",
    "old woman",
    "grandmother",
    "hen",
    "cow",
}
_MALE = {
    "boy",
    "father",
    "policeman",
    "postman",
    "monk",
    "king",
    "prince",
    "old man",
    "grandfather",
    "rooster",
    "wizard",
}

_ON = {
    "moon",
    "street",
    "playground",
    "beach",
    "island",
    "mountain",
    "hill",
    "farm",
    "field",
    "bridge",
    "meadow",
}
_BY = {
    "ocean",
    "waterfall",
    "lighthouse",
    "sea",
    "river",
    "lake",
    "pond",
    "harbour",
    "mill",
    "tower",
}

_OPENINGS = (
    "(Once upon a time|Once|Long ago|One day), there (was|lived) {a_hero} (named|called) {H} {at}.",
    "There (once |)was {a_hero} (named|called) {H}, who lived {at}.",
    "{H} was {a_hero}. {He} lived {at}.",
    "{at}, there lived {a_hero} (named|called) {H}.",
    "{weather}. {H} the {hk} was {at}.",
    "Once there was {a_hero}. {His} name was {H}, and {he} lived {at}.",
    "{H} the {hk} was very {adj}. {He} lived {at} and liked {food}.",
)

_NEXT = (
    "The next day, {H} and {F} met again {at}. They ate {food} and talked about what had happened.",
    "After that, {F} asked {H} to come home with {fhim}. They played until it was dark.",
    "Then {H} and {F} went for a long walk. They found a {look} {T2} {spot} and laughed.",
    "A week later, it was {F} who needed help, and {H} came at once. That is how friends are.",
    "{H} told everyone {at} about it. {F} smiled and said nothing.",
    "In the evening, {H} and {F} sat by the fire and ate {food}. Then they both fell asleep.",
    "One year later, {H} and {F} were still friends. They often remembered that day.",
)


@dataclass(frozen=True)
class Plot:
    """One plot: sentence patterns in order (True = may be left out) and its summaries."""

    name: str
    needs: str
    sentences: tuple[tuple[str, bool], ...]
    problem: str
    ending: str
    short: str


@dataclass(frozen=True)
class Topic:
    """What a story shall be about, as nouns without articles; empty fields are free."""

    hero_kind: str = ""
    friend_kind: str = ""
    thing: str = ""
    place: str = ""
    hero_name: str = ""
    plot: str = ""


@dataclass(frozen=True)
class Story:
    """A told story and the facts that later turns may ask for."""

    plot: Plot
    slots: dict[str, str] = field(hash=False)
    seed: int
    text: str


@lru_cache(maxsize=1)
def plots() -> tuple[Plot, ...]:
    """Return all plots of stories.txt."""
    found = []
    for title, lines in blocks("stories.txt"):
        if not title.startswith("plot "):
            continue
        keys: dict[str, str] = {}
        sentences = []
        for line in lines:
            key, _, text = line.partition(":")
            if key in ("s", "s?"):
                sentences.append((text.strip(), key == "s?"))
            else:
                keys[key] = text.strip()
        found.append(
            Plot(
                title[5:],
                keys["needs"],
                tuple(sentences),
                keys["problem"],
                keys["ending"],
                keys["short"],
            )
        )
    return tuple(found)


def _pronouns(name: str, prefix: str) -> dict[str, str]:
    forms = (
        ("she", "her", "her", "herself")
        if name in set(words()["girl"])
        else ("he", "him", "his", "himself")
    )
    slots = dict(
        zip((f"{prefix}he", f"{prefix}him", f"{prefix}his", f"{prefix}himself"), forms, strict=True)
    )
    return slots | {key[0].upper() + key[1:]: form.capitalize() for key, form in slots.items()}


def name_for(kind: str, rng: Random, other: str = "") -> str:
    """Return a name that suits the kind and differs from `other`."""
    if kind in _FEMALE:
        tables = ["girl"]
    elif kind in _MALE:
        tables = ["boy"]
    else:
        tables = ["girl", "boy"]
    while True:
        name = rng.choice(words()[rng.choice(tables)])
        if name != other:
            return name


def _where(place: str, rng: Random) -> str:
    """Return the place with a preposition that goes with it."""
    preposition = "on" if place in _ON else "by" if place in _BY else "in"
    return f"{preposition if rng.random() < 0.8 else 'near'} the {place}"


def _tell(plot: Plot, slots: dict[str, str], seed: int) -> str:
    """Return the text; the wording depends on the seed alone, so a renamed hero keeps it."""
    rng = Random(seed)
    # Every optional sentence draws once, told or not, so that equal seeds stay in step.
    lines = [text for text, optional in plot.sentences if not (optional and rng.random() < 0.5)]
    return polish(" ".join(fill(line, rng, slots) for line in lines))


def make_story(rng: Random, topic: Topic | None = None) -> Story:
    """Return a new story about `topic`, or about anything."""
    topic = topic or Topic()
    table = words()
    fitting = [p for p in plots() if p.name == topic.plot] or [
        p for p in plots() if not topic.thing or p.needs == "thing"
    ]
    plot = rng.choice(fitting)
    everyone = table["animal"] + table["person"] if rng.random() < 0.7 else table["animal"]
    hero_kind = topic.hero_kind or rng.choice(everyone)
    friend_kind = topic.friend_kind or rng.choice([k for k in everyone if k != hero_kind])
    hero = topic.hero_name or name_for(hero_kind, rng)
    friend = name_for(friend_kind, rng, hero)
    noun = topic.thing or rng.choice(table["thing"])
    place = topic.place or rng.choice(table["place"])
    look = rng.choice(table["look"])
    foods = rng.sample(table["food"], 2)
    slots = {
        "H": hero,
        "F": friend,
        "hk": hero_kind,
        "fk": friend_kind,
        "T": noun,
        "T2": rng.choice(table["thing"]),
        "thing": noun if rng.random() < 0.2 else f"{look} {noun}",
        "place": place,
        "at": _where(place, rng),
        "food": foods[0],
        "food2": foods[1],
        "adj": rng.choice(table["adjective"]),
    }
    slots |= {
        key: rng.choice(table[key]) for key in ("spot", "skill", "fear", "work", "weather", "look")
    }
    adjective = (
        ""
        if rng.random() < 0.3 or hero_kind.startswith("old ")
        else rng.choice(table["adjective"]) + " "
    )
    slots["a_hero"] = with_article(adjective + hero_kind)
    slots |= _pronouns(hero, "") | _pronouns(friend, "f")
    slots["opening"] = fill(rng.choice(_OPENINGS), rng, slots)
    seed = rng.getrandbits(32)
    return Story(plot, slots, seed, _tell(plot, slots, seed))


def renamed(story: Story, name: str) -> Story:
    """Return the same story whose hero is called `name`."""
    old = story.slots["H"]
    slots = story.slots | _pronouns(name, "") | {"H": name}
    # The opening was filled before the name changed, so it is the one text to edit.
    slots["opening"] = story.slots["opening"].replace(old, name)
    return replace(story, slots=slots, text=_tell(story.plot, slots, story.seed))


def shorter(story: Story, rng: Random) -> str:
    """Return one or two sentences that tell the whole story."""
    return polish(fill(story.plot.short, rng, story.slots))


def continuation(story: Story, rng: Random) -> str:
    """Return what happened after the end."""
    return polish(fill(rng.choice(_NEXT), rng, story.slots))
