"""Texts that belong to the pictures of a batch."""

from jaxtyping import Float, Int
from torch import Tensor

from tether.errors import TetherError


def paired(
    text: Float[Tensor, "texts dim"], index: Int[Tensor, " batch"] | None, batch: int
) -> Float[Tensor, "batch dim"]:
    """One row of text features per picture: `text`, or `text[index]` where `text` holds distinct texts only.

    Raises:
        TetherError: there is no index and not one text per picture.
    """
    if index is not None:
        return text[index]
    if len(text) != batch:
        raise TetherError(
            f"Expected one text per picture, found {len(text)} texts for {batch} pictures. If the texts are "
            f"the distinct ones of the batch, give `index` too: the number of each picture's text among them."
        )
    return text
