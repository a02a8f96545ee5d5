"""Where records are: in a file, in a folder saved by `datasets`, or in a data set on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefpipe.files import ENDINGS, DataError, read_records


def read_named(name: str, limit: int | None = None) -> Iterator[tuple[str, Any]]:
    """(place, record) of a file, of a folder saved by `datasets`, or of a data set on the hub."""
    path = Path(name)
    if path.exists():
        yield from read_records(path, limit)
        return
    if path.suffix in ENDINGS or name.startswith((".", "/")) or name.count("/") > 1:
        raise DataError(f"{name}: no such file")
    import datasets

    try:
        loaded = datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: no such file here, and the hub gave no data set of that name: {error}"
        ) from None
    for row, record in enumerate(loaded if limit is None else loaded.take(limit), start=1):
        yield f"{name}:{row}", record
