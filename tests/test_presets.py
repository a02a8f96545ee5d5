"""prefpipe.formats.presets: each published set by an invented row in its schema; what it is read as, by hand."""

import csv
import dataclasses
import json
from typing import Any

import pytest

from prefpipe.formats import FORMATS, presets
from prefpipe.formats.opening import HowRead, OpenFile
from prefpipe.rows import as_turns
from tests.examples import ROOT

Q, GOOD, BAD = "How many legs has a spider?", "Eight.", "Six."


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


ASKED = [turn("user", Q)]
BOTH = {"chosen": [*ASKED, turn("assistant", GOOD)], "rejected": [*ASKED, turn("assistant", BAD)]}
CHAT = [
    turn("user", "I own a horse."),
    turn("assistant", "What is it called?"),
    turn("user", "Guess."),
]
SYSTEM = turn("system", "Be brief.")
TEXTS = {"chosen": GOOD, "rejected": BAD}
ARENA = {
    "model_a": "x", "model_b": "y", "judge": "j", "turn": 1, "language": "English",
    "conversation_a": [*ASKED, turn("assistant", GOOD)],
    "conversation_b": [*ASKED, turn("assistant", BAD)],
}  # fmt: skip
STEER = {"prompt": Q, "response_1": GOOD, "response_2": BAD}
WEBGPT = {
    "question": {"full_text": Q, "id": "e1"},
    "answer_0": GOOD,
    "answer_1": BAD,
    "quotes_0": {},
}


def pair(
    prompt: Any = Q,
    chosen: str = GOOD,
    rejected: str = BAD,
    tie: bool = False,
    margin: float | None = None,
) -> tuple[Any, ...]:
    return (as_turns(prompt), chosen, rejected, tie, margin)


