"""What a reasoning model thought aloud, taken from before its answer. Each family has marks of its own."""

import re

_NAME = r"(?:\w{1,20}[:_-])?(?:think(?:ing)?|thoughts?|reason(?:ing|ed)|reflection|scratchpad|cot)"
# Not inside quotes or backticks: a judge may write about an answer's marks.
_QUOTED = r"(?<![\"'`“‘])"
_MARK = re.compile(
    rf"{_QUOTED}(?P<begin><\|?(?!end_)(?:begin_of_|start_)?{_NAME}\|?>|\[THINK\]|◁think▷"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b|<\|channel>\s*thought\b|<unused94>|<\|inner_prefix\|>"
    r"|^[ \t]*Here is my thought process:)"
    rf"|{_QUOTED}(?:<(?:/|\|(?:end_of_|end_|/))\s*{_NAME}\|?>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>\s*final\b[^\n]{0,60}?<\|message\|>|<channel\|>|<unused95>|<\|inner_suffix\|>"
    r"|^[ \t]*Here is my response:)|assistantfinal",
    re.IGNORECASE | re.MULTILINE,
)
_IN_EACH_MARK = ("<", "[", "◁", "assistantfinal", "ere is my ")
# gpt-oss without its special tokens, which most servers leave out of the text
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z])")
_NAMED_SO = re.compile(r"\W{0,2}(?:tags?|elements?|blocks?|tokens?|marks?|sections?)\b")
_STARTS_WITH_OBJECT = re.compile(r"\s*(?:```\w*\s*)?\{")
_END_OF_TURN = re.compile(r"(?:<\|(?:return|end|im_end|eot_id|endoftext)\|>|</s>)+\Z")


def without_thoughts(text: str) -> str | None:
    """What was written after the thoughts; None where they did not end. A closing mark alone ends
    them, too: the template of some models opens them. A text that begins with its object has none,
    whatever the object's texts quote."""
    at, is_open = 0, bool(_BARE_CHANNEL.match(text))
    if not is_open and not any(sign in text for sign in _IN_EACH_MARK):
        return text  # most texts: ten times as fast as a search
    marks = list(_MARK.finditer(text))
    last_end = max((mark.start() for mark in marks if mark["begin"] is None), default=-1)
    for mark in marks:
        if not is_open and begins_with_object(text, at):
            break
        if is_open or not _is_mentioned(mark, text, last_end):
            at = mark.end()
            is_open = mark["begin"] is not None
    if is_open:
        return None
    # most texts do not end like this: to search for it takes as long as to parse their object
    return _END_OF_TURN.sub("", text[at:]) if text.endswith(">") else text[at:]


def _is_mentioned(mark: re.Match[str], text: str, last_end: int) -> bool:
    """Whether a tag is spoken of and nothing ends it: `it returns List<Thought>`, `the <think> tag`.
    last_end: where the last closing mark of the text is."""
    begin = mark["begin"]
    if begin is None or "|" in begin or mark.start() < last_end:
        return False
    return text[max(0, mark.start() - 1) : mark.start()].isalnum() or bool(
        _NAMED_SO.match(text, mark.end())
    )


def begins_with_object(text: str, at: int = 0) -> bool:
    """Whether the first sign from there on is that of a JSON object, in a fence or not."""
    return bool(_STARTS_WITH_OBJECT.match(text, at))
