"""What a user may name as data: a file, files by a glob, a folder, a data set on the hub.

Of several splits one is read: the one asked for, else the one that is for training. A published test
split is trained on by nobody who did not ask for it.
"""

import functools
import glob
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from prefpipe.files.lines import DataError
from prefpipe.files.records import ENDINGS, read_records

_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")
"""Files in a folder that `datasets` saved."""


class Named(NamedTuple):
    """Data by its name, and which part of it."""

    name: str
    split: str | None = None
    config: str | None = None
    """Of several sets in one folder or under one name on the hub."""
    revision: str | None = None
    """On the hub."""

    def paths(self) -> list[Path]:
        """What there is of it on this machine, for a fingerprint; empty: it is on the hub."""
        try:
            is_there = Path(self.name).exists()
        except OSError:  # a text too long for a name
            return []
        return [Path(self.name)] if is_there else _matching(self.name)

    def records(self, limit: int | None = None) -> Iterator[tuple[str, Any]]:
        """(place, record) of each row; records.read_records says what they are. Raises DataError,
        naming what there is, where there is no such data or a split or config must be chosen."""
        if not self.name.strip():
            raise DataError("input: found no name; wanted a file, a folder or a name on the hub")
        path = Path(self.name)
        if path.is_dir():
            records = self._of_folder(path)
        elif files := self.paths():
            if self.split or self.config:
                raise DataError(
                    f"{self.name}: a file has no splits or configs; take the option away"
                )
            records = chain.from_iterable(map(read_records, files))
        elif path.suffix in ENDINGS or self.name.startswith((".", "/")) or self.name.count("/") > 1:
            raise DataError(f"{self.name}: no such file")
        else:
            records = self._of_hub()
        return islice(records, limit)

    def _of_folder(self, path: Path) -> Iterator[tuple[str, Any]]:
        import datasets

        if any((path / name).is_file() for name in _SAVED):
            try:
                loaded = datasets.load_from_disk(str(path))
            except Exception as error:  # of each library that reads one of its files
                raise DataError(
                    f"{path}: saved by `datasets`, and damaged: {_first(error)}"
                ) from None
            if not isinstance(loaded, datasets.DatasetDict):
                return _numbered(str(path), loaded)
            split = self._chosen([str(name) for name in loaded])
            return _numbered(str(path / split), loaded[split])
        # a clone of a hub repository, or files named like one's: which is which says `datasets`
        try:
            builder = datasets.load_dataset_builder(str(path), self.config)
            files = builder.config.data_files or {}
        except Exception as error:  # of each library that reads its card
            raise DataError(f"{path}: {self._said(error)}") from None
        split = self._chosen([str(name) for name in files])
        return chain.from_iterable(read_records(Path(file)) for file in files[split])

    def _of_hub(self) -> Iterator[tuple[str, Any]]:
        import datasets

        named: dict[str, Any] = {"path": self.name, "revision": self.revision}
        try:
            names: Any = datasets.get_dataset_split_names(config_name=self.config, **named)
            how: dict[str, Any] = {"split": self._chosen(names), "streaming": True}
            loaded = datasets.load_dataset(name=self.config, **named, **how)
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.name}: no such file here, and of the hub: {self._said(error)}"
            ) from None
        return _numbered(self.name, loaded)

    def _said(self, error: Exception) -> str:
        """The first line of what `datasets` says; what to do, where there are several configs."""
        said = str(error).splitlines() or [type(error).__name__]
        if "onfig" in said[0]:
            return f"{' '.join(said)[:200]}; choose with --config"
        return said[0][:200]

    def _chosen(self, splits: Sequence[str]) -> str:
        of_training = [name for name in splits if name.startswith("train")]
        for names in ([self.split] if self.split else [], splits, ["train"], of_training):
            if len(names) == 1 and names[0] in splits:
                others = [name for name in splits if name != names[0]]
                if others and not self.split:
                    also = ", ".join(others)
                    _say(f"{self.name}: reads {names[0]}, not {also} (--split)")
                return names[0]
            if self.split:
                break
        raise DataError(f"{self.name}: the splits are {', '.join(splits)}; choose with --split")


@functools.cache
def _say(line: str) -> None:
    """Once, however often the data is read."""
    print(line, file=sys.stderr)


def _matching(pattern: str) -> list[Path]:
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))


def _numbered(place: str, rows: Any) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for number, record in enumerate(rows, start=1):
            yield f"{place}:{number}", record
    except Exception as error:
        raise DataError(f"{place}:{number + 1}: cannot be read: {_first(error)}") from None


def _first(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
