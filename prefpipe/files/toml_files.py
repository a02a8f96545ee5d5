"""TOML files that a person edits."""

import tomllib
from pathlib import Path
from typing import Any

from prefpipe.files.lines import DataError


def read_toml(path: Path) -> dict[str, Any]:
    """Its tables. Raises DataError, with the file and what is wrong, for one that is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deep") from None
    except ValueError as error:  # a TOMLDecodeError, or a number of 4,300 digits
        raise DataError(f"{path}: {str(error)[:200]}") from None
