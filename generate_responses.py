"""Ask several models for an answer to each prompt.

Reads   data/synthetic/prompts.jsonl   Prompt rows, or a published format (--format)
Writes  data/synthetic/responses/<model>/responses.jsonl           ModelResponse rows, a folder a model
        data/synthetic/responses/<model>/.responses.partial.jsonl  what is done; a stopped run goes on

    {"id": "p8", "prompt": "2+2?", "source": "sums"}
 -> {"id": "p8", "prompt": "2+2?", "model": "base-t0.5", "text": "4", "finish_reason": "stop", "prompt_tokens": 9, "new_tokens": 2}

Each model is a run of its own: one that cannot be loaded or asked stops nobody else, and the same
command goes on with it. The models stand in config.py (RESPONSE_MODELS) or in a profile.

    uv run generate_responses.py --input "prompts/*.jsonl" --ignore-model "t1\\.4"
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
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
from prefpipe.settings import NoEffectOnRows, PromptColumns, SamplingStage, local_folders


class Settings(PromptColumns, SamplingStage, env_prefix="GENERATE_"):
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
        names = [responder.name.lower() for responder in models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two models named {', '.join(twice)}; each needs a name of its own")
        base = {"model": config.BASE_MODEL}
        return [one if one.model else one.model_copy(update=base) for one in models]

    def of(self, responder: Responder) -> Self:
        """The settings of one model's run: its own values over those of the stage."""
        own = responder.model_dump(exclude={"name", "model"}, exclude_none=True)
        if responder.base_urls or responder.engine not in (None, "server"):
            own["serve"] = None  # which is for the others
        batches = (self.batch_folder or config.BATCHES / self.stage_name()) / responder.name
        return self.model_copy(update={**own, "models": [responder], "batch_folder": batches})

    def rows_depend_on(self) -> dict[str, Any]:
        (responder,) = self.models
        return super().rows_depend_on() | {"name": responder.name, "model": responder.model}


def open_model(s: Settings) -> llm.Engine:
    return s.open_engine(s.models[0].model)


def main(s: Settings, open_engine: Callable[[Settings], llm.Engine] = open_model) -> None:
    paths = files.each_of(s.input)
    tell = lambda lines: print(*lines, sep="\n")  # noqa: E731
    for _ in prompts.read_prompts(paths, s.limit, s.how_read(prompts=True), tell):
        pass  # two rows of one id stop the stage here, not each model in turn
    names = prompts.select_names([m.name for m in s.models], s.include_model, s.ignore_model)
    runs = [s.of(responder) for responder in s.models if responder.name in names]
    failed = []
    for _, neighbours in groupby(runs, key=engine_key):
        # Neighbours in the list that have the same model share its engine, loaded where the first of
        # them has work to do. It is gone, and its memory free, before the next one is loaded.
        group = list(neighbours)
        engine = functools.cache(functools.partial(open_engine, group[0]))
        for own in group:
            # a model whose server is down costs its own responses: the others go on
            try:
                with suppress(files.DryRunEnd):  # of this one
                    respond(own, paths, engine)
            except (SystemExit, DataError) as error:
                print(f"{own.models[0].name}: {error}", file=sys.stderr)
                failed.append(own.models[0].name)
    if failed:
        raise SystemExit(
            f"{s.stage_name()}: {len(failed)} of {len(names)} models did not finish "
            f"({', '.join(failed)}; the reason stands above); "
            f"{'the others are written, and ' if len(failed) < len(names) else ''}the same command "
            "goes on with these"
        )


def engine_key(s: Settings) -> tuple[object, ...]:
    """What two models' runs must have in common to share an engine."""
    (responder,) = s.models
    # in batches what each model was asked stands in a folder of its own
    own = responder.name if s.engine in ("batch", "files") else ""
    return responder.model, s.engine, tuple(s.base_urls), s.load_in_4bit, own


def respond(s: Settings, paths: Sequence[Path], open_engine: Callable[[], llm.Engine]) -> None:
    """The run of one model."""
    (responder,) = s.models
    how = s.how_read(prompts=True)
    output = s.output / responder.name / "responses.jsonl"
    inputs = [*files.here(paths), *(local_folders(responder.model) if s.engine == "local" else ())]
    with s.open_run(inputs=inputs, outputs={output: ModelResponse}, unit="prompts") as run:
        if run.finished:
            return

        def requests() -> Iterator[llm.Request]:
            for _, row in prompts.read_prompts(paths, s.limit, how):
                if isinstance(row, Prompt) and run.shards.owns(row.id):
                    yield s.request(request_id(responder, row.id), row.prompt)

        replies = Replies(run, requests)
        replies.ask(open_engine, responder.name)
        for row in prompts.accepted(run, prompts.read_prompts(paths, s.limit, how)):
            run.emit(to_response(row, responder, replies))


def request_id(responder: Responder, id: str) -> str:
    """With the name in it, one model at two temperatures draws from two streams of noise."""
    return f"{id}\t{responder.name}"


def to_response(row: Prompt, responder: Responder, replies: Replies) -> ModelResponse | Reject:
    """The model's answer to the prompt, or why it has none."""
    reply = replies.of(request_id(responder, row.id), row=row.id)
    if isinstance(reply, Reject):
        return reply
    return ModelResponse(id=row.id, prompt=row.prompt, model=responder.name, **reply[0].written)


if __name__ == "__main__":
    Settings.run(main)
