"""What makes two runs comparable: a hash of each input, the settings that change rows; and, for a
reader of .meta.json, the versions of the libraries."""

import hashlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefpipe.files.records import SPLITS, DataError, data_files


def hash_path(path: Path) -> str:
    """sha256 of a file's bytes; of a folder, of the names and hashes of its files (no hidden ones).

    Of a file of weights over 64 MiB only its size and first and last MiB are read: reading 15 GB
    before each run costs more than it protects.
    """
    if path.is_dir():
        names = sorted(
            str(p.relative_to(path))
            for p in path.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
        parts = "".join(f"{name}\0{hash_path(path / name)}\n" for name in names)
        return hashlib.sha256(parts.encode()).hexdigest()
    with open(path, "rb") as file:
        size = path.stat().st_size
        if path.suffix not in (".safetensors", ".bin", ".pt") or size <= 1 << 26:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = file.read(1 << 20)
        file.seek(-(1 << 20), io.SEEK_END)
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()


def fingerprint(stage: str, depends_on: dict[str, Any], inputs: Sequence[Path]) -> dict[str, str]:
    """What makes rows comparable, as flat `name: value` so that a difference can be named."""
    values = {f"setting {k}": json.dumps(v, default=str) for k, v in depends_on.items()}
    for file in input_files(inputs):
        if not file.exists():
            raise DataError(f"{file}: no such file; run the stage that writes it first")
        alike = sum(name.startswith(f"input {file.name}") for name in values)
        values[f"input {file.name}{f' {alike + 1}' if alike else ''}"] = hash_path(file)
    return {"stage": stage, **values}


def input_files(inputs: Sequence[Path]) -> list[Path]:
    """A folder of train and validation files as these; any other folder as a whole."""
    return [
        file for path in inputs for file in (data_files(path) if _is_split_folder(path) else [path])
    ]


def _is_split_folder(path: Path) -> bool:
    return any((path / (s + e)).is_file() for s in SPLITS for e in (".jsonl", ".parquet"))


def without_inputs(mark: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in mark.items() if not name.startswith("input ")}


def difference(old: dict[str, str], new: dict[str, str]) -> str:
    """What changed from one fingerprint to another, in words."""
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    shown = [
        k if k.startswith("input") else f"{k} {old.get(k, 'not set')} -> {new.get(k, 'not set')}"
        for k in changed[:4]
    ]
    return "; ".join(shown) + ("; ..." if len(changed) > 4 else "")


_LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "sentence-transformers",
    "faiss-cpu",
)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    versions = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
