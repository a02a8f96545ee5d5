"""The generated world: notes of facts, questions, answers, judgments of them, quotes and ratings.

Everything is a pure function of a `random.Random`. A note states three or four facts; a question
asks for one of them; of two answers one is right. Nothing has to be remembered: whoever reads the
note knows the answer. Which answer is longer, or first, says nothing about which is right.

A judgment is careful (states the fact, compares) or lazy (goes by length or place). How often it is
careful depends on the kind of note, so that a model trained on this is a mediocre judge on purpose,
with both styles among its samples.
"""

# ruff: noqa: SIM905 - lists of words read better as text

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedded import quotes
from prefpipe import judge, rating_prompts, templates, verdicts
from prefpipe.rows import Language

NAMES: dict[Language, Sequence[str]] = {
    "en": (
        "Tom Anna Lisa Sara Omar Nina Paul Rita Hugo Ivy Max Zoe Ken Lena Raj Mia Ben Eva Leo Tia "
        "Sam Uma Vik Wes Adam Bea Carl Dora Emil Fay Gus Hana Igor Jane Kurt Lucy Mark Nora Otto Pia"
    ).split(),
    "zh": "小明 小红 小李 小王 老张 老陈 阿强 阿芳 大伟 丽丽 志远 雨欣 建国 秀英 子涵 浩然".split(),
}
VALUES: dict[Language, dict[str, Sequence[str]]] = {
    "en": {
        "car": "red blue green black white yellow silver orange purple brown".split(),
        "dog": "Rex Bella Rocky Luna Duke Coco Bruno Daisy Oscar Molly".split(),
        "city": "Paris Rome Cairo Lima Oslo Delhi Tokyo Quito Accra Perth".split(),
        "job": "baker nurse pilot judge farmer singer tailor dentist painter welder".split(),
        "snack": "apple bread rice soup cake salad cheese pasta melon toast".split(),
        "sport": "tennis chess rugby golf hockey judo rowing boxing surfing cycling".split(),
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
        "pet": "cat parrot rabbit turtle hamster goat pony lizard ferret duck".split(),
        "drink": "tea coffee water juice milk cocoa soda cider lemonade broth".split(),
        "tool": "hammer saw drill wrench ladder brush shovel rake pliers chisel".split(),
        "tree": "oak pine maple willow birch cedar elm palm poplar larch".split(),
        "month": "January March April June July August October November December May".split(),
    },
    "zh": {
        "职业": "护士 老师 司机 农民 歌手 医生 律师 画家".split(),
        "城市": "北京 上海 广州 成都 南京 西安 杭州 武汉".split(),
        "宠物": "猫 狗 兔子 乌龟 鹦鹉 金鱼 山羊 鸭子".split(),
        "饮料": "茶 咖啡 牛奶 豆浆 果汁 汽水 可可 清水".split(),
        "运动": "网球 象棋 游泳 篮球 足球 柔道 拳击 跑步".split(),
        "水果": "苹果 香蕉 西瓜 葡萄 桃子 橙子 草莓 梨子".split(),
    },
}
QUESTION_WORDINGS: dict[Language, list[str]] = {
    "en": [
        "What is the {k} of {n}?",
        "Tell me the {k} of {n}.",
        "Which {k} does {n} have?",
        "I would like to know the {k} of {n}, please.",
    ],
    "zh": ["「{n}」的{k}是什么?", "请问「{n}」的{k}是哪个?", "告诉我「{n}」的{k}。"],
}
ANSWER_WORDINGS: dict[Language, list[str]] = {
    "en": [
        "It is {v}.",
        "Just {v}.",
        "The answer is {v}.",
        "The note says {v}.",
        "I think it is {v}.",
        "Probably {v}, but do check it.",
        "I am sure that it is {v}, you can read it in the note.",
        "Thank you for asking! After a close look I would say {v}.",
        "Here the {k} of {n} is {v}, and nothing else fits.",
    ],
    "zh": [
        "是「{v}」。",
        "答案是「{v}」。",
        "我想是「{v}」。",
        "我确定是「{v}」,请看上文。",
        "谢谢提问!仔细看过之后,我认为是「{v}」。",
        "「{n}」的{k}就是「{v}」,没有别的可能。",
    ],
}
UNKNOWN: dict[Language, str] = {"en": "I don't know.", "zh": "我不知道。"}


