"""prefpipe.settings.endings: errors in one sentence."""

import errno
import shutil
from pathlib import Path

import pytest

import config
from prefpipe.settings import Stage


class Settings(Stage, env_prefix="NOBODY_"):
    output: Path = Path("somewhere/out.jsonl")


def ended_with(error, monkeypatch):
    def main(s: Settings) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit) as end:
        Settings.run(main)
    return str(end.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_where_a_disk_is_full_the_output_is_named_that_python_does_not_name(monkeypatch, number):
    said = ended_with(OSError(number, "full"), monkeypatch)
    assert "writing somewhere/out.jsonl: full; make room" in said


def test_a_library_tells_of_a_full_disk_by_the_systems_number(monkeypatch):
    words = "Error while serializing: I/O error: File too large (os error 27)"
    assert "out.jsonl: the disk is full" in ended_with(RuntimeError(words), monkeypatch)


@pytest.mark.parametrize(("free", "is_full"), [(4096, True), (10**9, False)])
def test_or_does_not_tell_and_the_disk_does(monkeypatch, tmp_path, free, is_full):
    """torch says of a checkpoint that fits no more: unexpected pos 8739008 vs 8738896."""
    monkeypatch.setattr(config, "DATA", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, free))
    said = ended_with(RuntimeError("unexpected pos 8739008 vs 8738896"), monkeypatch)
    assert ("make room" in said) == is_full
    assert ("unexpected RuntimeError" in said) != is_full


def test_of_another_error_of_the_system_the_file_is_named_as_it_was_to_be_called(monkeypatch):
    error = PermissionError(errno.EACCES, "no", "a/.x.tmp.jsonl", None, "a/.y.tmp.jsonl")
    assert ended_with(error, monkeypatch).endswith(": a/y.jsonl: no")
