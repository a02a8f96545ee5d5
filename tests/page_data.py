"""A small run with every kind of file that the page shows, made in a second, and hostile texts to fill it with."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefpipe.evaluation.metrics import BothOrders, judge_report, mcnemar_p
from prefpipe.files import write_rows
from prefpipe.rows import (
    CleanJudgment,
    Disagreement,
    EvaluatedJudgment,
    Item,
    JudgmentPair,
    Preference,
    RagPair,
    Ranking,
    Reject,
    Row,
    SyntheticPair,
)

Text = Callable[[str, int], str]
"""The text of a field of the k-th row."""

ASPECTS = ["honesty", "helpfulness"]
SOURCES = ["sums", "chat", "code"]
MODELS = ["small", "middle", "large"]

_SPEAK = {
    "question": "What is {k} and {k}? In one sentence, for a child of {k} years.",
    "chosen": "It is {k}. First add the two, then look at the sum; **that** is all.",
    "rejected": "It may be {k}, or not! I am not sure about {k} at all.",
}


def plain(name: str, k: int) -> str:
    """What a field says in an ordinary run."""
    words = _SPEAK.get(name, "{name} {k}").format(k=k, name=name)
    return words + " Yes, really." * (k % 4 if name == "chosen" else k % 3)


def write_run(root: Path, *, rows: int = 90, text: Text = plain, seed: int = 1) -> Path:
    """Every kind of file that report.py shows, in the places of config.py; the folder."""
    rng = random.Random(seed)
    of_judge(root, rows, text, rng)
    of_models(root, rows, text, rng)
    of_rag(root, rows, text, rng)
    of_ratings(root, rows, text, rng)
    return root


def finish(
    folder: Path, stage: str, name: str, read: int, left_out: dict[str, list[Reject]], **more: Any
) -> None:
    """The .meta.json and the rejects of a run, as prefpipe.files.Run writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = read - sum(map(len, left_out.values()))
    meta = {
        "stage": stage,
        "closing_line": f"{read} rows read",
        "counts": {
            "read": read,
            "kept": kept,
            "left_out": {reason: len(some) for reason, some in left_out.items()},
            "written": {"rows.jsonl": kept},
        },
        "seconds": 12.5,
        "settings": {"seed": 2021, "output": str(folder), **more.pop("settings", {})},
        "fingerprint": {"stage": stage},
        **more,
    }
    (folder / f"{name}.meta.json").write_text(json.dumps(meta), encoding="utf-8")
    rejects = [reject for some in left_out.values() for reject in some]
    write_rows(folder / f"{name}.rejects.jsonl", rejects, Reject)