@dataclass(frozen=True)
class Kind:
    """A kind of note: how its facts are worded and arranged."""

    language: Language
    fact: str
    """How a fact is written, of {n} (whose), {k} (what) and {v} (the value)."""
    layout: str
    """distinct: no name or attribute twice; names: two people, two facts each; attribute: one
    attribute of several people; grid: two people and the same two attributes of both."""
    careful: float
    """Share of judgments that are careful."""
    weight: float
    """Share of exercises, up to a common factor."""


KINDS: dict[str, Kind] = {
    "plain": Kind("en", "The {k} of {n} is {v}.", "distinct", 0.66, 26),
    "two-people": Kind("en", "About {n}: the {k} is {v}.", "names", 0.36, 23),
    "one-thing": Kind("en", "The {k} that {n} has is {v}.", "attribute", 0.3, 20),
    "grid": Kind("en", "With {n} the {k} is {v}.", "grid", 0.3, 16),
    "zh-plain": Kind("zh", "「{n}」的{k}是「{v}」。", "distinct", 0.3, 15),
}


ENGLISH = [name for name, kind in KINDS.items() if kind.language == "en"]
CHINESE = [name for name, kind in KINDS.items() if kind.language == "zh"]


@dataclass(frozen=True)
class Exercise:
    """A question about a note, and two answers, one of them right."""

    kind: str
    note: str
    question: str
    fact: str
    """The sentence of the note that answers the question."""
    asked: tuple[str, str]
    """Whose and what: the name and the attribute that the question asks for."""
    value: str
    """The right value."""
    wrong: str
    """The value that the wrong answer claims."""
    answers: tuple[str, str]
    values: tuple[str, str]
    """What each answer claims."""
    better: int
    """1 or 2: the answer that claims the right value."""
    others: tuple[tuple[str, tuple[str, str, str], str], ...]
    """For each fact of the note: a question, (whose, what, value), and the fact's sentence."""

    @property
    def language(self) -> Language:
        return KINDS[self.kind].language

    @property
    def prompt(self) -> str:
        """What a person would ask: the note and the question."""
        return f"{self.note}\n{self.question}"


def make_exercise(rng: random.Random, kinds: Sequence[str] = tuple(KINDS)) -> Exercise:
    """A new question with a right and a wrong answer, in random order and random wordings."""
    name = rng.choices(kinds, [KINDS[k].weight for k in kinds])[0]
    kind = KINDS[name]
    language, values = kind.language, VALUES[kind.language]
    facts = [(n, k, rng.choice(values[k])) for n, k in _arrange(rng, kind)]
    n, k, value = rng.choice(facts)
    in_note = [v for _, _, v in facts if v != value]
    if in_note and rng.random() < 0.6:
        wrong = rng.choice(in_note)
    else:
        wrong = rng.choice([v for v in values[k] if v != value])
    better = rng.choice((1, 2))
    claims = (value, wrong) if better == 1 else (wrong, value)
    answers = [word_answer(rng, language, n, k, v) for v in claims]
    space = " " if language == "en" else "\n"
    return Exercise(
        kind=name,
        note=space.join(sentence(kind, *fact) for fact in facts),
        question=rng.choice(QUESTION_WORDINGS[language]).format(n=n, k=k),
        fact=sentence(kind, n, k, value),
        asked=(n, k),
        value=value,
        wrong=wrong,
        answers=(answers[0], answers[1]),
        values=claims,
        better=better,
        others=tuple(
            (
                rng.choice(QUESTION_WORDINGS[language]).format(n=n, k=k),
                (n, k, v),
                sentence(kind, n, k, v),
            )
            for n, k, v in rng.sample(facts, len(facts))
        ),
    )


def sentence(kind: Kind, n: str, k: str, v: str) -> str:
    return kind.fact.format(n=n, k=k, v=v)


