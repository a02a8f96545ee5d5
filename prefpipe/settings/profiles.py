"""Values of profiles/$PROFILE.toml: its [all] table, then the table of the stage's script."""

import difflib
import inspect
import os
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic_settings import PydanticBaseSettingsSource

import config
from prefpipe.files import read_toml


def profile_name() -> str | None:
    """The profile that is chosen, by the environment or .env."""
    return os.environ.get("PROFILE") or dotenv_values(".env").get("PROFILE")


class ProfileSource(PydanticBaseSettingsSource):
    """A source of settings for pydantic. Exits with a sentence where the file or a key is unknown."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        name = profile_name()
        if not name:
            return {}
        path = config.PROFILES / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in config.PROFILES.glob("*.toml")))
            raise SystemExit(f"PROFILE={name}: no {path.name} in profiles/; there are: {known}")
        tables = read_toml(path)
        stage = Path(inspect.getfile(self.settings_cls)).stem
        fields = self.settings_cls.model_fields
        if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
            raise SystemExit(f"{path}: {wrong[0]}: wanted a table, as [{wrong[0]}]")
        for table in tables.keys() - {"all", stage}:
            if not (config.ROOT / f"{table}.py").is_file():
                raise SystemExit(f"{path}: [{table}] is no stage; wanted the name of a script")
        values = {k: v for k, v in tables.get("all", {}).items() if k in fields}
        for key, value in tables.get(stage, {}).items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                raise SystemExit(f"{path}: [{stage}] {key} is no setting; near: {near or 'none'}")
            values[key] = value
        return values
