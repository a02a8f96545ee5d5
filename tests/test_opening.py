"""prefpipe.formats.opening: what a file is recognised as, what is refused by which name, what is said of it."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefpipe.files import DataError
from prefpipe.formats.opening import HowRead, OpenFile
from prefpipe.rows import as_turns
from preprocess_dataset import Settings
from tests.examples import ROOT, write_jsonl
from tests.test_presets import ARENA, ASKED, BAD, BOTH, CHAT, EXPECTED, GOOD, SYSTEM, Q, pair, turn

CASES = Path(os.environ.get("PREFPIPE_FORMAT_CASES", ROOT.parent / "shared/formats/cases"))


def opened(folder: Path, records: list, how: HowRead | None = None) -> tuple[OpenFile, list]:
    """A file of these records, and the pairs or the error of each."""
    file = OpenFile(str(write_jsonl(folder / "x.jsonl", records)), how or HowRead(), None)
    return file, [file.pairs(record) for _, record in file.records()]


def name_of(file: OpenFile) -> str:
    assert file.chosen
    return file.chosen.name


def shape(row) -> tuple:
    return (as_turns(row.prompt), row.chosen, row.rejected, row.tie, row.margin)


def refused(folder: Path, records: list, how: HowRead | None = None) -> str:
    with pytest.raises(DataError) as error:
        opened(folder, records, how)
    assert len(str(error.value)) < 300 + len(str(folder))
    return str(error.value).removeprefix(f"{folder}/")


# ---- recognised


def test_of_two_formats_that_read_alike_the_one_with_more_columns_counts(tmp_path):
    scored = {"prompt": Q, **BOTH, "score_chosen": 4, "score_rejected": 1}
    file, ((row,),) = opened(tmp_path, [scored])
    assert name_of(file) == "ultrafeedback-binarized" and shape(row) == pair(margin=3.0)
    assert file.lines()[0] == (
        f"{tmp_path}/x.jsonl: read as ultrafeedback-binarized, by its columns "
        "chosen, prompt, rejected, score_chosen, score_rejected"
    )


def test_two_formats_that_read_otherwise_stop_it_with_their_names(tmp_path):
    record = {"instruction": Q, "question": "Another?", "chosen": GOOD, "rejected": BAD}
    said = refused(tmp_path, [record])
    assert said == (
        "x.jsonl: fits more than one format: orca (chosen, question, rejected); alpaca-ranking "
        "(chosen, instruction, rejected); choose with --format"
    )
    _, ((row,),) = opened(tmp_path, [record | {"question": Q}])
    assert shape(row) == pair()


def test_a_column_of_the_name_prompt_is_the_prompt_whatever_stands_beside_it(tmp_path):
    """As in the rows of build_pairwise_prefs.py, whose prompt holds more than their question."""
    record = {"prompt": f"Context: ... {Q}", "question": Q, "chosen": GOOD, "rejected": BAD}
    file, ((row,),) = opened(tmp_path, [record])
    assert row.prompt == record["prompt"] and "question (rows: 1" in file.lines()[1]


def test_answers_that_repeat_the_prompt_in_every_row_may_be_meant_either_way(tmp_path):
    repeated = {"prompt": Q, "chosen": f"{Q}\n{GOOD}", "rejected": f"{Q}\n{BAD}"}
    assert "skywork" in (said := refused(tmp_path, [repeated])) and "repeats-prompt" in said
    file, rows = opened(tmp_path, [repeated, {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}])
    assert name_of(file) == "skywork" and rows[0][0].chosen == f"{Q}\n{GOOD}"
    assert (
        "rows: 1 whose answers both begin with the prompt (--format repeats-prompt"
        in file.lines()[1]
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": Q, "completion": GOOD, "label": True}, "unpaired: one answer and a label a row (as KTO"),
        ({"messages": BOTH["chosen"], "label": False}, "unpaired: one answer and a label a row"),
        ({"prompt": Q, "completions": ["a", "b"], "labels": [True, False]}, "unpaired: steps with labels"),
        ({"prompt": Q, "response": GOOD, "helpfulness": 4, "verbosity": 1}, "unpaired: one answer with ratings a row"),
        ({"prompt": Q, "response": GOOD, "category": {}, "is_safe": True}, "unpaired: one answer with ratings a row"),
        ({"context": ASKED, "response": GOOD, "feedback": ["f"]}, "unpaired: one answer with ratings a row"),
        ({"orig_instruction": Q, "orig_response": BAD, "orig_score": "1"}, "unpaired: one answer with ratings a row"),
        ({"usrmsg": "...", "target_output": "...", "gt_label": 0}, "unpaired: a judge's text a row"),
        ({"message_id": "b", "parent_id": "a", "text": GOOD, "role": "assistant"}, "unpaired: a message a row"),
        ({"messages": BOTH["chosen"]}, "no pairs but prompts or conversations alone"),
        ({"title": "T", "body": "B"}, "no known format has the columns title, body; name --prompt-column"),
    ],
)  # fmt: skip
def test_a_set_without_pairs_is_refused_by_that_name(tmp_path, record, said):
    assert said in refused(tmp_path, [record])


def test_whole_texts_without_a_prompt_are_errors_that_name_the_way_out(tmp_path):
    record = {"chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"}
    file, (error,) = opened(tmp_path, [record])
    assert str(error).startswith(
        "prompt: missing; found chosen, rejected; name yours with --prompt-column"
    )
    assert f"{error}{file.hint(record, error)}".endswith("--format trl-implicit reads it")


def test_rows_of_another_set_than_the_named_one_say_which_format_reads_them(tmp_path):
    record = {"instruction": Q, "output_1": GOOD, "output_2": BAD, "label": 1}
    file, (error,) = opened(tmp_path, [record], HowRead("skywork"))
    assert f"{error}{file.hint(record, error)}" == (
        "chosen: missing; found instruction, output_1, output_2, label; name yours with "
        "--chosen-column; --format offsetbias or alpacafarm reads it"
    ).replace(" or alpacafarm", "")
    kto = {"prompt": Q, "completion": GOOD, "label": True}
    file, (error,) = opened(tmp_path, [kto], HowRead("skywork"))
    assert "it is unpaired: one answer and a label a row" in file.hint(kto, error)


# ---- columns that a person names


@pytest.mark.parametrize(
    ("columns", "record", "wanted"),
    [
        ({"prompt": ("question.full_text",), "chosen": "answers[0].text", "rejected": "answers[-1].text"},
         {"question": {"full_text": Q}, "answers": [{"text": GOOD}, {"text": "x"}, {"text": BAD}]}, pair()),
        ({"prompt": ("ask",), "system": ("who",), "chosen": "yes", "rejected": "no"},
         {"ask": Q, "who": "Be brief.", "yes": GOOD, "no": BAD}, pair([SYSTEM, *ASKED])),
        ({"system": ()}, {"system": "ignored", "prompt": Q, "chosen": GOOD, "rejected": BAD}, pair()),
        ({"answers": ("a", "b"), "label": "won", "labels": ("left", "right", "even")},
         {"prompt": Q, "a": BAD, "b": GOOD, "won": "Right"}, pair()),
        ({"answers": ("a", "b"), "label": "won", "labels": ("left", "right", "even")},
         {"prompt": Q, "a": GOOD, "b": BAD, "won": "even"}, pair(tie=True)),
        ({"answers": ("a", "b"), "strength": "s"}, {"prompt": Q, "a": GOOD, "b": BAD, "s": "-2"}, pair(margin=2.0)),
        ({"answers": ("a", "b"), "scores": (("s", "t"),)}, {"prompt": Q, "a": BAD, "b": GOOD, "s": "1", "t": 4},
         pair(margin=3.0)),
        ({"answers": ("a", "b"), "scores": (("s", "t"),), "lower_wins": True},
         {"prompt": Q, "a": GOOD, "b": BAD, "s": 1, "t": 2}, pair(margin=1.0)),
        ({"candidates": "all", "text": "t", "score": "rank", "lower_wins": True},
         {"prompt": Q, "all": '[{"t": "Six.", "rank": 2}, {"t": "Eight.", "rank": 1}]'}, pair(margin=1.0)),
        ({"margin": "gap", "tie": None}, {"prompt": Q, "chosen": GOOD, "rejected": BAD, "gap": "1.5", "tie": "?"},
         pair(margin=1.5)),
    ],
)  # fmt: skip
def test_columns_are_names_or_paths(tmp_path, columns, record, wanted):
    _, ((row,),) = opened(tmp_path, [record], HowRead(columns=columns))
    assert shape(row) == wanted


def test_an_id_column_of_none_makes_ids_of_the_content(tmp_path):
    records = [{"id": "same", "prompt": Q, "chosen": GOOD, "rejected": BAD, "score_chosen": 2, "score_rejected": 1},
               {"id": "same", "prompt": "Q2", "chosen": GOOD, "rejected": BAD, "score_chosen": 2, "score_rejected": 1}]  # fmt: skip
    file, rows = opened(tmp_path, records, HowRead(columns={"id": None}))
    assert rows[0][0].id != rows[1][0].id and not file.reader.has_id(records[0])
    assert name_of(file) == "ultrafeedback-binarized"  # it is recognised all the same


# ---- what is said


def test_a_column_that_is_not_read_and_changes_the_meaning_is_said_with_its_setting(tmp_path):
    record = {
        "prompt": Q,
        "chosen": GOOD,
        "rejected": BAD,
        "magnitude": 3,
        "tools": [{"name": "f"}],
        "winner": "",
    }
    file, _ = opened(tmp_path, [record, record | {"tools": None}], HowRead("skywork"))
    assert file.lines()[1].endswith(
        "not read: magnitude (rows: 2; --margin-column), tools (rows: 1; nothing reads it)"
    )


def test_scores_that_contradict_chosen_are_counted(tmp_path):
    rows = [{**BOTH, "score_chosen": a, "score_rejected": 5} for a in (7, 3, 5, 4)]
    file, _ = opened(tmp_path, rows)
    contradiction, counts = file.lines()[1:]
    assert (
        "rows: 2 whose scores contradict chosen (score_chosen and score_rejected; first 3 and 5)"
        in contradiction
    )
    assert counts.endswith("rows: 1 with a margin, 1 that are ties")


def test_without_margins_scores_say_only_who_won(tmp_path):
    how = Settings(margin_column=None).how_read()
    for record in ({**BOTH, "score_chosen": 7, "score_rejected": 5},
                   {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -2}):  # fmt: skip
        _, ((row,),) = opened(tmp_path, [record], how)
        assert shape(row) == pair()


def test_a_picture_beside_the_text_is_no_text(tmp_path):
    record = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
    _, rows = opened(
        tmp_path, [{**record, "images": [{"path": "barn.png"}]}, {**record, "images": []}]
    )
    assert getattr(rows[0], "reason", "") == "not_text" and shape(rows[1][0]) == pair()


def test_sides_that_part_before_the_last_answer_have_a_reason(tmp_path):
    parted = {**ARENA, "winner": "model_a", "turn": 2,
              "conversation_a": [*ARENA["conversation_a"], turn("user", "Why?"), turn("assistant", "So.")],
              "conversation_b": [*ARENA["conversation_b"], turn("user", "Why?"), turn("assistant", "No.")]}  # fmt: skip
    _, (error,) = opened(tmp_path, [parted])
    assert getattr(error, "reason", "") == "turns_differ"


def test_a_label_that_is_missing_has_a_reason(tmp_path):
    record = {"prompt": Q, "response_1": GOOD, "response_2": BAD, "winner": None}
    _, rows = opened(tmp_path, [record | {"winner": "tie"}, record])
    assert rows[0][0].tie and getattr(rows[1], "reason", "") == "unlabelled"


# ---- prompts


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"prompt": Q}, Q),
        ({"text": Q, "id": "a"}, Q),
        ({"prompt": ASKED}, ASKED),
        ({"id": 1, "prompt": f'["{Q}"]', "response_a": '["a"]', "response_b": '["b"]'}, Q),
        ({"prompt": [Q]}, Q),
        ({"prompt": Q, "text": f"{Q}{GOOD}"}, Q),
        ({"messages": [SYSTEM, *BOTH["chosen"]]}, [SYSTEM, *ASKED]),
        ({"prompt": Q, "prompt_id": "x", "messages": [SYSTEM, *BOTH["chosen"]]}, [SYSTEM, *ASKED]),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}]}, ASKED),
        ({"conversation_id": "x", "conversation": [*CHAT, turn("assistant", "x")], "turn": 2}, CHAT),
        ({"instruction": "Translate.", "input": "hay", "output": "Heu"}, "Translate.\nhay"),
        ({"question": Q, "answer": "8"}, Q),
        ({"instruction": "Sum up.", "context": "Hay is dry grass.", "response": "r"}, "Sum up.\nHay is dry grass."),
        ({"system_prompt": "Be brief.", "question": Q, "response": GOOD}, [SYSTEM, *ASKED]),
        ({"custom_id": "r0", "method": "POST", "body": {"model": "m", "messages": ASKED}}, ASKED),
        ({"question_id": 80, "category": "w", "turns": [Q, "And why?"]}, Q),
        ({"text": f"### Human: {Q}### Assistant: {GOOD}"}, ASKED),
        ({"system": "Be brief.", "prompt": Q, "chosen": GOOD, "rejected": BAD}, [SYSTEM, *ASKED]),
        ({"prompt": "Guess.", "chosen": [*CHAT, turn("assistant", "a")], "rejected": [*CHAT, turn("assistant", "b")]},
         CHAT),
        ({**ARENA, "winner": "tie"}, ASKED),
        ({"prompt": f'["{Q}"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1,
          "winner_model_b": 0, "winner_tie": 0}, ASKED),
        ({"question_body": Q, "answer1_body": GOOD, "answer2_body": BAD, "score": [9, 3], "text": "9 3"}, Q),
    ],
)  # fmt: skip
def test_a_prompt_is_what_its_set_asks(tmp_path, record, wanted):
    file = OpenFile(str(write_jsonl(tmp_path / "x.jsonl", [record])), HowRead(prompts=True), None)
    ((_, found),) = file.records()
    assert as_turns(file.reader.prompt(found).prompt) == as_turns(wanted), name_of(file)


@pytest.mark.parametrize(
    "record",
    [
        {"message_id": "b", "parent_id": "a", "text": GOOD, "role": "assistant", "rank": 0},
        {"id": "1", "url": "u", "title": "Hay", "text": "Hay is dry grass."},
        {"_id": "d0", "title": "Hay", "text": "Hay is dry grass.", "metadata": {}},
    ],
)
def test_a_text_beside_other_columns_is_no_prompt_unless_named(tmp_path, record):
    said = refused(tmp_path, [record], HowRead(prompts=True))
    assert "name the prompt's with --prompt-column" in said
    how = HowRead(columns={"prompt": ("text",)}, prompts=True)
    file = OpenFile(f"{tmp_path}/x.jsonl", how, None)
    ((_, found),) = file.records()
    assert file.reader.prompt(found).prompt == record["text"]


def test_several_texts_are_no_prompt(tmp_path):
    """As lmarena's test set has them, without a winner: the answers between them are not known."""
    rows = [{"prompt": '["Why?", "How?"]'}, {"prompt": ["Why?", "How?"]}]
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    file = OpenFile(str(path), HowRead("prompt", prompts=True), None)
    for _, record in file.records():
        with pytest.raises(ValueError, match="prompt: found 2 texts, wanted one, or turns"):
            file.reader.prompt(record)


