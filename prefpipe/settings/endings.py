"""How a stage ends that an error stops: in one sentence, whoever raised the error."""

import errno
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

import config
from prefpipe.screen import short_sentence, visible
from prefpipe.settings.secrets import without_secrets

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, safetensors and tokenizers, tell of a number of the system's."""
_NO_ROOM = 1 << 16
"""Bytes left on a disk, or fewer, on which nothing can be written: what failed there failed for it."""
_HIDDEN = re.compile(r"\.([^/\\]+?)\.tmp(\.\w+)?$")
"""The name under which a file is written before it is put in place."""


def last_sentence(stage: str, error: Exception, output: str, debug: bool) -> str:
    """What to say of an error. output: the stage's, for errors that name no file; "": it has none."""
    is_full = _is_full(error, output)
    if is_full and not (isinstance(error, OSError) and error.strerror):
        words = "the disk is full, or a file larger than may be"
    elif isinstance(error, OSError) and (is_full or error.filename is not None):
        words = str(error.strerror)
    else:
        return _unexpected(stage, error, debug)
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    # of a renaming, what it was to be called: the hidden name before says nothing to anybody
    place = _HIDDEN.sub(r"\1\2", str(named or f"writing {output}"))
    then = "; make room, and run the same command again" if is_full else ""
    return short_sentence(f"{stage}: {place}: {words}{then}")


def _is_full(error: Exception, output: str) -> bool:
    """Whether a disk was full, or a file larger than may be. Libraries that write files themselves
    (torch's of a checkpoint, FAISS's of an index) tell it in words of their own, or not at all."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    if numbers := _IN_WORDS.findall(str(error)):
        return int(numbers[-1]) in _FULL
    folder = next((p for p in (Path(output), *Path(output).parents) if p.is_dir()), None)
    return bool(output) and folder is not None and shutil.disk_usage(folder).free < _NO_ROOM


def _unexpected(stage: str, error: Exception, debug: bool) -> str:
    """A sentence for an error that nobody foresaw; its traceback goes into a log file."""
    lines = without_secrets("".join(traceback.format_exception(error)))
    if debug:
        print(lines, file=sys.stderr)
    path = config.DATA / "errors" / f"{stage}.{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8", errors="replace")
        where = f"the traceback stands in {path}"
    except OSError:
        where = "no log of it could be written"
    words = " ".join(visible(without_secrets(str(error))).split())[:200]
    return f"{stage}: unexpected {type(error).__name__}: {words}; {where}; --debug shows it"
