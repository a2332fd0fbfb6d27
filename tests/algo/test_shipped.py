"""What ships with the package: checkpoints that load and answer, and the sample of test images."""

import pytest
import torch

from seriatim.algo import checkpoint, trained

FILES = sorted(trained.SHIPPED.glob("*.ckpt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_checkpoints_answer_as_their_metadata_says(path):
    metadata = checkpoint.read_metadata(path)
    assert path.stem == trained.name_of(
        metadata.net, metadata.quant, metadata.w, metadata.a, metadata.first_last
    )
    assert path.stat().st_size < 2 << 20
    assert metadata.command.startswith("seriatim train") and metadata.test_images >= 359
    network, found = trained.load_or_train(metadata.net, w=metadata.w, a=metadata.a)
    assert found == metadata
    codes, labels = trained.sample_images(metadata.net, 64, metadata.image_size)
    right = network(torch.from_numpy(codes).int()).flatten(1).argmax(1) == torch.from_numpy(labels)
    print(path.stem, metadata.accuracy, float(right.float().mean()))
    assert abs(float(right.float().mean()) - metadata.accuracy) < 0.13


def test_there_is_one_for_the_default():
    assert "resnet18-slb-w1a8" in {path.stem for path in FILES}


def test_the_sample_is_whole_and_licensed():
    codes, labels = trained.sample_images("resnet20", 256, 28)
    assert codes.shape == (256, 3, 28, 28) and set(labels.tolist()) == set(range(10))
    licence = (trained.SAMPLES.parent / "LICENSE.fashion-mnist").read_text()
    assert "Zalando SE" in licence and "WITHOUT WARRANTY" in licence
