"""An OpenAI chat completion over the wire: the request, the reply, and how each can fail."""

import contextlib
import email.utils
import functools
import itertools
import random
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import SecretStr

from prefpipe import draws
from prefpipe.llm import Completion, Failure, Request, Result

NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
LONGEST_RETRY_AFTER_SECONDS = 900.0
"""A server that asks for a longer pause ends the run."""
_LONGEST_BACKOFF_SECONDS = 60.0
_REFUSED_OPTION = re.compile(r"unrecognized|unsupported|unknown|not supported|extra inputs", re.I)


class Stop(Exception):
    """No request can pass any more; the message says what to do."""


@dataclass(frozen=True)
class ServedModel:
    """A model at a server: where and how it is asked, and how often that is tried."""

    base_urls: Sequence[str]
    model: str
    api_key: SecretStr | None = None
    """None for servers that want none."""
    max_retries: int = 8
    timeout_seconds: float = 600.0
    """Of one try, whole."""
    first_backoff_seconds: float = 0.5
    structured_output: bool = False
    """Send each request's reply_schema, where it has one, as response_format."""
    extra_body: Mapping[str, Any] | None = None
    """Fields that go with every request."""

    def check_base_urls(self) -> None:
        """Raises SystemExit, with a sentence, where there is none or one is no URL of a server."""
        for url in self.base_urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
                raise SystemExit(f"base URL {url!r}: wanted http://host:port/v1 or https://...")
        if not self.base_urls:
            raise SystemExit(
                "no base URL given: name one server at least (OPENAI_BASE_URL; for OpenAI itself "
                "OPENAI_API_KEY is enough)"
            )

    def key(self) -> str:
        """What the openai client is given; it wants some text also where the server wants no key."""
        return self.api_key.get_secret_value().strip() if self.api_key else "none"

    def printable(self, text: str) -> str:
        """At most 300 characters on one line, without the key: servers echo it."""
        if self.api_key and (secret := self.api_key.get_secret_value()):
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else text[:297] + "..."

    def backoff_seconds(self, failures: int) -> float:
        """A doubling pause, random so that requests that failed together come back apart."""
        seconds = self.first_backoff_seconds * 2.0 ** min(failures, 30)
        return min(seconds, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)


def printable_url(url: str) -> str:
    """The URL without a user's name and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@functools.cache
def certificates() -> ssl.SSLContext:
    """For all connections: reading them takes longer than a whole generate() of a few requests."""
    return httpx2.create_ssl_context()


def request_body(
    served: ServedModel, request: Request, samples: Sequence[int], limit_field: str
) -> dict[str, Any]:
    """The chat completion request for those samples. limit_field: how the server calls max_tokens."""
    body: dict[str, Any] = {"model": served.model, "messages": list(request.messages)}
    body |= {limit_field: request.max_new_tokens, "temperature": request.temperature}
    if request.temperature > 0:
        body["top_p"] = request.top_p
        if request.top_k:
            body["top_k"] = request.top_k
        body["seed"] = draws.server_seed(request.seed, request.id, samples[0])
    if len(samples) > 1:
        body["n"] = len(samples)
    if served.structured_output and request.reply_schema:
        schema = {"name": "reply", "strict": True, "schema": dict(request.reply_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | dict(served.extra_body or {})


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The choices of a reply, in their order, and its tokens: all of them are paid."""

    choices: list[dict[str, Any]]
    prompt_tokens: int
    new_tokens: int


