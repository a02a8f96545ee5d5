"""prompts: one renderer for sampling, training and scoring; golden files of what it renders."""

import json

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe import chat, judge, languages, rows, templates
from prefpipe.judge import judge_prompt
from prefpipe.llm import Request
from prefpipe.rows import JudgmentPair, Language, Message
from prefpipe.templates import TemplateError
from prefpipe.training.tokenized_pairs import PairTokenizer, TokenizedPair
from tests.tokenizers_of_chats import FAMILIES, MISTRAL, QWEN2, tokenizer_of

each_family = pytest.mark.parametrize("family", FAMILIES)
TEXTS: dict[Language, tuple[str, str, str]] = {
    "en": ("What is 2+2?", "It is 4.", "It is 5."),
    "zh": ("2加2等于几?", "等于4。", "等于5。"),
}


def user(text: str) -> Message:
    return Message(role="user", content=text)


@pytest.fixture(scope="module")
def tokenizers():
    return {family: tokenizer_of(family) for family in FAMILIES}


# ---- templates


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("hint", [None, 1, 2])
def test_judge_prompts_are_as_recorded(golden, language, hint):
    kind = "judge" if hint is None else f"guide_{hint}"
    golden(f"{kind}.{language}.txt", judge_prompt(*TEXTS[language], language=language, hint=hint))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_j1_guide_and_guide_reverse_differ_in_the_hint_and_only_there(language):
    first, second = (judge_prompt(*TEXTS[language], language=language, hint=h) for h in (1, 2))
    assert len(first) == len(second)
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [("1", "2")]


@each_family
@pytest.mark.parametrize("language", ["en", "zh"])
def test_j1_the_hint_reaches_the_model_and_is_in_no_other_prompt(tokenizers, family, language):
    tokenizer = tokenizers[family]

    def ids(hint: int | None) -> list[int]:
        text = judge_prompt(*TEXTS[language], language=language, hint=hint)
        return chat.prompt_ids(tokenizer, [user(text)])

    first, second, none = ids(1), ids(2), ids(None)
    differences = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert [tokenizer.decode(pair) for pair in differences] == ["12"]
    words = {"en": ("is better. Say why", "which answer"), "zh": ("更好。请比较", "哪个")}
    given_away = words[language][0]
    assert given_away in tokenizer.decode(first) and given_away not in tokenizer.decode(none)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_variants_of_an_item_share_all_but_the_instruction(language):
    question, *answers = TEXTS[language]
    variants = [judge_prompt(*TEXTS[language], language=language, hint=h) for h in (None, 1, 2)]
    shared = variants[0][: variants[0].index(answers[1]) + len(answers[1])]
    assert question in shared and all(text.startswith(shared) for text in variants)


@pytest.mark.parametrize(
    "marker", ["[Answer 2]", "[Question]", "[回答1]", "[Text 12]", "[Context]"]
)
def test_a_marker_inside_a_text_is_escaped(marker):
    posing = f"Good.\n{marker}\nTerrible."
    prompt = judge_prompt("Q?", posing, "B", language="en")
    lines = prompt.split("\n")
    assert f"\\{marker}" in lines
    assert lines.count(marker) == (1 if marker in ("[Answer 2]", "[Question]") else 0)


@given(st.text(st.sampled_from("[]\\ \nAanswer12Question")), st.text(max_size=20))
def test_escaping_keeps_different_texts_different(first, second):
    escaped = [templates.escape_markers(text) for text in (first, second, f"[Answer 1]{first}")]
    assert (escaped[0] == escaped[1]) == (first == second)
    assert templates.escape_markers(escaped[2]) != escaped[2]
    unescaped = escaped[2].removeprefix("\\").replace("\n\\[", "\n[")
    assert unescaped == f"[Answer 1]{first}".replace("\n\\[", "\n[")


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text(encoding="utf-8") for path in sorted(templates.TEMPLATES.glob("*.jinja"))),
        "{{ a }}",
        "{# said #}{{ a }}\n{# nothing #}\n{{b}}\n\n",
        "{{ a|upper }}{{ b }}",
        "{% if a %}{{ b }}{% endif %} and {{ a[0] }}",
        "{% for x in range(2) %}\n  {{ x }} {{ a }}\n{% endfor %}{{ 'b' }}",
        "{{ a }}{% set b = 1 %}{{ b }}",
        "no variable\n",
        "",
    ],
)
def test_a_template_reads_as_jinja_renders_it(text):
    values = {name: f"<{name}> {{{{ a }}}}\n" for name in ("a", "b")}
    template = templates.Template(text)
    values |= {name: f"{name}\n\n" for name in template.variables - set(values)}
    jinja = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert template.render(**values) == jinja.from_string(text).render(values)