def test_a_margin_in_words_is_not_read_and_that_is_said(tmp_path):
    record = {"prompt": Q, "chosen": GOOD, "rejected": BAD, "margin": "much better"}
    file, ((row,),) = opened(tmp_path, [record])
    assert row.margin is None and "not read: margin (rows: 1; --margin-column)" in file.lines()[1]
    _, (error,) = opened(tmp_path, [record], HowRead("skywork"))
    assert "margin: found 'much better', wanted a number >= 0" in str(error)


# ---- invented rows in the schemas of published sets, where they are at hand

AUTO_READ = {
    # file -> (read as, pairs that say GOOD is better than BAD, ties, rows left out), with no option
    "alpacafarm.jsonl": ("alpacafarm", 5, 0, 0),
    "arena_100k.parquet": ("arena", 3, 2, 0),
    "argilla_dpo_mix_7k.parquet": ("distilabel", 6, 0, 0),
    "argilla_intel_orca.parquet": ("intel-orca", 5, 0, 0),
    "argilla_math_preference.parquet": ("argilla-responses", 5, 0, 0),
    "autoj_pairwise.jsonl": ("autoj", 4, 1, 0),
    "axolotl_field_messages.jsonl": ("messages-ranking", 6, 0, 0),
    "chatml_text.jsonl": ("skywork", 5, 0, 0),
    "codeultrafeedback_binarized.parquet": ("codeultrafeedback-binarized", 5, 0, 0),
    "conj_raw.jsonl": ("sharegpt-ranking", 5, 0, 0),
    "conj_sky_saved.parquet": ("conj", 5, 0, 0),
    "content_parts.jsonl": ("skywork", 5, 0, 0),
    "distilabel_output.jsonl": ("distilabel-ratings", 5, 0, 0),
    "dpo_zh_en_emoji.jsonl": ("dpo-zh-en-emoji", 5, 0, 0),
    "equal_scores.jsonl": ("ultrafeedback-binarized", 0, 5, 0),
    "full_hh_rlhf.parquet": ("hh-rlhf", 6, 0, 0),
    "gutenberg_dpo.parquet": ("skywork", 5, 0, 0),
    "helpsteer2_preference.jsonl": ("helpsteer2", 4, 1, 0),
    "hh_rlhf.jsonl": ("hh-rlhf", 6, 0, 0),
    "hh_rlhf_cn.jsonl": ("messages-ranking", 5, 0, 0),
    "human_like_dpo.parquet": ("skywork", 5, 0, 0),
    "id_as_float.jsonl": ("skywork", 5, 0, 0),
    "images_beside_text.parquet": ("skywork", 0, 0, 5),
    "infgrad_inf_orm.parquet": ("inf-orm", 5, 0, 0),
    "infinity_preference.parquet": ("skywork", 5, 0, 0),
    "intel_orca_dpo_pairs.jsonl": ("orca", 5, 0, 0),
    "judgebench_gpt.jsonl": ("judgebench", 5, 0, 0),
    "judgelm.jsonl": ("judgelm", 5, 0, 0),
    "llamafactory_alpaca_ranking.jsonl": ("alpaca-ranking", 5, 0, 0),
    "llamafactory_sharegpt_ranking.jsonl": ("sharegpt-ranking", 5, 0, 0),
    "llmbar.csv": ("llmbar", 5, 0, 0),
    "llmbar.jsonl": ("llmbar", 5, 0, 0),
    "margin_words.jsonl": ("skywork", 5, 0, 0),
    "nectar_ranked_dpo.parquet": ("nectar-ranked", 5, 0, 0),
    "math_step_dpo.parquet": ("math-step-dpo", 5, 0, 0),
    "none_values.jsonl": ("skywork", 3, 0, 2),  # an empty answer is a fault that others name
    "oasst1_pairwise.parquet": ("skywork", 6, 0, 0),
    "olmo2_mix.parquet": ("distilabel", 5, 0, 0),
    "openai_dpo.jsonl": ("openai-dpo", 5, 0, 0),
    "openbmb_ultrafeedback.jsonl": ("ultrafeedback", 5, 0, 0),
    "orpo_dpo_mix_40k.parquet": ("skywork", 6, 0, 0),
    "pku_saferlhf.jsonl": ("pku-saferlhf", 5, 0, 0),
    "ppe_human.parquet": ("ppe", 4, 1, 0),
    "preference_test_sets.parquet": ("skywork", 6, 0, 0),
    "prometheus_preference.jsonl": ("prometheus-preference", 5, 0, 0),
    "py_dpo.parquet": ("skywork", 5, 0, 0),
    "rewardbench_filtered.parquet": ("rewardbench", 5, 0, 0),
    "rlaif_v_raw.parquet": ("orca", 0, 0, 5),
    "rlhflow_pairpm.parquet": ("rlhflow-pair", 5, 0, 0),
    "rlhflow_standard.parquet": ("rlhflow", 6, 0, 0),
    "sharegpt_both_sides.jsonl": ("skywork", 5, 0, 0),
    "shp.parquet": ("shp", 5, 0, 0),
    "skywork_v02.parquet": ("skywork", 6, 0, 0),
    "source_as_list.jsonl": ("skywork", 5, 0, 0),
    "stack_exchange_paired.jsonl": ("stack-exchange", 5, 0, 0),
    "stringified_turns.jsonl": ("skywork", 5, 0, 0),
    "summarize_from_feedback.jsonl": ("summarize", 5, 0, 0),
    "system_column_turns.jsonl": ("skywork", 5, 0, 0),
    "thinking_key.jsonl": ("skywork", 0, 0, 5),
    "tie_as_number.jsonl": ("skywork", 3, 2, 0),
    "tool_calls.jsonl": ("skywork", 0, 0, 5),
    "tool_calls_with_text.jsonl": ("skywork", 0, 0, 5),
    "tool_in_the_middle.jsonl": ("skywork", 0, 0, 5),
    "trl_hh_explicit.parquet": ("skywork", 6, 0, 0),
    "trl_implicit_text.jsonl": ("skywork", 0, 0, 5),
    "trl_lib_ultrafeedback_binarized.parquet": ("ultrafeedback-binarized", 4, 1, 0),
    "trl_rlaif_v.parquet": ("skywork", 0, 0, 5),
    "truthy_dpo.parquet": ("skywork", 5, 0, 0),
    "tulu3_duplicate_id.parquet": ("skywork", 5, 0, 0),
    "tulu3_mixture.parquet": ("skywork", 7, 0, 0),
    "two_assistant_turns.jsonl": ("skywork", 0, 0, 5),
    "ultrafeedback_binarized.parquet": ("ultrafeedback-binarized", 4, 1, 0),
}
NOT_SHOWN = {"openbmb_ultrafeedback.jsonl"}  # a system prompt a completion is none of the pair's
at_hand = pytest.mark.skipif(not CASES.is_dir(), reason="set PREFPIPE_FORMAT_CASES to their folder")


