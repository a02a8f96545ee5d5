"""LLMBar (Zeng et al. 2024): input, output_1, output_2, label (1 or 2, which is better), subset."""

from functools import partial

from prefpipe.formats.reading import Format, to_labelled_preference

read = partial(
    to_labelled_preference,
    name="llmbar",
    prompt="input",
    answers=("output_1", "output_2"),
    better={1: 0, 2: 1},
    subset="subset",
)
FORMAT = Format(read)