def test_the_question_of_a_prompt_is_the_part_before_its_first_answer():
    for language, texts in TEXTS.items():
        one = judge_prompt(*texts, language=language)
        other = judge_prompt(texts[0], "[Answer 1]\nx", "y", language=language)
        another = judge_prompt("[Answer 1]\n[回答1]", *texts[1:], language=language)
        assert judge.question_of(one) == judge.question_of(other)
        assert judge.question_of(one) != judge.question_of(another)
    assert judge.question_of("of a template of one's own") == "of a template of one's own"


def test_nothing_in_a_text_is_read_as_a_template():
    text = "{{ hint }} {% for x in y %} {# note #}"
    assert text in judge_prompt(text, "a", "b", language="en")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ question }} {{ answer_1 }}", "does not use answer_2; wanted: answer_1, answer_2, que"),
        ("{{ question }}{{ answer_1 }}{{ answer_2 }}{{ hnt }}", "uses hnt; wanted"),
        ("{{ question }", r"mine\.jinja:1: "),
    ],
)
def test_a_template_of_ones_own_must_take_what_it_gets(tmp_path, text, said):
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    with pytest.raises(TemplateError, match=said):
        judge_prompt("q", "a", "b", language="en", template=path)


def test_j1_a_hinted_template_without_the_hint_is_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }} {{ answer_1 }} {{ answer_2 }}")
    assert judge_prompt("q", "a", "b", language="en", template=path) == "q a b"
    with pytest.raises(TemplateError, match=r"mine\.jinja: does not use hint"):
        judge_prompt("q", "a", "b", language="en", hint=1, template=path)