@at_hand
@pytest.mark.parametrize("name", AUTO_READ)
def test_a_set_at_hand_is_read_as_it_is_meant_with_no_option(name):
    file = OpenFile(str(CASES / name), HowRead(), None)
    read = [(record, file.pairs(record)) for _, record in file.records()]
    pairs = [(record, row) for record, rows in read if isinstance(rows, list) for row in rows]
    right = [
        not row.tie
        and str(row.chosen).strip().startswith("GOOD")
        and not str(row.rejected).startswith("GOOD")
        for _, row in pairs
    ]
    ties = sum(row.tie for _, row in pairs)
    assert (name_of(file), sum(right), ties, len(read) - len(pairs)) == AUTO_READ[name]
    assert sum(right) + ties == len(pairs), "a pair is read the wrong way"
    for record, row in pairs:  # a marked system prompt or earlier turn is not lost
        for mark in {"SYS", "CTX"} if name not in NOT_SHOWN else ():
            assert (mark in str(record)) <= (mark in str(row.prompt)), mark


def test_labels_of_another_set_with_the_same_columns_are_not_guessed(tmp_path):
    """1 is the first answer to LLMBar; where 0 stands beside it, it must be the second one."""
    rows = [{"input": Q, "output_1": GOOD, "output_2": BAD, "label": label} for label in (1, 0)]
    assert "no known format has the columns input, output_1" in refused(tmp_path, rows)
    columns = {
        "prompt": ("input",),
        "answers": ("output_1", "output_2"),
        "label": "label",
        "labels": ("0", "1"),
    }
    _, read = opened(tmp_path, rows, HowRead(columns=columns))
    assert [shape(row) for (row,) in read] == [pair(chosen=BAD, rejected=GOOD), pair()]


