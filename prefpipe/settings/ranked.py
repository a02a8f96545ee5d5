"""What stages take that train, and so may run as several processes at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, Self

from pydantic import field_validator

from prefpipe.settings.stage import Stage
from prefpipe.training import ranks


class RankedStage(Stage):
    """What every stage takes that a launcher may start once a device: one of them writes and speaks."""

    @property
    def is_other_rank(self) -> bool:
        return ranks.is_other()

    @field_validator("shard")
    @classmethod
    def _is_one_training(cls, shard: str | None) -> None:
        if shard:
            raise ValueError(
                "a training is not cut into shards; accelerate launch runs it on several devices "
                "(docs/scale.md)"
            )

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
