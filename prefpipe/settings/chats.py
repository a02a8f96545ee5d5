"""What every stage takes that shows conversations to a model in this process."""

import datetime
from typing import Any

from prefpipe.files import Run
from prefpipe.settings.stage import Stage
from prefpipe.templates import ChatOptions, use_chat_options


class ChatStage(Stage):
    """What a chat template is told, where it asks; a model that is trained is saved with it."""

    enable_thinking: bool | None = None
    """Whether the model thinks before it answers, where its chat template has this option (Qwen3's,
    for example). None: as the template has it."""
    template_date: datetime.date = datetime.date(2024, 7, 26)
    """The day that a chat template calls today (Llama 3.1's, gpt-oss's): fixed, so that a run that
    goes on tomorrow shows the same prompts."""

    def open_run(self, **options: Any) -> Run:
        use_chat_options(ChatOptions(self.enable_thinking, self.template_date))
        return super().open_run(**options)