def save(path: Path, rows: list[Any], kind: type[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows, kind)


def of_judge(root: Path, rows: int, text: Text, rng: random.Random) -> None:
    items = [
        Item(
            id=f"i{k}" if text is plain else f"{text('id', k)}#{k}",
            source=SOURCES[k % 3] if text is plain else text("source", k),
            split="validation",
            language="en",
            question=text("question", k),
            answer_1=text("chosen", k),
            answer_2=text("rejected", k),
            better=None if k % 15 == 14 else (1, 2)[k % 2],
            prompt=text("prompt", k),
        )
        for k in range(rows)
    ]
    folder = root / "pairwise_critic_inference2_get_answer/Sky_english"
    save(folder / "validation.jsonl", items, Item)
    bad = [
        Reject(id=text("id", k), reason="duplicate_row", detail=text("detail", k))
        for k in range(max(25, rows // 2))
    ]
    equal = [
        Reject(id=text("id", k), reason="equal_answers", detail=text("detail", k)) for k in range(3)
    ]
    left_out = {"duplicate_row": bad, "equal_answers": equal}
    read = rows + len(bad) + len(equal)
    finish(folder, "translation", "translation", read, left_out)
    save(
        root / "judgments/clean/best_of_n.jsonl",
        [
            CleanJudgment(
                id=item.id, sample=n, variant="best_of_n", hint=None, text=text("judgment", k),
                finish_reason="stop", prompt_tokens=5, new_tokens=5, index=k, judgment="{}",
                verdict=rng.choice((1, 1, 2)), unreadable=None,
            )
            for k, item in enumerate(items) for n in range(4)
        ],
        CleanJudgment,
    )  # fmt: skip
    finish(
        root / "judgments/clean",
        "post_processing",
        "post_processing",
        rows,
        {},
        settings={"items": str(folder)},
    )
    save(
        root / "dpo/train.parquet",
        [
            JudgmentPair(
                id=f"{item.id}:hint:0", item_id=item.id, split="train", pair_type="hint", better=1,
                prompt=[{"role": "user", "content": text("prompt", k)}],
                chosen=[{"role": "assistant", "content": text("chosen", k)}],
                rejected=[{"role": "assistant", "content": text("rejected", k)}],
                chosen_sample=0, rejected_sample=0,
            )
            for k, item in enumerate(items)
        ],
        JudgmentPair,
    )  # fmt: skip
    judged, report = [], {}
    for judge, right in (("base", 0.6), ("tuned", 0.85)):
        both = []
        for k, item in enumerate(items):
            said = []
            for order in ("given", "swapped"):
                is_right = rng.random() < right
                verdict = (item.better or 1) if is_right else 3 - (item.better or 1)
                verdict = None if rng.random() < 0.05 else verdict
                said.append(verdict)
                judged.append(
                    EvaluatedJudgment.model_validate(
                        {
                            "id": item.id, "judge": judge, "benchmark": "validation", "order": order,
                            "better": item.better, "verdict": verdict,
                            "unreadable": None if verdict else "no_json", "text": text("judgment", k),
                            "finish_reason": "stop", "prompt_tokens": 7, "new_tokens": 7,
                        }
                    )
                )  # fmt: skip
            lengths = (len(item.answer_1), len(item.answer_2))
            both.append(BothOrders(item.id, item.better, said[0], said[1], lengths))
        report[judge] = judge_report(both)
    by_source = {
        source: {"n": 3, "base": 0.5, "tuned": 1.0}
        for source in dict.fromkeys(i.source for i in items)
    }
    report |= {"mcnemar_p": mcnemar_p([True, False], [True, True]), "by_source": by_source}
    seen = {"n": 8, "questions": 40, "seen": 0.125, "mostly_seen": 0.025}
    whole = {"judging": {"validation": report}, "pairs": None, "overlap": {"validation": seen}}
    save(root / "accuracy/judgments.jsonl", judged, EvaluatedJudgment)
    (root / "accuracy/accuracy.json").write_text(json.dumps(whole), encoding="utf-8")
    finish(root / "accuracy", "accuracy", "accuracy", rows, {}, settings={"kind": ["judge"]})


def of_models(root: Path, rows: int, text: Text, rng: random.Random) -> None:
    folder = root / "models/reward"
    folder.mkdir(parents=True)
    steps = [f"{k},{0.7 / k},{'' if k % 5 else 0.8 / k},{0.5 + k / 100},\n" for k in range(1, 21)]
    head = "step,loss,eval_loss,accuracy,eval_accuracy\n"
    (folder / "loss_curve.csv").write_text(head + "".join(steps), encoding="utf-8")
    bins = [
        {
            "low": c / 10,
            "high": c / 10 + 0.1,
            "n": 9,
            "confidence": c / 10 + 0.05,
            "accuracy": c / 10,
        }
        for c in range(5, 10)
    ]
    report = {
        "n": 90, "ties": 3, "accuracy": 0.8125, "interval": [0.71, 0.88], "undecided": 0.0, "mean_margin": 1.5,
        "ece": 0.04, "temperature": 1.25, "ece_scaled": 0.03, "reliability": bins, "reliability_scaled": bins,
        "spearman": 0.31, "longer_is_right": 0.55,
        "by_length": [{"from": -9, "to": 9, "n": 87, "accuracy": 0.8125, "interval": [0.71, 0.88]}],
    }  # fmt: skip
    (folder / "reward_eval.json").write_text(json.dumps(report), encoding="utf-8")
    wrong = [
        Disagreement(
            id=f"p{k}", margin=-3 + k / 10, chosen_score=0.5, rejected_score=2.0, prompt=text("question", k),
            chosen=text("chosen", k), rejected=text("rejected", k), source=text("source", k),
        )
        for k in range(12)
    ]  # fmt: skip
    save(folder / "disagreements.jsonl", wrong, Disagreement)
    finish(folder, "train_reward_model", "train_reward_model", 87, {})
    rankings = [
        Ranking(
            id=f"q{k}", by="pairwise", tournament="round-robin", ranking=[0, 1, 2], copies=[[0], [1], [2]],
            scores=[1.0, 0.0, -1.0], margins=[rng.random(), 1.0], best=0, worst=2, comparisons=[],
            cycle=[0, 1, 2] if k % 10 == 3 else None, best_is_right=k % 4 != 0, right_share=0.5,
        )
        for k in range(rows)
    ]  # fmt: skip
    save(root / "ranking/rankings.jsonl", rankings, Ranking)
    preferences = [
        Preference(
            id=f"p{k}" if text is plain else text("id", k), prompt=text("question", k),
            chosen=text("chosen", k), rejected=text("rejected", k), margin=round(rng.random() * 4, 3), source=text("source", k) if text is not plain else SOURCES[k % 3],
        )
        for k in range(rows)
    ]  # fmt: skip
    save(root / "ranking/preferences.jsonl", preferences, Preference)
    finish(root / "ranking", "rank_responses", "rank_responses", rows, {})


def of_rag(root: Path, rows: int, text: Text, rng: random.Random) -> None:
    def parts() -> dict[str, Any]:
        return {
            "score": round(rng.random(), 3), "grounding": round(rng.random(), 3),
            "keyword_coverage": round(rng.random(), 3), "length_penalty": 0.0,
            "is_abstention": rng.random() < 0.1, "judge_score": None,
        }  # fmt: skip

    pairs = [
        RagPair.model_validate(
            {
                "id": f"d{k}", "prompt": text("prompt", k), "chosen": text("chosen", k),
                "rejected": text("rejected", k), "margin": 0.25, "source": text("source", k),
                "question": text("question", k), "document_ids": [text("document", k)],
                "retrieval_scores": [round(rng.random(), 3)], "abstention_worth": 0.2 if k % 5 else 1.0, "is_answerable": k % 5 > 0,
                "keywords": [text("keyword", k)], "scorer": "heuristic", "chosen_parts": parts(),
                "rejected_parts": parts(), "chosen_sample": 0, "rejected_sample": 1,
                "candidate_seeds": [], "candidates": None,
            }
        )
        for k in range(rows)
    ]  # fmt: skip
    save(root / "rag/pairwise_prefs.jsonl", pairs, RagPair)
    small = [Reject(id=f"d{k}", reason="small_margin", detail="0.01") for k in range(7)]
    grounding = {"chosen": 0.6, "rejected": 0.4, "random_document": 0.333}
    more = {"mean_grounding": grounding, "tokens": {"prompt": 4321, "new": 123}}
    left_out = {"small_margin": small}
    name = "pairwise_prefs"
    finish(root / "rag", "build_pairwise_prefs", name, rows + 7, left_out, **more)


def of_ratings(root: Path, rows: int, text: Text, rng: random.Random) -> None:
    pairs = []
    models = MODELS if text is plain else [text("model", k) for k in range(60)]
    for k in range(rows):
        first, second = (
            rng.sample(models, 2) if text is plain else (models[k % 60], models[(k + 1) % 60])
        )
        tie = k % 9 == 8
        pairs.append(
            SyntheticPair(
                id=f"s{k}", prompt=text("question", k), chosen=text("chosen", k), rejected=text("rejected", k),
                margin=0.0 if tie else 1.0, tie=tie, source=text("source", k), chosen_model=first,
                rejected_model=second, chosen_rating=4.0, rejected_rating=3.0,
                aspects=ASPECTS if text is plain else [text("aspect", k), text("aspect", k + 1)],
                chosen_ratings=[float(rng.randint(2, 5)), None], rejected_ratings=[float(rng.randint(1, 4)), 2.0],
            )
        )  # fmt: skip
    save(root / "synthetic/preferences.jsonl", pairs, SyntheticPair)
    histogram = {"1": 4, "2": 0, "3": 41, "4": 7, "5": 65}
    one = {
        "histogram": histogram,
        "not_applicable": 2,
        "unreadable": {"missing": 3},
        "mean": 4.1,
        "agreement": 0.9,
    }
    ratings = dict.fromkeys(
        ASPECTS if text is plain else [text("aspect", k) for k in range(4)], one
    )
    more = {"ratings": ratings, "mean_rating_by_place": [3.5, 4.0]}
    finish(root / "synthetic", "parse_preferences", "preferences", rows, {}, **more)


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<!--<script>window.hacked = 3//-->",
    "--><svg onload=window.hacked=4>",
    "<img src=x onerror=window.hacked=5>",
    "\"><img src=x onerror='window.hacked=6'>",
    "' onmouseover='window.hacked=7' x='",
    "javascript:window.hacked=8",
    "[click](javascript:window.hacked=9)",
    "![picture](http://127.0.0.1:9/track.png)",
    "<a href='javascript:window.hacked=11'>x</a>",
    "<iframe src='javascript:parent.hacked=12'></iframe>",
    "<iframe srcdoc='<script>parent.hacked=13</script>'></iframe>",
    "<object data='data:text/html,<script>parent.hacked=14</script>'></object>",
    "<embed src='data:text/html;base64,PHNjcmlwdD4='>",
    "<base href='http://127.0.0.1:9/'>",
    "<meta http-equiv='refresh' content='0;url=http://127.0.0.1:9/'>",
    "<link rel=stylesheet href='http://127.0.0.1:9/x.css'>",
    "<style>@import 'http://127.0.0.1:9/x.css'; * { display: none }</style>",
    "<form action='http://127.0.0.1:9/'><button>go</button></form>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.hacked=21>",
    "<svg><script>window.hacked=22</script></svg>",
    "<svg><animate onbegin=window.hacked=23 attributeName=x></svg>",
    "<svg><a xlink:href='javascript:window.hacked=24'><text>x</text></a></svg>",
    "<details open ontoggle=window.hacked=25>",
    "<video><source onerror=window.hacked=26></video>",
    "<body onload=window.hacked=27>",
    "<template><script>window.hacked=28</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.hacked=29>'>",
    "<textarea></textarea><script>window.hacked=30</script>",
    "<title></title><script>window.hacked=31</script>",
    "<plaintext>",
    "{{ script }} {{ data }} {{ policy }}",
    "{% for x in y %}{{ 7*7 }}{% endfor %}${7*7}#{7*7}",
    "${alert(1)} `${window.hacked=35}`",
    "\"};window.hacked=36;//",
    "\\u003cscript\\u003ewindow.hacked=37\\u003c/script\\u003e",
    "\u2028window.hacked=38\u2029",
    "__proto__",
    "constructor",
    "toString",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "\x1b]8;;http://127.0.0.1:9/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m C1 \x85 \x90",
    "null \x00 byte",
    "back\b\b\b\bspace \r overwritten",
    "\u202egnirts desrever\u202c",
    "\u2066isolate \u2067rtl\u2069 \u200fmark\u200e",
    "zero\u200bwidth\ufeffbom",
    "مرحبا بالعالم 123 (abc)",
    "שלום עולם <b>bold</b>",
    "你好，世界。这是什么？",
    "e\u0301\u0301\u0301" * 40,
    "A" * 3000,
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈",
    "=HYPERLINK(\"http://127.0.0.1:9/\",\"x\")",
    "a,b\n\"c\";d\t|e",
    "```html\n<script>window.hacked=58</script>",
    "$\\href{javascript:window.hacked=59}{x}$ \\(\\unicode{x}\\)",
    "#row/%00/../../%3Cscript%3E?a=1&b=<>&amp;&lt;",
]  # fmt: skip
"""Each tries to be more than text: markup, script, a template, a terminal's order, a direction, a key."""


def hostile(name: str, k: int) -> str:
    """A hostile text, another one in each field of a row; over 60 rows each field has had them all."""
    return HOSTILE[(k + sum(name.encode())) % len(HOSTILE)]
