"""What stages take that may report their numbers somewhere else, too."""

from pydantic import field_validator

from prefpipe.publish import trackers
from prefpipe.settings.stage import NoEffectOnRows, Stage


class ReportingStage(Stage):
    """What every stage takes whose numbers a person watches."""

    report_to: NoEffectOnRows[trackers.Tracker] = "none"
    """Where the numbers go besides the files; each but none is a package of its own."""

    @field_validator("report_to")
    @classmethod
    def _is_installed(cls, tracker: trackers.Tracker) -> trackers.Tracker:
        if trackers.missing(tracker):
            raise ValueError(f"it is not installed; uv sync --extra {tracker}")
        return tracker
