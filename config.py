"""Every path, model name and shared constant of the pipeline: edit here, or override one run.

The first one set wins: command line (--n 16), environment (BEST_OF_N_N=16), `.env`, a profile
(PROFILE=conj-qwen2-7b reads profiles/conj-qwen2-7b.toml), this file. The values here are those of
the embedded chain, which runs on any machine; a profile holds the recipe of a published one.
`--show-settings` prints each value and where it came from.
"""

import difflib
import errno
import gc
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Self

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from prefpipe.files import DataError
from prefpipe.llm import Request
from prefpipe.rows import Message

if TYPE_CHECKING:
    from prefpipe.llm import Engine
    from prefpipe.llm.openai_batch import BatchEngine, BatchOptions
    from prefpipe.llm.server import ServerEngine

ROOT = Path(__file__).parent

# ---- paths: each stage finds the one before it here ------------------------------------------

DATA = Path(os.environ.get("PREFPIPE_DATA") or "data")
"""PREFPIPE_DATA=runs/b keeps a second run apart from the first."""
EMBEDDED = Path("embedded")
PROFILES = ROOT / "profiles"

RAW_TRAIN = str(EMBEDDED / "sample/preferences-train.parquet")
RAW_VALIDATION = str(EMBEDDED / "sample/preferences-validation.parquet")
ITEMS = DATA / "pairwise_critic_inference2_get_answer/Sky"
ITEMS_ENGLISH = DATA / "pairwise_critic_inference2_get_answer/Sky_english"
JUDGMENTS = DATA / "judgments/raw"
JUDGMENTS_CLEAN = DATA / "judgments/clean"
DPO_DATASET = DATA / "dpo"
TUNED_JUDGE = DATA / "models/judge"
REWARD_MODEL = DATA / "models/reward"
PAIRWISE_MODEL = DATA / "models/pairwise"
RESPONSES = DATA / "responses.jsonl"
RANKING = DATA / "ranking"
ACCURACY = DATA / "accuracy"

SYNTHETIC = DATA / "synthetic"
PROMPTS = str(SYNTHETIC / "prompts.jsonl")
MODEL_RESPONSES = SYNTHETIC / "responses"
ANNOTATION_MIX = SYNTHETIC / "mix.jsonl"
SYNTHETIC_PREFERENCES = SYNTHETIC / "preferences.jsonl"
ANNOTATION_PROMPTS = DATA / "synthetic/annotation_prompts.jsonl"
ANNOTATIONS = DATA / "synthetic/annotations.jsonl"
BATCHES = DATA / "batches"

RAG_TABLE = DATA / "rag/stdlib.csv"
VECTOR_STORE = DATA / "rag/store"
PAIRWISE_PREFS = DATA / "rag/pairwise_prefs.jsonl"

# ---- models ----------------------------------------------------------------------------------

BASE_MODEL = str(EMBEDDED / "model")
"""A folder or a hub name; of the judge, the RAG generator and the backbones of path C."""

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
"""A sentence-transformers model: a folder or a hub name. This one comes as a PyPI package."""

SEED = 2021

_SHORT = re.compile(r"^--([a-z])(=.*)?$")
"""--n 8 as well as -n 8: one-letter settings are options with one dash to the parser."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, 0 to 1; never a percentage."""
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Temperature = Annotated[float, Field(ge=0, description="0 is greedy.")]
TopP = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        description="The likeliest tokens that have this share of the probability; 1: all.",
    ),
]
TopK = Annotated[int, Field(ge=0, description="The likeliest tokens; 0: all.")]
EngineKind = Literal["local", "server", "batch"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]


