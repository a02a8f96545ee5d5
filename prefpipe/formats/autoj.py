"""Auto-J's pairwise test set (Li et al. 2024): prompt, response 1, response 2, label, scenario."""

from prefpipe.formats.reading import (
    Format,
    Record,
    prompt_field,
    text_field,
    to_labelled_preference,
)
from prefpipe.rows import Preference


def read(record: Record) -> Preference:
    """label 0: the first response is better, 1: the second, 2: a tie. source: autoj/<scenario>."""
    answers = [text_field(record, f"response {k}") for k in (1, 2)]
    scenario = record.get("scenario")
    source = f"autoj/{scenario}" if scenario else "autoj"
    prompt = prompt_field(record)
    return to_labelled_preference(record, prompt, answers, {0: 0, 1: 1, 2: None}, source)


FORMAT = Format(read)
