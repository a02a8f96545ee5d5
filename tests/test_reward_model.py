"""prefpipe.compare.reward_model: where a score is read; what is shared or padded changes none."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from prefpipe.chat import end_of_turn_id
from prefpipe.compare.reward_model import RewardModel, Unscorable
from prefpipe.compare.reward_tokens import RewardFormat, RewardTokenizer
from prefpipe.files import DataError
from prefpipe.models.classifiers import is_causal, use_own_pad_token
from prefpipe.models.loading import max_positions
from prefpipe.rows import Message
from tests.test_training_reward import classifier
from tests.training_models import scorable, tokenizer

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


def test_pad_equal_to_eos_does_not_move_the_place_of_the_score():
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


def test_a_tokenizer_whose_only_special_token_is_the_end_of_turn_gets_a_pad_token():
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


def test_a_long_prompt_is_cut_from_its_left_and_counted_or_left_out_by_name():
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


@pytest.mark.parametrize("prompt", ["unbelievable " * 30, "abc de " * 60, "what is it " * 40])
def test_an_encoders_long_prompt_is_cut_to_what_fits(prompt):
    """Pieces of words, decoded and read again, would be more tokens than before."""
    tokenize = RewardTokenizer(bert_tokenizer(), RewardFormat(40, True), False)
    made = scorable(tokenize(prompt, ["yes", "no it is not"]))
    assert made.tokens_cut > 0 and 30 <= max(map(len, made.completions)) <= 40


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"max_length": "x", "cut_prompt": true}', '{"max_length": 0, "cut_prompt": true}',
     '{"max_length": 5, "cut_prompt": true, "zz": 1}', '{"max_length": 5, "cut_prompt": 1}',
     '{"max_length": 5, "cut_prompt": true, "temperature": 0}', "\xe4", "[" * 100_000],
)  # fmt: skip
def test_a_damaged_format_is_a_sentence_with_its_place(tmp_path, text):
    (tmp_path / RewardFormat.file).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"reward_format\.json: ") as caught:
        RewardFormat.load(tmp_path)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_a_saved_format_is_read_back_and_an_older_one_is_read_at_the_end_of_turn(tmp_path):
    own = RewardFormat(77, False, 1.5, "template_end")
    own.save(tmp_path)
    assert RewardFormat.load(tmp_path) == own
    (tmp_path / RewardFormat.file).write_text('{"max_length": 77, "cut_prompt": false}')
    assert RewardFormat.load(tmp_path) == RewardFormat(77, False, None, "end_of_turn")
    assert RewardFormat.load(tmp_path / "nothing") is None


def test_where_a_published_models_pad_token_ends_the_template_the_score_is_read_before_it():
    """As transformers reads it: at the last token that is no pad token."""
    tok = tokenizer()
    tok.pad_token = tok.eos_token
    tok.chat_template = str(tok.chat_template).replace("<|im_end|>\n", "<|im_end|>")
    model = classifier(vocab_size=300)
    eos: Any = tok.eos_token_id
    model.config.pad_token_id = eos
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    ids = tok.apply_chat_template(turns, return_dict=False, return_tensors="pt")
    with torch.no_grad():
        theirs = model(ids).logits[0, 0].item()
    form = RewardFormat(512, True, read_at="template_end")
    scorer = RewardModel(model, tok, form, True, eos)
    (ours,) = scorer.score([("Q", ["A"])])
    assert scorable(ours) == pytest.approx([theirs], abs=1e-4)
