"""The local engine with structured_output: replies against the JSON schema, token by token."""

import json
from dataclasses import replace

import pytest
import torch

import config
from prefpipe import chat, verdicts
from prefpipe.llm import Completion, Failure, Request
from prefpipe.llm.local.local_engine import LocalEngine
from prefpipe.llm.local.schema_masks import SchemaMasks
from prefpipe.models.loading import load_both
from prefpipe.rating_prompts import ratings_schema
from prefpipe.rows import Message
from prefpipe.verdicts import Verdict, judgment_schema, object_schema, parse_verdict

VERDICT = object_schema({"better_answer": {"type": "integer", "enum": [1, 2]}})


@pytest.fixture(scope="module")
def loaded():
    return load_both(config.BASE_MODEL)


def engine(loaded, *, plain: bool = False, **options) -> LocalEngine:
    made = LocalEngine(*loaded, structured_output=True, **options)
    made.is_plain = plain
    return made


def ask(id: str, schema=None, **options) -> Request:
    options = {"max_new_tokens": 160, "temperature": 1.3, "seed": 5, **options}
    turns = (Message(role="user", content=f"Which is better, {id}? Tell me the month of Fay."),)
    return Request(id, turns, reply_schema=schema, **options)


def completions(made: LocalEngine, asked) -> list[Completion]:
    results = made.generate(asked)
    return [c for result in results if not isinstance(result, Failure) for c in result]


def texts(made: LocalEngine, asked) -> dict[tuple[str, int], str]:
    return {(c.id, c.sample): c.text for c in completions(made, asked)}


def test_each_reply_is_what_its_schema_allows_and_free_text_stays_free(loaded):
    four = tuple(range(4))
    asked = [
        ask("en", judgment_schema("en"), samples=four),
        ask("free", samples=four),
        ask("zh", judgment_schema("zh"), samples=four, max_new_tokens=400),
        ask("rated", ratings_schema(2), samples=four, max_new_tokens=600, top_k=20, top_p=0.9),
        ask("greedy", judgment_schema("en"), temperature=0.0),
    ]
    found = texts(engine(loaded), asked)
    for (id, sample), text in found.items():
        if id == "free":
            continue
        reply = json.loads(text)
        if id == "rated":
            assert [
                one["rating"] in ["1", "2", "3", "4", "5", "N/A"] for one in reply.values()
            ] == [True] * 2
            continue
        language = "zh" if id == "zh" else "en"
        reason, better = verdicts.ANSWER_KEYS[language]
        least, most = verdicts.REASON_CHARACTERS[language]
        assert [*reply] == [reason, better] and reply[better] in (1, 2), (id, sample)
        assert least <= len(reply[reason]) <= most
        assert text.startswith(f'{{"{reason}": "')  # as json.dumps writes it
    free = texts(LocalEngine(*loaded), asked[1:2])
    assert {key: found[key] for key in free} == free
    # without structured_output a request's schema holds nobody
    assert not isinstance(
        parse_verdict(texts(LocalEngine(*loaded), [asked[-1]])["greedy", 0]), Verdict
    )


def test_a_reply_depends_on_its_request_alone(loaded):
    """Alone, in a batch, where memory is short, and by the plain way: the same text."""
    asked = [ask(str(k), judgment_schema("en"), samples=(0, 1, 2)) for k in range(4)]
    want = texts(engine(loaded), asked)
    assert texts(engine(loaded), [replace(asked[2], samples=(1,))]) == {("2", 1): want["2", 1]}
    assert texts(engine(loaded, max_samples=2), asked) == want
    assert texts(engine(loaded, plain=True), asked) == want


def test_the_tokens_are_the_most_likely_ones_of_the_language(loaded):
    """By hand: what each reply begins with is no choice, and stands in the tokenizer's own tokens; of
    those that differ then, the likelier one."""
    model, tokenizer = loaded
    valid = [f'{{"better_answer": {k}}}' for k in (1, 2)]
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in valid)
    first = next(k for k, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
    request = ask("by hand", VERDICT, temperature=0.0)
    ids = chat.prompt_ids(tokenizer, request.messages)
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *one[:first]]])).logits[0, -1]
    text = valid[int(logits[two[first]] > logits[one[first]])]
    assert texts(engine(loaded), [request]) == {("by hand", 0): text}
    assert texts(engine(loaded, plain=True), [request]) == {("by hand", 0): text}


def test_a_reply_that_is_too_long_is_cut_and_says_so(loaded):
    request = ask("cut", judgment_schema("en"), max_new_tokens=9)
    (completion,) = completions(engine(loaded), [request])
    assert completion.finish_reason == "length" and completion.new_tokens == 9


def test_what_is_no_schema_is_a_sentence(loaded):
    with pytest.raises(SystemExit, match="structured_output: "):
        list(engine(loaded).generate([ask("bad", {"type": "nonsense"})]))


def test_a_mask_leaves_other_rows_as_they_are():
    logits = torch.randn(2, 40)
    before = logits.clone()
    SchemaMasks.mask(logits, [None, None])
    assert torch.equal(logits, before)
