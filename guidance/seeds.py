"""Random numbers that depend on what is named and on nothing else; the global state is never touched."""

import hashlib

import torch


def generator_of(key: bytes, bits: int) -> torch.Generator:
    """A CPU generator whose seed is a hash of `key`, `bits` (at most 64) wide."""
    size = -(-bits // 8)
    digest = hashlib.blake2b(key, digest_size=size).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> (8 * size - bits))
