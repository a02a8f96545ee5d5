"""What an error of a server means for the request, and for all others; in whichever server's words."""

import contextlib
import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

import openai

from prefpipe.llm.wire import ServedModel, Stop, brief

NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_REFUSED_OPTION = re.compile(
    r"unrecognized|unsupported|unknown|unavailable|not supported|extra inputs|not permitted", re.I
)
# Too long, in the words of vLLM, llama.cpp, TGI, Anthropic, Gemini, Mistral, Ollama and others.
_TOO_LONG = re.compile(
    r"context.?(?:length|size|window)|max_tokens must be at least 1|(?:prompt|input|request) is too (?:long|large)"
    r"|input token count|maximum number of (?:input )?tokens|too many (?:input )?tokens"
    r"|`inputs` tokens|(?:prompt|input|sequence) (?:length|tokens?)\b.{0,60}(?:exceed|longer|larger|greater|more)"
    r"|reduce (?:the length|your prompt)|exceeds? the (?:model'?s? )?max\w*\W+(?:\w+\W+){0,3}(?:tokens?|length)"
    r"|(?:max(?:imum)?|longest) (?:model|sequence|input|prompt).?len",
    re.I | re.S,
)
_LIMITS = {"max_tokens", "max_completion_tokens"}
_TOO_LONG_CODES = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "string_above_max_length",
)


def read_status(
    error: openai.APIStatusError, body: Mapping[str, Any], where: str, served: ServedModel
) -> tuple[str, str, float | None]:
    """read_error of such a reply, and the seconds that the server asks to wait."""
    stated = error.body if isinstance(error.body, dict) else {}
    stated = {**stated, "message": stated.get("message") or error.response.text}
    wait = retry_after(error.response.headers)
    return *read_error(error.status_code, stated, body, where, served), wait


def read_error(
    status: int, error: Mapping[str, Any], body: Mapping[str, Any], where: str, served: ServedModel
) -> tuple[str, str]:
    """Reason and detail of the API's error object for a request with that body. Raises Stop, its
    message beginning with `where`, if no later request can pass either."""
    code = str(error.get("code"))
    detail = f"HTTP {status}: {served.printable(error.get('message'))}"
    too_long = {code, str(error.get("type"))} & {*_TOO_LONG_CODES} or is_too_long(detail)
    if status == 401:
        raise Stop(f"{where}: {brief(detail)}; check the API key (OPENAI_API_KEY)")
    if status in (404, 405):
        raise Stop(
            f"{where}: {brief(detail)}; check the model's name ({body.get('model')}) and the "
            "base URL, which ends in /v1 on most servers"
        )
    if status == 402 or code in NO_MONEY:
        raise Stop(f"{where}: {brief(detail)}; the account cannot pay for more")
    if too_long and status in (400, 413, 422, 500):
        return "prompt_too_long", detail
    if status in (400, 422) and (refused := refused_options(error, body, detail)):
        raise Stop(
            f"{where} refuses {', '.join(sorted(refused))}: {brief(detail)}; give it another value"
            + (
                ""
                if refused & _LIMITS
                else ", or have the server take its own: --leave-out-options"
            )
        )
    if status == 429:
        return "rate_limited", detail
    if status in (408, 409) or status >= 500:
        return "server_error", detail
    return "bad_request", detail


def is_too_long(said: str) -> bool:
    """Whether the server says that a prompt is too long, in whichever server's words."""
    return bool(_TOO_LONG.search(said))


def refused_options(error: Mapping[str, Any], body: Mapping[str, Any], detail: str) -> set[str]:
    """The options that the error names as its parameter, or in words that say so."""
    options = set(body) - {"model", "messages"}
    refused = {name for name in options if name == error.get("param")}
    if not refused and _REFUSED_OPTION.search(detail):
        refused = {name for name in options if re.search(rf"\b{name}\b", detail)}
    return refused


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the server states them (a number or an HTTP date); None: it does not."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if re.fullmatch(r"\s*[0-9]+(\.[0-9]*)?\s*", stated := headers.get(name, "")):
            return float(stated) * unit
    with contextlib.suppress(KeyError, ValueError, OverflowError):
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
        return max(date.timestamp() - time.time(), 0.0)
    return None
