"""An OpenAI chat completion over the wire: the request, the reply, and which texts are in it."""

import functools
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import SecretStr

from prefpipe import draws
from prefpipe.foreign_json import well_formed
from prefpipe.llm import Completion, Failure, Request, Result
from prefpipe.llm.environment import check_key, route_to, secrets_of
from prefpipe.rows import FinishReason

T = TypeVar("T")
LONGEST_RETRY_AFTER_SECONDS = 900.0
"""A server that asks for a longer pause ends the run."""
_LONGEST_BACKOFF_SECONDS = 60.0
_ENDS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_token", "stop_sequence"), "stop"),
    **dict.fromkeys(("end", "end_turn", "complete", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length"),
}
"""Other servers' words for why a text ends."""
_HELD_BACK = ("content_filter", "content_filtered", "safety", "recitation", "prohibited_content")
_SHORTEST_SECRET = 6  # a key that people make up for a server that wants none is in many words


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
    unsent: Sequence[str] = ()
    """Options that are not sent, since the server refuses them."""
    dispensable: Sequence[str] = ()
    """Options that are left out as soon as the server refuses one, whatever their value."""
    why_down: Callable[[], str] | None = None
    """Says of a server that the stage has started why it is no longer there; empty: it is."""

    def check(self) -> None:
        """Raises SystemExit, with a sentence, where no server can be asked with these values."""
        for url in self.base_urls:
            route_to(url)
        if not self.base_urls:
            raise SystemExit(
                "no base URL given: name one server at least (OPENAI_BASE_URL; for OpenAI itself "
                "OPENAI_API_KEY is enough)"
            )
        check_key(self.key())

    def key(self) -> str:
        """What the openai client is given; it wants some text also where the server wants no key."""
        return (self.api_key.get_secret_value().strip() if self.api_key else "") or "none"

    def without_secrets(self, text: str) -> str:
        """The text without the key, as it was sent or quoted, and without the base URLs' secrets:
        servers echo them."""
        secrets = [self.key() if self.api_key else ""]
        secrets += [secret for url in self.base_urls for secret in secrets_of(url)]
        pattern = _any_of(tuple(s for s in secrets if len(s) >= _SHORTEST_SECRET))
        return pattern.sub("***", text) if pattern else text

    def printable(self, said: object) -> str:
        """At most 300 characters on one line, without control characters and secrets."""
        text = self.without_secrets(well_formed(str(said)))
        text = " ".join("".join(c if c.isprintable() else " " for c in text[:3000]).split())
        return text if len(text) <= 300 else text[:297] + "..."

    def backoff_seconds(self, failures: int) -> float:
        """A doubling pause, random so that requests that failed together come back apart."""
        seconds = self.first_backoff_seconds * 2.0 ** min(failures, 30)
        return min(seconds, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)


def brief(said: str) -> str:
    """At most 120 characters of what a server said, for a sentence that goes on behind it."""
    return said if len(said) <= 120 else said[:117] + "..."


@functools.cache
def _any_of(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Finds each secret, its signs escaped as JSON, Python, HTML or a URL does, also several times."""

    def forms(sign: str) -> str:
        escaped = (
            rf"\\*{re.escape(sign)}|&\#?\w{{1,6}};|\\+[ux][0-9a-fA-F]{{2,4}}|%[0-9a-fA-F]{{2}}"
        )
        return sign if sign.isalnum() else r"\\+" if sign == "\\" else f"(?:{escaped})"

    patterns = ["".join(map(forms, secret)) for secret in secrets]
    return re.compile("|".join(patterns)) if patterns else None


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
        own = _without_lengths(request.reply_schema)
        schema = {"name": "reply", "strict": True, "schema": own}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    body = {name: value for name, value in body.items() if name not in served.unsent}
    return body | dict(served.extra_body or {})


def _without_lengths(schema: Any) -> Any:
    """The schema without lengths of texts, which strict servers refuse."""
    if not isinstance(schema, Mapping):
        return schema
    lengths = ("minLength", "maxLength")
    return {key: _without_lengths(inner) for key, inner in schema.items() if key not in lengths}


def dispensable(body: Mapping[str, Any], served: ServedModel) -> set[str]:
    """Options without which the same is asked: several samples may be asked for one by one, the
    seed of a server promises little, and 1 is what temperature and top_p are where nobody says."""
    neutral = {name for name in ("temperature", "top_p") if body.get(name) == 1}
    return {*("n", "seed"), *neutral, *served.dispensable} & body.keys()


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The choices of a reply, in their order, and its tokens: all of them are paid."""

    choices: list[dict[str, Any]]
    prompt_tokens: int
    new_tokens: int
    """0: the server says nothing of it; so prompt_tokens."""


def part(stated: Any, name: str, kind: type[T]) -> T:
    """The field of that name in what a server states; empty where it is not of that kind."""
    found = stated.get(name) if isinstance(stated, dict) else None
    return found if isinstance(found, kind) else kind()


def count_in(stated: Any, name: str) -> int:
    """The count of that name in what a server states; 0 where it states none."""
    found: Any = stated.get(name) if isinstance(stated, dict) else None
    return int(found) if type(found) in (int, float) and 0 <= found < 1e12 else 0


def read_reply(data: Any) -> ChatCompletion | tuple[int, dict[str, Any]] | None:
    """The chat completion in a reply's JSON; or the status and the error object that stand there in
    its place (500 where no status does); None where it is neither."""
    if not isinstance(data, dict):
        return None
    choices = [choice for choice in part(data, "choices", list) if part(choice, "message", dict)]
    if not choices and (error := data.get("error")):
        error = error if isinstance(error, dict) else {"message": error}
        stated = [str(error.get(name)) for name in ("code", "status")]
        return int(next(filter(re.compile("[45][0-9]{2}").fullmatch, stated), 500)), error
    if not choices and data.get("choices") != []:
        return None
    choices.sort(key=lambda choice: count_in(choice, "index"))
    tokens = [count_in(data.get("usage"), f"{of}_tokens") for of in ("prompt", "completion")]
    return ChatCompletion(choices, *tokens)


def completions_of(
    reply: ChatCompletion, id: str, samples: Sequence[int], served: ServedModel
) -> Result:
    """The reply's choices that are texts as the first of those samples; there may be fewer of them.
    Its new tokens are shared out by length of text. Without any, the Failure of the last choice:
    too_few_choices, content_filter, refused, garbled_reply."""
    texts: list[tuple[str, Any]] = []
    failure = Failure(id, "too_few_choices", "the reply has no choices")
    for choice in reply.choices:
        content, said = choice["message"].get("content"), choice.get("finish_reason")
        text, word = _text_of(content), said.lower() if isinstance(said, str) else ""
        reason = _ENDS.get(word)
        if content is None and reason == "length":
            text = ""  # a reasoning model that spent its tokens before the answer
        if text is not None and reason:
            texts.append((served.without_secrets(text), reason))
        elif word in _HELD_BACK:
            failure = Failure(id, "content_filter")
        elif refusal := choice["message"].get("refusal"):
            failure = Failure(id, "refused", served.printable(refusal))
        else:
            found = f"finish_reason {str(said)[:50]!r}, content of type {type(content).__name__}"
            failure = Failure(id, "garbled_reply", f"found {served.printable(found)}")
    if not texts:
        return failure
    of_all: dict[str, Any] = {"id": id, "prompt_tokens": reply.prompt_tokens}
    new_tokens = share_out(reply.new_tokens, [len(text) for text, _ in texts])
    return [
        Completion(**of_all, sample=sample, text=text, finish_reason=reason, new_tokens=tokens)
        for sample, (text, reason), tokens in zip(samples, texts, new_tokens, strict=False)
    ]


def _text_of(content: Any) -> str | None:
    """The text of a message: a string, or parts of which those are put together that are texts
    (others are thoughts, or what nobody asked for); None: there is none."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)
             and p.get("type") in (None, "text", "output_text")]  # fmt: skip
    return "".join(texts) if texts else None


def share_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to total: 10, [1, 1, 2] -> 2, 3, 5."""
    if not (whole := sum(weights)):
        weights, whole = [1] * len(weights), len(weights)
    # differences of the rounded cumulative sums: each rounding error is made good by the next number
    ends = [total * end // whole for end in itertools.accumulate(weights)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
