"""translations: which replies are a translation of an item, and what the item becomes."""

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from prefpipe import judge
from prefpipe.rows import Completion, Item, Reject
from prefpipe.translations import ASKED_AGAIN, embedded_json, english_item
from tests.chinese_items import item


def reply(texts: object, finish_reason: Literal["stop", "length"] = "stop") -> Completion:
    text = texts if isinstance(texts, str) else json.dumps(texts, ensure_ascii=False)
    return Completion.model_validate(
        {
            "id": "p1",
            "sample": 0,
            "text": text,
            "finish_reason": finish_reason,
            "prompt_tokens": 1,
            "new_tokens": 1,
        }
    )


GOOD = {"question": "What?", "answer_1": "One.", "answer_2": "Two."}


@pytest.mark.parametrize(
    "given_reply, reason",
    [
        (reply(GOOD, "length"), "truncated"),
        (reply("Here you are: What? One. Two."), "not_json"),
        (reply('{"question": "What?", "answer_1": "On'), "not_json"),
        (reply([GOOD]), "wrong_keys"),
        (reply({"问题": "What?", "answer_1": "One.", "answer_2": "Two."}), "wrong_keys"),
        (reply({**GOOD, "note": "x"}), "wrong_keys"),
        (reply({**GOOD, "answer_1": 1}), "not_text"),
        (reply({**GOOD, "answer_1": None}), "not_text"),
        (reply({**GOOD, "answer_2": "  "}), "empty_text"),
        (reply({**GOOD, "answer_2": "第二个回答没有翻译 ok"}), "still_chinese"),
        (reply({**GOOD, "answer_1": '{"better_answer": 1}'}), "json_changed"),
    ],
)
def test_a_reply_that_is_no_translation_is_named(given_reply, reason):
    result = english_item(item(1), given_reply)
    assert isinstance(result, Reject) and result.reason == reason and result.id == "p1"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"```\n{json.dumps(GOOD)}\n```\n",
        json.dumps(GOOD).replace("What?", "What?\n"),  # a raw newline inside a text
    ],
)
def test_an_untidy_but_whole_reply_is_taken(text):
    result = english_item(item(1), reply(text))
    assert isinstance(result, Item)
    assert (result.answer_1, result.answer_2, result.language) == ("One.", "Two.", "en")
    assert result.better == 2 and result.id == "p1"
    assert result.prompt == judge.judge_prompt(result.question, "One.", "Two.", language="en")


def test_json_inside_a_text_keeps_its_keys_and_numbers():
    row = item(1, answer_1='结果:{"原因": "第二个更好", "更好的回答": 2} 完')
    kept = {**GOOD, "answer_1": 'Result: {"原因": "The second is better", "更好的回答": 2} done'}
    assert isinstance(english_item(row, reply(kept)), Item)
    for changed in (
        '{"reason": "The second is better", "better_answer": 2}',
        '{"原因": "The second is better", "更好的回答": 1}',
        '{"原因": "The second is better"}',
        "The second is better: 2",
    ):
        result = english_item(row, reply({**GOOD, "answer_1": changed}))
        assert isinstance(result, Reject) and result.reason == "json_changed", changed


def test_embedded_json_is_found_in_order_without_its_strings():
    assert embedded_json(
        'a {"k": "v", "n": [1, {"m": null}]} b [{"x": "y"}] c {} d [1] {bad} {"z"}'
    ) == [
        {"k": ..., "n": [1, {"m": None}]},
        [{"x": ...}],
    ]
    assert embedded_json("{" * 3000 + "[" * 3000 + '[{"a":' * 500) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings_of_hypothesis(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=3), st.text('{}[]"a,: \n'))
def test_translating_the_strings_of_any_json_leaves_it_the_same(value, around):
    def translated(inner):
        if isinstance(inner, dict):
            return {key: translated(part) for key, part in inner.items()}
        if isinstance(inner, list):
            return [translated(part) for part in inner]
        return inner + "!" if isinstance(inner, str) else inner

    before = embedded_json(f"x {json.dumps(value)} y")
    assert len(before) == 1
    assert embedded_json(f"z {json.dumps(translated(value), ensure_ascii=False)}") == before
    embedded_json(around)  # ends, whatever the brackets


# ---- what is no translation

