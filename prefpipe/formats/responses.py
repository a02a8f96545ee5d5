"""This pipeline's Responses rows with `right`, as a benchmark: --benchmark best_of_n."""

from prefpipe.files import parse_row
from prefpipe.formats.reading import Format, Record
from prefpipe.rows import Question, Responses


def read(record: Record) -> Question:
    """A row with only right or only wrong responses stays."""
    row = parse_row(dict(record), Responses)
    if row.right is None or len(row.right) != len(row.responses):
        raise ValueError("right: wanted true or false for each response")
    answers = list(zip(row.responses, row.right, strict=True))
    return Question(
        id=row.id,
        prompt=row.prompt,
        right=[text for text, right in answers if right],
        wrong=[text for text, right in answers if not right],
        source=row.source or "best_of_n",
    )


FORMAT = Format(read, about="Our own Responses rows, where `right` is known", several_answers=True)
