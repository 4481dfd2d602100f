"""The card's numbers are those of the model: measured on a vendor again, the slow way."""

import torch

import tether
from makers.builtin_clip import card
from tether.data import read_image, test_transform
from tether.data.emoji_classes import CLASS_NAMES
from tether.data.emoji_shift import TEMPLATES, captioned
from tether.models.builtin import FOLDER


def test_zero_shot_on_one_vendor_equals_the_slow_way():
    pictures = captioned("fxemoji")[:40]
    model = tether.load("builtin")
    row = card.zero_shot(
        model, "fxemoji", [(ref, truth) for ref, _, truth in pictures], list(CLASS_NAMES.values())
    )
    transform, classes = test_transform(model.image), list(CLASS_NAMES.values())
    with torch.no_grad():
        prompts = [[template.format(name) for template in TEMPLATES] for name in classes]
        texts = torch.stack([model.encode_text(model.tokenize(words)).mean(0) for words in prompts])
        hits = 0
        for reference, _, truth in pictures:
            image = model.encode_image(transform(read_image(reference))[None])
            hits += classes[int((image @ torch.nn.functional.normalize(texts, dim=-1).T).argmax())] == truth
    assert row.pictures == 40 and row.top1 == hits / 40
    assert row.top1 > 10 / len(classes)


def test_the_card_names_the_weights_that_lie_beside_it():
    from tether._files import sha256_file

    assert sha256_file(FOLDER / "open_clip_model.safetensors") in (FOLDER / "CARD.md").read_text()