SOURCES = {
    "question": "怎样在新电脑上安装这个程序",
    "answer_1": "首先下载安装包。然后双击运行安装程序。接着选择安装路径并等待完成。最后重新启动电脑就可以使用了。",
    "answer_2": "请联系客服人员帮助您解决问题。",
}
RIGHT = {
    "question": "How do I install this program on a new computer",
    "answer_1": "First download the package. Then double-click the installer. Then choose a path and wait "
    "for it to end. Finally restart the computer.",
    "answer_2": "Please contact customer service.",
}
FIRST = RIGHT["answer_1"]
NO_TRANSLATIONS = {
    "mostly Chinese": ("still_chinese", {"answer_1": FIRST[:60] + SOURCES["answer_1"][8:]}),
    "a sentence left": ("still_chinese", {"answer_1": FIRST + "最后重新启动电脑就可以使用了。"}),
    "summed up": ("wrong_length", {"answer_1": "Install."}),
    "blown up": ("wrong_length", {"answer_1": FIRST * 20}),
    "equal answers": ("equal_answers", {"answer_1": RIGHT["answer_2"] + " "}),
    "Spanish": ("not_english", {"answer_1": "Primero descarga el paquete. Luego ejecuta el instalador. Elige la ruta y espera."}),
    "German": ("not_english", {"answer_1": "Laden Sie zuerst das Paket und starten Sie dann die Datei mit der Maus, nicht von Hand."}),
    "French": ("not_english", {"answer_1": "Téléchargez le paquet, puis lancez le programme et choisissez un dossier dans la liste."}),
    "pinyin": ("not_english", {"question": "zenyang zai xin diannao shang anzhuang zhe ge chengxu ni hen yao"}),
    "Japanese": ("not_english", {"question": "このプログラムをインストールするにはどうすればいいですか"}),
    "Russian": ("not_english", {"answer_2": "Пожалуйста, обратитесь в службу поддержки."}),
    "Korean": ("not_english", {"answer_2": "고객 서비스에 문의하십시오."}),
    "a placeholder": ("empty_text", {"answer_1": "[translation]"}),
    "points": ("empty_text", {"answer_1": "..."}),
    "nothing said": ("empty_text", {"answer_1": "N/A"}),
    "a refusal": ("refusal", {"answer_1": "I'm sorry, but I can't help with installing software on computers."}),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TRANSLATIONS)
def test_what_is_no_translation_is_named_and_asked_for_again(name):
    reason, texts = NO_TRANSLATIONS[name]
    row = item(1, "zh", **SOURCES)
    assert isinstance(english_item(row, reply(RIGHT)), Item)
    result = english_item(row, reply(RIGHT | texts))
    assert isinstance(result, Reject) and result.reason == reason and reason in ASKED_AGAIN


@pytest.mark.parametrize(
    ("source", "translated"),
    [
        ("无", "None"),
        ("对不起，我无法回答这个问题。", "I'm sorry, but I can't answer this question."),
        ("用法语说：La vie est belle, je suis dans la rue et il pleut.", "In French: La vie est belle, je suis dans la rue et il pleut."),
        ("“你好”这个词的意思是问候。", 'The word "你好" means a greeting.'),
        ("俄语是 Пожалуйста, обратитесь в службу。", "The Russian is Пожалуйста, обратитесь в службу."),
        ("def f(x): return x  # 返回", "def f(x): return x  # returns"),
        ("x = \\frac{1}{2}，所以 α + β = 1", "x = \\frac{1}{2}, so α + β = 1"),
        ("……", "..."),
    ],
)  # fmt: skip
def test_what_a_translation_keeps_or_means_is_no_fault(source, translated):
    row = item(1, "zh", **SOURCES | {"answer_1": source})
    result = english_item(row, reply(RIGHT | {"answer_1": translated}))
    assert isinstance(result, Item) and result.answer_1 == translated


def test_thoughts_before_a_translation_are_taken_off_and_latex_in_it_is_kept():
    text = json.dumps(RIGHT).replace("a path", r"\frac{1}{2} of $x$")
    result = english_item(item(1, "zh", **SOURCES), reply("<think>hm</think>\n" + text))
    assert isinstance(result, Item) and r"\frac{1}{2} of" in result.answer_1
    result = english_item(item(1, "zh", **SOURCES), reply("<think>" + text))
    assert isinstance(result, Reject) and result.reason == "cut_off"
