"""The hub: what of an upload is there already, and the commit that brings the rest.

A commit is all or nothing, as in git: the large files go first, each by its sha256, then one request
names them all. Stopped before that, what was sent is found again by the next run.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefpipe.files import DataError
from prefpipe.publish.uploads import Chosen


def push(
    chosen: Chosen, repository: str, *, public: bool, message: str
) -> tuple[str, list[str], list[str]]:
    """Upload what is not there yet: its address, the names uploaded, and what is there only.

    Raises DataError where the repository's visibility is another, and for all that the hub says.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="prefpipe")
    where: dict[str, Any] = {"repo_id": repository, "repo_type": chosen.kind}
    with _sentences(repository):
        there = _files_there(api, where, public)
        missing = {n: f for n, f in chosen.files.items() if there.get(n) not in _hashes(f)}
        if missing:
            adds = [CommitOperationAdd(name, file) for name, file in missing.items()]
            api.create_commit(**where, operations=adds, commit_message=message)
    prefix = "datasets/" if chosen.kind == "dataset" else ""
    own = {*chosen.files, ".gitattributes"}
    return f"{api.endpoint}/{prefix}{repository}", [*missing], sorted(there.keys() - own)


def _files_there(api: Any, where: dict[str, Any], public: bool) -> dict[str, str]:
    """Name -> sha256, or git's own hash, of what the repository holds; it is made where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        is_private = bool(api.repo_info(**where).private)
    except RepositoryNotFoundError:
        api.create_repo(**where, private=not public)
        return {}
    if is_private == public:
        now, wanted = ("private", "with") if is_private else ("public", "without")
        raise DataError(
            f"{where['repo_id']}: is {now} on the hub, and this run is {wanted} --public; change the "
            "repository's settings there, or the option"
        )
    files = api.list_repo_tree(**where, recursive=True)
    return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in files if isinstance(f, RepoFile)}


def _hashes(file: Path | bytes) -> tuple[str, str]:
    """A file's sha256, as large files go by, and the hash that git gives a small one."""
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    sha256, of_git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for part in [file] if isinstance(file, bytes) else _parts(file):
        sha256.update(part)
        of_git.update(part)
    return sha256.hexdigest(), of_git.hexdigest()


def _parts(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            yield part


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """What the hub or the way to it says, as a sentence."""
    import httpx2  # what huggingface_hub speaks with
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise DataError("HF_HUB_OFFLINE is set; unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise DataError(
                f"{repository}: the hub refuses ({status}): log in with `hf auth login`, or set HF_TOKEN "
                "to a token that may write there"
            ) from None
        raise DataError(
            f"{repository}: the hub says {status}: {_words(error.server_message or error)}; the same "
            "command goes on"
        ) from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{repository}: the connection failed ({type(cause).__name__}: {_words(cause)}); the same "
            "command goes on"
        ) from None
    except DataError:
        raise
    except ValueError as error:  # of the card's front matter, or a reply that is none
        raise DataError(f"{repository}: {_words(error)}") from None


def _words(error: object) -> str:
    return " ".join(str(error).split())[:120]
