"""Every word that can stand as `reason` in a rejects file, and what it means.

A Failure is why a request got no text, an Unreadable why a text says nothing that can be used, a
Reject why a row was left out: each has one of these words. `python -m prefpipe.reasons` prints the
table of data/README.md.
"""

REASONS: dict[str, str] = {}


def table() -> str:
    """The table in Markdown, a line a reason."""
    lines = [f"| `{reason}` | {sentence} |" for reason, sentence in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *lines])


if __name__ == "__main__":
    print(table())
