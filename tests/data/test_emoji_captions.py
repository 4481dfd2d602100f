from collections import Counter

import pytest

from tether.data import EmojiCaptionsConfig, EmojiShiftConfig, load_benchmark
from tether.data.emoji_captions import emoji_captions
from tether.errors import TetherError


def test_every_emoji_has_captions_that_no_other_one_has():
    captions = emoji_captions()
    assert {len(own) for own in captions.values()} == {3, 4, 5}
    counts = Counter(caption for own in captions.values() for caption in own)
    assert set(counts.values()) == {1}
    assert captions["1f9ab"] == (
        "beaver",
        "a mammal: beaver",
        "beaver, animal, dam, teeth",
        "animal, dam, teeth",
        "a mammal, animal, dam, teeth",
    )


def test_splits_and_domains_are_those_of_emoji_shift():
    captioned = EmojiCaptionsConfig(fold=1).load()
    labelled = load_benchmark(EmojiShiftConfig(fold=1))
    for own, other in (
        (captioned.train, labelled.train),
        (captioned.validation, labelled.validation),
        *((captioned.tests[vendor], labelled.tests[vendor]) for vendor in labelled.tests),
    ):
        assert [e.image for e in own.examples] == [e.image for e in other.examples]
        assert own.identities == other.identities
    assert captioned.in_distribution == "twemoji" and list(captioned.tests) == list(labelled.tests)
    assert {e.domain for e in captioned.tests["noto"].examples} == {"noto"}


def test_there_are_three_folds():
    with pytest.raises(TetherError, match="the folds 0, 1 and 2, not 3"):
        EmojiCaptionsConfig(fold=3)
