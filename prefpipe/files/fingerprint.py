"""What makes two runs comparable: a hash of each input, the settings that change rows."""

import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefpipe.files.records import DataError, split_files
from prefpipe.screen import working


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
        if path.suffix not in (".safetensors", ".gguf", ".bin", ".pt") or size <= 1 << 26:
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
        with working(f"hashing {file}"):
            values[f"input {file.name}{f' {alike + 1}' if alike else ''}"] = hash_path(file)
    return {"stage": stage, **values}


def input_files(inputs: Sequence[Path]) -> list[Path]:
    """A folder of train and validation files as these; any other folder as a whole."""
    return [file for path in inputs for file in split_files(path) or [path]]


def difference(old: dict[str, str], new: dict[str, str]) -> str:
    """What changed from one fingerprint to another, in words."""
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    shown = [
        k if k.startswith("input") else f"{k} {old.get(k, 'not set')} -> {new.get(k, 'not set')}"
        for k in changed[:4]
    ]
    return "; ".join(shown) + ("; ..." if len(changed) > 4 else "")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    versions = {"python": platform.python_version()}
    for name in [
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "sentence-transformers",
        "faiss-cpu",
    ]:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