SWAPPED = pair(chosen=BAD, rejected=GOOD)
EXPECTED: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "skywork": [
        ({**BOTH, "source": "sums"}, pair()),
        ({"prompt": Q, **TEXTS}, pair()),
        ({"prompt": f"{Q} ", **BOTH}, pair()),
        ({"prompt": [], **BOTH}, pair()),
        ({"prompt": ASKED, "chosen": BOTH["chosen"][1:], "rejected": BOTH["rejected"][1:]}, pair()),
        ({"prompt": "Guess.", "chosen": [*CHAT, turn("assistant", GOOD)],
          "rejected": [*CHAT, turn("assistant", BAD)]}, pair(CHAT)),
        ({"prompt": Q, "chosen": [SYSTEM, *BOTH["chosen"]], "rejected": [SYSTEM, *BOTH["rejected"]]},
         pair([SYSTEM, *ASKED])),
        ({"system": "Be brief.", "prompt": Q, **TEXTS}, pair([SYSTEM, *ASKED])),
        ({"system": "Be brief.", **BOTH}, pair([SYSTEM, *ASKED])),
        ({"system": "", "prompt": Q, **TEXTS}, pair()),
        ({"system": " \n", **BOTH}, pair()),
        ({"chosen": [turn("system", ""), *BOTH["chosen"]], "rejected": [turn("system", ""), *BOTH["rejected"]]}, pair()),
        ({"prompt": ASKED, "chosen": [*CHAT[1:], turn("assistant", GOOD)], "rejected": [*CHAT[1:], turn("assistant", BAD)]},
         pair([*ASKED, *CHAT[1:]])),
        ({"prompt": Q, **TEXTS, "margin": "0.5", "tie": 0}, pair(margin=0.5)),
        ({"prompt": Q, **TEXTS, "margin": float("nan"), "tie": "1"}, pair(tie=True)),
    ],
    "hh-rlhf": [
        ({"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
         pair()),
        ({"prompt": "\n\nHuman: I own a horse.\n\nAssistant: What is it called?\n\nHuman: Guess.\n\nAssistant:",
          "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}"}, pair(CHAT)),
    ],
    "ultrafeedback-binarized": [
        ({"prompt": Q, "prompt_id": "x", **BOTH, "messages": BOTH["chosen"], "score_chosen": 8.0,
          "score_rejected": 6.5}, pair(margin=1.5)),
        ({**BOTH, "score_chosen": 7.0, "score_rejected": 7.0}, pair(tie=True)),
        ({**BOTH, "score_chosen": 3.0, "score_rejected": 7.0}, pair()),
        ({**BOTH, "score_chosen": None, "score_rejected": 7.0}, pair()),
    ],
    "distilabel": [
        ({"prompt": Q, **BOTH, "chosen_rating": 5.0, "rejected_rating": 1.0}, pair(margin=4.0)),
        ({"source": "x", "prompt": Q, **BOTH, "chosen-rating": "4.5", "rejected-rating": "4.5"}, pair(tie=True)),
        ({"source": "x", "conversation": [{"input": Q, "output": ""}], "prompt": Q, **BOTH, "rating_chosen": 5,
          "rating_rejected": 4, "chosen_model": "m"}, pair(margin=1.0)),
    ],
    "rlhflow": [({**BOTH, "chosen_score": 5.0, "rejected_score": 3.0}, pair(margin=2.0))],
    "nectar-ranked": [
        ({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", **TEXTS, "chosen_rank": 1.0, "rejected_rank": 5.0,
          "chosen_model": "x"}, pair(margin=4.0)),
    ],
    "swift": [
        ({"messages": [*CHAT, turn("assistant", GOOD)], "rejected_response": BAD}, pair(CHAT)),
    ],
    "inf-orm": [({**BOTH, "source": "x", "magnitude": 10.0}, pair(margin=10.0))],
    "tulu3": [({"id": "same", "prompt": Q, **BOTH, "source": "x"}, pair())],
    "intel-orca": [
        ({"system": "Be brief.", "input": Q, **TEXTS, "rating": [6.0, 9.0], "status": "swapped",
          "generations": [BAD, GOOD], "order": ["rejected", "chosen"]}, pair([SYSTEM, *ASKED], margin=3.0)),
        ({"system": "", "input": Q, **TEXTS, "rating": [9.0, 9.0], "status": "tie"}, pair(tie=True)),
        ({"system": None, "input": Q, **TEXTS, "rating": None, "status": "tie"}, pair(tie=True)),
    ],
    "orca": [
        ({"system": "Be brief.", "question": Q, **TEXTS}, pair([SYSTEM, *ASKED])),
        ({"system": "", "question": Q, **TEXTS}, pair()),
    ],
    "math-step-dpo": [
        ({"prompt": Q, "initial_reason_steps": "Step 1: count. Step 2: ", **TEXTS, "full_chosen": "..."},
         pair(f"{Q}\nStep 1: count. Step 2: ")),
    ],
    "argilla-responses": [
        ({"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD, "chosen_rating": 10,
          "rejected_rating": 7}, pair(margin=3.0)),
        ({"source": "x", "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD,
          "chosen_avg_rating": 4.75, "rejected_avg_rating": 4.0}, pair(margin=0.75)),
        ({"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD}, pair()),
    ],
    "alpaca-ranking": [
        ({"instruction": "Translate.", "input": "hay", **TEXTS}, pair("Translate.\nhay")),
        ({"instruction": Q, "input": "", **TEXTS}, pair()),
    ],
    "codeultrafeedback-binarized": [
        ({"instruction": Q, **TEXTS, "chosen_rating": "5", "rejected_rating": "3"}, pair(margin=2.0)),
    ],
    "sharegpt-ranking": [
        ({"conversations": [said("human", Q)], "chosen": said("gpt", GOOD), "rejected": said("gpt", BAD)}, pair()),
        ({"conversations": [said("human", Q)], **TEXTS}, pair()),
    ],
    "messages-ranking": [
        ({"messages": CHAT, "chosen": turn("assistant", GOOD), "rejected": turn("assistant", BAD)}, pair(CHAT)),
        ({"context": [{"role": "human", "text": Q}], "chosen": {"role": "assistant", "text": GOOD},
          "rejected": {"role": "assistant", "text": BAD}}, pair()),
    ],
    "openai-dpo": [
        ({"input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
          "preferred_output": [turn("assistant", GOOD)], "non_preferred_output": [turn("assistant", BAD)]}, pair()),
    ],
    "ultrainteract": [
        ({"task": "Math_PoT", "id": "a", "parent_id": 0, **TEXTS,
          "trajectory": [said("user", "I own a horse."), said("assistant", "What is it called?"), said("user", "Guess.")]},
         pair(CHAT)),
    ],
    "stack-exchange": [({"qid": 1, "question": Q, "response_j": GOOD, "response_k": BAD}, pair())],
    "dpo-zh-en-emoji": [({"question": Q, "answer_zh": GOOD, "answer_en": BAD}, pair())],
    "repeats-prompt": [({"prompt": Q, "chosen": f"{Q}\n{GOOD}", "rejected": f"{Q}\n{BAD}"}, pair())],
    "trl-implicit": [({"chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"}, pair(Q, f" {GOOD}", f" {BAD}"))],
    "arena": [
        ({**ARENA, "winner": "model_a"}, pair()),
        ({**ARENA, "winner": "model_b"}, SWAPPED),
        ({**ARENA, "winner": "tie (bothbad)"}, pair(tie=True)),
        ({**ARENA, "winner": "both_bad", "conversation_a": [
            {"role": "user", "content": [{"type": "text", "text": Q, "image": None, "mimeType": None}]},
            {"role": "assistant", "content": [{"type": "text", "text": GOOD, "image": None}]}]}, pair(tie=True)),
    ],
    "mt-bench": [
        ({"question_id": 81, **ARENA, "winner": "model_b",
          "conversation_a": [*ARENA["conversation_a"], turn("user", "Why?"), turn("assistant", "So.")],
          "conversation_b": [*ARENA["conversation_b"], turn("user", "Why?"), turn("assistant", "No.")]}, SWAPPED),
    ],
    "arena-55k": [
        ({"id": "7", "model_a": "x", "prompt": f'["{Q}"]', "response_a": f'["{GOOD}"]', "response_b": f'["{BAD}"]',
          "winner_model_a": "0", "winner_model_b": "1", "winner_tie": "0"}, SWAPPED),
        ({"id": 8, "prompt": f'["{Q}"]', "response_a": f'["{GOOD}"]', "response_b": f'["{BAD}"]',
          "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, pair(tie=True)),
    ],
    "ppe": [
        ({"question_id": "q", **STEER, "winner": "model_b"}, SWAPPED),
        ({"question_id": "q", **STEER, "winner": "tie"}, pair(tie=True)),
    ],
    "helpsteer2": [
        ({"split": "train", **STEER, "preference_strength": -3}, pair(margin=3.0)),
        ({"split": "train", **STEER, "preference_strength": "2"}, pair(chosen=BAD, rejected=GOOD, margin=2.0)),
        ({**STEER, "preference_strength": 0}, pair(tie=True)),
        ({**STEER, "prompt": "I own a horse.\n<extra_id_1>Assistant\nWhat is it called?\n<extra_id_1>User\nGuess.",
          "preference_strength": -1}, pair(CHAT, margin=1.0)),
    ],
    "helpsteer3": [
        ({"domain": "code", "context": CHAT, "response1": BAD, "response2": GOOD, "overall_preference": 1,
          "individual_preference": []}, pair(CHAT, margin=1.0)),
    ],
    "pku-saferlhf": [
        ({"prompt": Q, "response_0": BAD, "response_1": GOOD, "is_response_0_safe": True,
          "better_response_id": 1, "safer_response_id": 0}, pair()),
    ],
    "shp": [
        ({"post_id": "x", "history": Q, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 9,
          "score_B": 2}, pair()),
        ({"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0}, pair()),
    ],
    "webgpt": [
        ({**WEBGPT, "score_0": 0.5, "score_1": -0.5}, pair(margin=1.0)),
        ({**WEBGPT, "score_0": 0.0, "score_1": 0.0}, pair(tie=True)),
    ],
    "summarize": [
        ({"info": {"post": Q, "article": None}, "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1}, pair()),
        ({"info": {"post": None, "article": Q}, "summaries": [{"text": GOOD}, {"text": BAD}], "choice": 0}, pair()),
    ],
    "prometheus-preference": [
        ({"orig_instruction": Q, "orig_response_A": BAD, "orig_response_B": GOOD, "orig_preference": "B",
          "instruction": "###Task", "output": "B", "input": ""}, pair()),
    ],
    "llmbar": [
        ({"input": Q, "output_1": GOOD, "output_2": BAD, "label": "1"}, pair()),
        ({"input": Q, "output_1": BAD, "output_2": GOOD, "label": 2, "subset": "Natural"}, pair()),
    ],
    "autoj": [
        ({"scenario": "math", "label": 1, "prompt": Q, "response 1": BAD, "response 2": GOOD}, pair()),
        ({"scenario": "math", "label": "2", "prompt": Q, "response 1": GOOD, "response 2": BAD}, pair(tie=True)),
    ],
    "offsetbias": [({"instruction": Q, "output_1": BAD, "output_2": GOOD, "label": 2}, pair())],
    "alpacafarm": [
        ({"instruction": "Translate.", "input": "hay", "output_1": BAD, "output_2": GOOD, "preference": 2.0},
         pair("Translate.\nhay")),
    ],
    "alpacaeval": [
        ({"instruction": Q, "generator_1": "x", "output_1": GOOD, "output_2": BAD, "preference": 1.25},
         pair(margin=0.25)),
        ({"instruction": Q, "generator_1": "x", "output_1": GOOD, "output_2": BAD, "preference": 1.5}, pair(tie=True)),
    ],
    "judgelm": [
        ({"question_body": Q, "answer1_body": GOOD, "answer2_body": BAD, "score": [9, 3], "text": "9 3"}, pair(margin=6.0)),
    ],
    "conj": [({"prompt": "[judge]", "q": Q, "r1": BAD, "r2": GOOD, "chosen": 2, "tag": "x", "test_id": 1}, pair())],
    "ultrafeedback": [
        ({"source": "x", "instruction": Q, "models": ["a", "b", "c"], "completions": [
            {"response": "Five.", "overall_score": 5.0}, {"response": BAD, "overall_score": 2.0},
            {"response": GOOD, "overall_score": 8.5}]}, pair(margin=6.5)),
    ],
    "nectar": [
        ({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "source": ["a", "b"], "answers": [
            {"answer": BAD, "model": "x", "rank": 7.0}, {"answer": GOOD, "model": "y", "rank": 1.0}]}, pair(margin=6.0)),
    ],
    "codeultrafeedback": [
        ({"instruction": Q, "responses": [{"model": "x", "response": BAD}, {"model": "y", "response": GOOD}],
          "annotations": [{"model": "x", "rating": "2"}, {"model": "y", "rating": "4"}]}, pair(margin=2.0)),
    ],
    "distilabel-ratings": [
        ({"instruction": Q, "generations": [BAD, GOOD], "ratings": [2.0, 5.0], "rationales": []}, pair(margin=3.0)),
    ],
}  # fmt: skip
PAIRS = [name for name, form in FORMATS.items() if form.layout and not form.layout.only_prompts]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_row_is_read_as_it_is_meant(name):
    reader = HowRead().reader(FORMATS[name])
    for record, wanted in EXPECTED[name]:
        (row,) = reader.read(record)
        assert (as_turns(row.prompt), row.chosen, row.rejected, row.tie, row.margin) == wanted


def test_each_preset_of_pairs_has_a_row_here():
    first_names = {id(FORMATS[name]): name for name in reversed(PAIRS)}.values()
    assert set(EXPECTED) | {"alpacaeval-judged"} == set(first_names)


@pytest.mark.parametrize(
    "name", sorted(set(EXPECTED) - {"tulu3", "trl-implicit", "repeats-prompt"})
)
def test_a_file_of_a_set_is_recognised_as_what_it_is(name):
    """Or as a set that is read the same way; and its rows are then those that it means."""
    records = [record for record, _ in EXPECTED[name]]
    for record, wanted in EXPECTED[name]:
        found, form, _ = HowRead().choose("x.jsonl", [record])
        (row,) = HowRead().reader(form).read(record)
        assert (as_turns(row.prompt), row.chosen, row.rejected, row.tie, row.margin) == wanted, (
            found
        )
    HowRead().choose("x.jsonl", records)


def test_several_others_against_one_reference_are_a_pair_each():
    record = {
        "instruction": Q, "dataset": "vicuna", "reference": {"generator": "x", "output": GOOD},
        "others": [{"generator": "y", "output": BAD, "preference": 1.1},
                   {"generator": "z", "output": "8", "preference": 1.75},
                   {"generator": "w", "output": "VIII", "preference": 1.5}],
    }  # fmt: skip
    rows = HowRead().reader(FORMATS["alpacaeval-judged"]).read(record)
    assert [(r.chosen, r.rejected, r.tie, r.margin) for r in rows] == [
        (GOOD, BAD, False, pytest.approx(0.4)), ("8", GOOD, False, 0.25), (GOOD, "VIII", True, None),
    ]  # fmt: skip
    assert len({row.id for row in rows}) == 3 and {row.source for row in rows} == {"vicuna"}


def test_all_pairs_of_a_list_and_the_best_against_a_drawn_one():
    record = EXPECTED["ultrafeedback"][0][0] | {"id": "u"}
    layout = FORMATS["ultrafeedback"].layout
    assert layout

    def read(how: Any, seed: int = 0) -> list[tuple[str, str, str]]:
        form = dataclasses.replace(
            FORMATS["ultrafeedback"], layout=dataclasses.replace(layout, pairs=how)
        )
        return [
            (r.id, str(r.chosen), str(r.rejected))
            for r in HowRead(seed=seed).reader(form).read(record)
        ]

    assert read("all") == [("u:0-1", "Five.", BAD), ("u:2-0", GOOD, "Five."), ("u:2-1", GOOD, BAD)]
    drawn = {read("best-vs-random", seed)[0] for seed in range(20)}
    assert drawn == {("u", GOOD, "Five."), ("u", GOOD, BAD)}
    assert read("best-vs-random", 3) == read("best-vs-random", 3)


def test_a_new_preset_is_a_table():
    (form,) = presets.load(
        '[mine]\nabout = "x"\nprompt = ["ask"]\nchosen = "yes"\nrejected = "no"\n'
    ).values()
    (row,) = HowRead().reader(form).read({"ask": Q, "yes": GOOD, "no": BAD})
    assert (row.prompt, row.chosen, row.rejected) == (Q, GOOD, BAD)
    with pytest.raises(ValueError, match="better is no field"):
        presets.load('[mine]\nabout = "x"\nbetter = "yes"\n')


def test_every_preset_says_what_it_is():
    assert all(form.about for form in FORMATS.values())


def test_the_readme_has_the_table_of_formats():
    table = presets.table(FORMATS)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), "python -m prefpipe.formats"


@pytest.mark.parametrize("dump", [json.dumps, str], ids=["json", "python"])
@pytest.mark.parametrize(
    "name", sorted(set(EXPECTED) - {"tulu3", "trl-implicit", "repeats-prompt"})
)
def test_a_csv_file_of_a_set_means_the_same(name, dump, tmp_path):
    """Numbers and booleans are texts there, nothing is "", and turns are JSON, or Python as pandas writes it."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        return dump(value) if isinstance(value, list | dict) else str(value)

    for k, (record, wanted) in enumerate(EXPECTED[name]):
        path = tmp_path / f"{k}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(record))
            writer.writeheader()
            writer.writerow({column: cell(value) for column, value in record.items()})
        opened = OpenFile(str(path), HowRead(), None)
        ((_, found),) = opened.records()
        (row,) = opened.reader.read(found)
        assert (as_turns(row.prompt), row.chosen, row.rejected, row.tie, row.margin) == wanted, (
            opened.chosen
        )
