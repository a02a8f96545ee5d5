"""What stages take that ask a model for texts: which model, where it runs, how texts are drawn."""

import re
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import config
from prefpipe.llm import Request
from prefpipe.llm.responders import EngineKind
from prefpipe.models import gguf_files
from prefpipe.ranges import AboveZero, NotNegative, Positive, Temperature, TopK, TopP
from prefpipe.rows import Message, as_turns
from prefpipe.settings.chats import ChatStage
from prefpipe.settings.stage import NoEffectOnRows, Stage, check_dotenv

if TYPE_CHECKING:
    from prefpipe.llm import Engine
    from prefpipe.llm.batch_api.batch_engine import BatchEngine, BatchOptions
    from prefpipe.llm.server.score_dialect import Wanted
    from prefpipe.llm.server.score_engine import ScoreEngine
    from prefpipe.llm.server.server_engine import ServerEngine
    from prefpipe.llm.wire import ServedModel


E = TypeVar("E")
gguf_files.cache = config.DATA / "cache/gguf"

Option = Literal["temperature", "top_p", "top_k", "seed", "n", "response_format"]


class Account(BaseSettings):
    """OPENAI_API_KEY and OPENAI_BASE_URL, of the environment or .env.

    They are in no stage's settings, so that no --help, no printed setting and no file has the key.
    """

    model_config = SettingsConfigDict(
        env_prefix="OPENAI_",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )
    api_key: SecretStr | None = None
    base_url: str | None = None
    """One base URL, or several with commas between them."""

    def __init__(self, **values: Any) -> None:
        check_dotenv(Path(".env"))
        super().__init__(**values)

    def base_urls(self) -> list[str]:
        """Where to ask: with a key alone it is OpenAI itself; none: no server is configured."""
        if self.base_url:
            return [url.strip() for url in self.base_url.split(",")]
        return ["https://api.openai.com/v1"] if self.api_key else []


