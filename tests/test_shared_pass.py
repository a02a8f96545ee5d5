"""Reward and pairwise scores: what is shared changes no number; R1, R2, R5-R9."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from prefpipe.chat import encode, end_of_turn_id
from prefpipe.compare.ab_model import PairwiseModel
from prefpipe.compare.ab_prompt import (
    PairwiseFormat,
    PairwiseTokenizer,
    escape,
    label_ids,
    render_context,
    render_pair,
)
from prefpipe.compare.reward_model import (
    RewardFormat,
    RewardModel,
    RewardTokenizer,
    Unscorable,
)
from prefpipe.files import DataError
from prefpipe.models.classifiers import is_causal, use_own_pad_token
from prefpipe.models.loading import max_positions
from prefpipe.rows import Message
from prefpipe.templates import TemplateError
from tests.test_training_reward import classifier
from tests.training_models import qwen2, scorable, tokenizer

# ---- reward scores -------------------------------------------------------------------------------

QUESTIONS: list[tuple[str | list[Message], list[str]]] = [
    ("What is 2 + 2?", ["4", "It is five, I think.", "4", "four"]),
    ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
      {"role": "user", "content": "Who are you?"}], ["Nobody.", "A model, and you?"]),
    ("Why?", ["Because of the long and winding road that leads to your door.", "No."]),
]  # fmt: skip


def reward_model(model=None, tok=None, **options):
    model, tok = model or classifier(vocab_size=300), tok or tokenizer()
    use_own_pad_token(tok, model)
    made = RewardFormat(options.pop("max_length", 512), options.pop("cut_prompt", True))
    return RewardModel(model, tok, made, is_causal(model), **options)


def alone(scorer, prompt, response, left_padding=0):
    """The score of one row, by the model's own forward; padded on the left by hand."""
    made = scorer.tokenize(prompt, [response])
    row = [*made.prompt_ids, *made.completions[0]]
    pad = scorer.tokenize.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * left_padding + row])
    mask = torch.tensor([[0] * left_padding + [1] * len(row)])
    with torch.no_grad():
        return scorer.model(input_ids=ids, attention_mask=mask).logits[0, 0].item()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tokens", [20, 8192])
def test_prefix_sharing_padding_side_and_batch_size_change_no_score(share, tokens):
    scorer = reward_model(share_prompts=share, max_batch_tokens=tokens)
    assert scorer.shares_prompts is share
    found = [scorable(scores) for scores in scorer.score(QUESTIONS)]
    for (prompt, responses), scores in zip(QUESTIONS, found, strict=True):
        for response, score in zip(responses, scores, strict=True):
            assert score == pytest.approx(alone(scorer, prompt, response), abs=1e-4)
            assert score == pytest.approx(alone(scorer, prompt, response, 9), abs=1e-4)
    assert found[0][0] == found[0][2] != found[0][1]


def test_r9_pad_equal_to_eos_does_not_move_the_place_of_the_score():
    """The tokenizer's only pad is its end of turn: the score is still read at the end of turn."""
    tok = tokenizer()
    tok.pad_token = tok.eos_token
    model, eos = classifier(vocab_size=300), tok.eos_token_id
    assert isinstance(eos, int)
    model.config.pad_token_id = eos  # what a naive set-up leaves behind
    row = [5, 6, 7, 8, end_of_turn_id(tok)]
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
        right, one_early = model.score(hidden[-1]).item(), model.score(hidden[-2]).item()
        naive = model(input_ids=torch.tensor([row])).logits[0, 0].item()
        assert naive == pytest.approx(one_early, abs=1e-5)  # the fault, as it is in the library
        use_own_pad_token(tok, model)
        assert tok.pad_token_id != end_of_turn_id(tok)
        assert model.config.pad_token_id == tok.pad_token_id
        for left, after in ((0, 0), (4, 0), (0, 3), (2, 3)):
            pad = [tok.pad_token_id]
            ids = torch.tensor([pad * left + row + pad * after])
            mask = torch.tensor([[0] * left + [1] * len(row) + [0] * after])
            score = model(input_ids=ids, attention_mask=mask).logits[0, 0].item()
            assert score == pytest.approx(right, abs=1e-4)


def test_r9_a_tokenizer_whose_only_special_token_is_the_end_of_turn_gets_a_pad_token():
    tok = tokenizer()
    tok.add_special_tokens({"additional_special_tokens": []}, replace_extra_special_tokens=True)
    tok.pad_token = tok.eos_token
    tok._special_tokens_map = {k: v for k, v in tok._special_tokens_map.items() if v}
    model = classifier(vocab_size=len(tok))
    before = alone(reward_model(classifier(vocab_size=len(tok))), "Q", "A")
    use_own_pad_token(tok, model)
    assert tok.pad_token_id not in (None, tok.eos_token_id)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding) and embeddings.weight.shape[0] >= len(tok)
    assert alone(RewardModel(model, tok, RewardFormat(512, True), True), "Q", "A") == (
        pytest.approx(before, abs=1e-5)
    )


def test_r7_a_long_prompt_is_cut_from_its_left_and_counted_or_left_out_by_name():
    tok = tokenizer()
    prompt = "begin " + "word " * 40 + "end of it"
    turns: list[Message] = [
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": prompt},
    ]
    cutting = RewardTokenizer(tok, RewardFormat(80, True), True)
    made = cutting(turns, ["short", "a longer response"])
    assert not isinstance(made, Unscorable)
    text = tok.decode(made.prompt_ids)
    assert "end of it" in text and "begin" not in text and "earlier" not in text
    assert made.tokens_cut > 0
    assert len(made.prompt_ids) + max(map(len, made.completions)) <= 80
    assert tok.decode(made.completions[1]) == "a longer response<|im_end|>"  # never cut
    whole = RewardTokenizer(tok, RewardFormat(80, False), True)(prompt, ["short"])
    assert isinstance(whole, Unscorable) and whole.reason == "too_long"
    assert isinstance(cutting("Q", ["x" * 90]), Unscorable)


