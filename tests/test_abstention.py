"""abstention: how answers begin that say nothing, and answers that only look like them."""

import pytest

from prefpipe.rag.abstention import is_abstention

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
