import numpy as np
import pytest

from tether.data import ImageDataset
from tether.data.objectnet import objectnet_classes, read_objectnet
from tether.errors import TetherError


def test_objectnet(objectnet, noise):
    assert objectnet_classes(objectnet / "mappings") == {"chair": (559, 765), "coffee_mug": (504,)}
    split = read_objectnet(objectnet, count=8)
    assert [example.label for example in split.examples] == [559, 559, 504, 504]
    assert split.class_mask == (504, 559, 765) and split.groups == ((559, 765),)
    canonical = split.canonical_classes(1000)
    assert canonical[765] == canonical[559] == 559 and canonical[504] == 504 and canonical[0] == -1
    for part in ("4 of 8 pictures", "2 of 4 classes", "over their 3 ImageNet classes", "2 pixels cut"):
        assert part in split.convention
    picture = ImageDataset(split, lambda picture: picture).picture(0)
    assert (np.asarray(picture) == np.asarray(noise(0))).all()


def test_objectnet_that_does_not_fit(objectnet):
    with pytest.raises(TetherError, match="ObjectNet has 50,273 pictures, but 8"):
        read_objectnet(objectnet)
    mappings = objectnet / "mappings"
    text = (mappings / "objectnet_to_imagenet_1k.json").read_text()
    (mappings / "objectnet_to_imagenet_1k.json").write_text(text.replace("coffee mug", "coffee jug"))
    with pytest.raises(TetherError, match="no entry for 'coffee jug'"):
        read_objectnet(objectnet)
    (mappings / "objectnet_to_imagenet_1k.json").write_text(text.replace("coffee mug", "folding chair"))
    with pytest.raises(TetherError, match="class 559 to two classes"):
        read_objectnet(objectnet)
    (mappings / "objectnet_to_imagenet_1k.json").write_text(text)
    (mappings / "imagenet_to_label_2012_v2").unlink()
    with pytest.raises(TetherError, match="Cannot read ObjectNet's mappings"):
        read_objectnet(objectnet)
    (mappings / "folder_to_objectnet_label.json").unlink()
    with pytest.raises(TetherError, match=r"no file .*folder_to_objectnet_label\.json"):
        read_objectnet(objectnet)


def test_objectnet_without_a_class(objectnet):
    for picture in (objectnet / "images/chair").iterdir():
        picture.unlink()
    with pytest.raises(TetherError, match="lacks 1 of the 2 overlapping classes, such as 'chair'"):
        read_objectnet(objectnet, count=6)
