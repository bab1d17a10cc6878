"""Seeded generators for the demo model's training chats and for the questions held out of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import facts

Message = dict[str, str]

LARGEST_NUMBER = 30
HELD_OUT_PERCENT = 8
# How often each kind of question is asked; they add up to 100.
WEIGHTS = {"relation": 40, "definition": 10, "talk": 6, "arithmetic": 20, "unit": 11, "json": 8, "story": 5}
# These are what a person tries first, so they are always trained on.
ALWAYS_TRAINED = ("what is edgepack", "what is quantisation", "what is quantization")
NAME_QUESTIONS = ["What is my name?", "Do you remember my name?", "What did I say my name was?", "Tell me my name."]


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `split_key` decides whether it is held out, `short` answers in a word or so."""

    kind: str
    question: str
    answer: str
    split_key: str = ""
    short: str = ""


def normalise(question: str) -> str:
    """The question without what a careless typist leaves out: capitals and final punctuation."""
    return question.casefold().strip(" .?!")


def is_held_out(turn: Turn) -> bool:
    """Whether the turn belongs to the held-out side: a hash of its key decides, so no random state is involved."""
    if not turn.split_key or normalise(turn.question) in ALWAYS_TRAINED:
        return False
    digest = hashlib.sha256(turn.split_key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def relation_turns() -> list[Turn]:
    """Every fact of every table in every phrasing; what is held out is a fact in one phrasing."""
    turns = []
    for _, phrasings, sentence, table in facts.RELATIONS:
        for row in table.split(";"):
            key, value = row.strip().split(":")
            answer = sentence.format(k=key, K=capitalised(key), v=value)
            for phrasing in phrasings:
                question = phrasing.format(k=key)
                turns.append(Turn("fact", question, answer, normalise(question), capitalised(value)))
    return turns


def definition_turns() -> list[Turn]:
    turns = []
    for names, answer in facts.DEFINITIONS:
        for name in names:
            for phrasing in facts.DEFINITION_PHRASINGS:
                question = phrasing.format(k=name)
                turns.append(Turn("fact", question, answer, normalise(question)))
    return turns


def small_talk(rng: random.Random) -> Turn:
    questions, answers = rng.choice(facts.SMALL_TALK)
    return Turn("talk", rng.choice(questions), rng.choice(answers))


def sum_turn(rng: random.Random, a: int, b: int) -> Turn:
    question, tail = rng.choice(
        [
            (f"What is {a} + {b}?", ""),
            (f"What is {a} plus {b}?", ""),
            (f"Add {a} and {b}.", ""),
            (f"{a} + {b} = ?", ""),
            (f"How much is {a} plus {b}?", ""),
            (f"Calculate {a} + {b}.", ""),
            (f"{a}+{b}", ""),
            (f"I have {a} apples and get {b} more. How many apples do I have?", f", so you have {a + b} apples"),
        ]
    )
    return Turn("arithmetic", question, f"{a} + {b} = {a + b}{tail}.", f"{a} + {b}", str(a + b))


def difference_turn(rng: random.Random, a: int, b: int) -> Turn:
    question, tail = rng.choice(
        [
            (f"What is {a} - {b}?", ""),
            (f"What is {a} minus {b}?", ""),
            (f"Subtract {b} from {a}.", ""),
            (f"{a} - {b} = ?", ""),
            (f"How much is {a} minus {b}?", ""),
            (f"Calculate {a} - {b}.", ""),
            (f"{a}-{b}", ""),
            (f"I have {a} apples and give away {b}. How many apples are left?", f", so {a - b} apples are left"),
        ]
    )
    return Turn("arithmetic", question, f"{a} - {b} = {a - b}{tail}.", f"{a} - {b}", str(a - b))


def product_turn(rng: random.Random, a: int, b: int) -> Turn:
    question = rng.choice(
        [
            f"What is {a} times {b}?",
            f"Multiply {a} by {b}.",
            f"{a} x {b} = ?",
            f"How much is {a} times {b}?",
            f"Calculate {a} x {b}.",
            f"What is {a} x {b}?",
            f"What is {a} * {b}?",
        ]
    )
    return Turn("arithmetic", question, f"{a} x {b} = {a * b}.", f"{a} x {b}", str(a * b))


def arithmetic(rng: random.Random) -> Turn:
    """Addition and subtraction within LARGEST_NUMBER, and the times table up to ten."""
    kind = rng.choice(["sum", "difference", "product"])
    if kind == "product":
        return product_turn(rng, rng.randint(0, 10), rng.randint(0, 10))
    whole = rng.randint(0, LARGEST_NUMBER)
    part = rng.randint(0, whole)
    return sum_turn(rng, part, whole - part) if kind == "sum" else difference_turn(rng, whole, part)


def unit(rng: random.Random) -> Turn:
    """A conversion; a held-out power of ten hides the value in every phrasing, a held-out table entry only in one."""
    big, small, factor = rng.choice(facts.UNITS)
    decimal = factor in (10, 100, 1000)
    value = rng.randint(2, 99 if decimal else 12)
    question = rng.choice(
        [
            f"How many {small} are in {value} {big}?",
            f"Convert {value} {big} to {small}.",
            f"What is {value} {big} in {small}?",
            f"How many {small} are {value} {big}?",
            f"Change {value} {big} into {small}.",
            f"{value} {big} in {small}?",
            f"{value} {big} to {small}",
        ]
    )
    key = f"{value} {big} {small}" if decimal else normalise(question)
    return Turn("unit", question, f"{value} {big} is {value * factor} {small}.", key)


def json_record(rng: random.Random) -> Turn:
    name, age, city = rng.choice(facts.NAMES), rng.randint(1, 99), rng.choice(facts.CITIES)
    question = rng.choice(
        [
            f"Give me a JSON record for {name}, age {age}, city {city}.",
            f"Write a JSON record for {name}, age {age}, city {city}.",
            f"Make a JSON object: name {name}, age {age}, city {city}.",
            f"{name} is {age} years old and lives in {city}. Give me that as JSON.",
            f"Turn this into JSON: {name}, {age}, {city}.",
            f"JSON for {name}, age {age}, from {city}, please.",
            f"Return a JSON record of {name} who is {age} and lives in {city}.",
        ]
    )
    answer = json.dumps({"name": name, "age": age, "city": city})
    return Turn("json", question, answer, f"{name} {age} {city}")


def story(rng: random.Random) -> Turn:
    """A short story with a hero, a friend, a wish, a problem and an ending."""
    hero, friend = rng.sample(facts.ANIMALS, 2)
    article = "an" if hero[0] in "aeiou" else "a"
    friend_article = "an" if friend[0] in "aeiou" else "a"
    trait = rng.choice(["little", "clever", "brave", "lonely", "curious", "cheerful", "lazy", "hungry", "shy", "young"])
    place = rng.choice(
        ["in a forest", "near a river", "on a hill", "in a quiet village", "by the sea", "in an old barn"]
    )
    wish, object_ = rng.choice(
        [
            ("find a warm place to sleep", "nest of leaves"),
            ("cross the wide river", "wooden boat"),
            ("see the top of the mountain", "narrow path"),
            ("bake a cake", "bag of flour"),
            ("learn a song", "silver flute"),
            ("fly above the trees", "red balloon"),
            ("read the stars", "book full of maps"),
            ("grow a flower", "golden seed"),
        ]
    )
    problem = rng.choice(
        [
            "But a storm came and the night was cold.",
            "But the way was long and the rain was strong.",
            "But nobody knew how to do it.",
            "But there was a big stone in the way.",
            "But the others only laughed.",
        ]
    )
    ending = rng.choice(
        [
            "From that day on they were best friends.",
            f"The {hero} smiled and said thank you.",
            "They shared a meal and slept well that night.",
            "And everybody in the land heard about it.",
            f"Since then the {hero} has never been alone.",
        ]
    )
    question = rng.choice(
        [
            f"Tell me a short story about {article} {hero}.",
            f"Tell me a story about {article} {hero}.",
            f"Write a short story about {article} {hero}.",
            f"Can you tell me a story about {article} {hero}?",
            f"I would like to hear a story about {article} {hero}.",
        ]
    )
    text = (
        f"Once upon a time, {article} {trait} {hero} lived {place}. The {hero} wanted to {wish}. {problem} "
        f"Then {friend_article} {friend} came along and brought a {object_}. Together they did it. {ending}"
    )
    return Turn("story", question, text)


def typed_freely(rng: random.Random, question: str) -> str:
    """The question as somebody in a hurry may type it."""
    if rng.random() < 0.2:
        question = question[:1].lower() + question[1:]
    elif rng.random() < 0.15:
        question = question.lower()
    return question.rstrip(".?! ") if rng.random() < 0.25 else question


class ChatSource:
    """An endless, seeded stream of training chats that never asks a held-out question."""

    def __init__(self, seed: int, arithmetic: int | None = None) -> None:
        self.rng = random.Random(seed)
        weights = WEIGHTS | ({} if arithmetic is None else {"arithmetic": arithmetic})
        self.kinds, self.limits = list(weights), list(itertools.accumulate(weights.values()))
        self.relations = [turn for turn in relation_turns() if not is_held_out(turn)]
        self.definitions = [turn for turn in definition_turns() if not is_held_out(turn)]

    def turn(self) -> Turn:
        while True:
            turn = self.draw()
            if not is_held_out(turn):
                return turn

    def draw(self) -> Turn:
        rng = self.rng
        match rng.choices(self.kinds, cum_weights=self.limits)[0]:
            case "relation":
                return rng.choice(self.relations)
            case "definition":
                return rng.choice(self.definitions)
            case kind:
                return MAKERS[kind](rng)

    def chat(self) -> list[Message]:
        """One conversation of one to eight questions, sometimes with a system turn or a name to remember."""
        rng = self.rng
        messages: list[Message] = []
        one_word = rng.random() < 0.05
        if one_word:
            messages.append({"role": "system", "content": "Answer with one word or number."})
        elif rng.random() < 0.25:
            messages.append({"role": "system", "content": rng.choice(facts.SYSTEM_PROMPTS)})
        name = rng.choice(facts.NAMES) if rng.random() < 0.06 else ""
        if name:
            messages += exchange(rng.choice([f"My name is {name}.", f"Hi, I am {name}."]), f"Nice to meet you, {name}!")
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5, 8])):
            turn = self.turn()
            answer = turn.short if one_word and turn.short else turn.answer
            if one_word and not turn.short:
                continue
            messages += exchange(self.type_question(turn), answer)
        if name:
            messages += exchange(typed_freely(rng, rng.choice(NAME_QUESTIONS)), f"Your name is {name}.")
        return messages

    def type_question(self, turn: Turn) -> str:
        # Names must reach a JSON answer with their capitals, so JSON requests keep theirs.
        return turn.question if turn.kind == "json" else typed_freely(self.rng, turn.question)

    def chats(self) -> Iterator[list[Message]]:
        while True:
            messages = self.chat()
            if len(messages) > 1:
                yield messages


MAKERS: dict[str, Callable[[random.Random], Turn]] = {
    "talk": small_talk,
    "arithmetic": arithmetic,
    "unit": unit,
    "json": json_record,
    "story": story,
}


def exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def held_out_turns(seed: int, wanted: dict[str, int]) -> list[Turn]:
    """A seeded sample of held-out turns with `wanted[kind]` of each kind, every question asked once."""
    rng = random.Random(seed)
    fact_pool = [turn for turn in relation_turns() + definition_turns() if is_held_out(turn)]
    chosen: dict[str, Turn] = {}
    for kind, count in wanted.items():
        found: dict[str, Turn] = {}
        while len(found) < count:
            turn = rng.choice(fact_pool) if kind == "fact" else MAKERS[kind](rng)
            if is_held_out(turn):
                found.setdefault(normalise(turn.question), turn)
        chosen |= found
    return list(chosen.values())