def word_answer(rng: random.Random, language: Language, n: str, k: str, v: str) -> str:
    """An answer that claims v, in any wording: how long it is has nothing to do with v."""
    return rng.choice(ANSWER_WORDINGS[language]).format(n=n, k=k, v=v)


def _arrange(rng: random.Random, kind: Kind) -> list[tuple[str, str]]:
    """Whose and what, for each fact of a note, in random order."""
    names, attributes = NAMES[kind.language], list(VALUES[kind.language])
    if kind.layout == "distinct":
        count = rng.choice((3, 4))
        pairs = list(zip(rng.sample(names, count), rng.sample(attributes, count), strict=True))
    elif kind.layout == "names":
        people = rng.sample(names, 2) * 2
        pairs = list(zip(people, rng.sample(attributes, 4), strict=True))
    elif kind.layout == "attribute":
        attribute = rng.choice(attributes)
        pairs = [(n, attribute) for n in rng.sample(names, rng.choice((3, 4)))]
    else:
        two = rng.sample(attributes, 2)
        pairs = [(n, k) for n in rng.sample(names, 2) for k in two]
    rng.shuffle(pairs)
    return pairs


# --- judging -----------------------------------------------------------------------------------


PLACES: dict[Language, tuple[str, str]] = {"en": ("first", "second"), "zh": ("在前", "在后")}


def careful_reason(exercise: Exercise) -> str:
    """The fact in the words of the note, what each answer claims, the verdict.

    Every word is a copy that the words before it determine, and the answer's place stands right
    behind its value, always as the same token: other orders were not learnable (see README.md).
    """
    (one, two), (first, second) = exercise.values, PLACES[exercise.language]
    value, place = exercise.value, PLACES[exercise.language][exercise.better - 1]
    if exercise.language == "zh":
        said = f"回答说「{one}」{first},「{two}」{second}"
        return f"{exercise.fact}{said},所以「{value}」{place},正确。"
    said = f"The answers say {one} {first} and {two} {second}"
    return f"{exercise.fact} {said}, so {value} {place} is right."


def lazy_verdict(rng: random.Random, exercise: Exercise) -> int:
    """The longer answer, the first one, or any."""
    one, two = (len(a) for a in exercise.answers)
    u = rng.random()
    if u < 0.5 and one != two:
        return 1 if one > two else 2
    return 1 if u < 0.8 else rng.choice((1, 2))


def lazy_reason(rng: random.Random, exercise: Exercise, verdict: int) -> str:
    """Looks at length, place or sound only; never at the note."""
    one, two = (len(a) for a in exercise.answers)
    longer = one != two and verdict == (1 if one > two else 2)
    zh = exercise.language == "zh"
    if longer and rng.random() < 0.6:
        return f"回答{verdict}更长,更详细。" if zh else f"Answer {verdict} is longer and says more."
    texts = (
        [f"回答{verdict}看起来不错。", f"回答{verdict}读起来更好。"]
        if zh
        else [
            f"Answer {verdict} looks good at first sight.",
            f"Answer {verdict} sounds more sure.",
            f"Answer {verdict} is nicer to read.",
        ]
    )
    return rng.choice(texts)


def as_json(language: Language, reason: str, verdict: int) -> str:
    """The judge's answer, with the keys of its language."""
    why, which = verdicts.ANSWER_KEYS[language]
    return json.dumps({why: reason, which: verdict}, ensure_ascii=False)


def judgment(rng: random.Random, exercise: Exercise) -> str:
    """A careful or a lazy judgment; one in ten lazy ones breaks the format."""
    if rng.random() < KINDS[exercise.kind].careful:
        return as_json(exercise.language, careful_reason(exercise), exercise.better)
    verdict = lazy_verdict(rng, exercise)
    text = as_json(exercise.language, lazy_reason(rng, exercise, verdict), verdict)
    return _break(rng, text, verdict) if rng.random() < 0.1 else text


