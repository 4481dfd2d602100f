"""Lipsum-FT: keep the pre-trained relation of vision and language where no task is looking.

"Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance" (ICLR 2024): the logits of
random texts may not move. Use it with full fine-tuning of the picture encoder under a frozen text encoder;
it costs one forward of the frozen picture encoder and one of some eighty short texts a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._alpha import tower_of
from tether.config import method
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.objectives._checks import check_strengths
from tether.objectives._precision import cosine_logits, full_precision


@method("lipsum_ft")
@dataclass(frozen=True, kw_only=True)
class LipsumFTConfig(RegularizerConfig):
    """The published defaults: 80 texts of 8 random tokens a step, and weight 1."""

    weight: float = 1.0
    """Of the term beside the objective."""
    texts: int = 80
    """Random texts a step."""
    length: int = 8
    """Random tokens in a text."""

    def term(self, shared: Any) -> "LipsumFTTerm":
        return LipsumFTTerm(self, shared)

    def __post_init__(self) -> None:
        check_strengths("lipsum_ft", weight=self.weight)
        if self.texts < 1 or self.length < 1:
            raise TetherError(f"Lipsum-FT needs at least one text of one token; it has {self}.")


@full_precision
def lipsum_ft(
    logits: Float[Tensor, "batch texts"], reference: Float[Tensor, "batch texts"]
) -> Float[Tensor, ""]:
    """Half the mean squared change of the logits: mean_i Σ_k (z_ik − z⁰_ik)² / (2K).

    Both arguments are scale · picture · text with the *pre-trained* scale and text encoder. No gradient
    reaches `reference`.

    >>> float(lipsum_ft(torch.ones(2, 80), torch.zeros(2, 80)))
    0.5
    """
    return (logits - reference.detach()).square().mean() / 2


def random_texts(
    config: LipsumFTConfig,
    generator: torch.Generator,
    *,
    ids: range,
    start: int | None,
    end: int,
    context_length: int,
    pad: int = 0,
) -> Int[Tensor, "texts context_length"]:
    """Texts of tokens drawn evenly from `ids`, framed by the tokenizer's start (if any) and end tokens, and
    padded.

    For OpenAI's vocabulary: ids=range(49406), start=49406, end=49407.

    Raises:
        TetherError: the texts do not fit into the context, or `ids` is empty or holds a special token.
    """
    framed = config.length + 1 + (start is not None)
    if framed > context_length:
        raise TetherError(
            f"{config.length} random tokens and their frame need a context of {framed}; the model's is "
            f"{context_length}. Set length to at most {context_length - framed + config.length}."
        )
    if not ids or end in ids or start in ids:
        raise TetherError(f"ids ({ids}) must be a non-empty range without start ({start}) and end ({end}).")
    device = generator.device
    places = torch.randint(len(ids), (config.texts, config.length), generator=generator, device=device)
    words = ids.start + ids.step * places
    column = torch.ones(config.texts, 1, dtype=torch.long, device=device)
    begin = [] if start is None else [start * column]
    padding = pad * column.expand(-1, context_length - framed)
    return torch.cat([*begin, words, end * column, padding], 1)


class TextFrame(NamedTuple):
    """What a tokenizer puts around words, as `random_texts` takes it."""

    ids: range
    start: int | None
    end: int
    context_length: int
    pad: int


def text_frame(tokenize: Callable[[list[str]], Tensor], words: int) -> TextFrame:
    """Look at how a tokenizer frames one word.

    Args:
        tokenize: gives rows of token ids, padded on the right to the context length.
        words: rows of the text tower's embedding table. Words are drawn from the longest run of ids among
            them without start, end and padding.

    Raises:
        TetherError: the rows are not [start,] word, end, padding.
    """
    first, second = tokenize(["a", "b"]).tolist()
    differ = [place for place, ids in enumerate(zip(first, second, strict=True)) if ids[0] != ids[1]]
    if not differ or differ[0] > 1 or differ[-1] + 1 == len(first):
        raise TetherError(
            f"Random texts need a tokenizer that gives [start,] word, end, padding; this one gives {first} "
            f"for 'a' and {second} for 'b'."
        )
    start, end, pad = first[0] if differ[0] else None, first[differ[-1] + 1], first[-1]
    special = sorted({-1, words, end, pad} | ({start} - {None}))
    before, after = max(pairwise(special), key=lambda gap: gap[1] - gap[0])
    return TextFrame(range(before + 1, after), start, end, len(first), pad)


class LipsumFT(nn.Module):
    """The term with its scale: takes embeddings of pictures, and of the step's random texts by the frozen
    encoder.

    >>> image = torch.nn.functional.normalize(torch.ones(2, 8), dim=-1)
    >>> texts = torch.nn.functional.normalize(torch.eye(5, 8), dim=-1)
    >>> float(LipsumFT(scale=100.0)(image, image, texts))
    0.0
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    @full_precision
    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        texts: Float[Tensor, "texts dim"],
    ) -> Float[Tensor, ""]:
        """The term for the same pictures embedded by the model in training and by the pre-trained one."""
        texts = texts.detach()
        return lipsum_ft(*(cosine_logits(side, texts, self.scale) for side in (image, reference)))


class LipsumFTTerm:
    """New random texts in every step, read by the pre-trained text tower."""

    separable = True

    def __init__(self, config: LipsumFTConfig, shared: Any) -> None:
        shared.require_images("lipsum_ft")
        self._config, self._term = config, LipsumFT(shared.scale)
        self._reference = shared.reference
        model = shared.context.model
        self._frame = text_frame(model.tokenize, _words(model.module))
        self._draw(torch.Generator())  # refuses what does not fit before training

    def __call__(self, step: Any) -> Tensor:
        tokens = self._draw(step.generator("lipsum_ft"))
        texts = self._reference.encode_text(tokens)
        return self._term(step.given.image, step.reference_image, texts)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return random_texts(self._config, generator, **self._frame._asdict())


def _words(module: nn.Module) -> int:
    """Rows of the text tower's embedding table.

    Raises:
        TetherError: there is none.
    """
    tables = [
        part.num_embeddings
        for path, part in module.named_modules()
        if isinstance(part, nn.Embedding) and tower_of(path) == "text"
    ]
    if not tables:
        raise TetherError(f"lipsum_ft finds no token embedding in the text tower of {type(module).__name__}.")
    return max(tables)
