"""Every word that can stand as `reason` in a rejects file, and what it means.

A Failure is why a request got no text, an Unreadable why a text says nothing that can be used, a
Reject why a row was left out: each has one of these words. `python -m prefpipe.reasons` prints the
table of data/README.md.
"""

REASONS: dict[str, str] = {
    # a row that was read
    "bad_row": "The row could not be read: the detail names the field, what was found and what was expected.",
    "turns_differ": "The two sides differ before their last answers: no one prompt leads to both.",
    "unlabelled": "Nothing says which answer is better.",
    "duplicate_row": "The same row stands earlier in the input, and neither has an id of its own.",
    "duplicate_pair": "The same pair, token for token, stands earlier in the input.",
    "tie": "Neither side is better: there is nothing to learn which one is.",
    "empty_question": "The question, or the whole prompt, is empty.",
    "empty_answer": "An answer is empty.",
    "equal_answers": "The answers are the same text, white space aside.",
    "near_duplicate_of_validation": "A question that is held out is nearly the same; trained on, it would flatter the result.",
    "in_benchmark": "It shares eight words in a row with a question of a benchmark that --not-in names.",
    "beyond_max_rows": "More rows than max_rows asks for.",
    # tokens
    "too_long": "More tokens (or characters) than the setting that is named allows.",
    "chosen_too_long": "Prompt and chosen text are more than max_length tokens; none is cut.",
    "rejected_too_long": "Prompt and rejected text are more than max_length tokens; none is cut.",
    "completion_is_no_single_turn": "A side of the pair is anything but one turn of the assistant's.",
    "responses_too_long": "Both responses leave no room for what they answer.",
    "prompt_too_long": "The prompt and the tokens asked for are more than the model, or its server, takes.",
    "template_refuses_turns": "The model's chat template does not take turns of these roles in this order.",
    "identical_after_tokenizing": "Two texts that differ are the same tokens.",
    # a request to a model
    "rate_limited": "The server refused for now, more often than max_retries allows.",
    "server_error": "The server failed, more often than max_retries allows.",
    "timeout": "No reply in timeout_seconds, more often than max_retries allows.",
    "connection_lost": "The connection broke, more often than max_retries allows.",
    "bad_request": "The server refused this request; the detail has its words.",
    "refused": "The model refused to answer, and the server says so.",
    "content_filter": "The server held the text back.",
    "garbled_reply": "The reply is no chat completion, or ends for a reason that nobody knows.",
    "too_few_choices": "The reply has no text in it.",
    "scripted_failure": "A canned answer of a test is missing.",
    "batch_missing": "A batch was completed without an answer to this request.",
    "batch_error": "A batch gave an error for this request.",
    "batch_expired": "A batch expired before this request was answered.",
    "batch_cancelled": "A batch was cancelled before this request was answered.",
    "batch_unreadable": "What a batch answered is not to be had: its file is gone, or it is in an unknown state.",
    "batch_failed": "A batch failed as a whole.",
    "not_asked": "A dry run asks no model, and what becomes of the row hangs on one; in no file.",
    # a judge's text
    "empty": "Nothing but white space.",
    "no_json": "No JSON object in the text.",
    "broken_json": "A JSON object begins and is not valid.",
    "cut_off": "The text was cut at its token limit, or its thoughts did not end: nothing in it counts.",
    "no_verdict": "A JSON object without the key of the verdict.",
    "not_1_or_2": "The verdict is something else than 1 or 2.",
    "two_verdicts": "Two verdicts that differ.",
    "no_reason": "A verdict without a reason, or the form of the reply repeated.",
    "quoted_verdict": "The object stands inside a sentence: it is quoted, and no verdict.",
    "refusal": "The text refuses what was asked for, or says that it cannot.",
    "contradicts_hint": "The judge was told one answer and says the other.",
    "all_unreadable": "Not one of the judgments can be read.",
    # judgments against each other
    "no_best_of_n": "The item has no sampled judgments in the file of best_of_n.",
    "no_guide": "The item has no judgment in the file of the right hint.",
    "no_guide_reverse": "The item has no judgment in the file of the wrong hint.",
    "no_output": "The item has no judgment in the file without a hint.",
    "no_judgments": "The item has no judgment at all.",
    "no_right_judgment": "No judgment has the right verdict.",
    "no_wrong_judgment": "No judgment has the wrong verdict, or none.",
    "no_pair_of_a_wanted_type": "The settings allow none of the pairs that could be made.",
    # a look at judgment pairs
    "chosen_is_rejected": "The chosen judgment is the rejected one.",
    "chosen_unreadable": "The chosen judgment has no verdict that can be read.",
    "chosen_has_the_wrong_verdict": "The chosen judgment says the wrong answer.",
    "rejected_has_the_right_verdict": "The rejected judgment says the right answer.",
    "prompt_does_not_end_with_the_user": "The last turn of the prompt is not the user's.",
    "item_in_train_and_validation": "An item is trained on and held out.",
    "question_in_train_and_validation": "A question is trained on and held out.",
    "id_stands_twice": "Two pairs have one id.",
    # a translation
    "not_json": "The reply is no JSON object.",
    "wrong_keys": "The reply has other keys than the texts that were to be translated.",
    "not_text": "What must be text is something else, or more: null, an image, a call of a tool, thinking kept apart.",
    "empty_text": "A text was translated into nothing.",
    "truncated": "The translation was cut at its token limit.",
    "json_changed": "JSON inside a text has other keys or values than before.",
    "still_chinese": "A text, or a sentence of it, is still Chinese.",
    "not_english": "A text is in another language than English.",
    "wrong_length": "A text is far shorter or longer than its source.",
    # ratings
    "missing": "Nobody answered this request.",
    "no_rating": "A text got no rating.",
    "two_ratings": "A text got ratings that differ.",
    "unknown_text": "A rating of a text that was not shown.",
    "out_of_scale": "A number that is not from 1 to 5, or of another scale.",
    "not_a_rating": "Neither a number nor N/A.",
    "too_few_ratings": "Fewer than two responses have ratings in enough aspects.",
    "no_on_policy_rating": "The on-policy model's response has ratings in too few aspects.",
    "no_on_policy_response": "The on-policy model has no response that can be used.",
    "too_few_responses": "Fewer different responses than min_responses.",
    # RAG
    "empty_document": "Neither description nor code has a text.",
    "equal_document": "An earlier document has the same text.",
    "nearly_equal_document": "An earlier document is nearly the same.",
    "no_winner": "No answer may be chosen (it was cut, abstains where the context answers, repeats the question, or is no better than abstaining or a random document), or none of the others rejected.",
    "small_margin": "Best and worst differ by less than min_margin.",
    "judge_disagrees": "The judge does not prefer what the score prefers.",
    # ranking
    "fewer_than_two_responses": "Fewer than two different responses that are not empty.",
    "right_does_not_fit": "There are not as many values in `right` as there are responses.",
}


def table() -> str:
    """The table in Markdown, a line a reason."""
    lines = [f"| `{reason}` | {sentence} |" for reason, sentence in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *lines])


if __name__ == "__main__":
    print(table())
