"""The few calls of the Batch API, each tried again where that may pass."""

import contextlib
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai

from prefpipe.foreign_json import read_json
from prefpipe.llm import SERVER_FAILURES, error_replies, wire
from prefpipe.llm.batch_api.batch_record import Batch
from prefpipe.llm.environment import route_to
from prefpipe.llm.http_clients import BadReply, Client, Elsewhere, bounded
from prefpipe.llm.wire import ServedModel, Stop

T = TypeVar("T")
ENDPOINT = "/v1/chat/completions"
_LONGEST_SECRET = 2000
_NAME = re.compile(r"[!-~]{1,500}")  # an id or a state: shown to a person, part of a path


class FileGone(Stop):
    """A file of answers cannot be had, now at least."""


def answered(shown: dict[str, Any]) -> int:
    """Requests of a batch that have an answer, by the API's own count."""
    return wire.count_in(shown.get("request_counts"), "completed")


class BatchApi:
    """A connection to the one server. All calls raise Stop where no later try can pass either."""

    def __init__(self, served: ServedModel, settle_seconds: float) -> None:
        """settle_seconds: after which a batch that was created is in the server's list of batches."""
        served.check()
        url, *others = served.base_urls
        if others:
            raise Stop(f"the batch engine talks to one server; found {len(others) + 1} base URLs")
        self._served, self._settle_seconds = served, settle_seconds
        route = route_to(url)
        self._name = route.name
        timeout = httpx2.Timeout(served.timeout_seconds, connect=30.0)
        self._client = openai.OpenAI(
            base_url=route.base_url,
            default_query=route.query,
            api_key=served.key(),
            max_retries=0,
            http_client=Client(served.timeout_seconds, timeout=timeout, **route.client_options),
        )
        self.close = self._client.close
        self._batches = self._client.batches.with_raw_response
        self._files = self._client.files.with_raw_response

    def upload(self, path: Path, name: str) -> str:
        """The file's id. A file whose upload was cut short costs nothing."""

        def call() -> str:
            with open(path, "rb") as file:
                named = (f"prefpipe-{name}.jsonl", file)
                return self._object(self._files.create(file=named, purpose="batch"))["id"]

        return self._retry(call)

    def create(self, batch: Batch) -> str:
        """The batch's id. After a try whose reply was lost, it is looked for before the next one."""
        tried = False

        def call() -> str:
            nonlocal tried
            if tried and (batch_id := self.find(batch)):
                return batch_id
            tried = True
            response = self._batches.create(
                input_file_id=batch.file_id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={"prefpipe": batch.name},
            )
            return self._object(response)["id"]

        return self._retry(call)

    def find(self, batch: Batch) -> str | None:
        """Id of the account's batch of that name, or of that input file; where it is not there,
        looks again once it would have been."""
        for pause in (0.0, self._settle_seconds):
            time.sleep(pause)
            for other in self._list():
                name = wire.part(other, "metadata", dict).get("prefpipe")
                if name == batch.name or other.get("input_file_id") == batch.file_id:
                    if not _NAME.fullmatch(other["id"]):
                        said = self._served.printable(other["id"])
                        raise Stop(f"{self._name}: it calls a batch {said!r}, which is no id")
                    return other["id"]
        return None

    def _list(self) -> Iterator[dict[str, Any]]:
        """All batches of the account, page by page."""
        after: dict[str, Any] = {}
        seen = set[str]()
        while True:
            page = functools.partial(self._batches.list, limit=100, **after)
            listed = self._retry(lambda page=page: self._object(page(), "data"))
            shown = [batch for batch in listed["data"] if wire.part(batch, "id", str)]
            yield from shown
            if not listed.get("has_more") or seen.issuperset(batch["id"] for batch in shown):
                return
            seen.update(batch["id"] for batch in shown)
            after = {"after": shown[-1]["id"]}

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        """The batch as the API shows it."""
        return self._retry(
            lambda: self._object(self._batches.retrieve(batch_id), "status"),
            missing=f"batch {batch_id} is not known there: was it submitted to another server, or by "
            "another account?",
        )

    def content(self, file_id: str, path: Path, most_bytes: int) -> None:
        """Write the file to path, whole or not at all, the key that a server echoes replaced. Raises
        FileGone where it is not there, is none, or has more than most_bytes."""
        temporary = path.with_suffix(".tmp")
        if not _NAME.fullmatch(file_id):
            said = wire.brief(self._served.printable(file_id))
            raise FileGone(f"{self._name}: it calls a file {said!r}, which is no id")

        def call() -> None:
            with (
                self._client.files.with_streaming_response.content(file_id) as response,
                open(temporary, "wb") as file,
            ):
                parts = bounded(response, most_bytes, self._served.timeout_seconds)
                for part in self._without_secrets(parts):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            with open(temporary, "rb") as file:
                # A gateway's page must not make paid answers unreadable for good.
                if not any(line.startswith(b"{") for line in file):
                    raise _Garbled(f"file {file_id} has no line of JSON")

        try:
            self._retry(call, f"file {file_id} is there no more", of_file=True)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _without_secrets(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The same bytes without secrets, also where one goes over the end of a part."""
        kept = ""
        for part in parts:
            kept = self._served.without_secrets(kept + part.decode("latin-1"))
            yield kept[:-_LONGEST_SECRET].encode("latin-1")
            kept = kept[-_LONGEST_SECRET:]
        yield kept.encode("latin-1")

    def _object(self, response: Any, needed: str = "id") -> dict[str, Any]:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = (reply := read_json(response.content))[needed]
            if isinstance(found, list) if needed == "data" else _NAME.fullmatch(found):
                return reply
        raise _Garbled(self._served.printable(response.text))

    def _retry(self, call: Callable[[], T], missing: str = "", *, of_file: bool = False) -> T:
        """The call's result. missing: what a 404 means. of_file: a file that is none is FileGone."""
        served = self._served
        for tries in itertools.count(1):
            after, kind = None, Stop
            try:
                return call()
            except openai.APIStatusError as error:
                if error.status_code == 404 and missing:
                    raise (FileGone if of_file else Stop)(f"{self._name}: {missing}") from None
                body = {"model": served.model}
                reason, detail, after = error_replies.read_status(error, body, self._name, served)
                if reason not in SERVER_FAILURES:
                    raise Stop(f"{self._name}: {wire.brief(detail)}") from None
            except Elsewhere as error:
                raise Stop(
                    f"{self._name}: {served.printable(error)}; correct the base URL"
                ) from None
            except (_Garbled, BadReply) as error:
                detail, kind = f"a reply that is none: {error}", FileGone if of_file else Stop
                if isinstance(error, BadReply) and of_file:
                    raise FileGone(f"{self._name}: {wire.brief(detail)}") from None
            except (openai.APIConnectionError, httpx2.HTTPError, ValueError, LookupError) as error:
                # the last two: a path that is none, a charset that is none
                cause = error.__cause__ or error
                detail = served.printable(f"{type(cause).__name__}: {cause}")
            if tries > served.max_retries or (after or 0) > wire.LONGEST_RETRY_AFTER_SECONDS:
                raise kind(
                    f"{self._name}: {tries} tries; the last: {wire.brief(detail)}; nothing is lost: the "
                    "same command goes on from here"
                )
            time.sleep(max(after or 0.0, served.backoff_seconds(tries - 1)))
        raise AssertionError


class _Garbled(Exception):
    """A reply of the API that is not what its documentation says."""