class ServerStage(Stage):
    """What every stage takes that may ask a server, at once or through the Batch API."""

    base_urls: NoEffectOnRows[list[str]] = []
    """Servers that serve the model (server); requests go to all of them (batch: to one). Empty:
    OPENAI_BASE_URL, or with OPENAI_API_KEY alone OpenAI itself."""
    serve: NoEffectOnRows[str | None] = None
    """A server that the stage starts for its model and ends with itself (server): vllm, sglang,
    llama.cpp or transformers, then options of its own; or a command with {model} and {port} in it."""
    serve_seconds: NoEffectOnRows[AboveZero] = 1800.0
    """Seconds that it may take until it answers; its log stands beside the output."""
    requests_in_flight: NoEffectOnRows[Positive] = 128
    """Requests under way at once (server)."""
    requests_per_minute: NoEffectOnRows[Positive | None] = None
    """The account's limit (server). None: as fast as the server answers."""
    tokens_per_minute: NoEffectOnRows[Positive | None] = None
    """The account's limit, prompt and new tokens together (server). None: no limit."""
    max_retries: NoEffectOnRows[NotNegative] = 8
    """Times a request is sent again after a rate limit, a server's error or a lost connection."""
    timeout_seconds: NoEffectOnRows[AboveZero] = 600.0
    """Seconds that one reply of a server may take."""
    leave_out_options: list[Option] = []
    """Options that are not sent, where a server refuses them (server, batch): its own values are
    taken."""
    leave_out_failing: NoEffectOnRows[bool] = False
    """Write rows that the server fails on each time to the rejects; without it the stage stops before
    its end, and the same command asks for those again."""
    batch_folder: NoEffectOnRows[Path | None] = None
    """Where the record of what was submitted stands, and what came back (batch). None:
    data/batches/ and the stage's name. What is in it is not paid again."""
    batch_requests: NoEffectOnRows[Positive] = 50_000
    """Requests of one batch at most (batch): the API's limit."""
    batch_bytes: NoEffectOnRows[Positive] = 200_000_000
    """Bytes of one batch at most (batch): the API's limit."""
    batch_tries: NoEffectOnRows[Positive] = 3
    """Batches that a request is sent in at most, where they end without an answer to it (batch)."""
    max_cost: NoEffectOnRows[AboveZero | None] = None
    """USD that all batches of the folder may cost together (batch): what could go beyond it is not
    submitted. None: no limit."""
    poll_seconds: NoEffectOnRows[AboveZero] = 60.0
    """Longest pause between two looks at the batches under way (batch)."""

    @field_validator("serve")
    @classmethod
    def _is_the_only_place(cls, serve: str | None, known: ValidationInfo) -> str | None:
        if serve and known.data.get("base_urls"):
            raise ValueError("base URLs are set, too: set one of both")
        return serve

    @field_validator("engine", check_fields=False)
    @classmethod
    def _asks_what_it_serves(cls, engine: str, known: ValidationInfo) -> str:
        if known.data.get("serve") and engine != "server":
            raise ValueError("--serve starts a server: set --engine server")
        return engine

    def rows_depend_on(self) -> dict[str, Any]:
        values = super().rows_depend_on()
        if not self.leave_out_options:
            del values["leave_out_options"]  # as in runs of versions that did not have it
        return values

    def batch_options(self) -> "BatchOptions":
        from prefpipe.llm.batch_api.batch_engine import BatchOptions

        folder = self.batch_folder or config.BATCHES / self.stage_name()
        return BatchOptions(
            # a shard's batches are its own: which were submitted stands in the folder
            folder=folder / self.shard.replace("/", "-of-") if self.shard else folder,
            requests=self.batch_requests,
            bytes=self.batch_bytes,
            tries=self.batch_tries,
            max_cost=self.max_cost,
            poll_seconds=self.poll_seconds,
            as_files=getattr(self, "engine", "") == "files",
        )

    def _served(self, model: str, urls: Sequence[str] = (), **options: Any) -> "ServedModel":
        from prefpipe.llm.wire import ServedModel

        account, tries = Account(), (self.max_retries, self.timeout_seconds)
        urls = urls or self.base_urls or account.base_urls()
        options["unsent"] = tuple(self.leave_out_options)
        return ServedModel(urls, model, account.api_key, *tries, **options)

    def open_server(self, model: str, **options: Any) -> "ServerEngine":
        """Nothing is asked yet. options: structured_output, extra_body, dispensable.

        A server that is started here (serve) ends with the engine: at the latest with the process.
        """
        from prefpipe.llm.server.server_engine import ServerEngine

        return self._at_server(model, ServerEngine, **options)

    def _at_server(self, model: str, engine_class: Callable[..., E], **options: Any) -> E:
        from prefpipe.llm.server.server_session import ServerOptions
        from prefpipe.llm.server.started_server import NOWHERE, StartedServer, check_command

        started = None
        if self.serve and self.dry_run:
            check_command(self.serve)
            options["urls"] = [NOWHERE]
        elif self.serve:
            started = StartedServer(self.serve, model, self._server_log(model), self.serve_seconds)
            options |= {"urls": [started.url], "why_down": started.why_down}
        limits = (self.requests_per_minute, self.tokens_per_minute)
        pace = ServerOptions(self.requests_in_flight, *limits)
        engine = engine_class(self._served(model, **options), pace)
        if started:
            weakref.finalize(engine, started.stop)
        return engine

    def _server_log(self, model: str) -> Path:
        output = Path(getattr(self, "output", config.DATA))
        called = re.sub(r"[^\w.-]+", "-", model).strip("-.")[-60:]
        folder = output.parent if output.suffix else output
        shard = f".{self.shard.replace('/', '-of-')}" if self.shard else ""
        return folder / f"{self.stage_name()}{shard}.{called}.server.log"

    def open_batches(self, model: str, **options: Any) -> "BatchEngine":
        """The Batch API, also for a stage that takes it step by step. Nothing is asked yet."""
        from prefpipe.llm.batch_api.batch_engine import BatchEngine

        return BatchEngine(self._served(model, **options), self.batch_options())


