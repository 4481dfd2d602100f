"""The tokenizer of the towers keeps what open_clip relies on."""

import pytest

from makers.builtin_clip.towers import train_tokenizer
from tether.errors import TetherError

WORDS = "cat dog bird fish tree house car boat sun moon star leaf rock hand foot eye".split()


def test_tokenizer_pads_with_zero_and_ends_with_its_largest_id():
    tokenizer = train_tokenizer([f"{a} and {b}" for a in WORDS for b in WORDS], 300)
    ids = tokenizer(
        ["Cat", "unseen wörds"], padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    assert ids.max() == 299 and (ids[0] == 299).sum() == 1 and ids[0, -1] == 0
    assert tokenizer.decode(ids[1], skip_special_tokens=True).strip() == "unseen wörds"


def test_a_vocabulary_that_the_captions_cannot_fill_is_refused():
    with pytest.raises(TetherError, match="lower the vocabulary"):
        train_tokenizer(["a b"], 4000)
