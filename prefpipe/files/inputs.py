"""What a user may name as data: a file, files by a glob, a folder, a data set on the hub.

Of several splits one is read: the one asked for, else the one that is for training, or for a
measurement the test split. So a published test split is trained on by nobody who did not ask for it.
"""

import functools
import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from prefpipe.files.lines import DataError
from prefpipe.files.records import ENDINGS, read_records

Records = Iterator[tuple[str, Any]]

_HELD_OUT = ("validation", "valid", "val", "dev")
"""Names of a split that is held out of training. `datasets` gives files these names their first."""
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
    use: str | None = "train"
    """What it is read for, by which a split is chosen where none is asked for: train, or test."""

    def paths(self) -> list[Path]:
        """What there is of it on this machine, for a fingerprint; empty: it is on the hub."""
        try:
            is_there = Path(self.name).exists()
        except OSError:  # a text too long for a name
            return []
        return [Path(self.name)] if is_there else _matching(self.name)

    def records(self, limit: int | None = None) -> Records:
        """(place, record) of each row; records.read_records says what they are. Raises DataError,
        naming what there is, where there is no such data or a split or config must be chosen."""
        splits = self._splits()
        return islice(splits[self._chosen([*splits])](), limit)

    def held_out_split(self) -> str | None:
        """The split that is there to be held out; None: there is none, or a split was asked for."""
        names = () if self.split or Path(self.name).is_file() else self._splits()
        return next((name for name in _HELD_OUT if name in names and len(names) > 1), None)

    def may_be_of_the_hub(self) -> bool:
        """Whether there is no such data here, and the name may be one of the hub's."""
        is_path = Path(self.name).suffix in ENDINGS or self.name.startswith((".", "/", "~"))
        return not self.paths() and not is_path and self.name.count("/") < 2

    def _splits(self) -> dict[str, Callable[[], Records]]:
        """Each split's name and what reads it; the name is empty where there are no splits."""
        if not self.name.strip():
            raise DataError("input: found no name; wanted a file, a folder or a name on the hub")
        path = Path(self.name)
        if path.is_dir():
            is_saved = any((path / name).is_file() for name in _SAVED)
            return self._saved(path) if is_saved else self._of_folder(path)
        if self.may_be_of_the_hub():
            return self._of_hub()
        if not (files := self.paths()):
            raise DataError(f"{self.name}: no such file")
        if self.split or self.config:
            raise DataError(f"{self.name}: a file has no splits or configs; take the option away")
        return {"": lambda: chain.from_iterable(map(read_records, files))}

    def _saved(self, path: Path) -> dict[str, Callable[[], Records]]:
        import datasets

        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # of each library that reads one of its files
            raise DataError(f"{path}: saved by `datasets`, and damaged: {_first(error)}") from None
        if not isinstance(loaded, datasets.DatasetDict):
            return {"": partial(_numbered, str(path), loaded)}
        return {str(s): partial(_numbered, str(path / str(s)), loaded[s]) for s in loaded}

    def _of_folder(self, path: Path) -> dict[str, Callable[[], Records]]:
        """A clone of a hub repository, or files named like one's: which is which says `datasets`."""
        import datasets

        try:
            builder = datasets.load_dataset_builder(str(path), self.config)
            files = builder.config.data_files or {}
        except Exception as error:  # of each library that reads its card
            raise DataError(f"{path}: {self._said(error)}") from None

        def read(split: str) -> Records:
            return chain.from_iterable(read_records(Path(file)) for file in files[split])

        return {str(split): partial(read, split) for split in files}

    def _of_hub(self) -> dict[str, Callable[[], Records]]:
        import datasets

        named: dict[str, Any] = {"path": self.name, "revision": self.revision}
        try:
            names: Any = datasets.get_dataset_split_names(config_name=self.config, **named)
        except (OSError, ValueError) as error:
            raise self._not_there(error) from None

        def read(split: str) -> Records:
            how: dict[str, Any] = {"split": split, "streaming": True}
            try:
                return _numbered(self.name, datasets.load_dataset(name=self.config, **named, **how))
            except (OSError, ValueError) as error:
                raise self._not_there(error) from None

        return {name: partial(read, name) for name in names}

    def _not_there(self, error: Exception) -> DataError:
        return DataError(f"{self.name}: no such file here, and of the hub: {self._said(error)}")

    def _said(self, error: Exception) -> str:
        """The first line of what `datasets` says; what to do, where there are several configs."""
        said = str(error).splitlines() or [type(error).__name__]
        if "onfig" in said[0]:
            return f"{' '.join(said)[:200]}; choose with --config"
        return said[0][:200]

    def _chosen(self, splits: Sequence[str]) -> str:
        if self.split and splits == [""]:
            raise DataError(f"{self.name}: has no splits; take --split away")
        use = self.use or "train"
        of_use = [name for name in splits if name.startswith(use)]
        for names in ([self.split] if self.split else [], splits, [use], of_use):
            if len(names) == 1 and names[0] in splits:
                others = [name for name in splits if name != names[0]]
                if others and not self.split:
                    also = ", ".join(others)
                    _say(f"{self.name}: reads {names[0]}; there is also {also} (--split)")
                return names[0]
            if self.split:
                break
        raise DataError(f"{self.name}: the splits are {', '.join(splits)}; choose with --split")


@functools.cache
def _say(line: str) -> None:
    """Once, however often the data is read."""
    print(line, file=sys.stderr)


def each_of(name: str) -> list[Path]:
    """What is read one by one, each in its own format: the files that a glob (`prompts/*.jsonl`)
    matches in order, or the one that is named, which may be a data set on the hub.
    Raises DataError where there is none."""
    if not (paths := Named(name).paths()) and not Named(name).may_be_of_the_hub():
        raise DataError(f"{name}: no such file; name a file, or files by a glob in quotes")
    return paths or [Path(name)]


def here(names: Iterable[str | Path]) -> list[Path]:
    """What a run depends on, of all these data: paths, of what is on the hub none."""
    found = ((Named(str(name)), Path(name)) for name in names)
    return [
        path
        for named, own in found
        for path in named.paths() or ([] if named.may_be_of_the_hub() else [own])
    ]


def _matching(pattern: str) -> list[Path]:
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))


def _numbered(place: str, rows: Any) -> Records:
    number = 0
    try:
        for number, record in enumerate(rows, start=1):
            yield f"{place}:{number}", record
    except Exception as error:
        raise DataError(f"{place}:{number + 1}: cannot be read: {_first(error)}") from None


def _first(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
