"""Easy questions with known answers: colours, opposites, animals, counting, small sums, rhymes,
spelling, lists.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qh_runtime.training.grammar import exchanges, facts, fill, polish, with_article, words

Answered = tuple[str, str]

_NUMBERS = words()["number"]
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = words()["month"]
_GROUPS = (
    "animal",
    "fruit",
    "vegetable",
    "colour",
    "bird",
    "tree",
    "tool",
    "clothes",
    "insect",
    "instrument",
)
_SINGULAR = {"clothes": "piece of clothing", "instrument": "musical instrument"}


def _pair(rng: Random) -> Answered:
    asked = rng.choice(exchanges("questions.txt"))
    left, right = rng.choice(facts()[asked.name])
    slots = {"l": left, "r": right, "al": with_article(left), "n": left.split(" ", 1)[-1]}
    question = "|".join(asked.users)
    return fill(f"({question})", rng, slots), fill(asked.replies[0], rng, slots)


def _fixed(rng: Random) -> Answered:
    return rng.choice(facts()["fixed"])


def _count(rng: Random) -> Answered:
    low, high = 1, rng.randint(3, 20)
    if rng.random() < 0.2:
        low = rng.randint(1, 10)
        high = low + rng.randint(2, 9)
    run = range(low, high + 1)
    as_words = high <= 20 and rng.random() < 0.3
    question = (
        f"(count to {high}|can you count to {high}|please count to {high}|count up to {high})"
    )
    if low > 1:
        question = f"count from {low} to {high}"
    elif rng.random() < 0.2:
        question, run = f"count (backwards|down) from {high}", range(high, 0, -1)
    names = [_NUMBERS[n] if as_words else str(n) for n in run]
    return fill(question, rng) + (" in words" if as_words else ""), ", ".join(names) + "."


def _sum(rng: Random) -> Answered:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    sign, word, result = "+", "plus", a + b
    if rng.random() < 0.35 and a >= b:
        sign, word, result = "-", "minus", a - b
    if rng.random() < 0.25:
        spoken = f"{_NUMBERS[a]} {word} {_NUMBERS[b]}"
        return fill(f"(what is|how much is) {spoken}", rng), f"{spoken} is {_NUMBERS[result]}."
    sums = f"({a} {sign} {b}|{a}{sign}{b}|{a} {word} {b})"
    ask = f"(what is|how much is|what's|whats|calculate|) {sums}"
    return fill(ask, rng), f"{a} {sign} {b} = {result}"


def _after(rng: Random) -> Answered:
    kind = rng.randrange(3)
    step, word = rng.choice(((1, "after"), (-1, "before")))
    if kind == 2:
        n = rng.randint(1, 30)
        return fill(f"(what|which number) comes {word} {n}", rng), f"{word} {n} comes {n + step}."
    names = _DAYS if kind == 0 else _MONTHS
    index = rng.randrange(len(names))
    noun = "day" if kind == 0 else "month"
    ask = f"(what|which) {noun} (comes|is) {word} {names[index]}"
    return fill(ask, rng), f"{word} {names[index]} comes {names[(index + step) % len(names)]}."


def _bigger(rng: Random) -> Answered:
    (left, small), (right, large) = rng.sample(facts()["size"], 2)
    while small == large:
        (left, small), (right, large) = rng.sample(facts()["size"], 2)
    more = rng.random() < 0.6
    winner, loser = (left, right) if (small > large) == more else (right, left)
    word = "bigger" if more else "smaller"
    ask = f"(what is|which is|who is) {word}(,|) {with_article(left)} or {with_article(right)}"
    return fill(ask, rng), f"{with_article(winner)} is {word} than {with_article(loser)}."


def _is_it(rng: Random) -> Answered:
    group, other = rng.sample(_GROUPS[:2] + _GROUPS[2:3] + _GROUPS[6:], 2)
    noun = rng.choice(words()[group])
    true = with_article(_SINGULAR.get(group, group))
    if rng.random() < 0.5 or noun in words()[other]:
        return f"is {with_article(noun)} {true}", f"Yes, {with_article(noun)} is {true}."
    false = with_article(_SINGULAR.get(other, other))
    return f"is {with_article(noun)} {false}", f"No, {with_article(noun)} is {true}, not {false}."


def _list(rng: Random) -> Answered:
    group = rng.choice(_GROUPS)
    count = rng.randint(2, 6)
    many = {"clothes": "clothes"}.get(group, f"{group}s")
    number = rng.choice((str(count), _NUMBERS[count]))
    ask = f"(name|tell me|give me|list|can you name|do you know) {number} {many}"
    if rng.random() < 0.15:
        noun = rng.choice(words()[group])
        return f"name {with_article(_SINGULAR.get(group, group))}", f"{with_article(noun)}."
    items = rng.sample(words()[group], count)
    return fill(ask, rng), ", ".join(items[:-1]) + f" and {items[-1]}."


def _spell(rng: Random) -> Answered:
    word = rng.choice(words()[rng.choice(("animal", "thing", "fruit", "place", "colour"))])
    word = word.split()[0]
    ask = (
        f"(spell|how do you spell|can you spell|how is) {word}( spelled|)"
        if rng.random() < 0.2
        else f"spell {word}"
    )
    return fill(ask, rng), f"{word}: " + "-".join(word.upper())


def _echo(rng: Random) -> Answered:
    table = words()
    noun = rng.choice(
        table[rng.choice(("animal", "thing", "fruit", "person", "place", "adjective", "look"))]
    )
    text = rng.choice(
        (noun, f"the {noun}", f"{noun} and {rng.choice(table['thing'])}", f"I like the {noun}")
    )
    return fill(
        f"(say|repeat|please say|repeat after me:|can you say|say the words) {text}", rng
    ), f"{text}."


_RHYMES = (
    "I saw a {a} upon a hill,|It looked at me and sat quite still.",
    "A little {a} went out to play,|And stayed outside the whole long day.",
    "The {a} is small, the night is deep,|And now the {a} must go to sleep.",
    "The {a} looked up and saw the moon,|And sang a very pretty tune.",
    "Oh {a}, dear {a}, come here to me,|And sit with me beneath the tree.",
    "The wind was cold, the rain came down,|The {a} ran quickly into town.",
    "A {a} once found a {look} hat,|And showed it to a friendly cat.",
    "The sun came up, the sky was blue,|The {a} was glad, and so were you.",
    "The {a} went home, the day was done,|And dreamed of playing in the sun.",
)


def _poem(rng: Random) -> Answered:
    table = words()
    noun = rng.choice(table[rng.choice(("animal", "person", "thing"))])
    ask = fill(
        "(write|tell me|give me|make|can you write|please write) a (short |little |)"
        f"(poem|rhyme|verse) about {with_article(noun)}",
        rng,
    )
    couplets = rng.sample(_RHYMES, 2)
    lines = "\n".join(couplets).replace("|", "\n").replace("{look}", rng.choice(table["look"]))
    return ask, lines.replace("{a}", noun)


_MAKERS: tuple[tuple[int, Callable[[Random], Answered]], ...] = (
    (14, _pair),
    (3, _fixed),
    (3, _count),
    (4, _sum),
    (2, _after),
    (2, _bigger),
    (2, _is_it),
    (2, _list),
    (1, _spell),
    (1, _echo),
    (3, _poem),
)


def make_question(rng: Random) -> Answered:
    """Return an easy question (plain, lower-case unless it holds a name) and its answer."""
    (maker,) = rng.choices([m for _, m in _MAKERS], [w for w, _ in _MAKERS])
    question, answer = maker(rng)
    return question, polish(answer)
