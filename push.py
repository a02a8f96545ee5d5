"""Publish a data set or a model on the Hugging Face hub, as a private repository.

Reads   FOLDER/README.md     the card; nothing is uploaded without one
        FOLDER               what the card names as data; of a model, weights, configuration, tokenizer
Writes  OWNER/NAME           on the hub: one commit, of what is not there yet

Each file is shown with its size, and what stays here with the reason: logs, rejects, checkpoints,
hidden files, what the card does not name. Nothing is uploaded where a file has a key in it. A run that
was stopped is gone on with by the same command. Log in first: `hf auth login`, or HF_TOKEN.

    uv run push.py data/dpo mine/judgment-pairs --dry-run
    uv run push.py data/models/reward mine/reward-model --public
"""

from pathlib import Path

from pydantic_settings import CliPositionalArg

from prefpipe.publish import hub, uploads
from prefpipe.screen import show_table
from prefpipe.settings import Script


class Settings(Script, env_prefix="PUSH_"):
    folder: CliPositionalArg[Path]
    """A folder with a card: a data set's or a model's."""
    repository: CliPositionalArg[str]
    """OWNER/NAME on the hub; it is made where there is none."""
    public: bool = False
    """For everybody to see; otherwise the repository is private."""
    dry_run: bool = False
    """Show what would be uploaded, and stop: nobody is asked."""
    message: str = "Upload with prefpipe"
    """Of the commit."""


def main(s: Settings) -> None:
    chosen = uploads.choose(s.folder, s.repository)
    # before anything is shown or sent: what is on the hub once cannot be taken back
    uploads.check_no_key(chosen)
    sizes = chosen.sizes()
    rows = [[name, f"{size:,}"] for name, size in sizes.items()]
    show_table(["file", "bytes"], [*rows, [f"{len(rows)} files", f"{sum(sizes.values()):,}"]])
    for name, why in chosen.left_out.items():
        print(f"stays here: {name}: {why}")
    visible = "public" if s.public else "private"
    if s.dry_run:
        print(
            f"would be uploaded to the {visible} {chosen.kind} {s.repository}; --dry-run: nothing was"
        )
        return
    to = {"public": s.public, "message": s.message}
    address, uploaded, only_there = hub.push(chosen, s.repository, **to)
    # nothing is deleted there: the files may be somebody else's, or of an earlier version
    if only_there:
        print(f"on the hub and not here, left as it is: {', '.join(only_there)}")
    there = len(sizes) - len(uploaded)
    print(f"{address} ({visible}): {len(uploaded)} files uploaded, {there} were there")


if __name__ == "__main__":
    Settings.run(main)
