"""What a recipe says of training pictures; `transforms.train_transform` does it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What training pictures go through; the default is CLIP fine-tuning's crop of 90 to 100 %."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of a picture that a crop covers."""
    flip: bool = False
    """Mirror every other picture, at random."""
    color_jitter: float = 0.0
    """How far brightness, contrast and saturation vary, at random; 0 is without."""
