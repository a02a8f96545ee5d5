"""What a server calls the options of a request, and which of them it takes: learnt from its replies."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import openai

from prefpipe.llm import Failure, Request, Result, error_replies, wire
from prefpipe.llm.costs import estimate_prompt_tokens
from prefpipe.llm.wire import ServedModel

_TRIED_IN_VAIN = 3  # requests refused for whatever options: behind that the requests are to blame


class Language(Protocol):
    """How requests of one kind are written for a server, and how its replies are read."""

    reply_is: str
    """What a reply is, in words."""

    def body(self, request: Any, samples: Sequence[int]) -> dict[str, Any]: ...

    def address(self, body: dict[str, Any], root: str) -> str:
        """Where the body is sent to, behind the base URL; or a whole URL. root: the server's, without /v1."""
        ...

    def tokens(self, request: Any, samples: Sequence[int]) -> int:
        """An estimate of what it takes, prompt and new tokens together."""
        ...

    def adapts(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool: ...

    def read(self, data: Any) -> Any:
        """The reply in that JSON; a status and an error object that stand in its place; None: neither."""
        ...

    def results(self, reply: Any, request: Any, samples: Sequence[int]) -> list[Any] | Failure: ...

    def passed(self, whole: set[str], sent: dict[str, Any], server: str) -> None: ...

    def failed(self, whole: set[str], sent: dict[str, Any]) -> None: ...

    def tell_of_cut(self, request: Any, reported: int, server: str) -> None: ...


class Dialect:
    """The options of one model's servers, for the chat completions of one generate()."""

    reply_is = "chat completion"

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._limit_field = "max_tokens"
        self._unsent: set[str] = set()
        """Refused, and left out from then on."""
        self._taken: set[str] = set()
        """Taken before: a 400 behind that is the request's."""
        self._in_vain = 0
        self._told_of_cut = False

    def body(self, request: Request, samples: Sequence[int]) -> dict[str, Any]:
        """The request, without what the server has refused."""
        body = wire.request_body(self._served, request, samples, self._limit_field)
        return {name: value for name, value in body.items() if name not in self._unsent}

    def address(self, body: dict[str, Any], root: str) -> str:
        return "/chat/completions"

    def tokens(self, request: Request, samples: Sequence[int]) -> int:
        new = len(samples) * request.max_new_tokens
        return new + estimate_prompt_tokens(request.messages)

    def read(self, data: Any) -> Any:
        return wire.read_reply(data)

    def results(self, reply: Any, request: Request, samples: Sequence[int]) -> Result:
        return wire.completions_of(reply, request.id, samples, self._served)

    def adapts(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Whether the request, changed now, is to be sent again."""
        return self._renames_limit(error, body) or self._leaves_out(error, body)

    def _renames_limit(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Newer OpenAI models call max_tokens max_completion_tokens, and say so in a 400."""
        if "max_tokens" not in body or "use 'max_completion_tokens'" not in error.message.lower():
            return False
        self._limit_field = "max_completion_tokens"
        body[self._limit_field] = body.pop("max_tokens")
        return True

    def _leaves_out(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Leave out of what is dispensable what the error names; else n; else all of it. Servers
        have many words for a refused option, and some none, so a try tells."""
        said = error.message
        if error.status_code not in (400, 422) or error_replies.is_too_long(said):
            return False
        left = wire.dispensable(body, self._served) - self._taken
        stated = error.body if isinstance(error.body, dict) else {}
        refused = error_replies.refused_options(stated, body, said)
        if self._in_vain >= _TRIED_IN_VAIN or refused - left:
            return False
        named = {name for name in left if re.search(rf"\b{name}\b", said)}
        for name in (names := named or ({"n"} & left) or left):
            del body[name]
        return bool(names)

    def passed(self, whole: set[str], sent: Mapping[str, Any], server: str) -> None:
        """Learn from a reply: of the options of the whole request some had been left out."""
        new = whole - sent.keys() - self._unsent - self._taken - {"max_tokens"}
        self._taken |= sent.keys()
        if new:
            self._unsent |= new
            print(
                f"{server} refuses {', '.join(sorted(new))}: left out from here on", file=sys.stderr
            )

    def failed(self, whole: set[str], sent: Mapping[str, Any]) -> None:
        """Learn from a refusal that leaving options out has not helped."""
        self._in_vain += bool(whole - sent.keys() - {"max_tokens"})

    def tell_of_cut(self, request: Request, reported: int, server: str) -> None:
        """Say, once, where the server counts far fewer tokens than a prompt must have."""
        characters = sum(len(message["content"]) for message in request.messages)
        if self._told_of_cut or not 0 < reported < 0.32 * characters:
            return  # no need to estimate: 0.8 a character is the most there can be
        sent = estimate_prompt_tokens(request.messages)
        if sent >= 1000 and reported < 0.4 * sent:
            self._told_of_cut = True
            print(
                f"warning: {server} reports {reported:,} prompt tokens, far fewer than the about "
                f"{sent:,} that were sent: does it cut long prompts? (Ollama: num_ctx)",
                file=sys.stderr,
            )
