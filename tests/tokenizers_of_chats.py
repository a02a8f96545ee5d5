"""Small tokenizers with the chat templates of published model families, written out.

One token a byte-level character, and the special tokens of the family. Nothing is downloaded.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# A system turn of the family's own where the conversation has none, as Qwen2 does.
QWEN2 = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""".replace("\n", "")

# BOS in the template, contents trimmed, as Llama 3 does. Its tokenizer adds a BOS too.
LLAMA3 = """\
{% for message in messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}
{% set content = bos_token + content %}
{% endif %}
{{ content }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}
""".replace("\n", "")

# No system role, turns must alternate; nothing stands for a generation prompt, as in Mistral's.
MISTRAL = """\
{{ bos_token }}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] + eos_token }}
{% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}
""".replace("\n", "")

# No system role either; the assistant is called model, as in Gemma's.
GEMMA = """\
{{ bos_token }}
{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}
{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model\\n' }}
{% endif %}
""".replace("\n", "")

_FAMILIES = {
    "qwen2": (QWEN2, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|end_of_text|>",
               ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": (MISTRAL, "<s>", "</s>", ["<unk>"]),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)


def tokenizer_of(family: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The family's tokenizer; chat_template in place of its own, to break it."""
    template, bos, eos, others = _FAMILIES[family]
    special = [token for token in (bos, eos, *others) if token]
    vocabulary = {token: k for k, token in enumerate(special)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:  # what a plain text gets: the families with a BOS put it first
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
    made.add_special_tokens({"additional_special_tokens": others})
    made.chat_template = template if chat_template is None else chat_template
    return made
