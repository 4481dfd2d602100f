import pytest
import torch
import torch.nn.functional as F

from tether.errors import TetherError
from tether.objectives.lipsum_ft import LipsumFT, LipsumFTConfig, lipsum_ft, random_texts, text_frame


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def draw(**changes):
    settings = {"ids": range(3, 90), "start": 90, "end": 91, "context_length": 16} | changes
    return random_texts(
        settings.pop("config", LipsumFTConfig()), torch.Generator().manual_seed(0), **settings
    )


def test_slow_twin():
    image, before, texts = unit(3, 6, seed=1), unit(3, 6, seed=2), unit(5, 6, seed=3)
    total = 0.0
    for i in range(3):
        total += sum(float(7 * image[i] @ t - 7 * before[i] @ t) ** 2 for t in texts) / (2 * 5) / 3
    assert float(LipsumFT(7.0)(image, before, texts)) == pytest.approx(total, abs=1e-12)


def test_gradient_is_the_mean_change():
    logits = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    before = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    lipsum_ft(logits, before).backward()
    torch.testing.assert_close(logits.grad, (logits - before).detach() / 15)
    assert before.grad is None


def test_random_texts_are_framed_and_padded():
    tokens = draw()
    assert tokens.shape == (80, 16)
    assert (tokens[:, 0] == 90).all() and (tokens[:, 9] == 91).all() and (tokens[:, 10:] == 0).all()
    words = tokens[:, 1:9]
    assert words.min() >= 3 and words.max() < 90 and len(words.unique()) > 80
    assert torch.equal(tokens, draw())


def test_a_tokenizer_without_start_and_with_its_own_padding():
    tokens = draw(start=None, end=1, pad=1, context_length=9)
    assert tokens.shape == (80, 9) and (tokens[:, 8] == 1).all() and tokens[:, :8].min() >= 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"context_length": 9}, r"need a context of 10; the model's is 9\. Set length to at most 7"),
        ({"ids": range(3, 3)}, r"ids \(range\(3, 3\)\) must be a non-empty range"),
        ({"end": 5}, r"without start \(90\) and end \(5\)"),
        ({"start": 5}, r"without start \(5\) and end \(91\)"),
    ],
)
def test_impossible_texts_are_refused(wrong, message):
    with pytest.raises(TetherError, match=message):
        draw(**wrong)


def test_config_is_checked():
    with pytest.raises(TetherError, match="at least one"):
        LipsumFTConfig(texts=0)
    with pytest.raises(TetherError, match="weight"):
        LipsumFTConfig(weight=-1.0)


def framed(before, after, length):
    """A tokenizer of one id per letter."""

    def tokenize(texts):
        rows = [[*before, *(ord(letter) for letter in text), *after] for text in texts]
        return torch.tensor([row + [after[-1]] * (length - len(row)) for row in rows])

    return tokenize


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([998], [999, 0], (range(1, 998), 998, 999, 12, 0)),  # CLIP's order: start and end are the last ids
        ([], [1], (range(2, 1000), None, 1, 12, 1)),  # SigLIP's: the end is the padding
        ([0], [2, 1], (range(3, 1000), 0, 2, 12, 1)),  # special ids first
    ],
)
def test_the_frame_is_read_off_the_tokenizer(before, after, expected):
    tokenize = framed(before, after, 12)
    frame = text_frame(tokenize, 1000)
    assert frame == expected
    config = LipsumFTConfig(texts=3, length=4)
    drawn = random_texts(config, torch.Generator().manual_seed(0), **frame._asdict())
    word = tokenize(["abcd"])[0]
    special = (word[:, None] == torch.tensor([*before, *after])).any(1)
    assert (drawn[:, special] == word[special]).all() and (drawn[:, ~special] != word[~special]).any()


@pytest.mark.parametrize("wrong", [([7, 8], [9]), ([7] * 11, [9])])
def test_other_frames_are_refused(wrong):
    with pytest.raises(TetherError, match="tokenizer"):
        text_frame(framed(*wrong, 12), 100)
