"""Prompts to texts through any OpenAI-compatible server: vLLM, SGLang, llama.cpp, OpenAI itself.

What a server is not told it may take from the model's generation_config.json (vLLM does:
repetition_penalty and top_k of Qwen2 are not neutral), so temperature and top_p are always sent;
start vLLM with `--generation-config vllm`, or name the rest in extra_body. An option the server
refuses stops the run: nothing is sampled with other settings than the ones asked for. Only what asks
for nothing else (wire.dispensable) is left out then, once for all, which is said.
"""

import itertools
from collections.abc import Generator, Iterable

from prefpipe.llm import Request, Result
from prefpipe.llm.costs import Estimate, Spending, Spends, estimate
from prefpipe.llm.server.dialect import Dialect, Language
from prefpipe.llm.server.server_session import ServerOptions, ServerSession
from prefpipe.llm.wire import ServedModel


class ServerEngine(Spends):
    """Many requests in flight at once; memory is bounded by requests_in_flight.

    A request is sent again only on 408, 409, 429, 5xx, a garbled reply (twice, if paid), a timeout or a lost
    connection, max_retries times at most, with growing random pauses or the Retry-After that the
    server states; then it is a Failure, as are other 4xx at once. Where several requests in a row
    have used up their tries, the next ones get one each, until one passes. What no later request can pass
    either (wrong key, unknown model, no money, no server at any base URL, a refused option) ends
    generate() with SystemExit and a sentence, after the requests in flight have come back.

    Failure reasons: SERVER_FAILURES, bad_request, prompt_too_long, garbled_reply, too_few_choices,
    refused, content_filter.
    """

    def __init__(self, served: ServedModel, options: ServerOptions | None = None) -> None:
        """served.base_urls: each serves the same model; load goes to the least busy that answers."""
        served.check()
        self.served = served
        self.options = options or ServerOptions()
        self._spending = Spending(served.model)
        self.usage, self.spent = self._spending.usage, self._spending.describe

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What they would use at most. Asks nobody."""
        return estimate(requests, self.served.model)

    def generate(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Results as they come, at most 4 x requests_in_flight requests read ahead. The requests
        run on while the caller works on a result."""
        source = iter(requests)
        window = 4 * self.options.requests_in_flight
        outstanding = 0
        with ServerSession(self.served, self.options, self._spending, self._dialect()) as session:
            while True:
                taken = list(itertools.islice(source, window - outstanding))
                outstanding += len(taken)
                if not outstanding:
                    return
                session.submit(taken)
                for result in session.results():
                    outstanding -= 1
                    yield result

    def _dialect(self) -> Language:
        """How the requests of a generate() are written, and their replies read."""
        return Dialect(self.served)