class ResponseModel(BaseModel):
    """One of the models that generate_responses.py asks; None: as the stage's own setting says."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What it is called from here on: the folder of its responses."""
    model: str = BASE_MODEL
    """A folder or a hub name; of a server, the name it serves the model under."""
    engine: EngineKind | None = None
    base_urls: list[str] | None = None
    """Where this model is served."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: NotNegative | None = None
    max_new_tokens: Positive | None = None
    load_in_4bit: bool | None = None

    def __repr_args__(self) -> Any:
        """For --help: only what is set."""
        return [(name, value) for name, value in super().__repr_args__() if value is not None]


RESPONSE_MODELS = [
    ResponseModel(name="base-t0.5", temperature=0.5),
    ResponseModel(name="base-t0.8", temperature=0.8),
    ResponseModel(name="base-t1.1", temperature=1.1),
    ResponseModel(name="base-t1.4", temperature=1.4),
    ResponseModel(name="judge", model=str(TUNED_JUDGE), temperature=1.0),
]
"""Who answers the prompts of path D. A profile has one [[generate_responses.models]] table each."""


class Stage(BaseSettings):
    """What every stage takes; a stage adds its input, its output and its own knobs."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    no_effect_on_rows: ClassVar[frozenset[str]] = frozenset()
    """Names of a stage's own settings that change speed or place, never a row."""

    seed: int = SEED
    """Seed of every random choice of the stage."""
    limit: Positive | None = None
    """Stop after this many input rows of each file; for smoke runs. None: all."""
    overwrite: bool = False
    """Start anew: replace an existing output and a stopped run's log."""
    strict: bool = False
    """Stop at the first bad row instead of writing it to the rejects."""
    show_settings: bool = False
    """Print each setting with its value and where it came from, then stop."""

    @classmethod
    def stage_name(cls) -> str:
        """Name of the script that defines the settings, without .py."""
        return Path(inspect.getfile(cls)).stem

    def rows_depend_on(self) -> dict[str, Any]:
        """The settings that change rows, for the fingerprint: paths by content, not by name."""
        skipped = {"overwrite", "strict", "show_settings"} | self.no_effect_on_rows
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name not in skipped and not isinstance(getattr(self, name), Path)
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, _ProfileSource(settings_cls)

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Self:
        """The settings of this run. Exits with a sentence where one is wrong or misspelt."""
        cls._refuse_misspelt_variables()
        given = sys.argv[1:] if arguments is None else arguments
        description = inspect.getdoc(sys.modules[cls.__module__]) or ""
        command_line = CliSettingsSource(
            cls,
            cli_parse_args=[_SHORT.sub(r"-\1\2", argument) for argument in given],
            cli_prog_name=f"{cls.stage_name()}.py",
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_shortcuts=cls.model_config.get("cli_shortcuts"),
            formatter_class=_formatter(description),
        )
        try:
            settings = cls(_cli_settings_source=command_line)  # pyright: ignore[reportCallIssue]
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = "_".join(str(part) for part in problem["loc"][:1])
            where = _origin(cls, name, command_line())
            raise SystemExit(
                f"{cls.stage_name()}: setting {name} (from {where}): found "
                f"{problem['input']!r}: {problem['msg']}"
            ) from None
        except SettingsError as error:
            raise SystemExit(f"{cls.stage_name()}: {error}") from None
        if settings.show_settings:
            _show(settings, command_line())
        return settings

    @classmethod
    def run(cls, main: Callable[[Self], None]) -> NoReturn:
        """Run main on the command line's settings; a person's mistake ends in a sentence."""
        try:
            settings = cls.from_command_line()
            gc.freeze()  # what was imported stays: a collection that looks at it takes 7 us a row
            main(settings)
        except DataError as error:
            raise SystemExit(f"{cls.stage_name()}: {error}") from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise  # no path of a person's
            where = f"{error.filename}: " if error.filename else ""
            raise SystemExit(f"{cls.stage_name()}: {where}{error.strerror}") from None
        except KeyboardInterrupt:
            print(f"{cls.stage_name()}: stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
        raise SystemExit(0)

    @classmethod
    def _refuse_misspelt_variables(cls) -> None:
        prefix = cls.model_config.get("env_prefix", "").upper()
        known = {prefix + name.upper() for name in cls.model_fields}
        in_file = dotenv_values(".env")
        for name in [*os.environ, *in_file]:
            if prefix and name.upper().startswith(prefix) and name.upper() not in known:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                where = "the environment" if name in os.environ else ".env"
                raise SystemExit(
                    f"{name} in {where} is no setting of {cls.stage_name()}.py; "
                    f"{f'near: {near[0]}' if near else f'known: {sorted(known)}'}"
                )


class BatchStage(Stage):
    """What every stage takes that may ask through the OpenAI Batch API."""

    no_effect_on_rows: ClassVar[frozenset[str]] = frozenset(
        {
            "batch_folder",
            "batch_requests",
            "batch_bytes",
            "batch_tries",
            "max_cost",
            "poll_seconds",
        }
    )
    batch_folder: Path | None = None
    """Where the record of what was submitted stands, and what came back (batch). None:
    data/batches/ and the stage's name. What is in it is not paid again."""
    batch_requests: Positive = 50_000
    """Requests of one batch at most (batch): the API's limit."""
    batch_bytes: Positive = 200_000_000
    """Bytes of one batch at most (batch): the API's limit."""
    batch_tries: Positive = 3
    """Batches that a request is sent in at most, where they end without an answer to it (batch)."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """USD that all batches of the folder may cost together (batch): what could go beyond it is not
    submitted. None: no limit."""
    poll_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest pause between two looks at the batches under way (batch)."""

    def batch_options(self) -> "BatchOptions":
        from prefpipe.llm.openai_batch import BatchOptions

        return BatchOptions(
            folder=self.batch_folder or BATCHES / self.stage_name(),
            requests=self.batch_requests,
            bytes=self.batch_bytes,
            tries=self.batch_tries,
            max_cost=self.max_cost,
            poll_seconds=self.poll_seconds,
        )


class ServerStage(BatchStage):
    """What every stage takes that may ask a server."""

    no_effect_on_rows: ClassVar[frozenset[str]] = BatchStage.no_effect_on_rows | {
        "base_urls",
        "requests_in_flight",
        "requests_per_minute",
        "tokens_per_minute",
        "max_retries",
        "timeout_seconds",
    }
    base_urls: list[str] = []
    """Servers that serve the model (server); requests go to all of them (batch: to one). Empty:
    OPENAI_BASE_URL, or with OPENAI_API_KEY alone OpenAI itself."""
    requests_in_flight: Positive = 128
    """Requests under way at once (server)."""
    requests_per_minute: Positive | None = None
    """The account's limit (server). None: as fast as the server answers."""
    tokens_per_minute: Positive | None = None
    """The account's limit, prompt and new tokens together (server). None: no limit."""
    max_retries: NotNegative = 8
    """Times a request is sent again after a rate limit, a server's error or a lost connection."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that one reply of a server may take."""

    def open_remote(
        self, kind: Literal["server", "batch"], model: str, **options: Any
    ) -> "ServerEngine | BatchEngine":
        """Nothing is asked yet. options: structured_output, extra_body."""
        account = Account()
        urls = self.base_urls or account.base_urls()
        options |= {"max_retries": self.max_retries, "timeout_seconds": self.timeout_seconds}
        if kind == "batch":
            from prefpipe.llm.openai_batch import BatchEngine

            return BatchEngine(urls, model, account.api_key, self.batch_options(), **options)
        from prefpipe.llm.server import ServerEngine

        return ServerEngine(
            urls,
            model,
            account.api_key,
            requests_in_flight=self.requests_in_flight,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            in_order=False,  # what has come is logged at once: a kill loses none of it
            **options,
        )


class EngineStage(ServerStage):
    """What every stage takes that asks a model for texts."""

    no_effect_on_rows: ClassVar[frozenset[str]] = ServerStage.no_effect_on_rows | {
        "max_batch_tokens"
    }
    engine: EngineKind = "local"
    """local: in this process; server: an OpenAI-compatible endpoint at base_urls; batch: the
    OpenAI Batch API there, at half the price, within a day."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights; None: where bfloat16 ones would take over half of the GPU's free memory."""
    max_new_tokens: Positive = 160
    """Tokens a text may have; one that is longer is cut, and marked so."""
    max_batch_tokens: Positive | None = None
    """Tokens in memory at once (local); None: found from the free memory. Changes no text."""
    structured_output: bool = False
    """Have the server hold replies that have a form (a judge's, ratings) to it: response_format with
    a JSON schema (server, batch). Some servers refuse it, some pass over it; all replies are read
    alike. Texts without a form are asked for as ever."""

    def open_engine(self, model: str) -> "Engine":
        """Load the model, or connect: the slow part, so only once there is work to do."""
        if self.engine != "local":
            return self.open_remote(self.engine, model, structured_output=self.structured_output)
        if self.structured_output:
            raise SystemExit(
                f"{self.stage_name()}: structured_output: a model in this process is held to no "
                "schema; leave it out, or take --engine server"
            )
        from prefpipe.llm.local import open_local

        return open_local(
            model, load_in_4bit=self.load_in_4bit, max_batch_tokens=self.max_batch_tokens
        )

    def open_batch_engine(self, model: str) -> "BatchEngine":
        """The batch engine, for a stage that takes it step by step. Nothing is asked yet."""
        engine: Any = self.open_remote("batch", model, structured_output=self.structured_output)
        return engine


class SamplingStage(EngineStage):
    """The same, with a say in how the texts are drawn."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: TopK = 0

    def request(
        self,
        id: str,
        prompt: str | Sequence[Message],
        *,
        samples: tuple[int, ...] = (0,),
        reply_schema: dict[str, Any] | None = None,
    ) -> Request:
        """The prompt, to be answered as these settings say."""
        turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        return Request(
            id=id,
            messages=tuple(turns),
            samples=samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            reply_schema=reply_schema,
        )


class ModelStage(SamplingStage):
    """The same with one model."""

    model: str = BASE_MODEL
    """A folder (a model, or a LoRA adapter with its base named inside) or a hub name."""


WhichCheckpoint = Literal["last", "best"]


class TrainingStage(Stage):
    """What both stages take that train a preference model: data, model, optimizer, checkpoints."""

    no_effect_on_rows: ClassVar[frozenset[str]] = frozenset({"keep_checkpoints"})

    input: str = RAW_TRAIN
    """Preferences: a Parquet, JSONL or CSV file, a folder saved by `datasets`, or a name on the hub."""
    validation_input: str = RAW_VALIDATION
    """The same for held-out rows. Empty: a share of the questions of input is held out."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the questions of input that is held out where there is no validation_input."""
    format: Literal["sky", "llmbar", "autoj", "rewardbench", "judgebench"] = "sky"
    """How a row is read; sky: prompt, chosen, rejected, as text or turns, and Preference rows."""
    near_duplicate: Share = 0.8
    """A train question this similar to a held-out one (Jaccard of five-word shingles) is left out."""
    ties: Literal["drop", "half"] = "drop"
    """Ties in training: left out, or trained as half a win for each side. Held out, they are kept."""
    model: str = BASE_MODEL
    """A folder or a hub name: the backbone."""
    method: Literal["full", "lora"] = "full"
    """full: all weights; lora: a low-rank adapter on frozen ones."""
    load_in_4bit: bool = False
    """4-bit NF4 weights under the adapter (lora, on a GPU). It saves memory, not time."""
    bf16: bool | None = None
    """bfloat16 arithmetic; None: on a GPU that has it."""
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"
    """flex_attention skips the empty blocks of packed pairs; CUDA only."""
    lora_r: Positive = 16
    """Rank of the adapter."""
    lora_alpha: Positive = 32
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: Share = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    lora_target_modules: list[str] = ["all-linear"]
    """Names of the layers that get an adapter; all-linear: each but the head."""
    merge_adapter: bool = False
    """Save the base with the adapter added in, as one model, instead of the adapter (lora)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """At its highest, after the warm-up."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training pairs."""
    max_length: Positive = 1024
    """Most tokens of a row."""
    batch_pairs: Positive = 16
    """Pairs in memory at once."""
    gradient_accumulation_steps: Positive = 1
    """Batches an optimizer step; each pair of a step weighs the same."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """A longer gradient is shortened to this."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them."""
    prefix_sharing: bool = True
    """Run each prompt once for all of its pairs in a batch; same numbers, fewer tokens."""
    pairs_per_pack: Positive = 5
    """Pairs that may stand behind one copy of their prompt."""
    save_steps: Positive = 50
    """Steps between two checkpoints; the held-out loss is measured at each, and at the end."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that are kept, the best one beside them."""
    checkpoint: WhichCheckpoint = "last"
    """Which weights are saved at the end; best: of the lowest held-out loss."""
    early_stopping: Positive | None = None
    """Stop after this many evaluations without a lower held-out loss, and keep the best weights."""
    worst: Positive = 50
    """Held-out pairs that the model is most wrong about, written out for reading."""

    def check(self, on_cuda: bool) -> None:
        """Exit with a sentence where the settings cannot work together, or not on this machine."""
        if self.load_in_4bit and self.method == "full":
            raise SystemExit("load_in_4bit: 4-bit weights cannot be trained; set --method lora")
        if self.load_in_4bit and not on_cuda:
            raise SystemExit(
                "load_in_4bit: training on 4-bit weights needs a CUDA GPU; leave it out"
            )
        if self.merge_adapter and self.method == "full":
            raise SystemExit("merge_adapter: there is no adapter with --method full; leave it out")
        if self.attn_implementation == "flex_attention" and not on_cuda:
            raise SystemExit(
                "attn_implementation: flex_attention cannot train without CUDA; use sdpa"
            )
        if (Path(self.model) / "adapter_config.json").exists():
            raise SystemExit(
                f"model: {self.model} is an adapter; train it with --merge-adapter, and go on from "
                "that"
            )

    def inputs(self) -> list[Path]:
        """What the run depends on, where it is a file or folder here."""
        named = [Path(name) for name in (self.input, self.validation_input) if name]
        return [path for path in named if path.exists()] + local_folders(self.model)

    def trainer_arguments(self, folder: Path, bf16: bool) -> dict[str, Any]:
        """What TRL's configurations take, whichever trainer's it is."""
        import torch

        best = self.checkpoint == "best" or self.early_stopping is not None
        return {
            "output_dir": str(folder),
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_pairs,
            "per_device_eval_batch_size": self.batch_pairs,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.scheduler,
            "warmup_steps": self.warmup_share,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "max_length": None,
            "activation_checkpointing": self.gradient_checkpointing,
            "bf16": bf16,
            "seed": self.seed,
            "data_seed": self.seed,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "eval_strategy": "steps",
            "eval_steps": self.save_steps,
            "save_strategy": "steps",
            "save_steps": self.save_steps,
            "save_total_limit": self.keep_checkpoints,
            "load_best_model_at_end": best,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "disable_tqdm": True,
            "report_to": [],
        }

    def adapter(self, task_type: str, modules_to_save: list[str] | None = None) -> Any:
        """The LoRA configuration; None with --method full."""
        if self.method == "full":
            return None
        from peft import LoraConfig

        modules = self.lora_target_modules
        return LoraConfig(
            task_type=task_type,
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules="all-linear" if modules == ["all-linear"] else modules,
            modules_to_save=modules_to_save,
        )


def local_folders(*names: str) -> list[Path]:
    """Those names of models that are folders here: their content is part of the fingerprint."""
    return [Path(name) for name in names if Path(name).is_dir()]


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

    def base_urls(self) -> list[str]:
        """Where to ask: with a key alone it is OpenAI itself; none: no server is configured."""
        if self.base_url:
            return [url.strip() for url in self.base_url.split(",")]
        return ["https://api.openai.com/v1"] if self.api_key else []


class _ProfileSource(PydanticBaseSettingsSource):
    """Values of profiles/$PROFILE.toml: its [all] table, then the table of the stage's script."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        name = os.environ.get("PROFILE") or dotenv_values(".env").get("PROFILE")
        if not name:
            return {}
        path = PROFILES / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
            raise SystemExit(f"PROFILE={name}: no {path.name} in profiles/; there are: {known}")
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise SystemExit(f"{path}: {error}") from None
        stage = Path(inspect.getfile(self.settings_cls)).stem
        fields = self.settings_cls.model_fields
        for table in tables.keys() - {"all", stage}:
            if not (ROOT / f"{table}.py").is_file():
                raise SystemExit(f"{path}: [{table}] is no stage; wanted the name of a script")
        values = {k: v for k, v in tables.get("all", {}).items() if k in fields}
        for key, value in tables.get(stage, {}).items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                raise SystemExit(f"{path}: [{stage}] {key} is no setting; near: {near or 'none'}")
            values[key] = value
        return values


def _formatter(description: str) -> Any:
    """Help with the script's own docstring on top, its lines left as they are."""
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=30, width=100)

        def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
            super().add_usage(f"uv run {self._prog} [--option value ...]", actions, groups, prefix)
            self.add_text(description.replace("%", "%%"))

    return Formatter


def _origin(cls: type[Stage], name: str, from_command_line: dict[str, Any]) -> str:
    prefix = cls.model_config.get("env_prefix", "")
    field = cls.model_fields.get(name)
    alias = field.validation_alias if field else None
    variables = [alias] if isinstance(alias, str) else [f"{prefix}{name}".upper()]
    if name in from_command_line:
        return "the command line"
    for variable in variables:
        if variable in os.environ:
            return f"{variable} in the environment"
        if variable in dotenv_values(".env"):
            return f"{variable} in .env"
    if name in _ProfileSource(cls)():
        return f"profile {os.environ.get('PROFILE') or dotenv_values('.env').get('PROFILE')}"
    return "config.py or the script"


def _show(settings: Stage, from_command_line: dict[str, Any]) -> NoReturn:
    for name, value in settings.model_dump().items():
        print(f"{name} = {value!s}    # {_origin(type(settings), name, from_command_line)}")
    raise SystemExit(0)
