import torch

from tether.objectives._precision import cosine_logits


def test_logits_are_computed_in_full_precision_under_autocast():
    image, rows = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    expected = 100.0 * (image @ rows.T)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosine_logits(image, rows, 100.0), expected)
        half = cosine_logits(image.bfloat16(), rows, 100.0)
        assert not torch.equal(100.0 * (image @ rows.T), expected)
    torch.testing.assert_close(half, 100.0 * image.bfloat16().float() @ rows.T)
