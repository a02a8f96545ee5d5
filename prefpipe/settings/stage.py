"""What every stage takes, how its settings are read, and how a run of it begins and ends."""

import difflib
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

from dotenv import dotenv_values
from pydantic import PrivateAttr, ValidationError, field_validator
from pydantic_core import PydanticSerializationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

import config
from prefpipe.files import WHOLE, DataError, Run, Shard, StageFacts
from prefpipe.ranges import Positive
from prefpipe.screen import short_sentence, working
from prefpipe.settings.command_line import formatter, shortcuts
from prefpipe.settings.endings import last_sentence
from prefpipe.settings.profiles import ProfileSource, profile_name
from prefpipe.settings.secrets import without_passwords
from prefpipe.settings.spoken import spoken

T = TypeVar("T")

_NO_EFFECT = "no effect on rows"
NoEffectOnRows = Annotated[T, _NO_EFFECT]
"""Type of a setting that changes speed or place, never a row: it is in no fingerprint."""

_SHORT = re.compile(r"^--([a-z])(=.*)?$")
"""--n 8 as well as -n 8: one-letter settings are options with one dash to the parser."""


class Script(BaseSettings):
    """What every script takes: how its settings are read, and how it ends where something is wrong."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # only the class of this run is ever built
    )

    show_settings: NoEffectOnRows[bool] = False
    """Print each setting with its value and where it came from, then stop."""
    debug: NoEffectOnRows[bool] = False
    """Show the traceback of an unexpected error, too, which else stands in a log file only."""

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return value.expanduser() if isinstance(value, Path) else value  # no shell does, behind =

    @classmethod
    def stage_name(cls) -> str:
        """Name of the script that defines the settings, without .py."""
        return Path(inspect.getfile(cls)).stem

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, ProfileSource(settings_cls)

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Self:
        """The settings of this run. Exits with a sentence where one is wrong or misspelt."""
        check_dotenv(Path(".env"))
        cls._refuse_misspelt_variables()
        given = sys.argv[1:] if arguments is None else arguments
        description = inspect.getdoc(sys.modules[cls.__module__]) or ""
        try:
            command_line = CliSettingsSource(
                cls,
                cli_parse_args=[_SHORT.sub(r"-\1\2", argument) for argument in given],
                cli_prog_name=f"{cls.stage_name()}.py",
                cli_kebab_case=True,
                cli_implicit_flags=True,
                cli_hide_none_type=True,
                cli_avoid_json=True,
                cli_exit_on_error=False,
                cli_shortcuts=shortcuts(cls),
                formatter_class=formatter(description),
            )
        except SettingsError as error:
            _refuse(cls.stage_name(), error)
        try:
            settings = cls(_cli_settings_source=command_line)  # pyright: ignore[reportCallIssue]
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = "_".join(str(part) for part in problem["loc"][:1])
            raise SystemExit(
                f"{cls.stage_name()}: setting {name} (from {cls._origin(name, command_line())}): "
                f"found {problem['input']!r}: {problem['msg']}"
            ) from None
        except SettingsError as error:
            _refuse(cls.stage_name(), error)
        if settings.show_settings:
            for name, value in without_passwords(settings.model_dump()).items():
                print(f"{name} = {value!s}    # {cls._origin(name, command_line())}")
            raise SystemExit(0)
        return settings

    @classmethod
    def run(cls, main: Callable[[Self], None]) -> NoReturn:
        """Run main on the command line's settings; a person's mistake ends in a sentence."""
        debug, output = "--debug" in sys.argv, ""
        try:
            settings = cls.from_command_line()
            debug, output = settings.debug, str(getattr(settings, "output", ""))
            gc.freeze()  # what was imported stays: a collection that looks at it takes 7 us a row
            with settings.spoken(), working(cls.stage_name(), settings.rows_read):
                main(settings)
        except DataError as error:
            raise SystemExit(short_sentence(f"{cls.stage_name()}: {error}")) from None
        except SystemExit as end:
            raise SystemExit(
                short_sentence(end.code) if isinstance(end.code, str) else end.code
            ) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            _stopped(cls.stage_name())
        except Exception as error:
            # pydantic makes an error of its own of Ctrl-C while it calls one of its serializers
            if isinstance(error, PydanticSerializationError) and "KeyboardInterrupt" in str(error):
                _stopped(cls.stage_name())
            raise SystemExit(last_sentence(cls.stage_name(), error, output, debug)) from None
        raise SystemExit(0)

    def spoken(self) -> AbstractContextManager[None]:
        """How the script speaks while it runs; a stage may be told to be quiet."""
        return nullcontext()

    def rows_read(self) -> int:
        """So far, for a person who waits."""
        return 0

    @classmethod
    def _prefix(cls) -> str:
        return cls.model_config.get("env_prefix", "").upper()

    @classmethod
    def _refuse_misspelt_variables(cls) -> None:
        """Exit where a variable with this stage's prefix is no setting of it. `extra="ignore"` would
        pass over it, since one .env serves all stages."""
        prefix = cls._prefix()
        known = {prefix + name.upper() for name in cls.model_fields}
        for name in [*os.environ, *dotenv_values(".env")]:
            if prefix and name.upper().startswith(prefix) and name.upper() not in known:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                where = "the environment" if name in os.environ else ".env"
                raise SystemExit(
                    f"{name} in {where} is no setting of {cls.stage_name()}.py; "
                    f"{f'near: {near[0]}' if near else f'known: {sorted(known)}'}"
                )

    @classmethod
    def _origin(cls, name: str, from_command_line: dict[str, Any]) -> str:
        """Where the setting's value came from, in words."""
        variable = f"{cls._prefix()}{name.upper()}"
        if name in from_command_line:
            return "the command line"
        if variable in os.environ:
            return f"{variable} in the environment"
        if variable in dotenv_values(".env"):
            return f"{variable} in .env"
        if name in ProfileSource(cls)():
            return f"profile {profile_name()}"
        return "config.py or the script"


