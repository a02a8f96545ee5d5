"""The pipeline's files: streamed, whole or not at all, with a ledger and a resume log.

A stage opens one Run. It refuses to mix outputs of other settings, gives rows to read, takes one
result for each of them (rows, or a Reject), and at its end renames the outputs into place, checks
that nothing was lost, and writes `.meta.json` last. A stage that talks to a model also keeps a
RowLog, from which a killed run goes on.
"""

from prefpipe.files.fingerprint import difference, fingerprint, hash_path, library_versions
from prefpipe.files.ids import Aligned, Places
from prefpipe.files.inputs import Named, each_of, here
from prefpipe.files.ledger import by_number
from prefpipe.files.outputs import open_alone, write_json, write_rows, write_text
from prefpipe.files.plan import NOT_ASKED, DryRunEnd, Plan
from prefpipe.files.records import (
    ENDINGS,
    SPLITS,
    DataError,
    data_files,
    parse_row,
    read_records,
    read_rows,
    typed_rows,
)
from prefpipe.files.resume import RowLog, windows_left
from prefpipe.files.run import Run
from prefpipe.files.shards import WHOLE, Shard
from prefpipe.files.stage_facts import StageFacts
from prefpipe.files.toml_files import read_toml
