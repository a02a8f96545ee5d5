"""prefpipe.chat: one renderer for sampling, training and scoring, on several families' templates."""

import json

import numpy as np
import pytest

from prefpipe import chat
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
    assert (
        not set(completion[:-1]) & special and tokenizer.decode(completion[:-1]).strip() == posing
    )


@each_family
def test_sampled_trained_and_scored_ids_are_the_same(tokenizers, family):
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
    # Mistral's has a blank before an answer
    assert tokenizer.decode(chat.completion_ids(tokenizer, "Hi")).strip() == "Hi" + ends[family]


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
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_generation_prompt_that_does_not_lead_to_the_answer_is_refused(kind):
    """R1: a score would be read at the wrong token."""
    with pytest.raises(TemplateError, match="generation prompt does not lead to the assistant's"):
        chat.prompt_ids(tokenizer_of("qwen2", BROKEN[kind]), [user("Hi")])


@each_family
@pytest.mark.parametrize("answer", ["It is 4.", " It is 4.\n", "a\n\nb <s>", ""])
def test_an_answers_ids_are_those_of_the_rendered_conversation(tokenizers, family, answer):
    """Up to its end of turn, computed the library's way; where a template trims, they are trimmed."""
    tokenizer = tokenizers[family]
    turns = [user("2+2?"), Message(role="assistant", content=answer)]
    theirs = tokenizer.apply_chat_template(turns, return_dict=False)
    ours = chat.prompt_ids(tokenizer, turns[:1]) + chat.completion_ids(tokenizer, answer)
    if "<s>" not in answer or family != "mistral":  # there it is BOS to the library
        assert ours == theirs[: len(ours)] and len(theirs) - len(ours) <= 1
        assert chat.conversation_ids(tokenizer, turns[:1], answer) == theirs
    assert ours[-1] == chat.end_of_turn_id(tokenizer)


def test_a_thinking_templates_answer_has_the_thought_that_the_template_gives_it():
    tokenizer = tokenizer_of("qwen3")
    prompt = chat.render(tokenizer, [user("2+2?")])
    assert prompt.endswith("<|im_start|>assistant\n")
    shown = {a: tokenizer.decode(chat.completion_ids(tokenizer, a)) for a in ("4", "<think>\nsum\n</think>\n\n4", "<think>\nsu")}  # fmt: skip
    assert list(shown.values()) == [
        "<think>\n\n</think>\n\n4<|im_end|>",
        "<think>\nsum\n</think>\n\n4<|im_end|>",
        "<think>\nsu<|im_end|>",  # a thought that was cut: as it was written
    ]


def test_a_thought_that_the_prompt_opens_goes_on_in_the_answer():
    tokenizer = tokenizer_of("r1")
    assert chat.render(tokenizer, [user("2+2?")]).endswith("<Assistant><think>\n")
    written = "sum\n</think>4"
    assert tokenizer.decode(chat.completion_ids(tokenizer, written)) == written + "<end>"
    # a reward model reads the rendered conversation, in which answers have no thoughts
    whole = chat.conversation_ids(tokenizer, [user("2+2?")], written)
    assert tokenizer.decode(whole) == "<begin><User>2+2?<Assistant>4<end>"


def test_an_end_of_turn_in_pieces_is_refused():
    """Its first piece, "<", would end every answer in which there is one."""
    tokenizer = tokenizer_of("mistral", QWEN2)
    with pytest.raises(TemplateError, match="no token of the vocabulary"):
        chat.completion_ids(tokenizer, "if a<b")


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


@each_family
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_hint_reaches_the_model_and_is_in_no_other_prompt(tokenizers, family, language):
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
