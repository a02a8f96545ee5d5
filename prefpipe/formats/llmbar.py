"""LLMBar (Zeng et al. 2024): input, output_1, output_2, label (1 or 2, which is better), subset."""

from prefpipe.formats.reading import (
    Format,
    Record,
    prompt_field,
    text_field,
    to_labelled_preference,
)
from prefpipe.rows import Preference


def read(record: Record) -> Preference:
    """source becomes llmbar/<subset>."""
    answers = [text_field(record, f"output_{k}") for k in (1, 2)]
    subset = record.get("subset")
    source = f"llmbar/{subset}" if subset else "llmbar"
    prompt = prompt_field(record, "input")
    return to_labelled_preference(record, prompt, answers, {1: 0, 2: 1}, source)


FORMAT = Format(read)
