"""The loopback server as a process: prints its base URL, serves until Ctrl-C, then its counters.

python -m embedded.server --port 8000 &
OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=x python translation.py

python -m embedded.server --batch-fault expired --batch-fault partly &    # the first two batches
OPENAI_BASE_URL=... OPENAI_API_KEY=x python annotate_preferences.py --engine batch

python -m embedded.server --model embedded/model --model judge=data/models/judge    # real models
"""

import argparse
import json
import signal
import threading
import urllib.request

from embedded.server import Answer, BatchFault, Fault, Server, echo, random_faults
from embedded.server.canned_answers import translate

ANSWERS: dict[str, Answer] = {"echo": echo, "translate": translate}


BATCH_FAULTS = {
    "expired": BatchFault(end="expired", answered=0.5),
    "cancelled": BatchFault(end="cancelled", answered=0.5),
    "partly": BatchFault(answered=0.5),
    "invalid": BatchFault(invalid_lines=(1,)),
    "untidy": BatchFault(duplicate=True, shuffle=True, garbage=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m embedded.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--answer", choices=sorted(ANSWERS), default="echo")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="answer with this model, run in this process; no NAME: it is called as its folder",
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds each reply takes")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND:SHARE",
        help="429, 500, cut, garbage, hang or few, and for which share of the requests (0 to 1)",
    )
    parser.add_argument(
        "--batch-fault",
        action="append",
        default=[],
        choices=sorted(BATCH_FAULTS),
        help="what becomes of the first, the second, ... batch; later ones are right",
    )
    options = parser.parse_args()
    kinds = {
        "429": Fault(status=429, retry_after="1"),
        "500": Fault(status=500),
        "cut": Fault(cut=True),
        "garbage": Fault(body=b"<html>", content_type="text/html"),
        "hang": Fault(hang=True),
        "few": Fault(choices=1),
    }
    shares = []
    for text in options.fault:
        kind, _, share = text.partition(":")
        if kind not in kinds:
            parser.error(f"--fault {text}: {kind!r} is none of {', '.join(kinds)}")
        shares.append((kinds[kind], float(share)))
    pick = random_faults(shares)
    slow = Fault(delay_seconds=options.latency)
    answer, names = ANSWERS[options.answer], ()
    if options.model:
        from embedded.server.local_models import LocalModels

        folders = dict(
            named.split("=", 1) if "=" in named else (named, named) for named in options.model
        )
        answer, names = LocalModels(folders).answer, tuple(folders)
    batch_faults = {n: BATCH_FAULTS[name] for n, name in enumerate(options.batch_fault)}
    server = Server(
        answer,
        fault=lambda call: pick(call) or slow,
        batch_fault=lambda call: batch_faults.get(call.number),
        models=names,
        port=options.port,
    )
    # a shell that starts it in the background has Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with server:
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/stats") as reply:
                print(json.dumps(json.load(reply)))


if __name__ == "__main__":
    main()
