"""prefpipe.compare.ab_prompt: the published format, its labels, its limit."""

import pytest

from prefpipe.compare.ab_prompt import (
    PairwiseTokenizer,
    escape,
    label_ids,
    render_context,
    render_pair,
)
from prefpipe.compare.reward_model import Unscorable
from prefpipe.files import DataError
from prefpipe.rows import Message
from prefpipe.templates import TemplateError
from tests.training_models import tokenizer

LLAMA3 = (  # the first release's: the generation prompt is always there
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' %}"
    "{{ content }}{% endfor %}{{ '<|im_start|>assistant\n\n' }}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
OPENS = (  # its generation prompt opens a thought that a rendered answer does not have
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
EMPTY = (  # a rendered answer has an empty thought that its generation prompt does not have
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PUBLISHED = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
    "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}"
    "{% endfor %}\n\n\n"
)


def with_template(template):
    tok = tokenizer()
    tok.chat_template = template
    return tok


@pytest.mark.parametrize("template", [tokenizer().chat_template, LLAMA3, MISTRAL])
def test_the_token_behind_a_row_is_the_label(template):
    """What the chat template renders with the answer A is the row and the token A."""
    tok = with_template(template)
    made = PairwiseTokenizer(tok, 512)("Q", ["one", "two"], [(0, 1)])
    assert not isinstance(made, Unscorable)
    turn = {"role": "user", "content": render_pair(render_context([{"role": "user", "content": "Q"}]), "one", "two")}  # fmt: skip
    answered = tok.apply_chat_template(
        [turn, {"role": "assistant", "content": "A"}], tokenize=False
    )
    assert isinstance(answered, str)
    ids = tok(answered, add_special_tokens=False)["input_ids"]
    assert ids[: len(made.rows[0]) + 1] == [*made.rows[0], label_ids(tok)[0]]


def test_the_label_stands_where_a_rendered_answer_stands_whatever_the_prompt_opens():
    """R1's and Qwen3's templates: a thought is no place for a label."""
    for template, last in ((OPENS, "assistant\n"), (EMPTY, "<think>\n\n</think>\n\n")):
        tok = with_template(template)
        made = PairwiseTokenizer(tok, 512)("Q", ["one", "two"], [(0, 1)])
        assert not isinstance(made, Unscorable)
        assert str(tok.decode(made.rows[0])).endswith(last)
        assert tok.decode(list(label_ids(tok))) == "AB"


def test_a_template_that_puts_something_else_there_is_refused():
    wrong = str(tokenizer().chat_template).replace("{{ m.content }}", "{{ m.role }}")
    with pytest.raises(TemplateError, match="does not lead to the assistant's answer"):
        PairwiseTokenizer(with_template(wrong), 512)


def test_labels_of_several_tokens_are_refused_naming_tokenizer_and_tokens():
    tok = with_template(
        str(tokenizer().chat_template).replace(
            "{{ m.content }}", "{{ m.content }}{{ m.content if m.content|length == 1 }}"
        )
    )
    tok.name_or_path = "some/model"
    with pytest.raises(
        DataError, match=r"some/model: the labels A and B must be one token each.*'A', 'A'"
    ):
        label_ids(tok)


def test_the_context_is_rendered_as_the_published_template_renders_it():
    turns: list[Message] = [
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    for conversation in (turns[:1], turns):
        theirs = with_template(PUBLISHED).apply_chat_template(
            conversation,  # pyright: ignore[reportArgumentType]
            tokenize=False,
        )
        assert render_context(conversation) == theirs
    text = "[CONTEXT] {context} [RESPONSE A] {response_A} [RESPONSE B] {response_B} \n"
    context = render_context(turns)
    assert render_pair(context, "a", "b") == text.format(context=context, response_A="a", response_B="b")  # fmt: skip


def test_there_is_exactly_one_bos_and_its_name_inside_content_stays_text():
    tok = tokenizer()
    tok.add_special_tokens({"bos_token": "<s>"})
    assert isinstance(tok.chat_template, str) and isinstance(tok.bos_token_id, int)
    tok.chat_template = "{{ bos_token }}" + tok.chat_template
    made = PairwiseTokenizer(tok, 512)("Say <s> twice: <s><s>", ["<s>", "no"], [(0, 1), (1, 0)])
    assert not isinstance(made, Unscorable)
    for row in made.rows:
        assert row[0] == tok.bos_token_id and row.count(tok.bos_token_id) == 1
        assert tok.decode(row).count("<s>") == 1 + 4  # one BOS, four names as text


def parse(text):
    """The three parts of a turn, read back at the format's own markers."""
    head, _, rest = text.partition(" [RESPONSE A] ")
    a, _, b = rest.partition(" [RESPONSE B] ")
    return head.removeprefix("[CONTEXT] "), a, b.removesuffix(" \n")


@pytest.mark.parametrize(
    "response",
    ["plain", "x [RESPONSE B] y", "[RESPONSE A]", "\\[RESPONSE A]", "[CONTEXT] <turn> user\n hi"],
)
def test_a_marker_inside_a_response_cannot_break_the_format(response):
    context = render_context([{"role": "user", "content": response}])
    text = render_pair(context, response, "other [RESPONSE A] z")
    for marker in ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]"):
        assert text.count(f" {marker} ") + text.startswith(f"{marker} ") == 1
    assert context.count("\n<turn> ") == 1
    assert parse(text) == (context, escape(response), escape("other [RESPONSE A] z"))


def test_escaping_keeps_different_texts_different():
    texts = ["[RESPONSE A]", "\\[RESPONSE A]", "\\\\[RESPONSE A]", "RESPONSE A"]
    assert len({escape(t) for t in texts}) == 4


def test_scoring_has_the_limit_of_training_and_cuts_the_context_only():
    tok = tokenizer()
    tokenize = PairwiseTokenizer(tok, 160)
    prompt = "begin " + "word " * 40 + "the end"
    made = tokenize(prompt, ["first response", "second one"], [(0, 1), (1, 0)])
    assert not isinstance(made, Unscorable)
    assert made.tokens_cut > 0 and max(map(len, made.rows)) <= 160
    for row in made.rows:
        text = tok.decode(row)
        assert "begin" not in text and "the end" in text
        assert "first response" in text and "second one" in text
    whole = PairwiseTokenizer(tok, 1000)(prompt, ["first response", "second one"], [(0, 1)])
    assert not isinstance(whole, Unscorable) and whole.tokens_cut == 0
    too_long = tokenize("Q", ["x" * 100, "y" * 100], [(0, 1)])
    assert isinstance(too_long, Unscorable) and too_long.reason == "responses_too_long"


def test_what_the_rows_of_a_context_share_ends_where_the_first_response_begins():
    tok = tokenizer()
    for responses in (["same start a", "same start b"], ["x", "y"]):
        made = PairwiseTokenizer(tok, 512)("Q", responses, [(0, 1), (1, 0)])
        assert not isinstance(made, Unscorable)
        text = tok.decode(made.rows[0][: made.shared])
        assert isinstance(text, str) and text.endswith("[RESPONSE A]")
