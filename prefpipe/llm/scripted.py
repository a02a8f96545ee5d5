"""Canned answers behind the same protocol, for tests and for trying a stage out."""

from collections.abc import Callable, Iterable, Iterator

from prefpipe.llm import Completion, Failure, Request, Result


class ScriptedEngine:
    """answer(request, sample) gives a text, or None for a Failure. Keeps what it was asked."""

    def __init__(self, answer: Callable[[Request, int], str | None]) -> None:
        self._answer = answer
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        for request in requests:
            self.asked.append(request)
            texts = [self._answer(request, sample) for sample in request.samples]
            usual = {"id": request.id, "finish_reason": "stop", "prompt_tokens": 1}
            completions = [
                Completion(**usual, sample=sample, text=text, new_tokens=len(text.split()))
                for sample, text in zip(request.samples, texts, strict=True)
                if text is not None
            ]
            yield Failure(request.id, "scripted_failure") if None in texts else completions
