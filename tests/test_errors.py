"""What errors say beside the error."""

from tether.errors import near_misses


def test_words_that_are_near_are_named_and_else_some_of_all():
    known = [f"layer.{number}.weight" for number in range(500)]
    assert near_misses("layer.7.weigth", known).startswith("; did you mean 'layer.7.weight'")
    listed = near_misses("qqq", known)
    assert listed.endswith("'layer.19.weight' and 480 more") and len(listed) < 500
    assert near_misses("qqq", ("a", "b")) == "; known: 'a', 'b'"
    assert near_misses("qqq", []) == ""
