"""The lines of text files, compressed or not."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

BUFFER = 1 << 18  # bytes; Python's own 8 kB is two rows


class DataError(ValueError):
    """A file's content is not what its reader takes. The message starts with path:line."""


def _open_zst(path: Path) -> IO[bytes]:
    import pyarrow

    # pyarrow brings the decoder that Python has from 3.14 on
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BUFFER)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".zst": _open_zst,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def open_packed(path: Path) -> IO[bytes]:
    if opener := OPENERS.get(path.suffix.lower()):
        return opener(path)
    return open(path, "rb", buffering=BUFFER)


def read_lines(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """1-based number and text of each line, blank ones only if asked for; only \\n ends a line."""
    number = 0
    try:
        with open_packed(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: byte {error.start} is not UTF-8; save the file as UTF-8"
                    ) from None
                if blank or (text and not text.isspace()):
                    yield number, text
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        if path.suffix.lower() not in OPENERS:
            raise
        raise DataError(
            f"{path}:{number + 1}: a broken {path.suffix} file from here on: {error}"
        ) from None
