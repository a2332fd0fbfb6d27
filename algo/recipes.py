"""How the shipped checkpoints were trained: a float net first, then SLB started at its weights."""

from seriatim.algo.train import Recipe

FLOAT = {
    "resnet18": Recipe(((32, 6),), rate=0.05, images=15360),
    "resnet20": Recipe(((32, 6),), rate=0.1),
    "digits": Recipe(((8, 60),), batch=64, rate=0.05, shift=0, flip=False, calibration=1437),
}
"""The float net that the low-bit net starts at."""

SLB = {
    "resnet18": Recipe(
        ((32, 10), (64, 6)), rate=2e-3, optimizer="adam", weight_decay=0, images=15360
    ),
    "resnet20": Recipe(((32, 8),), rate=5e-3, optimizer="adam", weight_decay=0),
    "digits": Recipe(
        ((8, 60),), batch=64, rate=5e-3, optimizer="adam", weight_decay=0, shift=0, flip=False,
        calibration=1437,
    ),
}  # fmt: skip
"""SLB, at any widths."""

ALIKE = {
    "resnet18": Recipe(((32, 10), (64, 6)), rate=0.02, images=15360),
    "resnet20": Recipe(((32, 8),), rate=0.05),
    "digits": Recipe(((8, 60),), batch=64, rate=0.02, shift=0, flip=False),
}
"""The float reference: the same start and epochs as SLB, without quantisers."""
