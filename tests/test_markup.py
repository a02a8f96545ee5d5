"""prefpipe.formats.markup: conversations that stand in one text, by hand and as chat templates write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefpipe.formats.markup import MARKUPS, markup_of, prompt_turns, split_turns
from tests.examples import ROOT

TURNS = [("user", "I own a horse."), ("assistant", "What is it called?"), ("user", "Guess.")]
SYSTEM = ("system", "Be brief.")
TEXTS = {
    "human": "\n\nHuman: I own a horse.\n\nAssistant: What is it called?\n\nHuman: Guess.\n\nAssistant:",
    "human_lines": "Human: I own a horse.\nAssistant: What is it called?\nHuman: Guess.\nAssistant:",
    "user": "User: I own a horse.\n\nAssistant: What is it called?\n\nUser: Guess.\n\nAssistant:",
    "user_lines": "User: I own a horse.\nAssistant: What is it called?\nUser: Guess.\nAssistant:",
    "hashes": "### Human: I own a horse.### Assistant: What is it called?### Human: Guess.",
    "chatml": "<|im_start|>user\nI own a horse.<|im_end|>\n<|im_start|>assistant\nWhat is it called?"
    "<|im_end|>\n<|im_start|>user\nGuess.<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nI own a horse.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nWhat is it called?<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGuess.<|eot_id|>",
    "zephyr": "<|user|>\nI own a horse.</s>\n<|assistant|>\nWhat is it called?</s>\n<|user|>\nGuess.</s>\n",
    "gemma": "<bos><start_of_turn>user\nI own a horse.<end_of_turn>\n<start_of_turn>model\n"
    "What is it called?<end_of_turn>\n<start_of_turn>user\nGuess.<end_of_turn>\n",
    "llama2": "<s>[INST] I own a horse. [/INST] What is it called? </s><s>[INST] Guess. [/INST]",
    "vicuna": "USER: I own a horse. ASSISTANT: What is it called?</s>USER: Guess. ASSISTANT:",
    "oasst": "prompter: I own a horse. assistant: What is it called? prompter: Guess.",
    "nemo": "I own a horse.\n<extra_id_1>Assistant\nWhat is it called?\n<extra_id_1>User\nGuess.",
}


@pytest.mark.parametrize("name", MARKUPS)
def test_the_turns_of_a_marked_text_are_those_that_were_marked(name):
    text = TEXTS[name]
    assert markup_of(text) == (
        name if name != "nemo" else None
    )  # found by its mark, not its beginning
    assert [(t["role"], t["content"]) for t in prompt_turns(text, name, "x")] == TURNS


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGuess.<|im_end|>\n", "chatml"),
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nGuess. [/INST]", "llama2"),
        ("<|system|>\nBe brief.</s>\n<|user|>\nGuess.</s>\n<|assistant|>\n", "zephyr"),
    ],
)
def test_a_system_turn_is_one(text, name):
    assert markup_of(text) == name
    assert [(t["role"], t["content"]) for t in prompt_turns(text, name, "x")] == [SYSTEM, TURNS[-1]]


@pytest.mark.parametrize(
    "text",
    ["Human: is this a question?", "How?", "", "### Heading", "<b>bold</b>", "USER: hi", "# Human",
     "Tell of Human: and Assistant:", "H: x\n\nA: y"],
)  # fmt: skip
def test_a_text_that_only_looks_like_it_is_plain(text):
    assert markup_of(text) is None


@given(st.lists(st.text("ab \n", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=5))
def test_any_texts_in_a_transcript_come_back(texts):
    texts = [" ".join(text.split()) for text in texts]
    marked = "".join(
        f"\n\n{'Assistant' if k % 2 else 'Human'}: {text}" for k, text in enumerate(texts)
    )
    marked += "" if len(texts) % 2 == 0 else "\n\nAssistant:"
    assert [t["content"] for t in prompt_turns(marked, "human", "x")] == texts


def test_an_answer_that_is_empty_is_one():
    (question, answer) = split_turns("\n\nHuman: Guess.\n\nAssistant:", "human", "x")
    assert (question["content"], answer["content"]) == ("Guess.", "")


def test_a_role_that_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="x: found the role 'narrator'"):
        prompt_turns("<|im_start|>narrator\nhi<|im_end|>", "chatml", "x")


def test_the_templates_of_tests_are_marked_as_they_are_named():
    """What transformers renders (recorded in tests/golden/chat.*.txt) is recognised."""
    for file, name in (("qwen2", "chatml"), ("llama3", "llama3"), ("gemma", "gemma")):
        text = (ROOT / f"tests/golden/chat.{file}.txt").read_text(encoding="utf-8")
        assert markup_of(text) == name, text[:80]
