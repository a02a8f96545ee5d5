"""pipeline.sh, all of its paths on a few rows: what libraries warn of reaches nobody."""

import os
import re
import subprocess

from tests.examples import ROOT

_LIBRARY = re.compile(r"\b\w*Warning\b|warnings\.warn|Traceback|\bdeprecated\b|site-packages")


def test_no_librarys_warning_reaches_who_runs_the_paths(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        ["bash", "pipeline.sh", "all", "--limit", "16"],
        cwd=ROOT,
        env={**environment, "PREFPIPE_DATA": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    strange = [line for line in done.stdout.split("\n") if _LIBRARY.search(line)]
    assert done.returncode == 0, done.stdout[-3000:]
    assert strange == []
    assert done.stdout.count("== ") > 20  # each stage is named before it runs
