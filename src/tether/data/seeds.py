"""Seeds that depend on what they are for, and on nothing else."""

import hashlib


def derived_seed(*words: int | str) -> int:
    """A seed of 63 bits that depends on every word and on their order."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
