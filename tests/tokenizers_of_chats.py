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

# A thinking template: the last answer gets an empty thought where it has none, as in Qwen3's.
QWEN3 = """\
{% for message in messages %}
{% set content = message['content'] %}
{% if message['role'] == 'assistant' and loop.last %}
{% set parts = content.split('</think>') if '</think>' in content else ['', content] %}
{% set thought = parts[0].split('<think>')[-1].strip('\\n') %}
{{ '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + parts[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{% else %}
{{ '<|im_start|>' + message['role'] + '\\n' + content.split('</think>')[-1] + '<|im_end|>\\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% if enable_thinking is defined and enable_thinking is false %}
{{ '<think>\\n\\n</think>\\n\\n' }}
{% endif %}
{% endif %}
""".replace("\n", "")

# The generation prompt opens a thought, and answers are rendered without theirs, as in R1's.
R1 = """\
{{ bos_token }}
{% for message in messages %}
{% set name = '<User>' if message['role'] == 'user' else '<Assistant>' %}
{{ name + message['content'].split('</think>')[-1] }}
{% if message['role'] == 'assistant' %}
{{ eos_token }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<Assistant><think>\\n' }}
{% endif %}
""".replace("\n", "")

# Channels: the generation prompt ends before the channel is chosen, as in gpt-oss's.
CHANNELS = """\
{{ '<|start|>system<|message|>Today: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] + ('<|return|>' if loop.last else '<|end|>') }}
{% else %}
{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start|>assistant' }}
{% endif %}
""".replace("\n", "")

_FAMILIES = {
    "qwen2": (QWEN2, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|end_of_text|>",
               ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": (MISTRAL, "<s>", "</s>", ["<unk>"]),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "qwen3": (QWEN3, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "r1": (R1, "<begin>", "<end>", ["<User>", "<Assistant>"]),
    "channels": (CHANNELS, None, "<|return|>",
                 ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|endoftext|>"]),
}  # fmt: skip
THINKING = ("qwen3", "r1", "channels")
FAMILIES = tuple(name for name in _FAMILIES if name not in THINKING)


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
