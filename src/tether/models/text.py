"""Do less work on text, exactly: encode each caption once, and only up to its end."""

import torch
from jaxtyping import Int
from torch import Tensor


def unique_rows(tokens: Int[Tensor, "n length"]) -> tuple[Int[Tensor, "distinct length"], Int[Tensor, " n"]]:
    """The distinct rows of a batch of token ids and, for each row, which distinct row it is.

    `encode(distinct)[inverse]` equals `encode(tokens)`, and its gradient is that of encoding every row.

    Returns:
        The distinct rows in lexicographic order, whatever the order of the batch, and indices into them such
        that `distinct[inverse]` is `tokens`.
    """
    distinct, inverse = torch.unique(tokens, dim=0, return_inverse=True)
    return distinct, inverse


def end_positions(tokens: Int[Tensor, "n length"], end_id: int | None) -> Int[Tensor, " n"]:
    """Where a text tower that pools at the end-of-text token reads its feature, per row.

    Args:
        end_id: pool at the first token with this id (position 0 if there is none, as the libraries do);
            None pools at the first occurrence of the row's largest id, as CLIP does.
    """
    scores = tokens if end_id is None else (tokens == end_id).int()
    return scores.argmax(dim=-1)


def truncate(
    tokens: Int[Tensor, "n length"], ends: Int[Tensor, " n"], multiple: int = 1
) -> Int[Tensor, "n shorter"]:
    """Cut off what comes after the last row's end.

    Exact where attention is causal and the feature is read at `ends`: no later token can influence it.

    Args:
        ends: position of each row's end-of-text token.
        multiple: round the length up to a multiple of this, so that a compiled model meets few lengths.
    """
    length = int(ends.max()) + 1 if len(ends) else 1
    return tokens[:, : min(-(-length // multiple) * multiple, tokens.shape[1])]
