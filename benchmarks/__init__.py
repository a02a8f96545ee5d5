"""Scripts behind each number in the documents. What they share: where results go, and on what."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from prefpipe.files import library_versions, write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor())
    return {"processor": model, "cores": os.cpu_count(), "libraries": library_versions()}


def write_results(name: str, results: dict[str, Any]) -> None:
    """benchmarks/results/<name>.json, with the date."""
    write_json(RESULTS / f"{name}.json", {"date": datetime.date.today().isoformat(), **results})
    print(f"{RESULTS.name}/{name}.json written")
