"""What users ask stories about: somebody, something, some place, a name, a deed or an idea."""

from __future__ import annotations

from random import Random

from qh_runtime.training.grammar import fill, with_article, words
from qh_runtime.training.stories import Topic, name_for

#: What the hero of a requested story does, and the plot in which it happens.
_DEEDS = (
    ("fear", "(who is|that is|who was) afraid"),
    ("lost", "(who|that) (lost|loses) something"),
    ("learn", "(who|that) (wants|learns|wanted) to (learn|fly|swim|dance)"),
    ("astray", "(who|that) (gets|got|is) lost"),
    ("night", "(who|that) (cannot|can't|could not) sleep"),
    ("build", "(who|that) builds something"),
    ("share", "(who|that) (is hungry|shares|shared food)"),
    ("race", "(who|that) runs a race"),
    ("wish", "(who|that) (has|had|finds) (a wish|magic)"),
    ("party", "(who|that) has a birthday"),
    ("rescue", "(who|that) (helps|saves) a friend"),
)


def draw_topic(rng: Random) -> tuple[Topic, str]:
    """Return a topic and the words by which a user asks for it, with articles."""
    table = words()
    kinds = table["animal"] + table["person"]
    kind = rng.choice(kinds)
    draw = rng.random()
    if draw < 0.04:
        return Topic(), rng.choice(table["idea"])
    if draw < 0.10:
        plot, deed = rng.choice(_DEEDS)
        return Topic(hero_kind=kind, plot=plot), f"{with_article(kind)} {fill(deed, rng)}"
    if draw < 0.50:
        if rng.random() < 0.1:
            return Topic(hero_kind=kind), fill("(my|the|your) ", rng) + kind
        return Topic(hero_kind=kind), with_article(kind)
    if draw < 0.62:
        other = rng.choice([k for k in kinds if k != kind])
        joint = fill("(and|and|who meets|with)", rng)
        asked = f"{with_article(kind)} {joint} {with_article(other)}"
        return Topic(hero_kind=kind, friend_kind=other), asked
    if draw < 0.72:
        thing = rng.choice(table["thing"])
        article = fill("(a~|the |a~|my )", rng).replace("a~", with_article(thing)[: -len(thing)])
        return Topic(thing=thing), article + thing
    if draw < 0.80:
        place = rng.choice(table["place"])
        return Topic(place=place), f"the {place}"
    if draw < 0.86:
        thing = rng.choice(table["thing"])
        asked = f"{with_article(kind)} and {with_article(thing)}"
        return Topic(hero_kind=kind, thing=thing), asked
    if draw < 0.90:
        place = rng.choice(table["place"])
        return Topic(hero_kind=kind, place=place), f"{with_article(kind)} in the {place}"
    name = name_for(kind, rng)
    if draw < 0.95:
        joint = fill("(named|called|with the name)", rng)
        return Topic(hero_kind=kind, hero_name=name), f"{with_article(kind)} {joint} {name}"
    kind = rng.choice(("girl", "boy"))
    name = name_for(kind, rng)
    return Topic(hero_kind=kind, hero_name=name), name