class Stage(Script):
    """What every stage takes; a stage adds its input, its output and its own knobs."""

    model_config = SettingsConfigDict(cli_shortcuts={"as-json": "json"})

    seed: int = config.SEED
    """Seed of every random choice of the stage."""
    limit: Positive | None = None
    """Stop after this many input rows of each file; for smoke runs. None: all."""
    overwrite: NoEffectOnRows[bool] = False
    """Start anew: replace an existing output and a stopped run's log."""
    strict: NoEffectOnRows[bool] = False
    """Stop at the first bad row instead of writing it to the rejects."""
    quiet: NoEffectOnRows[bool] = False
    """Nothing on standard output; errors and progress stay on standard error."""
    as_json: NoEffectOnRows[bool] = False
    """Only a summary on standard output, a JSON object a line for each run; --json for short."""
    dry_run: NoEffectOnRows[bool] = False
    """Say what would be read, asked, trained and written: nothing is written, sent or loaded."""
    shard: NoEffectOnRows[str | None] = None
    """3/16: only the third of sixteen shards, rows by the hash of their id; all/16: put them together."""
    _runs: list[Run] = PrivateAttr(default_factory=list)

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, shard: str | None) -> str | None:
        return shard and str(Shard.parse(shard))

    def spoken(self) -> AbstractContextManager[None]:
        how = {"quiet": self.quiet, "as_json": self.as_json, "dry_run": self.dry_run}
        return spoken(self._runs, **how)

    def rows_read(self) -> int:
        return sum(run.read_count for run in self._runs)

    def rows_depend_on(self) -> dict[str, Any]:
        """The settings that change rows, for the fingerprint: paths by content, not by name."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if _NO_EFFECT not in fields[name].metadata and not isinstance(getattr(self, name), Path)
        }

    def open_run(self, **options: Any) -> Run:
        """A run with these settings; options: what prefpipe.files.Run takes."""
        facts = StageFacts(
            stage=self.stage_name(),
            depends_on=self.rows_depend_on(),
            settings=without_passwords(self.model_dump(mode="json")),
            limit=self.limit,
            overwrite=self.overwrite,
            strict=self.strict,
            leave_out_failing=getattr(self, "leave_out_failing", False),
            dry_run=self.dry_run,
            shard=Shard.parse(self.shard) if self.shard else WHOLE,
            is_other_rank=getattr(self, "is_other_rank", False),
        )
        self._runs.append(Run(facts, **options))
        return self._runs[-1]


class WholeStage(Stage):
    """What every stage takes that cannot be cut into shards."""

    why_whole: ClassVar[str] = "it looks at all rows at once"

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, shard: str | None) -> None:
        if shard:
            raise ValueError(f"the stage is not cut into shards: {cls.why_whole}")


def _stopped(stage: str) -> NoReturn:
    print(f"{stage}: stopped; the same command goes on", file=sys.stderr)
    raise SystemExit(130) from None


def _refuse(stage: str, error: SettingsError) -> NoReturn:
    print(short_sentence(f"{stage}: {error}; see --help"), file=sys.stderr)
    raise SystemExit(2) from None  # as argparse does


def check_dotenv(path: Path) -> None:
    """Exit with a sentence where .env is no UTF-8 text; editors on Windows write UTF-16."""
    try:
        path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        raise SystemExit(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
