"""languages: shares of ideographs, and the two thresholds on them."""

import pytest

from prefpipe.languages import detect_language, has_chinese_left, ideograph_share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("42 + 1", 0),
        ("ok", 0),
        ("你好", 1),
        ("你好 ok!!!!", 0.5),
        ("你 abcd", 0.2),
        ("é", 0),
    ],
)
def test_the_share_is_of_the_letters(text, share):
    assert ideograph_share(text) == share


def test_a_fifth_of_the_letters_makes_a_text_chinese():
    assert detect_language("你 abcd") == "zh"  # 1 of 5
    assert detect_language("你 abcde") == "en"
    assert detect_language("1 + 1 = 2?") == "en"


def test_mostly_chinese_means_more_than_half_of_the_letters():
    assert has_chinese_left("你好 ok!!!!") is False  # 2 of 4
    assert has_chinese_left("你好吗 ok") is True
    assert has_chinese_left("The word 你好 means hello.") is False
    assert has_chinese_left("42 + 1") is False
