"""Tokenizers from a folder or the hub, checked to be whole; their chat template as this run uses it."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefpipe import chat
from prefpipe.models.model_files import base_of, from_pretrained, read_json
from prefpipe.templates import TemplateError, with_options

_PAD_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<unk>")
"""Special tokens that can pad: no chat template ends a turn with one. In this order."""
_PROBE = "the answer is 42"


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer that has a pad token and no length limit of its own.

    Where the model brings no pad token, it is a special token that its vocabulary already has and
    that does not end a turn, else EOS (the embeddings keep their size). A pad token is only ever
    what fills a batch; nothing is masked by comparing ids with it.
    """
    has_own = (Path(name) / "tokenizer_config.json").is_file()  # an adapter's folder may, too
    source, options = (str(name), {}) if has_own else base_of(name)
    tokenizer = from_pretrained(_tokenizer_class(source), source, **options)
    if not tokenizer(_PROBE, add_special_tokens=False)["input_ids"]:
        raise SystemExit(
            f"{name}: the tokenizer makes no token of a text: is tokenizer.json there?"
        )
    if tokenizer.pad_token is None:
        known, eos = tokenizer.get_vocab(), tokenizer.eos_token
        tokenizer.pad_token = next((t for t in _PAD_TOKENS if t in known and t != eos), eos)
    if tokenizer.pad_token is None:
        raise SystemExit(f"{name}: the tokenizer has neither a pad nor an EOS token; set one in it")
    tokenizer.chat_template = _one_template(tokenizer.chat_template, name)
    return tokenizer


def _one_template(template: Any, name: str | Path) -> str | None:
    """The default of several templates, which is the one that is used: a saved model has it alone."""
    if isinstance(template, dict):
        if "default" not in template:
            known = ", ".join(sorted(template))[:100]
            raise TemplateError(
                f"{name}: several chat templates ({known}), none of them named default; keep one"
            )
        template = template["default"]
    return with_options(template, str(name)) if template else None


def _tokenizer_class(name: str) -> Any:
    """AutoTokenizer, but for a folder whose tokenizer is of no model's class.

    Of a Qwen2 model AutoTokenizer makes a Qwen2Tokenizer whatever the folder says, and splits text
    by its rules instead of by those in tokenizer.json.
    """
    path = Path(name) / "tokenizer_config.json"
    own = read_json(path) if path.is_file() else {}
    plain = own.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return PreTrainedTokenizerFast if plain else AutoTokenizer


def max_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest id that a conversation can have: of all tokens but the special ones no template
    puts there (Gemma 3 has one for images, beyond the embeddings of its text models).
    """
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    used = {*tokenizer.get_vocab().values()} - special
    used |= {i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(i, int)}
    if tokenizer.chat_template:
        used |= {*chat.conversation_ids(tokenizer, [{"role": "user", "content": "x"}], "x")}
    return max(used)