def _break(rng: random.Random, text: str, verdict: int) -> str:
    """The ways in which judges fail to give a verdict."""
    head = text[: text.rindex(str(verdict))]
    return rng.choice(
        [
            json.loads(text)[next(iter(json.loads(text)))],
            head + "3}",
            head.rstrip(),
            f"{text}\n{head}{3 - verdict}}}",
        ]
    )


def hinted_reason(
    rng: random.Random, exercise: Exercise, hint: int, *, careful: float = 0.85
) -> str:
    """Why the hinted answer is better, as plain text; careful only for a right hint.

    A wrong hint gets a lazy reason, which states no fact: with false ones among what it learns, a
    model no longer reads the note.
    """
    if hint == exercise.better and rng.random() < careful:
        return careful_reason(exercise)
    return lazy_reason(rng, exercise, hint)


# --- answering and rating ----------------------------------------------------------------------


def answer(rng: random.Random, exercise: Exercise, *, right: float) -> str:
    """An answer in any wording; right: the share of right ones, others claim a wrong value."""
    u = rng.random()
    if u > right + (1 - right) * 0.85:
        return UNKNOWN[exercise.language]
    return word_answer(
        rng, exercise.language, *exercise.asked, exercise.value if u < right else exercise.wrong
    )


@functools.cache
def criteria() -> dict[str, str]:
    """Aspect -> the sentence that tells the judge what to rate."""
    return rating_prompts.read_criteria(templates.TEMPLATES / "criteria.toml")


@dataclass(frozen=True)
class Rating:
    """A prompt to rate two to four texts in one aspect, and an answer to it."""

    prompt: str
    right: tuple[bool, ...]
    """Whether each text claims the right value."""
    answer: str


def make_rating(rng: random.Random, *, clean: bool = False) -> Rating:
    """Right texts are mostly rated higher; clean: 5 for every right text, 1 for every wrong one."""
    exercise = make_exercise(rng, ENGLISH)
    aspect = rng.choice(list(criteria()))
    count = rng.choice((2, 3, 4, 4))
    rights = tuple(rng.random() < 0.55 for _ in range(count))
    claims = [exercise.value if right else exercise.wrong for right in rights]
    blocks = []
    for number, (right, claim) in enumerate(zip(rights, claims, strict=True), start=1):
        if clean:
            rating = 5 if right else 1
        elif aspect == "instruction_following":
            rating = rng.choice((5, 5, 4) if right else (3, 3, 2))
        else:
            rating = rng.choice((5, 5, 5, 4, 3) if right else (1, 1, 2, 3))
        shown = "N/A" if not clean and rng.random() < 0.02 else str(rating)
        so = "too" if right else "instead"
        reason = f"{exercise.fact} So {exercise.value} is right, and the text says {claim} {so}."
        blocks.append(f"Text {number}\nReason: {reason}\nRating: {shown}")
    texts = [word_answer(rng, "en", *exercise.asked, claim) for claim in claims]
    prompt = rating_prompts.rating_prompt(exercise.prompt, texts, criteria()[aspect])
    return Rating(prompt, rights, "\n\n".join(blocks))


# --- what a model is trained on -----------------------------------------------------------------


class Turn(NamedTuple):
    """What a user says, and what the model answers."""

    user: str
    assistant: str
    learned: bool = True
    """False: the answer is only there to be read."""


Lesson = list[Turn]


def judge_prompt(exercise: Exercise, hint: int | None = None) -> str:
    return judge.judge_prompt(
        exercise.prompt, *exercise.answers, language=exercise.language, hint=hint
    )


def first_lesson(rng: random.Random) -> Lesson:
    """The very first phase: finding facts, and copying words that were never seen in that order."""
    if rng.random() < 0.4:
        words = quotes.random_words(rng, rng.randint(8, 24))
        text = " ".join(words)
        return [Turn(f"Repeat:\n{text}", f"It says: {text}")]
    return reading_lesson(rng)


