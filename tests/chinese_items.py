"""Chinese items, and English ones, that the tests of the translation use."""

from prefpipe import judge
from prefpipe.rows import Item, Language


def item(id: object, language: Language = "zh", split="train", **texts: str) -> Item:
    fields = {
        "question": f"第{id}个问题是什么?",
        "answer_1": f"回答一号,编号{id}。",
        "answer_2": "不知道。",
    }
    if language == "en":
        fields = {"question": f"Question {id}?", "answer_1": "One.", "answer_2": "Two."}
    fields |= texts
    prompt = judge.judge_prompt(*fields.values(), language=language)
    return Item.model_validate(
        {"id": f"p{id}", "source": "s", "split": split, "language": language}
        | {"better": 2, "prompt": prompt, **fields}
    )
