"""What configs of objectives check when they are made."""

import math

from tether.errors import TetherError


def check_strengths(method: str, **strengths: float) -> None:
    """Refuse weights that are no number of at least 0.

    Raises:
        TetherError: naming the first of them.
    """
    for name, value in strengths.items():
        if not 0 <= value < math.inf:
            raise TetherError(f"{method}: {name} must be 0 or more; it is {value}.")


def check_positive(method: str, **values: float) -> None:
    """Refuse values that are no number above 0.

    Raises:
        TetherError: naming the first of them.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise TetherError(f"{method}: {name} must be above 0; it is {value}.")
