"""A RAG stage in processes that are killed with SIGKILL, each a little later, until one comes through.

    python -m tests.killed_runs build_pairwise_prefs FOLDER

FOLDER holds t.csv (and for the pairs a store). What was embedded or sampled is noted in done.txt, one
line each; printed is the number of kills. A module of its own, since a process that has used FAISS
or Arrow must not fork.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import faiss  # noqa: F401  (here, that each child need not import it)
import pyarrow.parquet  # noqa: F401

import build_pairwise_prefs
import build_vector_store
from prefpipe.llm import Request
from prefpipe.llm.scripted import ScriptedEngine
from prefpipe.rag import embedding, retrieve
from tests.rag_helpers import WordEmbedder

BATCH = 2
"""Documents embedded at once, queries searched or scored at once."""


def answer(request: Request, sample: int) -> str:
    """Words of the context, fewer the higher the sample; of two answers the judge likes the longer."""
    text = request.messages[0]["content"]
    if "\t" in request.id:
        one, two = text.split("[Answer 1]\n")[1].split("\n\nWhich")[0].split("\n\n[Answer 2]\n")
        return f'{{"reason": "long", "better_answer": {1 if len(one) > len(two) else 2}}}'
    words = text.split("\n")[1].split()
    return " ".join(words[: max(1, len(words) - 2 * sample)])


def run(stage: str, folder: Path, name: str, step: Callable[[], None]) -> None:
    """One run; step is called before each batch, each question, each renaming of an output."""
    done = open(folder / f"{name}.done.txt", "a", buffering=1)  # noqa: SIM115
    replace = os.replace

    class Embedder(WordEmbedder):
        def embed(self, texts, kind):
            step()
            if stage == "build_vector_store":
                done.writelines(f"{text!r}\n" for text in texts)
            return super().embed(texts, kind)

    def ask(request: Request, sample: int) -> str:
        if sample == request.samples[0]:
            step()
        done.write(f"{request.id!r} {sample}\n")
        return answer(request, sample)

    def replace_stepwise(a, b):
        step()
        replace(a, b)

    os.replace = replace_stepwise
    table = folder / "t.csv"
    if stage == "build_vector_store":
        embedding.BATCH = BATCH
        s = build_vector_store.Settings(input=table, output=folder / name)
        build_vector_store.main(s, Embedder())
    else:
        build_pairwise_prefs.BLOCK = retrieve.BLOCK = BATCH
        s = build_pairwise_prefs.Settings(
            input=table,
            store=folder / "store",
            output=folder / f"{name}.jsonl",
            model="scripted",
            scorer="both",
            answer_threshold=-0.5,
            sure_threshold=0.1,
            min_margin=0.01,
        )
        build_pairwise_prefs.main(s, ScriptedEngine(ask), Embedder())


def main() -> None:
    stage, folder = sys.argv[1], Path(sys.argv[2])
    kills = 0
    while True:
        child = os.fork()
        if not child:
            left = kills + 1

            def step() -> None:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

            run(stage, folder, "killed", step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    assert status == 0
    run(stage, folder, "whole", lambda: None)
    print(kills, "kills")


if __name__ == "__main__":
    main()
