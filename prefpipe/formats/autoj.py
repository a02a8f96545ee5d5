"""Auto-J's pairwise test set (Li et al. 2024): prompt, response 1, response 2, label (0, 1; 2: a tie), scenario."""

from functools import partial

from prefpipe.formats.reading import Format, to_labelled_preference

read = partial(
    to_labelled_preference,
    name="autoj",
    prompt="prompt",
    answers=("response 1", "response 2"),
    better={0: 0, 1: 1, 2: None},
    subset="scenario",
)
FORMAT = Format(read)
