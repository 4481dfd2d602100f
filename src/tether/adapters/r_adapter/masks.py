"""Random masks without state: whether a row is dropped is a hash of (seed, step, site, row key).

So resuming, the number of ranks and the order of the rows in a batch never change a mask, and nothing about
masks has to be saved. The hash is splitmix64 (Steele, Lea and Flood, 2014), which passes the usual
statistical batteries.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15  # the odd number nearest to 2^64 / golden ratio
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1
_BITS = 53  # of the hash, compared with the probability: as fine as a double


def mix(value: int) -> int:
    """The finaliser of splitmix64, on an integer below 2^64."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = ((value ^ (value >> shift)) * multiplier) & _MASK
    return value ^ (value >> 31)


def stream(*words: int) -> int:
    """One integer below 2^64 out of several: the start of a random stream for each combination."""
    state = 0
    for word in words:
        state = mix((state + _GAMMA + word) & _MASK)
    return state


def keep_rows(
    streams: Int[Tensor, "*sites"], keys: Int[Tensor, " rows"], drop: float
) -> Bool[Tensor, "*sites rows"]:
    """Which rows are kept, each with probability 1 − drop.

    Args:
        streams: `signed(stream(seed, step, site))` of each site.
        keys: what identifies a row whatever batch it is in, such as its number in the data set.
        drop: probability of a row to be dropped, from 0 to below 1.

    Returns:
        True where kept. The same (stream, key) always gives the same answer, on every device.
    """
    value = _mix(streams.unsqueeze(-1) + signed(_GAMMA) + keys.long())
    return _shift(value, 64 - _BITS) >= int(drop * 2**_BITS)


def keep(drop: float, *words: int) -> bool:
    """One draw for a whole batch, on the host: True with probability 1 − drop."""
    return stream(*words) >> (64 - _BITS) >= int(drop * 2**_BITS)


def signed(word: int) -> int:
    """The same 64 bits as a signed integer, which is what a tensor can hold."""
    return word - (1 << 64) if word >> 63 else word


def _mix(value: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        value = (value ^ _shift(value, shift)) * signed(multiplier)  # wraps around, as it should
    return value ^ _shift(value, 31)


def _shift(value: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    return torch.bitwise_and(
        value >> bits, (1 << (64 - bits)) - 1
    )  # a logical shift: no copies of the sign bit
