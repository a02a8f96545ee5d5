"""Reward models' networks: a backbone with one score as output, whose head reads one position."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe.chat import end_of_turn_id, last_id
from prefpipe.models.loading import bare_model, load_both
from prefpipe.models.model_files import base_of, from_pretrained, is_probe
from prefpipe.templates import TemplateError, with_options


def load_classifier(
    name: str | Path,
    *,
    chat_template: Path | None = None,
    headless: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, Tokenizer, bool, int | None]:
    """A model with one score as output, its tokenizer, whether it is a decoder, and the token that
    it was trained to pass over (its pad token; use_own_pad_token gives it another).

    name: a folder or hub name of a reward model, or of a LoRA adapter; with new_head also of a
    backbone. chat_template: for a decoder whose tokenizer has none.
    headless: the backbone alone, which a probe reads; of a probe's folder it always is.
    options: dtype, load_in_4bit, for_training, new_head and without_weights of load_model.
    """
    source, of = base_of(name)
    config = from_pretrained(AutoConfig, source, **of)
    if config.is_encoder_decoder:
        raise SystemExit(f"{name}: an encoder-decoder has no place for one score; take a decoder")
    is_classifier = any("SequenceClass" in kind for kind in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise SystemExit(
            f"{name}: a classifier with {config.num_labels} labels; a reward model has one, its score"
        )
    auto_class: Any = AutoModelForSequenceClassification
    if headless or is_probe(name):
        auto_class = AutoModel
    model, tokenizer = load_both(name, auto_class=auto_class, num_labels=1, **options)
    bare = bare_model(model)
    causal = is_causal(bare)
    if chat_template is not None:
        text = chat_template.read_text(encoding="utf-8")
        tokenizer.chat_template = with_options(text, str(chat_template))
    if causal:
        if not tokenizer.chat_template:
            words = "the tokenizer has no chat template; give one with --chat-template FILE.jinja"
            raise TemplateError(f"{name}: {words}")
        use_own_pad_token(tokenizer, bare)
    return model, tokenizer, causal, config.get_text_config().pad_token_id


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token's state is blind to later tokens; asked of the model itself, with 3 tokens."""
    if model.device.type == "meta":  # it has no numbers: a masked language model sees both sides
        return type(model.config) not in MODEL_FOR_MASKED_LM_MAPPING
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        out: Any = model.base_model(input_ids=ids)  # a model may name no backbone: then its logits
        first, second = getattr(out, "last_hidden_state", getattr(out, "logits", None))[:, 0]  # pyright: ignore[reportOptionalSubscript]
    model.train(was_training)
    return bool((first - second).abs().max() <= 1e-3 * first.abs().max())


def use_own_pad_token(tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Make pad a token that never ends a conversation, in tokenizer and model alike.

    transformers reads the score at the last token that is no pad token: where pad is the end of
    turn, that is one too early. Any other special token will do, since padding is masked; where the
    tokenizer has none, [PAD] is added.
    """
    ends = {None, last_id(tokenizer), end_of_turn_id(tokenizer)}
    if tokenizer.pad_token_id in ends:
        known = [tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
        others = (t for t in known if t and tokenizer.convert_tokens_to_ids(t) not in ends)
        tokenizer.pad_token = next(others, None) or "[PAD]"
        embeddings = model.get_input_embeddings().weight
        assert isinstance(embeddings, torch.Tensor)
        if len(tokenizer) > embeddings.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
