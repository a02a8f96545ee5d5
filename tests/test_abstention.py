"""abstention: how answers begin that say nothing, and answers that only look like them."""

import pytest

from prefpipe.rag.abstention import is_abstention
from tests import real_openings

ABSTENTIONS = [
    "I don't know.",
    "“I don’t  KNOW”",
    "I do not know what this is.",
    "I dont know how to sort a list in Python.",
    "I don't have enough information to answer.",
    "I'm not sure about that.",
    "We are unable to determine this.",
    "I cannot answer how to sort a list from the given context.",
    "I couldn't find in the context how to sort a list.",
    "I can't tell from the text.",
    "The context does not say.",
    "The context provided does not say how to sort a list.",
    "The given context does not explain how to sort a list.",
    "This context doesn't explain how to sort a list.",
    "The provided passage lacks any mention of it.",
    "The document contains no answer.",
    "The context is insufficient.",
    "There is no information in the context on how to sort a list.",
    "There isn't enough information to say.",
    "There was no direct mention of the year.",
    "No information about this is provided.",
    "It is not mentioned in the context how to sort a list.",
    "That isn't clearly stated.",
    "Not enough information.",
    "Not specified.",
    "I'm sorry, but I don't know.",
    "I'm afraid that I cannot say.",
    "As an AI, I don't know how to sort a list.",
    "As a large language model, I cannot provide that.",
    "Answer: I don't know.",
    "Based on the provided context, I do not know.",
    "According to the document, it is not specified.",
    "Unfortunately, the context doesn't say.",
    "我不知道。",
    "根据上下文，我不知道。",
    "抱歉，上下文中没有提到这一点。",
    "无法确定。",
    "提供的资料未说明年份。",
    "No sé cómo ordenar una lista.",
    "Je ne sais pas.",
    "Ich weiß es nicht.",
    "Não sei.",
    "Я не знаю.",
]
CHINESE = [
    "我不太清楚这个问题的答案。",
    "抱歉，我无法回答这个问题。",
    "对不起，根据提供的资料，我无法确定。",
    "上下文没有提供足够的信息。",
    "文档中没有提到作者是谁。",
    "该段落未说明具体日期。",
    "我没有足够的信息来回答。",
    "资料不足，无法判断。",
    "很遗憾，我不知道。",
    "从上下文中无法得知。",
]
CHINESE_ANSWERS = [
    "我知道：答案是北京。",
    "信息技术始于二十世纪。",
    "文档由三部分组成。",
    "没有人比他更早到达。",
    "内容没有变化，只是顺序不同。",
    "他没有回答，而是离开了。",
    "资料显示该函数返回列表。",
    "无论如何都要先调用 close。",
    "不确定性原理由海森堡提出。",
    "文本没有空格时返回原值。",
]
ANSWERS = [
    "Sorry for that: call add.",
    "Sorryish, I don't know",
    "Ask them: I don't know.",
    "I know: the context does not matter.",
    "Call sorted. The context does not name others.",
    "There is no built-in for it; write a loop.",
    "It is not a list but a tuple.",
    "You cannot change a tuple; make a list of it.",
    "I can answer that: call sorted.",
    "No, call sorted.",
    "Not a list, a tuple.",
    "No semicolon is needed.",
    "The function does not return a value.",
    "The text is split at white space.",
    "Based on the context, call sorted.",
    "Nothing is returned.",
    "The text does not need escaping.",
    "No information is lost: use copy().",
    "Not found errors are raised by open().",
    "Not given a key, sorted compares items",
    "I don't see why not: yes",
    "The document does not exist error is raised when it is gone.",
    "The context does not matter.",
    "使用 sorted。",
    "内容为空时返回 0。",
    "",
]


@pytest.mark.parametrize("text", ABSTENTIONS)
def test_who_does_not_know_abstains(text):
    assert is_abstention(text.replace("“", '"'))


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_abstention(text):
    assert not is_abstention(text)


def test_a_user_may_add_ways_to_begin():
    assert is_abstention("Sorry, ask my colleague.", ["ask my"]) and not is_abstention(
        "Ask my dog."
    )


def test_precision_and_recall_on_a_hundred_answers_of_a_real_model():
    found = [text for text in real_openings.ABSTENTIONS if is_abstention(text)]
    wrong = [text for text in real_openings.OTHERS if is_abstention(text)]
    assert len(real_openings.ABSTENTIONS) + len(real_openings.OTHERS) == 100
    assert not wrong
    assert len(found) >= 22  # of 26


def test_precision_and_recall_in_chinese():
    assert [t for t in CHINESE if is_abstention(t)] == CHINESE
    assert not [t for t in CHINESE_ANSWERS if is_abstention(t)]