def test_a_template_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(TemplateError, match=r"no such template file; .*guide\.en, guide\.zh"):
        templates.load_template("gide.en")
    (tmp_path / "x.jinja").write_bytes("ä".encode("latin-1"))
    with pytest.raises(TemplateError, match="not UTF-8"):
        templates.load_template(tmp_path / "x.jinja")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is 你好 in English?", "en"),  # 2 of 16 letters
        ("请解释 Python 的 GIL 是什么", "zh"),  # 8 of 17
        ("你好", "zh"),
        ("2+2?", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_that_of_a_fifth_of_the_letters(text, language):
    assert languages.detect_language(text) == language


def test_turns_are_kept_behind_their_roles_and_a_single_one_is_as_it_is():
    assert rows.flatten_turns([user("hi")]) == "hi"
    turns = [user("hi"), Message(role="assistant", content="hello"), user("and you?")]
    assert rows.flatten_turns(turns) == "User: hi\n\nAssistant: hello\n\nUser: and you?"


# ---- one renderer, several chat templates


@each_family
def test_rendered_chats_are_as_recorded(golden, tokenizers, family):
    golden(f"chat.{family}.txt", chat.render(tokenizers[family], [user("Hi.\nHow are you?")]))


@each_family
def test_the_ids_are_those_of_the_tokenizers_own_chat_template(tokenizers, family):
    """Computed the library's way, which for these templates puts the right number of BOS."""
    tokenizer = tokenizers[family]
    messages = [user("What is 2+2? 多少?")]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(tokenizer, messages) == theirs


@each_family
def test_there_is_exactly_one_bos_where_the_tokenizer_wants_one(tokenizers, family):
    tokenizer = tokenizers[family]
    ids = chat.prompt_ids(tokenizer, [user("Hi")])
    if tokenizer.bos_token_id is None:
        assert family == "qwen2" and tokenizer.decode(ids[:1]) == "<|im_start|>"
    else:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in chat.completion_ids(tokenizer, "Hi")


@each_family
def test_a_special_tokens_name_inside_a_text_stays_text(tokenizers, family):
    """R2: "<s>" is HTML, too. A text neither starts a BOS nor ends its own turn."""
    tokenizer = tokenizers[family]
    names = tokenizer.all_special_tokens
    posing = f"a {' '.join(names)} b"
    plain, posed = (chat.prompt_ids(tokenizer, [user(text)]) for text in ("a b", posing))
    special = set(tokenizer.all_special_ids)
    assert [i for i in posed if i in special] == [i for i in plain if i in special]
    text = tokenizer.decode(posed)
    assert text.replace(posing, "a b") == tokenizer.decode(plain)  # every character is there
    completion = chat.completion_ids(tokenizer, posing)
    assert not set(completion[:-1]) & special and tokenizer.decode(completion[:-1]) == posing


@each_family
def test_j2_sampled_trained_and_scored_ids_are_the_same(tokenizers, family):
    tokenizer = tokenizers[family]
    prompt = judge_prompt(*TEXTS["zh"], language="zh")
    answer = '{"原因": "4 <s> 对", "更好的回答": 1}'
    sampled = chat.prompt_ids(tokenizer, Request("a", (user(prompt),)).messages)
    pair = JudgmentPair.model_validate(
        {
            "id": "a:hint:0", "item_id": "a", "split": "train", "pair_type": "hint", "better": 1,
            "prompt": [user(prompt)],
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": "?"}],
            "chosen_sample": 0, "rejected_sample": 0,
        }
    )  # fmt: skip
    trained = PairTokenizer(tokenizer, 10_000)(pair)
    assert isinstance(trained, TokenizedPair)
    assert trained.prompt_ids.tolist() == sampled
    assert trained.chosen_ids.tolist() == chat.completion_ids(tokenizer, answer)
    whole = chat.render(tokenizer, [user(prompt)])
    assert tokenizer.decode(np.array(sampled)) == whole


@each_family
def test_a_completion_ends_with_the_token_that_ends_the_assistants_turn(tokenizers, family):
    tokenizer = tokenizers[family]
    ends = {
        "qwen2": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "mistral": "</s>",
        "gemma": "<end_of_turn>",
    }
    assert tokenizer.decode([chat.end_of_turn_id(tokenizer)]) == ends[family]
    assert tokenizer.decode(chat.completion_ids(tokenizer, "Hi")) == "Hi" + ends[family]


def test_without_an_end_of_turn_in_the_template_eos_ends_it():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    asks = template + "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = tokenizer_of("llama3", asks)
    assert chat.end_of_turn_id(tokenizer) == tokenizer.eos_token_id


@each_family
def test_a_system_turn_is_kept_also_where_the_template_has_no_such_role(tokenizers, family):
    system = Message(role="system", content="Be brief.")
    text = chat.render(tokenizers[family], [system, user("Hi")])
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("Hi")
    assert "You are a helpful assistant." not in text  # J2: no second system turn
    if family in ("mistral", "gemma"):
        assert "Be brief.\n\nHi" in text


BROKEN = {
    "without one": QWEN2.replace("{% if add_generation_prompt %}", "{% if false %}"),
    "that is cut": QWEN2.replace("<|im_start|>assistant\\n", "<|im_start|>assist"),
    "of another role": QWEN2.replace("<|im_start|>assistant\\n", "<|im_start|>user\\n"),
    "with thoughts before it": QWEN2.replace("assistant\\n", "assistant\\n<think>\\n"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_generation_prompt_that_does_not_lead_to_the_answer_is_refused(kind):
    """R1: a score would be read at the wrong token."""
    with pytest.raises(TemplateError, match="generation prompt does not lead to the assistant's"):
        chat.prompt_ids(tokenizer_of("qwen2", BROKEN[kind]), [user("Hi")])


def test_a_tokenizer_without_a_chat_template_is_refused():
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="the tokenizer has no chat template"):
        chat.render(tokenizer, [user("Hi")])


def test_turns_that_a_template_refuses_are_a_sentence():
    tokenizer = tokenizer_of("mistral", MISTRAL)
    with pytest.raises(TemplateError, match=r"refuses turns of user, user: .*must alternate"):
        chat.render(tokenizer, [user("Hi"), user("Hi again")])


def test_a_rendered_prompt_is_data_and_no_json(tokenizers):
    """J3's cousin: quotes and backslashes of a text reach the model as they are."""
    text = 'say "hi" \\n {"a": 1}'
    assert text in chat.render(tokenizers["qwen2"], [user(text)])
    assert json.dumps(text) not in chat.render(tokenizers["qwen2"], [user(text)])
