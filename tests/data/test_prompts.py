import pytest

from tether.data import fill, imagenet_templates, templates
from tether.data.prompts import TEMPLATE_SETS, warn_of_same_prompts
from tether.errors import TetherError


def test_imagenet_templates():
    eighty, seven = imagenet_templates(), imagenet_templates(7)
    assert (len(eighty), len(seven)) == (80, 7)
    assert set(seven) <= set(eighty) and len(set(eighty)) == 80
    assert "a photo of a {}." in eighty and "itap of a {}." in seven
    with pytest.raises(TetherError, match="80 or 7"):
        imagenet_templates(8)


def test_every_set_is_sound():
    for name in (*TEMPLATE_SETS, "imagenet-80", "imagenet-7"):
        for filled in fill(templates(name), ["tabby"])[0]:
            assert "tabby" in filled and "{" not in filled


def test_templates_by_name_alone_or_several():
    assert templates("pets") == ("a photo of a {}, a type of pet.",)
    assert templates("an X-ray of a {}.") == ("an X-ray of a {}.",)
    assert templates(["a {}.", "the {}."]) == ("a {}.", "the {}.")
    with pytest.raises(TetherError, match="did you mean 'flowers'"):
        templates("flower")


@pytest.mark.parametrize("bad", ["a photo", "{} and {}", "a {0}", "a {} {x}", "a {", "{{}}"])
def test_a_template_holds_one_place(bad):
    with pytest.raises(TetherError):
        templates([bad])
    with pytest.raises(TetherError):
        fill([bad], ["cat"])


def test_no_template_at_all():
    with pytest.raises(TetherError, match="At least one"):
        templates([])


def test_names_are_text_even_with_braces():
    assert fill(["a {}.", "{}!"], ["cat", "{}"]) == (("a cat.", "cat!"), ("a {}.", "{}!"))


def test_classes_whose_prompts_are_read_as_the_same_are_named():
    names = ["x" * 100 + "a", "cat", "x" * 100 + "b", "crane", "crane"]
    with pytest.warns(UserWarning) as warned:
        warn_of_same_prompts(names, [name[:90] for name in names], "tiny, which reads 90 tokens")
    (message,) = (str(warning.message) for warning in warned)
    assert (
        f"'{'x' * 50}…{'x' * 28}a' and '{'x' * 50}…{'x' * 28}b' have the same prompts for tiny, which"
        in message
    )
    assert "crane" not in message  # one name twice is another fault
