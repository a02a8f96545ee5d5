"""Every random choice outside of training: drawn from a seed and names, so that it depends on nothing else.

The order of the rows, --limit, the size of a batch or a restart change no draw. (The noise of a
sampled text is drawn the same way, token by token: prefpipe/llm/local/token_choice.py.)
"""

import hashlib
import random


def rng(seed: int, *names: object) -> random.Random:
    """A generator of its own for what these names stand for: rng(2021, "p8", "pairs")."""
    return random.Random(":".join(map(str, (seed, *names))))


def coin(seed: int, id: str) -> bool:
    """Heads or tails; by a hash, since creating a generator takes ten times as long."""
    return bool(_digest(seed, id, size=1)[0] & 1)


def number(seed: int, id: str) -> int:
    """0 to 2^64 - 1: the smallest or largest of these are a sample that no order of rows changes."""
    return int.from_bytes(_digest(seed, id, size=8))


def fraction(seed: int, text: bytes) -> float:
    """A number in [0, 1) for a text; those below s are a share s of all texts."""
    digest = hashlib.blake2b(text, digest_size=8, key=str(seed).encode(), person=b"split")
    return int.from_bytes(digest.digest()) / 2**64


def place(seed: int, text: bytes) -> bytes:
    """A key to sort by: it puts texts in an order that the seed alone draws."""
    return hashlib.sha256(f"{seed}:".encode() + text).digest()


def server_seed(seed: int, id: str, first_sample: int) -> int:
    """31 bits for a server's `seed`; other samples of one prompt get another, also when resumed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}:{first_sample}".encode()).digest()[:4]) >> 1


def _digest(seed: int, id: str, *, size: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=size).digest()
