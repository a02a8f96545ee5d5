"""Ask several models for an answer to each prompt.

Reads   data/synthetic/prompts.jsonl   Prompt rows: `text` or `prompt`, and an id where you have one
Writes  data/synthetic/responses/<model>/responses.jsonl           ModelResponse rows, a folder a model
        data/synthetic/responses/<model>/.responses.partial.jsonl  what is done; a stopped run goes on

    {"id": "p8", "prompt": "2+2?", "source": "sums"}
 -> {"id": "p8", "prompt": "2+2?", "model": "base-t0.5", "text": "4", "finish_reason": "stop", "prompt_tokens": 9, "new_tokens": 2}

Each model is a run of its own: one that cannot be loaded or asked stops nobody else, and the same
command goes on with it. The models stand in config.py (RESPONSE_MODELS) or in a profile.

    uv run generate_responses.py --input "prompts/*.jsonl" --ignore-model "t1\\.4"
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator

import config
from prefpipe import files, llm
from prefpipe.files import DataError
from prefpipe.formats import prompts
from prefpipe.llm.replies import Replies
from prefpipe.llm.responders import Responder
from prefpipe.ranges import Positive, Regex, Temperature
from prefpipe.rows import ModelResponse, Prompt, Reject
from prefpipe.settings import NoEffectOnRows, SamplingStage, local_folders


class Settings(SamplingStage, env_prefix="GENERATE_"):
    input: NoEffectOnRows[str] = config.PROMPTS
    """Prompts: a JSONL, Parquet or CSV file, or several by a glob in quotes."""
    output: Path = config.MODEL_RESPONSES
    """Folder of the models' folders."""
    models: NoEffectOnRows[list[Responder]] = config.RESPONSE_MODELS
    """Who is asked: name, model, and what is set for this model only (Responder)."""
    include_model: NoEffectOnRows[Regex | None] = None
    """Only models in whose name this regular expression is found; None: all."""
    ignore_model: NoEffectOnRows[Regex | None] = None
    """No models in whose name this regular expression is found; None: all are asked."""
    max_new_tokens: Positive = 256
    """Tokens a response may have; one that is longer is cut, and marked so."""
    temperature: Temperature = 0.7
    """Of models that have none of their own; 0 is greedy."""

    @field_validator("models")
    @classmethod
    def _differ(cls, models: list[Responder]) -> list[Responder]:
        # a file system may take A and a for one folder
        names = [model.name.lower() for model in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two models named {', '.join(twice)}; each needs a name of its own")
        base = {"model": config.BASE_MODEL}
        return [model if model.model else model.model_copy(update=base) for model in models]

    def of(self, model: Responder) -> Self:
        """The settings of one model's run: its own values over those of the stage."""
        own = model.model_dump(exclude={"name", "model"}, exclude_none=True)
        batches = (self.batch_folder or config.BATCHES / self.stage_name()) / model.name
        return self.model_copy(update={**own, "models": [model], "batch_folder": batches})

    def rows_depend_on(self) -> dict[str, Any]:
        (model,) = self.models
        return super().rows_depend_on() | {"name": model.name, "model": model.model}


OpenEngine = Callable[[Settings], llm.Engine]


def main(s: Settings, open_engine: OpenEngine | None = None) -> None:
    paths = files.matching(s.input)
    for _ in prompts.read_prompts(paths, s.limit):
        pass  # two rows of one id stop the stage here, not each model in turn
    names = prompts.select_names([m.name for m in s.models], s.include_model, s.ignore_model)
    engines = Engines(open_engine or _open)
    failed = []
    for model in s.models:
        if model.name not in names:
            continue
        try:
            respond(s.of(model), paths, engines)
        except (SystemExit, DataError) as error:
            print(f"{model.name}: {error}", file=sys.stderr)
            failed.append(model.name)
    if failed:
        raise SystemExit(
            f"{s.stage_name()}: {len(failed)} of {len(names)} models did not finish "
            f"({', '.join(failed)}; the reason stands above); the others are written, and the same "
            "command goes on with these"
        )


def respond(s: Settings, paths: Sequence[Path], engines: "Engines") -> None:
    """The run of one model."""
    (model,) = s.models
    output = s.output / model.name / "responses.jsonl"
    inputs = [*paths, *(local_folders(model.model) if s.engine == "local" else ())]
    with files.open_run(s, inputs=inputs, outputs={output: ModelResponse}, unit="prompts") as run:
        if run.finished:
            return

        def requests() -> Iterator[llm.Request]:
            for _, row in prompts.read_prompts(paths, s.limit):
                if isinstance(row, Prompt):
                    yield s.request(request_id(model, row.id), row.prompt)

        replies = Replies(run, requests)
        replies.ask(lambda: engines.of(s), model.name)
        for place, row in prompts.read_prompts(paths, s.limit):
            run.read_count += 1
            if isinstance(row, ValueError):
                run.bad_row(place, row)
            elif isinstance(row, Reject):
                run.emit(row)
            else:
                run.emit(to_response(row, model, replies))


def request_id(model: Responder, id: str) -> str:
    """With the name in it, one model at two temperatures draws from two streams of noise."""
    return f"{id}\t{model.name}"


def to_response(row: Prompt, model: Responder, replies: Replies) -> ModelResponse | Reject:
    """The model's answer to the prompt, or why it has none."""
    reply = replies.of(request_id(model, row.id), row=row.id)
    if isinstance(reply, Reject):
        return reply
    return ModelResponse(id=row.id, prompt=row.prompt, model=model.name, **reply[0].written)


class Engines:
    """The engine of one model at a time; neighbours in the list with the same model share it.

    Not those of the Batch API: what each model was asked stands in a folder of its own.
    """

    def __init__(self, open_engine: OpenEngine) -> None:
        self._open = open_engine
        self._engine: llm.Engine | None = None
        self._opened: tuple[object, ...] = ()

    def of(self, s: Settings) -> llm.Engine:
        (model,) = s.models
        wanted = (model.model, s.engine, tuple(s.base_urls), s.load_in_4bit)
        if self._engine is None or wanted != self._opened or s.engine == "batch":
            self._engine = None  # its memory is needed for the next one
            self._engine = self._open(s)
            self._opened = wanted
        return self._engine


def _open(s: Settings) -> llm.Engine:
    return s.open_engine(s.models[0].model)


if __name__ == "__main__":
    Settings.run(main)
