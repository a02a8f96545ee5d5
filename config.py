"""Every path, model name and shared constant of the pipeline: edit here, or override one run.

The first one set wins: command line (--n 16), environment (BEST_OF_N_N=16), `.env`, a profile
(PROFILE=conj-qwen2-7b reads profiles/conj-qwen2-7b.toml), this file. The values here are those of
the embedded chain, which runs on any machine; a profile holds the recipe of a published one.
`--show-settings` prints each value and where it came from.
"""

import difflib
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Self

from dotenv import dotenv_values
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from prefpipe.files import DataError

if TYPE_CHECKING:
    from prefpipe.llm import Engine

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
ACCURACY = DATA / "accuracy"

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
            main(cls.from_command_line())
        except DataError as error:
            raise SystemExit(f"{cls.stage_name()}: {error}") from None
        except KeyboardInterrupt:
            print(f"{cls.stage_name()}: stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
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


class EngineStage(Stage):
    """What every stage takes that asks a model for texts."""

    no_effect_on_rows: ClassVar[frozenset[str]] = frozenset(
        {"base_urls", "requests_in_flight", "max_batch_tokens"}
    )
    engine: Literal["local", "server"] = "local"
    """local: in this process; server: an OpenAI-compatible endpoint at base_urls."""
    load_in_4bit: bool | None = None
    """4-bit NF4 weights; None: where there is a GPU and the model has over 3 billion parameters."""
    max_new_tokens: Positive = 160
    """Tokens a text may have; one that is longer is cut, and marked so."""
    max_batch_tokens: Positive | None = None
    """Tokens in memory at once (local); None: found from the free memory. Changes no text."""
    base_urls: list[str] = ["http://127.0.0.1:8000/v1"]
    """Servers that serve the model (server); requests go to all of them."""
    requests_in_flight: Positive = 128
    """Requests under way at once (server)."""

    def open_engine(self, model: str) -> "Engine":
        """Load the model, or connect: the slow part, so only once there is work to do."""
        from prefpipe import llm

        return llm.open_engine(
            self.engine,
            model,
            load_in_4bit=self.load_in_4bit,
            max_batch_tokens=self.max_batch_tokens,
            base_urls=self.base_urls,
            requests_in_flight=self.requests_in_flight,
        )


class ModelStage(EngineStage):
    """The same with one model."""

    model: str = BASE_MODEL
    """A folder (a model, or a LoRA adapter with its base named inside) or a hub name."""


def local_folders(*names: str) -> list[Path]:
    """Those names of models that are folders here: their content is part of the fingerprint."""
    return [Path(name) for name in names if Path(name).is_dir()]


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
