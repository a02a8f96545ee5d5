"""Who answers the prompts of generate_responses.py: one entry of config.py's list, or of a profile."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prefpipe.ranges import NotNegative, Positive, Temperature, TopP

EngineKind = Literal["local", "server", "batch", "files"]


class Responder(BaseModel):
    """One of the models that are asked; None: as the stage's own setting says."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(),
        allow_inf_nan=False,
    )  # fmt: skip
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What it is called from here on: the folder of its responses."""
    model: str = ""
    """A folder or a hub name; of a server, the name it serves the model under. Empty: BASE_MODEL of
    config.py."""
    engine: EngineKind | None = None
    base_urls: list[str] | None = None
    """Where this model is served."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: NotNegative | None = None
    max_new_tokens: Positive | None = None
    load_in_4bit: bool | None = None

    def __repr_args__(self) -> Any:
        """For --help: only what is set."""
        return [(name, value) for name, value in super().__repr_args__() if value is not None]
