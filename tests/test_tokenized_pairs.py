"""prefpipe.training.tokenized_pairs: the ids that are trained on are those that are sampled and scored."""

import numpy as np
import pytest

from prefpipe import chat
from prefpipe.rows import Message, Preference, Reject
from prefpipe.training.tokenized_pairs import PairTokenizer, TokenizedPair, to_dataset
from tests.training_models import tokenizer

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
]


def preference(**changes) -> Preference:
    fields = {"id": "p1", "prompt": MESSAGES, "chosen": "4", "rejected": "five"}
    return Preference.model_validate(fields | changes)


def test_the_ids_are_those_of_the_chat_template_on_the_whole_conversation():
    tok = tokenizer()
    pair = PairTokenizer(tok, 1000)(preference())
    assert isinstance(pair, TokenizedPair)
    whole = tok.apply_chat_template(
        [*MESSAGES, Message(role="assistant", content="five")],  # pyright: ignore[reportArgumentType]
        tokenize=False,
    )
    assert isinstance(whole, str)
    expected = tok(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    assert [*pair.prompt_ids, *pair.rejected_ids] == expected
    assert tok.decode(pair.prompt_ids).count("system") == 1
    assert pair.prompt_ids.tolist() == chat.prompt_ids(tok, MESSAGES)
    assert pair.chosen_ids.tolist() == chat.completion_ids(tok, "4")


def test_plain_and_conversational_rows_give_the_same_ids():
    tokenize = PairTokenizer(tokenizer(), 1000)
    plain = tokenize(preference(prompt="2+2?"))
    turns = {name: [{"role": "assistant", "content": t}] for name, t in (("chosen", "4"), ("rejected", "5"))}  # fmt: skip
    conversation = tokenize(preference(prompt=MESSAGES[1:], **turns))
    assert isinstance(plain, TokenizedPair) and isinstance(conversation, TokenizedPair)
    assert plain.prompt_ids.tolist() == conversation.prompt_ids.tolist()
    assert plain.chosen_ids.tolist() == conversation.chosen_ids.tolist()


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"rejected": "4"}, "identical_after_tokenizing"),
        ({"prompt": "2" * 200}, "prompt_too_long"),
        ({"chosen": "4" * 100}, "chosen_too_long"),
        ({"rejected": "4" * 100}, "rejected_too_long"),
        ({"chosen": [{"role": "user", "content": "4"}]}, "completion_is_no_single_turn"),
        ({"chosen": []}, "completion_is_no_single_turn"),
    ],
)
def test_what_does_not_fit_is_a_reject_with_its_reason(changes, reason):
    result = PairTokenizer(tokenizer(), 120)(preference(**changes))
    assert isinstance(result, Reject) and (result.id, result.reason) == ("p1", reason)


def test_the_limit_counts_prompt_completion_and_end_of_turn():
    """The last row that fits is whole, one token less leaves it out."""
    pair = PairTokenizer(tokenizer(), 1000)(preference())
    assert isinstance(pair, TokenizedPair)
    length = len(pair.prompt_ids) + len("five") + 1
    assert length == len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    assert isinstance(PairTokenizer(tokenizer(), length)(preference()), TokenizedPair)
    result = PairTokenizer(tokenizer(), length - 1)(preference())
    assert isinstance(result, Reject)
    assert result.detail == f"{length} tokens, max_length is {length - 1}"


def test_a_pair_that_comes_again_is_left_out_and_its_mirror_is_not():
    tokenize = PairTokenizer(tokenizer(), 1000)
    results = [tokenize(preference(id=f"p{i}")) for i in range(2)]
    mirror = tokenize(preference(chosen="five", rejected="4"))
    assert isinstance(results[1], Reject) and results[1].reason == "duplicate_pair"
    assert isinstance(mirror, TokenizedPair)


def test_a_dataset_has_the_columns_of_trl_and_those_given():
    prompt, chosen, rejected = (np.array([k, k + 1], dtype=np.int32) for k in range(3))
    pair = TokenizedPair("p1", prompt, chosen, rejected, margin=0.5)
    dataset = to_dataset([pair], "margin")
    assert dataset[0] == {
        "id": "p1", "prompt_ids": [0, 1], "chosen_ids": [1, 2], "rejected_ids": [2, 3],
        "margin": 0.5,
    }  # fmt: skip
