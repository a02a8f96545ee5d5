"""Which of two answers a text prefers, where it says so in words or in a form that is no JSON.

Not how a verdict is read (prefpipe/verdicts.py does that): how one is found that speaks against it.
"""

import html
import re

_SIGNS = str.maketrans(
    "“”„‟＂「」«»‘’：，；｛｝（）＝＞＜０１２３４５６７８９",
    '"""""""""\'\':,;{}()=><0123456789',
    "*`\u200b\u200c\u200d\u2060\ufeff",
)
_NUMBERS = dict.fromkeys(["1", "one", "a", "first", "一"], 1) | dict.fromkeys(
    ["2", "two", "b", "second", "二"], 2
)

_NAMED = r"(?:answer|response|option|reply|assistant|candidate)\s{0,3}(?:no\.?\s|number\s|#)?['\"(\[]?(?:1|2|one|two|a|b)\b['\")\]]?"
_PLACED = r"the (?:first|second)(?: (?:answer|response|option|one|reply))?"
_WHO = rf"(?P<who>{_NAMED}|{_PLACED})"
_WHOM = rf"(?P<who>{_NAMED}|{_PLACED}(?=\s*(?:$|[.,;!:)]|because|since|as\b|over|here)))"
_VERY = (
    r"(?: (?:clearly|much|far|slightly|the|overall|also|definitely|significantly|somewhat|still|"
    r"therefore|thus|probably|even|actually|certainly|indeed|obviously|a|bit|by)){0,4}"
)
# "better at first sight", "better structured": a part of the comparison only
_IN_ALL = r"\b(?! (?:at|in(?! (?:every|all|both|general))|on|for|with|when|if|structured|written|formatted|organi[sz]ed|worded|known)\b)"
_BETTER = (
    r"(?:better|best|superior|preferable|preferred|stronger|winner|clearer|"
    r"more (?:accurate|complete|correct|helpful|precise|relevant|convincing|useful))" + _IN_ALL
)
_ZH_WHO = r"(?P<who>(?:回答|答案|回复|选项) ?[12一二]|第[一二]个(?:回答|答案|回复)?)"
_KEY = (
    r"(?:(?:better|best|preferred|chosen|winning)(?:[ _-]?(?:answer|response|option|one))?|winner|"
    r"verdict|preference|更[好优]的?(?:回答|答案))"
)
_FOR = [
    rf"\b{_WHO} (?:is|was|would be|seems|looks|remains){_VERY} {_BETTER}",
    rf"\b{_WHO} (?:wins|should win)\b",
    rf"(?<!not )(?<!n't )\b(?:prefer|choose|chose|pick|favou?r|select|go with|vote for) {_WHOM}",
    rf"\b(?:verdict|choice|winner|better|best|better one|best one|answer) is:? {_WHOM}",
    rf"{_ZH_WHO}(?:明显|显然|更为|确实|总体|整体|是|要|的质量)?(?:更好|更优|更佳|较好|最好|最佳|胜出|更胜一筹)",
    rf"(?:选择|选|支持|偏好|倾向于?) ?{_ZH_WHO}",
    # a pair of a key and its value, in Python, YAML, XML, JSON inside a string, a call, a table
    rf"(?:^|[{{,;<(\[|>])[\s\"'\\_]{{0,20}}{_KEY}[\"'\\_]{{0,4}} ?(?:[:=|>]|is\b|是|为)+[\s\"'\\_>|({{\[]{{0,20}}"
    r"(?:the )?(?:answer|response|option|回答|答案)? ?#?(?P<who>1|2|one|two|a|b|first|second|一|二)"
    r"(?!\w|[ ]?(?:or|/|\|)[ ]?[12])",
    r"\[\[(?P<who>1|2|a|b)\]\]|\\boxed\{(?:\\text\{)?(?:answer )?(?P<boxed>1|2|a|b)\b",
    r"\A\W{0,20}(?:the )?(?:answer |回答|第)?(?P<who>1|2|one|two|first|second|一|二)(?: answer| one|个)?\W{0,20}\Z",
]
_AGAINST = [
    rf"\b{_WHO} (?:is|was|seems|looks){_VERY} (?:worse|worst|inferior|weaker){_IN_ALL}",
    rf"\b{_WHO} (?:is not|isn't|was not|wasn't){_VERY} (?:better|best|superior|preferable)\b",
    rf"{_ZH_WHO}(?:明显|显然|更为|确实|是|要)?(?:更差|较差|最差|不如)",
]
_FOR_IT = [re.compile(pattern, re.MULTILINE) for pattern in _FOR]
_AGAINST_IT = [re.compile(pattern) for pattern in _AGAINST]
_NUMBER = re.compile(r"\b(?:first|second|one|two|[ab])\b|[12一二]")

_FORM = re.compile(
    r"\A\s*(?:```\w*\s*)?(?:[\"']?(?:\{|\[\s*[\"'{])|<\w+>)"
    r"|^[ \t\"'<|-]{0,10}(?:better[ _]?answer|更好的回答)[\"'>]{0,2} ?[:=>：|]",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\W{0,10}(?:"
    r"(?:i'?m|i am) (?:very |so |really )?sorry\b(?!.{0,40}\bfor\b)|sorry,? (?:but )?i\b|i apologi[sz]e\b"
    r"|(?:unfortunately,? )?(?:but )?i (?:can ?not|can't|can not|am unable to|'?m unable to|am not able to|won't|will not|must decline|do not|don't) "
    r"(?:be able to )?(?:to )?(?:help|assist|comply|fulfil|answer|do (?:that|this|so)|provide|judge|decide|determine|"
    r"compare|evaluate|say|tell|choose|rate|translate|agree|engage|continue|process|see)"
    r"|as an? (?:ai|large language|language) |i disagree|neither (?:answer|of (?:them|the)|one|response)"
    r"|(?:非常|很|真的)?(?:抱歉|对不起)|我(?:无法|不能|没有办法|不同意)|作为(?:一个|一名)?(?:ai|人工智能|语言模型))"
)


_LOOKED_AT = 50_000  # characters at either end: no judge writes more


def opinions(text: str) -> set[int]:
    """The answers, 1 and 2, that the text calls better than the other, anywhere in it."""
    text = _plain(
        text[:_LOOKED_AT] + "\n" + text[-_LOOKED_AT:] if len(text) > 2 * _LOOKED_AT else text
    )
    found = {_number(match) for pattern in _FOR_IT for match in pattern.finditer(text)}
    return found | {3 - _number(m) for pattern in _AGAINST_IT for m in pattern.finditer(text)}


def _number(match: re.Match[str]) -> int:
    named = next(part for part in match.groups() if part)
    return _NUMBERS[_NUMBER.findall(named)[0]]  # of "the second one" the second


def _plain(text: str) -> str:
    """The text in small letters, its signs plain ones, without what only shows how it looks."""
    return html.unescape(text).translate(_SIGNS).lower()


def is_form(text: str) -> bool:
    """Whether the text begins as an object, a list or a tag: no plain words, also where nobody can
    read it."""
    return bool(_FORM.search(html.unescape(text)))


def is_refusal(text: str) -> bool:
    """Whether the text begins as one that does not do what was asked."""
    return bool(_REFUSAL.match(_plain(text[:200])))