def read_reply(data: Any) -> ChatCompletion | None:
    """The chat completion in a reply's JSON; None where it is none."""
    try:
        choices = sorted(data["choices"], key=lambda choice: choice.get("index", 0))
        for choice in choices:
            choice["message"].get("content")
        used = data.get("usage") or {}
        prompt_tokens = int(used.get("prompt_tokens") or 0)
        return ChatCompletion(choices, prompt_tokens, int(used.get("completion_tokens") or 0))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def completions_of(
    reply: ChatCompletion, id: str, samples: Sequence[int], served: ServedModel
) -> Result:
    """The reply's choices as the first of those samples; there may be fewer of them. Its new tokens
    are shared out by length of text. Failure reasons: too_few_choices, content_filter, refused,
    garbled_reply."""
    if not reply.choices:
        return Failure(id, "too_few_choices", "the reply has no choices")
    texts: list[str] = []
    for place, choice in enumerate(reply.choices):
        text, reason = choice["message"].get("content"), choice.get("finish_reason")
        if text is None and reason == "length":
            text = ""  # a reasoning model that spent its tokens before the answer
        if reason == "content_filter":
            return Failure(id, "content_filter")
        if not isinstance(text, str):
            if refusal := choice["message"].get("refusal"):
                return Failure(id, "refused", served.printable(refusal))
            return Failure(id, "garbled_reply", f"choice {place} has no text")
        if reason not in ("stop", "length"):
            detail = f"finish_reason {str(reason)[:50]!r} is neither stop nor length"
            return Failure(id, "garbled_reply", detail)
        texts.append(text)
    new_tokens = share_out(reply.new_tokens, [len(text) for text in texts])
    return [
        Completion(
            id=id,
            sample=sample,
            text=texts[i],
            finish_reason=reply.choices[i]["finish_reason"],
            prompt_tokens=reply.prompt_tokens,
            new_tokens=new_tokens[i],
        )
        for i, sample in enumerate(samples[: len(texts)])
    ]


def share_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to total: 10, [1, 1, 2] -> 2, 3, 5."""
    if not (whole := sum(weights)):
        weights, whole = [1] * len(weights), len(weights)
    # differences of the rounded cumulative sums: each rounding error is made good by the next number
    ends = [total * end // whole for end in itertools.accumulate(weights)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def read_status(
    error: openai.APIStatusError, body: Mapping[str, Any], where: str, served: ServedModel
) -> tuple[str, str, float | None]:
    """read_error of such a reply, and the seconds that the server asks to wait."""
    stated = error.body if isinstance(error.body, dict) else {}
    stated = {**stated, "message": str(stated.get("message") or error.response.text)}
    wait = retry_after(error.response.headers)
    return *read_error(error.status_code, stated, body, where, served), wait


def read_error(
    status: int, error: Mapping[str, Any], body: Mapping[str, Any], where: str, served: ServedModel
) -> tuple[str, str]:
    """Reason and detail of the API's error object for a request with that body. Raises Stop, its
    message beginning with `where`, if no later request can pass either."""
    code, param = error.get("code"), error.get("param")
    detail = f"HTTP {status}: {served.printable(str(error.get('message')))}"
    if status in (401, 403):
        raise Stop(f"{where}: {detail}; check the API key (OPENAI_API_KEY)")
    if status in (404, 405):
        raise Stop(
            f"{where}: {detail}; check the model's name ({body.get('model')}) and the "
            "base URL, which ends in /v1 on most servers"
        )
    if status == 402 or code in NO_MONEY:
        raise Stop(f"{where}: {detail}; the account cannot pay for more")
    if status in (400, 422):
        if code == "context_length_exceeded" or "context length" in detail:
            return "prompt_too_long", detail
        # An option is refused where the error names it as its parameter, or in its words.
        options = set(body) - {"model", "messages"}
        refused = {name for name in options if name == param}
        if not refused and _REFUSED_OPTION.search(detail):
            refused = {name for name in options if re.search(rf"\b{name}\b", detail)}
        if refused:
            raise Stop(
                f"{where} refuses {', '.join(sorted(refused))}: {detail}; set it "
                "to the value that switches it off, or use a server that takes it"
            )
    if status == 429:
        return "rate_limited", detail
    if status in (408, 409) or status >= 500:
        return "server_error", detail
    return "bad_request", detail


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the server states them (a number or an HTTP date); None: it does not."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(float(headers[name]) * unit, 0.0)
    with contextlib.suppress(KeyError, ValueError):
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(date.timestamp() - time.time(), 0.0)
    return None