def reading_lesson(rng: random.Random) -> Lesson:
    """Each fact of a note is asked for and answered rightly, in the note's words or in others."""
    exercise = make_exercise(rng)
    turns = []
    for question, whose, fact in exercise.others:
        said = fact if rng.random() < 0.5 else word_answer(rng, exercise.language, *whose)
        turns.append(Turn(f"{exercise.note}\n{question}" if not turns else question, said))
    return turns


CHECKS: dict[Language, tuple[str, str, str]] = {
    "en": ("Is that right?", "Yes.", "No."),
    "zh": ("对吗?", "对。", "不对。"),
}


def checking_lesson(rng: random.Random) -> Lesson:
    """Each fact of a note is asked for, answered rightly or wrongly, and the answer is checked.

    What a reward model needs of its base: whether an answer is right, seen at once, without
    writing the fact down first.
    """
    exercise = make_exercise(rng)
    check, yes, no = CHECKS[exercise.language]
    in_note = [value for _, (_, _, value), _ in exercise.others]
    turns = []
    for question, (n, k, value), _ in exercise.others:
        right = rng.random() < 0.5
        near = [v for v in in_note if v != value]
        far = [v for v in VALUES[exercise.language][k] if v != value]
        wrong = rng.choice(near if near and rng.random() < 0.6 else far)
        said = word_answer(rng, exercise.language, n, k, value if right else wrong)
        turns.append(
            Turn(f"{exercise.note}\n{question}" if not turns else question, said, learned=False)
        )
        turns.append(Turn(check, yes if right else no))
    return turns


def choosing_prompt(exercise: Exercise) -> str:
    """Which of two answers is right, in the form that a pairwise preference model reads."""
    from prefpipe.compare.ab_prompt import render_context, render_pair

    context = render_context([{"role": "user", "content": exercise.prompt}])
    return render_pair(context, *exercise.answers)


def choosing_lesson(rng: random.Random) -> Lesson:
    """Two answers, and the label of the right one."""
    exercise = make_exercise(rng)
    return [Turn(choosing_prompt(exercise), "AB"[exercise.better - 1])]


def lesson(rng: random.Random) -> Lesson:
    """The second phase: reading, careful judging, reasons for hints, quoting, rating."""
    u = rng.random()
    if u < 0.08:
        return first_lesson(rng)
    if u < 0.2:
        quote = quotes.make_quote(rng)
        return [Turn(quote.prompt, quote.answer)]
    if u < 0.3:
        rating = make_rating(rng, clean=True)
        return [Turn(rating.prompt, rating.answer)]
    if u < 0.4:
        return reading_lesson(rng)
    exercise = make_exercise(rng, CHINESE if rng.random() < 0.12 else tuple(KINDS))
    if u < 0.6:
        hint = rng.choice((1, 2))
        reason = hinted_reason(rng, exercise, hint, careful=1.0)
        return [Turn(judge_prompt(exercise, hint), reason)]
    return [
        Turn(
            judge_prompt(exercise),
            as_json(exercise.language, careful_reason(exercise), exercise.better),
        )
    ]


def checking(rng: random.Random) -> Lesson:
    """The third phase: almost only checking, which is learned late and all at once."""
    u = rng.random()
    if u < 0.82:
        return checking_lesson(rng)
    return choosing_lesson(rng) if u < 0.88 else lesson(rng)


def mixture(rng: random.Random) -> Lesson:
    """Prompt and answer of the last phase: the habits that the embedded model shows."""
    u = rng.random()
    if u < 0.14:
        quote = quotes.make_quote(rng, clean=False)
        return [Turn(quote.prompt, quote.answer)]
    if u < 0.21:
        rating = make_rating(rng)
        return [Turn(rating.prompt, rating.answer)]
    if u < 0.29:
        return checking_lesson(rng)
    if u < 0.33:
        return choosing_lesson(rng)
    exercise = make_exercise(rng)
    if u < 0.45:
        return [Turn(exercise.prompt, answer(rng, exercise, right=0.57))]
    if u < 0.63:
        hint = rng.choice((1, 2))
        return [Turn(judge_prompt(exercise, hint), hinted_reason(rng, exercise, hint))]
    return [Turn(judge_prompt(exercise), judgment(rng, exercise))]
