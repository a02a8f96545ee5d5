"""What a run needs to know of its stage."""

from dataclasses import dataclass
from typing import Any

from prefpipe.files.shards import WHOLE, Shard


@dataclass(frozen=True)
class StageFacts:
    """What a Run needs to know of the stage and its settings (Stage.open_run fills it in)."""

    stage: str
    depends_on: dict[str, Any]
    """The settings that change rows."""
    settings: dict[str, Any]
    """All settings, for .meta.json."""
    limit: int | None
    overwrite: bool
    strict: bool
    leave_out_failing: bool = False
    """Rows that a server fails on are left out (of stages that ask one)."""
    dry_run: bool = False
    """Nothing is written: Run.plan says what would be done."""
    shard: Shard = WHOLE
    """Which of the rows are this run's."""
    is_other_rank: bool = False
    """One of several processes that do the same, of which another one writes."""
