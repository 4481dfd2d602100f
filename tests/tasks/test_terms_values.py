"""The value of every regularizer inside a training step is the pure objective on the same features."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tether.config import plain
from tether.data.seeds import derived_seed
from tether.evaluation import class_embeddings
from tether.models import load
from tether.objectives import (
    CarFTConfig,
    CaRotConfig,
    FunctionSpaceConfig,
    L2SPPenaltyConfig,
    LipsumFTConfig,
    StarFTConfig,
    divergence,
    lipsum_ft,
    mixup,
    random_texts,
    self_distillation,
)
from tether.objectives import car_ft as car_ft_loss
from tether.objectives.car_ft import contexts_of
from tether.objectives.carot import cross_orthogonality, projection_orthogonality
from tether.objectives.lipsum_ft import text_frame
from tether.objectives.simulated_shifts import SHIFTS, jitter
from tether.objectives.star_ft import star_ft

from .terms_setup import ALL, LABELS, METHODS, MIXES, NAMES, TEMPLATES, Run, logits

BOTH = pytest.mark.parametrize("adapter", ["r_adapter", "full"])
ids = dict(zip(ALL, METHODS, strict=True)).get


def draws(method: str, step: int, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed("terms", seed, method, step))


def value(run: Run, config, step):
    terms = run.terms(config)(step)
    assert list(terms) == [plain(config)["method"]]
    return next(iter(terms.values()))


@dataclass
class Fresh:
    """The pre-trained model, and what it says about a step."""

    source: Path

    def __post_init__(self):
        self.model = load(str(self.source))
        self.scale = self.model.logit_scale

    def texts(self, texts):
        with torch.no_grad():
            return self.model.encode_text(self.model.tokenize(list(texts)))

    def image(self, pixels):
        with torch.no_grad():
            return self.model.encode_image(pixels)


@pytest.fixture
def fresh(tiny_model):
    return Fresh(tiny_model)


@BOTH
@pytest.mark.parametrize("cross_entropy", [False, True])
class TestValues:
    """Terms are the pure objectives on features of the moved model and of a fresh pre-trained one."""

    def test_car_ft(self, adapter, cross_entropy, tiny_model, fresh):
        run = Run(tiny_model, adapter, cross_entropy).move()
        step = run.forward(1)
        contexts = fresh.texts(["a", "a drawing of a", "the outline of a"])
        assert contexts_of(TEMPLATES) == ("a", "a drawing of a", "the outline of a")
        expected = car_ft_loss(
            logits(step.image, contexts, fresh.scale), logits(fresh.image(step.pixels), contexts, fresh.scale)
        )
        found = value(run, CarFTConfig(weight=3.0), step)
        torch.testing.assert_close(found, 3 * expected)
        assert found > 0
        other = value(run, CarFTConfig(weight=3.0, contexts=("night", "day")), step)
        assert not torch.isclose(other, found)

    def test_lipsum_ft(self, adapter, cross_entropy, tiny_model, fresh):
        run = Run(tiny_model, adapter, cross_entropy).move()
        step, config = run.forward(1), LipsumFTConfig(texts=7, length=3, weight=2.0)
        words = len(fresh.model.module.token_embedding.weight)
        frame = text_frame(fresh.model.tokenize, words)
        assert frame.ids.stop > 500 and (frame.start, frame.end) == (words - 2, words - 1)
        tokens = random_texts(config, draws("lipsum_ft", 1), **frame._asdict())
        with torch.no_grad():
            texts = fresh.model.encode_text(tokens)
        now, before = (logits(side, texts, fresh.scale) for side in (step.image, fresh.image(step.pixels)))
        torch.testing.assert_close(value(run, config, step), 2 * lipsum_ft(now, before))

    def test_star_ft(self, adapter, cross_entropy, tiny_model, fresh):
        run = Run(tiny_model, adapter, cross_entropy).move()
        step = run.forward(5)  # of the second of three epochs
        config = StarFTConfig(backgrounds=("{} at sea", "{} on land"))
        picked = [derived_seed("terms", 0, "star_ft", 5, int(index)) % 2 for index in step.index]
        chosen = sorted({(int(c), b) for c, b in zip(LABELS, picked, strict=True)})
        prompts = [config.backgrounds[b].replace("{}", NAMES[c]) for c, b in chosen]
        before = fresh.texts(prompts)
        same = LABELS[:, None] == torch.tensor([c for c, _ in chosen])
        found = value(run, config, step)
        if cross_entropy:
            now = before
        else:
            keys = torch.tensor([9 + 2 * c + b for c, b in chosen])
            run.attached.begin_step(5, step.index, keys)
            now = run.model.encode_text(run.model.tokenize(prompts))
        expected = star_ft(
            logits(step.image, now, fresh.scale), logits(fresh.image(step.pixels), before, fresh.scale), same
        )
        torch.testing.assert_close(found, 0.5 * (1 - 2 / 3) * expected)
        assert found > 0 and value(run, config, run.forward(9)) == 0

    def test_function_space(self, adapter, cross_entropy, tiny_model, fresh):
        run = Run(tiny_model, adapter, cross_entropy).move()
        step, config = run.forward(1), FunctionSpaceConfig(distance_weight=2.0, shift="mix_style", weight=0.5)
        found = value(run, config, step)
        zero_shot = class_embeddings(fresh.model, NAMES, TEMPLATES)
        classes = run.head if cross_entropy else zero_shot
        seeds = torch.randint(2**62, (2,), generator=draws("function_space", 1)).tolist()
        shifted, perturbed = (
            simulate(step.pixels, torch.Generator().manual_seed(seed))
            for simulate, seed in zip((SHIFTS["mix_style"], jitter), seeds, strict=True)
        )
        ours = [logits(run.model.encode_image(p), classes, fresh.scale) for p in (shifted, perturbed)]
        clean = logits(step.image, classes, fresh.scale)
        before = logits(fresh.image(shifted), zero_shot, fresh.scale)
        expected = 2 * divergence(before, ours[0]) + divergence(clean, ours[1])
        torch.testing.assert_close(found, 0.5 * expected)
        assert found > 0

    def test_l2_sp_penalty(self, adapter, cross_entropy, tiny_model, fresh):
        run = Run(tiny_model, adapter, cross_entropy)
        start = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
        terms = run.move().terms(L2SPPenaltyConfig(weight=0.3))  # made late: anchors are not where it is now
        step = run.forward(1)
        if cross_entropy:
            with torch.no_grad():
                run.head.add_(1)
        parts = []
        for name, now in run.parameters.items():
            if name == "head.weight":
                anchor = now.detach() - 1
            elif adapter == "full":
                anchor = start[name]
            else:
                anchor = now.detach().clone() if now.ndim == 0 else torch.zeros(())
            parts.append((now - anchor).square().sum())
        torch.testing.assert_close(terms(step)["l2_sp_penalty"], 0.15 * sum(parts))


@BOTH
@pytest.mark.parametrize("config", MIXES, ids=ids)
def test_mixes_are_the_pure_ones_on_the_pairs(adapter, config, tiny_model):
    run = Run(tiny_model, adapter).move()
    step = run.forward(6)
    name = plain(config)["method"]
    pairs = (step.image, step.text[step.text_index])
    expected = mixup(config, *pairs, draws(name, 6), scale=step.scale, epoch=1)
    found = value(run, config, step)
    torch.testing.assert_close(found, config.weight * expected)
    assert found > 0


@BOTH
def test_carot_has_a_teacher_that_follows(adapter, tiny_model):
    run = Run(tiny_model, adapter)
    config = CaRotConfig(every=2, momentum=(0.5, 0.5), weight=2.0)
    terms = run.terms(config)
    projections = (run.model.module.visual.proj, run.model.module.text_projection)
    trained = adapter == "full"
    start = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    for step in range(4):  # after step 2 the teacher moves half the way
        given = run.forward(step)
        found = terms(given)["carot"]
        expected = torch.zeros(())
        if trained:
            expected = 0.2 * projection_orthogonality(projections[0]) + 0.05 * cross_orthogonality(
                *projections
            )
        if step:
            share = 0.5 if step == 3 else 0.0
            twin = Run(tiny_model, adapter)
            with torch.no_grad():
                for name, parameter in twin.parameters.items():
                    parameter.copy_(start[name].lerp(run.parameters[name], share))
            twin.model.eval()
            with torch.no_grad():
                image, text = twin.model.encode_image(given.pixels), twin.model.encode_text(given.tokens)
            ours, theirs = (
                logits(i, t[given.text_index], given.scale)
                for i, t in ((given.image, given.text), (image, text))
            )
            expected = expected + 1.5 * self_distillation(ours, theirs)
        torch.testing.assert_close(found, 2 * expected, rtol=1e-4, atol=1e-5)
        run.move()
