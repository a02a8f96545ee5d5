"""Batches as files, for whoever runs them: a machine without network, `vllm run-batch`.

The folder of the record takes the server's place. requests-000001.jsonl is what a batch asks; once
results-000001.jsonl stands beside it, it is answered. Both are in the OpenAI batch format. What has no
line there, or one without an answer, is asked again in the next file.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from prefpipe.llm.batch_api.batch_http import FileGone
from prefpipe.llm.batch_api.batch_record import Batch, BatchRecord


class BatchFiles:
    """What BatchApi is to a server, to a folder."""

    def __init__(self, record: BatchRecord) -> None:
        self._record = record

    def close(self) -> None: ...

    def upload(self, path: Path, name: str) -> str:
        return path.name

    def create(self, batch: Batch) -> str:
        return self._record.path("requests", batch).name

    def find(self, batch: Batch) -> str | None:
        """None where a killed run has not come to writing it."""
        path = self._record.path("requests", batch)
        return path.name if path.is_file() else None

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        results = results_of(self._record.folder / batch_id)
        if not results.is_file():
            return {"status": "in_progress"}
        with open(results, "rb") as file:
            answered = sum(not line.isspace() for line in file)
        counts = {"request_counts": {"completed": answered}}
        return {"status": "completed", "output_file_id": results.name, **counts}

    def content(self, file_id: str, path: Path, most_bytes: int) -> None:
        """Copy the file to path, whole or not at all. Raises FileGone where it has more than
        most_bytes."""
        source, temporary = self._record.folder / file_id, path.with_suffix(".tmp")
        if source.stat().st_size > most_bytes:
            raise FileGone(f"{source}: more than {most_bytes:,} bytes")
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)


def results_of(requests: Path) -> Path:
    """Where the answers to a file of requests are looked for."""
    return requests.with_name(requests.name.replace("requests", "results", 1))


def what_to_run(folder: Path, waiting: list[Batch], model: str) -> str:
    """A sentence for whoever is to run these files."""
    first = folder / str(waiting[0].batch_id)
    others = f", and {len(waiting) - 1} more alike" if len(waiting) > 1 else ""
    return (
        f"{sum(batch.requests for batch in waiting):,} requests wait in {folder}: run vllm run-batch "
        f"--model {model} -i {first} -o {results_of(first)}{others}; the same command then goes on"
    )