class EngineStage(ChatStage, ServerStage):
    """What every stage takes that asks a model for texts; they are greedy."""

    engine: EngineKind = "local"
    """local: in this process; server: an OpenAI-compatible endpoint at base_urls; batch: the
    OpenAI Batch API there, at half the price, within a day; files: requests are written to
    batch_folder for vllm run-batch, and its results are read there."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights. None: decided by memory: 4-bit if bfloat16 weights would fill more than
    half of what the GPU has free."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that a model here computes in; auto: float32 on a CPU, bfloat16 (half the memory) on a GPU."""
    max_new_tokens: Positive = 160
    """Tokens a text may have; one that is longer is cut, and marked so."""
    max_batch_tokens: NoEffectOnRows[Positive | None] = None
    """Tokens in memory at once (local); None: found from the free memory. Changes no text."""
    structured_output: bool = False
    """Hold replies that have a form (a judge's, ratings) to it: by masking tokens (local), or by
    response_format with a JSON schema (server, batch), which some servers refuse and some pass over;
    all replies are read alike. Free text is asked for without a schema."""

    def open_engine(self, model: str) -> "Engine":
        """Load the model, or connect: the slow part, so only once there is work to do."""
        match self.engine:
            case "server":
                return self.open_server(model, structured_output=self.structured_output)
            case "batch" | "files":
                return self.open_batches(model, structured_output=self.structured_output)
            case "local" if self.dry_run:
                from prefpipe.llm.local.prompt_reader import PlannedEngine

                return PlannedEngine(model)
            case "local":
                from prefpipe.llm.local.local_engine import open_local

                return open_local(
                    model,
                    load_in_4bit=self.load_in_4bit,
                    dtype=self.dtype,
                    max_batch_tokens=self.max_batch_tokens,
                    structured_output=self.structured_output,
                )

    def where_scored(self) -> dict[str, Any]:
        """Where a model that gives scores runs: options of openers.open_reward and open_pairwise."""
        if self.engine not in ("local", "server"):
            raise SystemExit(
                f"--engine {self.engine} asks for texts, and these models give scores: set local or server"
            )
        if self.serve and self.dry_run:
            from prefpipe.llm.server.started_server import check_command

            check_command(self.serve)
        is_served = self.engine == "server"
        weights = {"load_in_4bit": self.load_in_4bit, "dtype": self.dtype}
        return {"weights": weights, "open_rows": self._rows_engine if is_served else None}

    def _rows_engine(self, model: str, wanted: "Wanted") -> "ScoreEngine":
        from prefpipe.llm.server.score_engine import ScoreEngine

        made = partial(ScoreEngine, wanted=wanted, leaves_out=self.leave_out_failing)
        return self._at_server(model, made)

    def request(
        self,
        id: str,
        prompt: str | Sequence[Message],
        *,
        samples: tuple[int, ...] = (0,),
        reply_schema: dict[str, Any] | None = None,
    ) -> Request:
        """The prompt, to be answered as these settings say."""
        return Request(
            id=id,
            messages=tuple(as_turns(prompt)),
            samples=samples,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            reply_schema=reply_schema,
            **self._sampling(),
        )

    def _sampling(self) -> dict[str, Any]:
        return {}  # a Request's own defaults are greedy


class SamplingStage(EngineStage):
    """The same, with a say in how the texts are drawn."""

    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    top_k: TopK = 0

    def _sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


class ModelStage(SamplingStage):
    """The same with one model."""

    model: str = config.BASE_MODEL
    """A folder (a model, or a LoRA adapter with its base named inside) or a hub name."""


def local_folders(*names: str) -> list[Path]:
    """Those names of models that are here, in a folder or a file: their content is part of the
    fingerprint."""
    return [path for name in names if (path := gguf_files.model_path(name))]
