"""prefpipe.llm.complete, with scripted answers."""

import pytest

from prefpipe.files import RowLog
from prefpipe.llm import MANY, Completion, Request, complete
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rows import Row


class Text(Row):
    text: str
    sample: int

    @property
    def key(self) -> str:
        return f"{self.id} {self.sample}"


def to_row(completion: Completion) -> Text:
    return Text(id=completion.id, text=completion.text, sample=completion.sample)


@pytest.mark.parametrize(
    ("prompts", "samples", "varied", "is_said"),
    [
        (MANY, (0, 1), 0, True),
        (MANY - 1, (0, 1), 0, False),
        (MANY, (0, 1), 1, False),  # one prompt has two texts: it does sample
        (MANY, (0,), 0, False),
    ],
)
def test_a_server_that_gives_every_sample_the_same_text_is_told_of(
    tmp_path, capsys, prompts, samples, varied, is_said
):
    def answer(request: Request, sample: int) -> str:
        return f"text {sample}" if int(request.id) < varied else "text"

    asked = [Request(str(k), (), samples, temperature=1.0) for k in range(prompts)]
    log = RowLog(tmp_path / "log.jsonl", Text, {})
    assert complete(ScriptedEngine(answer), asked, log, to_row) == {}
    assert len(log) == prompts * len(samples)
    said = f"each of {prompts} prompts; is the temperature 0, or does the server not sample?"
    assert (said in capsys.readouterr().err) == is_said
