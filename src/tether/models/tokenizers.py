"""A tokenizer has to belong to its text tower: tested on probe texts, not believed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tether.errors import TetherError

PROBES = ["a", "a photo of a dog", "a small drawing of two cats: and a bird!"]


def check_tokenizer(
    tokenize: Callable[[list[str]], Tensor],
    *,
    words: tuple[int, int],
    rows: int,
    context_length: int,
    ends: Callable[[Tensor], Tensor] | None,
    source: str,
) -> None:
    """Refuse a tokenizer that does not fit a text tower.

    Args:
        tokenize: gives token ids of texts, padded to the context length.
        words: how many words the tokenizer knows, without and with special tokens.
        rows: rows of the tower's embedding table.
        context_length: tokens the tower takes.
        ends: where the tower pools, if it pools at the end-of-text token.

    Raises:
        TetherError: ids exceed the table, the tokenizer covers only part of it, rows have another length, or
            the tower would not pool at the end of the text.
    """
    ordinary, all_words = words
    if ordinary > rows or all_words < 0.95 * rows:
        raise TetherError(
            f"The tokenizer of {source} knows {all_words} words, but the text tower's embedding table has "
            f"{rows} rows. It is another model's tokenizer."
        )
    tokens = tokenize(PROBES)
    if tokens.shape != (len(PROBES), context_length):
        raise TetherError(
            f"The tokenizer of {source} gives rows of {tokens.shape[-1]} tokens, but the text tower takes "
            f"{context_length}."
        )
    if int(tokens.max()) >= rows or int(tokens.min()) < 0:
        raise TetherError(
            f"The tokenizer of {source} gives the id {int(tokens.max())}, but the text tower's embedding "
            f"table has only {rows} rows. It is another model's tokenizer."
        )
    if ends is None:
        return
    positions = ends(tokens)
    pooled = tokens[range(len(PROBES)), positions]
    rising = bool((positions.diff() >= 0).all()) and 0 < int(positions[0]) < int(positions[-1])
    padding = [tokens[row, int(position) + 1 :] for row, position in enumerate(positions)]
    padded = all(len(rest) == 0 or bool((rest == rest[-1]).all()) for rest in padding)
    if not rising or not padded or len(pooled.unique()) != 1:
        raise TetherError(
            f"The text tower of {source} would read its feature at tokens {positions.tolist()} of three "
            f"texts of rising length (ids {pooled.tolist()}), which are not where they end. The tokenizer or "
            f"the tower's eos_id is another model's."
        )


def words_of(tokenizer: Any) -> tuple[int, int]:
    """One more than the largest id a Hugging Face tokenizer gives, without and with special tokens."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    ordinary = max((index for word, index in vocabulary.items() if word not in special), default=-1) + 1
    return ordinary, max(vocabulary.values(), default=-1) + 1
