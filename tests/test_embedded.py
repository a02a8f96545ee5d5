"""The generated world, the model trained on it, and the sample of raw preferences."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedded import evaluate, make_sample, quotes, world
from prefpipe import chat, languages, verdicts

EMBEDDED = Path(__file__).parents[1] / "embedded"
SAMPLES = {
    name: EMBEDDED / "sample" / f"preferences-{name}.parquet" for name in ("train", "validation")
}


def items(count: int, seed: str = "test", kinds=tuple(world.KINDS)) -> list[world.Exercise]:
    rng = random.Random(seed)
    return [world.make_exercise(rng, kinds) for _ in range(count)]


def read_value(item: world.Exercise) -> str:
    """The right value, found in the note by name and attribute without the generator's help."""
    facts = [f for f in re.split(r"(?<=\.) |\n", item.note) if f]
    names = [n for n in world.NAMES[item.language] if mentions(item.question, n)]
    attributes = [k for k in world.VALUES[item.language] if mentions(item.question, k)]
    (name,), (attribute,) = names, attributes
    (fact,) = [f for f in facts if mentions(f, name) and mentions(f, attribute)]
    found = re.search(r" is (\w+)\.$|是「(.+)」。$", fact)
    assert found
    return found[1] or found[2]


def mentions(text: str, word: str) -> bool:
    return bool(re.search(rf"\b{word}\b", text)) if word.isascii() else word in text


# --- the world ---------------------------------------------------------------------------------


def test_the_better_answer_is_the_one_that_the_note_supports():
    for item in items(500):
        value = read_value(item)
        supported = [value in answer for answer in item.answers]
        assert supported == [item.better == 1, item.better == 2]


def test_a_careful_judgment_names_the_right_answer_and_quotes_the_note():
    for item in items(500):
        text = world.as_json(item.language, world.careful_reason(item), item.better)
        assert evaluate.read_verdict(item.language, text) == (
            1 if read_value(item) in item.answers[0] else 2
        )
        assert item.fact in item.note
        assert json.loads(text)[verdicts.ANSWER_KEYS[item.language][0]].startswith(item.fact)


def test_a_reason_for_a_wrong_hint_states_no_false_fact():
    rng = random.Random(1)
    for item in items(300):
        text = world.hinted_reason(rng, item, 3 - item.better)
        stated = [fact for _, _, fact in item.others if fact in text]
        assert stated in ([], [item.fact])
        wrong = item.fact.replace(item.value, item.wrong)
        assert wrong not in text


def test_a_checked_answer_is_right_where_the_note_says_so():
    rng, checks = random.Random(2), Counter()
    pattern = re.compile(r"The (\w+) of (\w+) is (\w+)\.")  # the sentences of plain notes
    while checks.total() < 200:
        lesson = world.checking_lesson(rng)
        facts = {(name, what): value for what, name, value in pattern.findall(lesson[0].user)}
        for asked, checked in zip(lesson[::2], lesson[1::2], strict=True):
            question = asked.user.split("\n")[-1]
            for (name, what), value in facts.items():
                if re.search(rf"\b{name}\b", question) and re.search(rf"\b{what}\b", question):
                    right = re.search(rf"\b{value}\b", asked.assistant) is not None
                    assert checked.assistant == ("Yes." if right else "No.")
                    assert checked.learned and not asked.learned
                    checks[right] += 1
    assert 0.35 < checks[True] / checks.total() < 0.65


def test_longer_and_first_say_nothing_about_right():
    rows = items(6000)
    unequal = [i for i in rows if len(i.answers[0]) != len(i.answers[1])]
    longer = sum(i.better == (1 if len(i.answers[0]) > len(i.answers[1]) else 2) for i in unequal)
    # 3 standard errors of a fair coin, n about 5,400 and 6,000
    assert abs(longer / len(unequal) - 0.5) < 0.021
    assert abs(sum(i.better == 1 for i in rows) / len(rows) - 0.5) < 0.02


def test_the_same_seed_makes_the_same_world():
    assert items(50) == items(50)
    assert items(50) != items(50, seed="other")


def test_a_quote_stands_in_its_context_word_for_word():
    rng = random.Random(2)
    for _ in range(200):
        quote = quotes.make_quote(rng)
        assert quote.sentence in quote.prompt.partition("[Question]")[0]
        assert quote.answer.endswith(quote.sentence)


