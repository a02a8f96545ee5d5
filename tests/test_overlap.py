"""prefpipe.evaluation.overlap: whose words were trained on, by hand."""

from prefpipe.evaluation.overlap import Overlap


def test_the_overlap_is_the_share_of_questions_whose_words_were_trained_on():
    words = [f"w{k}" for k in range(30)]
    questions = {
        "seen": " ".join(words[:10]),
        "part": " ".join([*words[:8], "other", "words", "follow", "here", "now", "then", "again"]),
        "new": "nothing of this stands in the text that was trained on before",
        "short": "too short",
    }
    found = Overlap(questions, n=8)
    found.add("intro " + "  ".join(w.upper() for w in words[:12]) + ".")
    report = found.report()
    # "seen" has 3 of 3 n-grams, "part" 1 of 8
    assert report["seen"] == 0.5 and report["mostly_seen"] == 0.25
    assert report["most_seen"] == {"seen": 1.0, "part": 0.125}
    again = Overlap(questions, n=8)
    again.add("Too short!")
    assert again.report()["most_seen"] == {"short": 1.0}


def test_a_text_is_told_with_which_question_it_shares_words():
    found = Overlap(
        {"long": "one two three four five six seven eight nine", "short": "Why not?"}, n=8
    )
    assert found.shared_with(["x", "ONE two, three four five six seven eight!"]) == "long"
    assert found.shared_with(["why not"]) == "short"
    assert found.shared_with(["one two three four five six seven", "why not then"]) is None