def test_a_strength_beyond_its_scale_is_none(tmp_path):
    """HelpSteer3 has -100 where no annotator could tell."""
    record = {"context": ASKED, "response1": GOOD, "response2": BAD}
    rows = [record | {"overall_preference": value} for value in (-3, -100)]
    _, (read, error) = opened(tmp_path, rows)
    assert shape(read[0]) == pair(margin=3.0) and getattr(error, "reason", "") == "unlabelled"


def test_lists_of_answers_and_scores_must_be_of_one_length(tmp_path):
    record = {"instruction": Q, "generations": [GOOD, BAD, "x"], "ratings": [5, 1]}
    _, (error,) = opened(tmp_path, [record])
    assert str(error) == "generations: found 3 answers and 2 scores"
    _, ((row,),) = opened(tmp_path, [{**record, "ratings": [5, None, 1]}])
    assert (row.chosen, row.rejected) == (GOOD, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "[1", "{'a'", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner),
    max_leaves=5,
)  # fmt: skip
ROWS = [record for rows in EXPECTED.values() for record, _ in rows]
COLUMNS = sorted({column for record in ROWS for column in record} | {"messages", "text", "images"})


@settings(max_examples=150)
@given(
    st.sampled_from(ROWS),
    st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=3),
    st.booleans(),
)
def test_whatever_stands_in_the_columns_it_is_read_or_a_sentence_says_why_not(
    base, changes, prompts
):
    how, record = HowRead(prompts=prompts), {**base, **changes}
    try:
        form = how.choose("x.jsonl", [record]).form
        reader = how.reader(form)
        reader.prompt(record) if prompts else reader.read(record)
    except ValueError as error:  # a DataError is one
        assert 0 < len(str(error)) < 300 and "\n" not in str(error)
        how.hint(record)
