import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tether.models import load, unique_rows
from tether.models.text import end_positions, truncate

rows = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=12)


@settings(deadline=None)
@given(rows)
def test_unique_rows_are_distinct_and_give_every_row_back(rows: list[list[int]]) -> None:
    tokens = torch.tensor(rows)
    distinct, inverse = unique_rows(tokens)
    assert torch.equal(distinct[inverse], tokens)
    assert (
        len({tuple(row) for row in distinct.tolist()}) == len(distinct) == len({tuple(row) for row in rows})
    )


@settings(deadline=None)
@given(rows, st.randoms())
def test_unique_rows_do_not_depend_on_the_order_of_the_batch(rows: list[list[int]], random) -> None:
    shuffled = random.sample(rows, len(rows))
    assert torch.equal(unique_rows(torch.tensor(rows))[0], unique_rows(torch.tensor(shuffled))[0])


@settings(deadline=None)
@given(rows, st.sampled_from([None, 0, 3]))
def test_end_positions_are_the_libraries(rows: list[list[int]], end_id: int | None) -> None:
    for row, position in zip(rows, end_positions(torch.tensor(rows), end_id).tolist(), strict=True):
        wanted = max(row) if end_id is None else end_id
        assert position == (row.index(wanted) if wanted in row else 0)


@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (4, 8), (8, 8), (100, 10)])
def test_truncate_keeps_every_end(multiple: int, length: int) -> None:
    tokens = torch.arange(20).reshape(2, 10)
    assert torch.equal(truncate(tokens, torch.tensor([4, 1]), multiple), tokens[:, :length])


def test_encoding_distinct_captions_gives_the_same_features_and_gradients(clip) -> None:
    model = load(clip, dtype=torch.float64)
    tokens = model.tokenize(["a cat", "a dog", "a cat", "a cat", "a dog", "one more"])
    weights = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for once in (False, True):
        model.module.zero_grad()
        distinct, inverse = unique_rows(tokens)
        features = model.encode_text(distinct)[inverse] if once else model.encode_text(tokens)
        (features * weights).sum().backward()
        gradient = model.module.transformer.resblocks[0].mlp.c_fc.weight.grad
        results.append((len(distinct), features.detach(), gradient.clone()))
    assert results[0][0] == 3
    for plain, deduplicated in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(deduplicated, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(
    "changes",
    [{}, {"custom_text": True}, {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 713}}],
    ids=["CLIP", "CustomTextCLIP", "eos"],
)
def test_cutting_off_after_the_longest_text_is_exact(
    changes: dict, multiple: int, checkpointing: bool, save_open_clip
) -> None:
    """Features and gradients equal those of the untouched module on the full length."""
    folder, _ = save_open_clip(**changes)
    model = load(folder, dtype=torch.float64).train()
    model.module.set_grad_checkpointing(checkpointing)
    tokens = model.tokenize(["a cat", "", "a photo of a dog"])
    lengths = []
    blocks = getattr(model.module, "text", model.module).transformer.resblocks
    watch = blocks[0].register_forward_hook(lambda block, given, result: lengths.append(result.shape[1]))
    ours = model.encode_text(tokens, multiple=multiple)
    watch.remove()
    longest = int(end_positions(tokens, 713).max()) + 1
    assert longest < 16
    assert lengths[0] == (longest if multiple == 1 else 16)

    def gradients(features) -> list[torch.Tensor]:
        parameters = [
            p for name, p in model.module.named_parameters() if "visual" not in name and "logit" not in name
        ]
        return torch.autograd.grad(features[:, ::2].sum(), parameters)

    plain = F.normalize(model.module.encode_text(tokens).float(), dim=-1)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)
    for mine, theirs in zip(gradients(ours), gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"no_causal_mask": True, "pool_type": "last"}, {"no_causal_mask": True}, {"pool_type": "last"}],
)
def test_other_towers_see_the_whole_row(changes: dict, save_open_clip) -> None:
    folder, _ = save_open_clip(custom_text=True, text_cfg=changes)
    model = load(folder)
    seen = []
    model.module.text.transformer.register_forward_hook(
        lambda block, given, result: seen.append(result.shape[1])
    )
    model.encode_text(model.tokenize(["a cat"]))
    assert seen == [24]


def test_transformers_clip_cuts_off_too(save_transformers) -> None:
    model = load(save_transformers("clip")[0])
    seen = []
    model.module.text_model.encoder.layers[0].register_forward_hook(
        lambda block, given, result: seen.append(result.shape[1])
    )
    tokens = model.tokenize(["a cat"])
    model.encode_text(tokens)
    assert seen == [int(end_positions(tokens, 713)) + 1]
