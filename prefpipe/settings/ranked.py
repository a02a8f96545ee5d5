"""What stages take that train, and so may run as several processes at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NoReturn, Self

from prefpipe.settings.stage import WholeStage
from prefpipe.training import ranks


class RankedStage(WholeStage):
    """What every stage takes that a launcher may start once a device: one of them writes and speaks."""

    why_whole: ClassVar[str] = (
        "accelerate launch runs a training on several devices (docs/scale.md)"
    )

    @property
    def is_other_rank(self) -> bool:
        return ranks.is_other()

    def check(self) -> None:
        """Meet the other ranks. Exits with a sentence where the launcher asks for what cannot be."""
        ranks.meet()
        if getattr(self, "load_in_4bit", None) and ranks.share_weights():
            raise SystemExit(
                "load_in_4bit: 4-bit weights are not shared among devices; leave it out, or launch with "
                "configs/multi_gpu.yaml, where each device has all of them"
            )

    @classmethod
    def run(cls, main: Callable[[Self], None]) -> NoReturn:
        with ranks.one_voice(cls.stage_name()):
            super().run(main)

    @contextmanager
    def spoken(self) -> Iterator[None]:
        with super().spoken(), ranks.tells_of_lost_ranks(self.stage_name()):
            yield
