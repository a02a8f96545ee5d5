"""How a stage's options look: their short names, and the page of --help."""

import argparse
from typing import Any


def shortcuts(settings: type) -> dict[str, str]:
    """Short names of options, by option: a stage's own, and those of all classes that it is made of."""
    every: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        every |= getattr(base, "model_config", {}).get("cli_shortcuts") or {}
    return every


def formatter(description: str) -> Any:
    """Help with the script's own docstring on top, its lines left as they are."""

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=30, width=100)

        def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
            super().add_usage(f"uv run {self._prog} [--option value ...]", actions, groups, prefix)
            self.add_text(description.replace("%", "%%"))

    return Formatter
