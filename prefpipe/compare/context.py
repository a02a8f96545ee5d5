"""What both kinds of preference model have alike: saved limits, a context cut from its left, windows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase as Tokenizer

from prefpipe.chat import encode
from prefpipe.files import DataError, write_json
from prefpipe.rows import Reject

R = TypeVar("R")
MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class SavedFormat:
    """What must be the same in training and in use; a JSON file beside the model's weights."""

    file: ClassVar[str]

    def save(self, folder: Path) -> None:
        write_json(folder / self.file, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """None for a model of another's making, which has no such file."""
        path = folder / cls.file
        if not path.is_file():
            return None
        try:
            # of strict types: a text in place of a number would be found in the middle of the work
            return TypeAdapter(cls).validate_json(path.read_bytes(), strict=True, extra="forbid")
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the file"
            raise DataError(f"{path}: {field}: {problem['msg'][:150]}") from None


@dataclass(frozen=True, slots=True)
class Unscorable:
    """Why a prompt's responses have no scores; a Reject once the caller says of which row."""

    reason: str
    """snake_case: empty_question, too_long, responses_too_long, template_refuses_turns."""
    detail: str

    def reject(self, id: str) -> Reject:
        return Reject(id=id, reason=self.reason, detail=self.detail)


def cut_left(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The text without its first tokens; a character that was cut in two goes, too. Always shorter."""
    if not tokenizer.is_fast:
        ids = encode(tokenizer, text)[tokens:]
        shorter = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).lstrip("\ufffd")
    else:
        # by places, not by decoding: what is decoded from inside a word ("##ing") is other text
        options: Any = {
            "split_special_tokens": True,
            "return_offsets_mapping": True,
            "verbose": False,
        }
        found: Any = tokenizer(text, add_special_tokens=False, **options)
        places: list[tuple[int, int]] = found["offset_mapping"]
        is_left = tokens < len(places)
        shorter = text[max(places[tokens][0], places[tokens - 1][1]) :] if is_left else ""
    return shorter if len(shorter) < len(text) else text[tokens:]


def run_window(
    window: Sequence[list[list[int]] | Unscorable], run: Callable[[list[list[int]]], list[R]]
) -> Iterator[list[R] | Unscorable]:
    """For each question's rows of token ids what `run` makes of them; it gets all rows at once."""
    results = iter(run([row for rows in window if isinstance(rows, list) for row in rows]))
    for rows in window:
        yield [next(results) for _ in rows] if isinstance(rows, list) else rows
