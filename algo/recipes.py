"""How the shipped checkpoints were trained: a float net first, then SLB started at its weights."""

from dataclasses import replace

from seriatim.algo.train import Recipe

FLOAT = {
    "resnet18": Recipe(((32, 6),), rate=0.05, images=15360),
    "resnet20": Recipe(((32, 4),), batch=128, rate=0.1, images=15360, shift=0),
    "digits": Recipe(((8, 60),), batch=64, rate=0.05, shift=0, flip=False),
}
"""The float net that the low-bit net starts at."""

_ADAM = {"optimizer": "adam", "weight_decay": 0.0}

SLB = {
    "resnet18": (
        Recipe(((32, 10), (64, 6)), rate=2e-3, images=15360, stop=8, **_ADAM),
        Recipe(((64, 5),), batch=128, rate=2e-3, images=7680, tau=(0.035, 0.003), **_ADAM),
        Recipe(
            ((64, 14),), batch=128, rate=2e-3, images=7680, tau=(0.03, 0.003), shift=0, seed=2, **_ADAM
        ),
    ),
    "resnet20": (Recipe(((32, 12),), batch=128, rate=5e-3, images=15360, shift=0, **_ADAM),),
    "digits": (
        Recipe(((8, 80),), batch=64, rate=5e-3, shift=0, flip=False, calibration=1437, **_ADAM),
    ),
}
"""SLB at any widths: recipes that follow each other."""

def alike(stages: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    """The float reference of SLB's `stages`: the same start, images, sizes, augmentation and batches, with the float net's
    own optimizer (SGD with weight decay, which gives it the better accuracy) and no quantisers."""
    own = {"optimizer": "sgd", "weight_decay": 5e-4, "rate": 0.02}
    return tuple(replace(stage, **own) for stage in stages)