def test_an_empty_question_has_no_score_but_its_neighbours_do():
    found = list(reward_model().score([("Q", ["a", "b"]), (" ", ["a", "b"]), ("Q", ["b", "a"])]))
    assert isinstance(found[1], Unscorable) and found[1].reason == "empty_question"
    assert scorable(found[0]) == pytest.approx(scorable(found[2])[::-1], abs=1e-5)


def bert():
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40, initializer_range=0.2,
        num_labels=1,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return BertForSequenceClassification(shape).eval()


def bert_tokenizer():
    letters = [chr(c) for c in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    return BertTokenizer(vocab={word: k for k, word in enumerate(words)})


def test_an_encoder_reads_prompt_and_response_as_a_pair_and_batches_change_nothing():
    model, tok = bert(), bert_tokenizer()
    assert not is_causal(model) and is_causal(classifier()) and max_positions(model) == 40
    prompts = ["abc de", "what is it " * 6, "x"]
    responses = ["yes", "no it is not", "m"]
    for tokens in (10, 8192):
        scorer = RewardModel(model, tok, RewardFormat(40, True), False, max_batch_tokens=tokens)
        assert not scorer.shares_prompts
        found = [scorable(scores) for scores in scorer.score([(p, responses) for p in prompts])]
        for prompt, scores in zip(prompts, found, strict=True):
            for response, score in zip(responses, scores, strict=True):
                made = scorable(scorer.tokenize(prompt, responses))
                ids = tok(prompt, response)["input_ids"]
                if made.tokens_cut == 0:
                    assert ids in made.completions
                    alone = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
                    assert score == pytest.approx(alone, abs=1e-4)
    made = scorable(scorer.tokenize(prompts[1], responses))
    assert made.tokens_cut > 0 and max(map(len, made.completions)) <= 40


# ---- the pairwise format -------------------------------------------------------------------------

LLAMA3 = (  # the first release's: the generation prompt is always there
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' %}"
    "{{ content }}{% endfor %}{{ '<|im_start|>assistant\n\n' }}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
NO_ANSWER = (  # its generation prompt opens a thought that a rendered answer does not have
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
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
def test_r1_the_token_behind_a_row_is_the_label(template):
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


def test_r1_a_template_that_puts_something_else_there_is_refused():
    with pytest.raises(TemplateError, match="does not lead to the assistant's answer"):
        PairwiseTokenizer(with_template(NO_ANSWER), 512)


def test_a_label_of_several_tokens_is_refused_naming_tokenizer_and_tokens(monkeypatch):
    tok = tokenizer()
    tok.name_or_path = "some/model"
    plain = encode
    monkeypatch.setattr(
        "prefpipe.compare.ab_prompt.encode",
        lambda t, text: [9, 10] if text == "B" else plain(t, text),
    )
    with pytest.raises(DataError, match=r"some/model: the label 'B' must be one token, and is \["):
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


def test_r2_there_is_exactly_one_bos_and_its_name_inside_content_stays_text():
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
def test_r5_a_marker_inside_a_response_cannot_break_the_format(response):
    context = render_context([{"role": "user", "content": response}])
    text = render_pair(context, response, "other [RESPONSE A] z")
    for marker in ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]"):
        assert text.count(f" {marker} ") + text.startswith(f"{marker} ") == 1
    assert context.count("\n<turn> ") == 1
    assert parse(text) == (context, escape(response), escape("other [RESPONSE A] z"))


def test_r5_escaping_keeps_different_texts_different():
    texts = ["[RESPONSE A]", "\\[RESPONSE A]", "\\\\[RESPONSE A]", "RESPONSE A"]
    assert len({escape(t) for t in texts}) == 4


def pairwise_model(**options):
    made = PairwiseFormat(options.pop("max_length", 512), options.pop("temperature", 1.0))
    return PairwiseModel(qwen2(vocabulary=300), tokenizer(), made, **options)


@pytest.mark.parametrize("tokens", [50, 8192])
@pytest.mark.parametrize("share", [True, False])
def test_r6_both_orders_are_averaged_and_the_mass_outside_a_and_b_is_reported(share, tokens):
    """By hand, from a row's own logits: softmax over the vocabulary, then over A and B."""
    model = pairwise_model(share_prompts=share, max_batch_tokens=tokens, temperature=2.0)
    responses = ["one", "another response", "three"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    (compared,) = model.compare([("What?", responses, pairs)])
    found = scorable(compared)
    a, b = model.tokenize.labels
    for (i, j), preferred in zip(pairs, found, strict=True):
        made = scorable(model.tokenize("What?", responses, [(i, j), (j, i)]))
        logits = [model.model(input_ids=torch.tensor([row])).logits[0, -1] for row in made.rows]
        first = [((x[a] - x[b]) / 2.0).sigmoid().item() for x in logits]
        outside = [1 - x.softmax(-1)[[a, b]].sum().item() for x in logits]
        assert preferred.p_given == pytest.approx(first[0], abs=1e-4)
        assert preferred.p_swapped == pytest.approx(1 - first[1], abs=1e-4)
        assert preferred.p == pytest.approx((first[0] + 1 - first[1]) / 2, abs=1e-4)
        assert preferred.outside == pytest.approx(sum(outside) / 2, abs=1e-4)
    assert max(p.outside for p in found) > 0.5  # a random model says much else


def test_r6_scoring_has_the_limit_of_training_and_cuts_the_context_only():
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