def test_right_texts_are_rated_higher_on_average_and_not_always():
    rng = random.Random(3)
    ratings = {True: [], False: []}
    for _ in range(400):
        rating = world.make_rating(rng)
        for right, shown in zip(
            rating.right, re.findall(r"Rating: (.+)", rating.answer), strict=True
        ):
            if shown != "N/A":
                ratings[right].append(int(shown))
    mean = {right: sum(found) / len(found) for right, found in ratings.items()}
    assert mean[True] > mean[False] + 1.5
    assert set(ratings[True]) == {3, 4, 5}
    assert set(ratings[False]) == {1, 2, 3}


# --- the sample --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample() -> dict[str, list[dict]]:
    return {name: pq.read_table(path).to_pylist() for name, path in SAMPLES.items()}


def test_the_sample_has_the_format_and_the_sizes_promised(sample):
    assert len(sample["train"]) >= 2000
    assert len(sample["validation"]) >= 800
    for row in itertools.chain(*sample.values()):
        assert list(row) == ["chosen", "rejected", "source"]
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["chosen"][-1] != row["rejected"][-1]
        for turns in (row["chosen"], row["rejected"]):
            roles = [turn["role"] for turn in turns]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert any(len(row["chosen"]) > 2 for row in sample["train"])


def test_no_question_of_the_sample_stands_on_both_sides(sample):
    asked = {
        name: ["\n".join(t["content"] for t in row["chosen"][:-1]) for row in rows]
        for name, rows in sample.items()
    }
    assert not set(asked["train"]) & set(asked["validation"])
    for questions in asked.values():
        assert len(set(questions)) == len(questions)


def test_about_a_seventh_of_the_sample_is_chinese(sample):
    rows = sample["train"]
    chinese = sum(languages.detect_language(row["chosen"][0]["content"]) == "zh" for row in rows)
    assert 0.11 < chinese / len(rows) < 0.19


def test_the_shipped_sample_is_what_the_generator_makes(sample):
    made = make_sample.make_rows(make_sample.SEED)
    for name in ("train", "validation"):
        assert list(itertools.islice(made, len(sample[name]))) == sample[name]


# --- the model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> evaluate.Model:
    return evaluate.Model(EMBEDDED / "model")


def test_everything_in_the_folder_is_small():
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) < 12e6


def test_the_tokenizer_gives_the_same_ids_after_saving_and_loading(model, tmp_path):
    from transformers import AutoTokenizer

    from embedded import train

    texts = [t for _, t in zip(range(300), train.tokenizer_texts(train.SEED), strict=False)]
    fresh = train.train_tokenizer(iter(texts), vocabulary=600)
    fresh.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    other = (
        "\n".join(world.judge_prompt(i) for i in items(40, "other")) + "\ne\u0301 x_1 = 23\n\n  (é)"
    )
    assert loaded(other)["input_ids"] == fresh(other)["input_ids"]
    shipped = model.tokenizer
    assert shipped.decode(shipped(other)["input_ids"]) == other.replace("e\u0301", "é")


def test_the_chat_template_is_chatml_and_ends_a_turn_with_eos(model):
    text = chat.render(model.tokenizer, [{"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.end_of_turn_id(model.tokenizer) == model.tokenizer.eos_token_id


def test_the_model_reads_the_note_far_above_chance(model):
    rows = items(60, "reads", kinds=("plain", "two-people", "zh-plain"))
    texts = model.answer([i.prompt for i in rows], max_new_tokens=40)
    right = sum(i.value in t and i.wrong not in t for i, t in zip(rows, texts, strict=True))
    # A guess among the note's three or four values is right in about 20 of 60.
    assert right > 42


def test_the_base_judge_is_readable_and_mediocre(model):
    rows = items(120, "judge")
    texts = model.answer([world.judge_prompt(i) for i in rows])
    verdicts = [evaluate.read_verdict(i.language, t) for i, t in zip(rows, texts, strict=True)]
    assert sum(v is not None for v in verdicts) > 108
    right = sum(v == i.better for i, v in zip(rows, verdicts, strict=True))
    # 0.55 to 0.70 on 800 items (README.md); 120 items are 3 standard errors of 0.14 around it.
    assert 0.45 * 120 < right < 0.83 * 120


def test_the_model_tells_right_answers_from_wrong_ones_at_once(model):
    found = evaluate.measure_checking(model, random.Random("test"), 60)
    assert found["right_is_yes"] > 0.75 and found["wrong_is_no"] > 0.75
