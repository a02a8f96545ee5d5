"""Which of two answers a text prefers, where it says so in words or in a form that is no JSON.

Not how a verdict is read (prefpipe/verdicts.py does that): how one is found that speaks against it.
"""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SIGNS = str.maketrans(
    "“”„‟＂「」«»‘’：，；｛｝（）＝＞＜０１２３４５６７８９",
    '"""""""""\'\':,;{}()=><0123456789',
    "*`\u200b\u200c\u200d\u2060\ufeff",
)
_NUMBERS = dict.fromkeys(["1", "one", "a", "first", "一"], 1) | dict.fromkeys(
    ["2", "two", "ii", "b", "second", "二"], 2
)

_NAMED = (
    r"(?:answer|response|option|reply|assistant|candidate)\s{0,3}(?:no\.?\s|number\s|#)?['\"(\[]?"
    r"(?:1|2|one|two|ii|a|b)\b['\")\]]?"
)
_PLACED = r"the (?:first|second)(?: (?:answer|response|option|one|reply))?"
_WHO = rf"\b(?P<who>{_NAMED}|{_PLACED})"
_WHOM = rf"(?P<who>{_NAMED}|{_PLACED}(?=\s*(?:$|[.,;!:)]|because|since|as\b|over|here)))"
_ZH_WHO = r"(?P<who>(?:回答|答案|回复|选项) ?[12一二]|第[一二]个(?:回答|答案|回复)?)"
_NAMES = (
    "answer",
    "response",
    "option",
    "reply",
    "assistant",
    "candidate",
    "the first",
    "the second",
)
_NAMES += ("回答", "答案", "回复", "选项", "第")
_IS = r" (?:is|was|would be|seems|looks|remains)"
_VERY = (
    r"(?: (?:clearly|much|far|slightly|the|overall|also|definitely|significantly|somewhat|still|"
    r"therefore|thus|probably|even|actually|certainly|indeed|obviously|a|bit|by)){0,4}"
)
# "better at first sight", "better structured": a part of the comparison only
_IN_ALL = (
    r"\b(?! (?:at|in(?! (?:every|all|both|general))|on|for|with|when|if|structured|written|formatted|"
    r"organi[sz]ed|worded|known)\b)"
)
_KEY = (
    r"(?:(?:better|best|preferred|chosen|winning)(?:[ _-]?(?:answer|response|option|one))?|winner|"
    r"verdict|preference|更[好优]的?(?:回答|答案))"
)
_ENTRY = r"(?:^|[{,;<(\[|>])[\s\"'\\_]{0,20}"
_VALUE = r"[\s\"'\\_>|({\[]{0,20}(?:the )?(?:answer|response|option|回答|答案)? ?#?"
_GOOD = "better best superior prefer stronger winner clearer accurate complete correct helpful precise relevant convincing useful"
_WORDS: list[tuple[str, str]] = [
    # words of which one is in the text; the pattern
    (
        _GOOD,
        rf"{_WHO}{_IS}{_VERY} (?:better|best|superior|preferable|preferred|stronger|winner|clearer|more "
        rf"(?:accurate|complete|correct|helpful|precise|relevant|convincing|useful)){_IN_ALL}",
    ),
    (
        "wins win outperforms beats surpasses excels edge deserves should prefer",
        rf"{_WHO} (?:clearly |still |therefore )?(?:wins|should win|outperforms|beats|surpasses|excels|"
        r"has the edge|deserves|should be (?:chosen|preferred|selected)|is to be preferred)\b",
    ),
    (">", rf"{_WHO} ?>{{1,2}} ?(?:{_NAMED}|{_PLACED})"),
    (
        "prefer choose chose pick favor favour select with vote goes lean",
        r"(?<!not )(?<!n't )\b(?:prefer|choose|chose|pick|favou?r|select|go with|vote for|goes to|"
        rf"in favou?r of|lean(?:ing)? towards?) {_WHOM}",
    ),
    (
        "verdict choice winner better best answer",
        r"\b(?:(?:verdict|choice|winner|better|best|better one|best one|answer) is:?|"
        rf"(?:winner|better (?:one|answer|response)) ?[:=–—-]) ?{_WHOM}",
    ),
    # a pair of a key and its value, in Python, YAML, XML, JSON inside a string, a call, a table
    (
        "better best preferred chosen winning winner verdict preference 更好 更优",
        rf"{_ENTRY}{_KEY}[\"'\\_]{{0,4}} ?(?:[:=|>]|is\b|是|为)+{_VALUE}"
        r"(?P<who>1|2|one|two|a|b|first|second|一|二)(?!\w|[ ]?(?:or|/|\|)[ ]?[12])",
    ),
    ("[[", r"\[\[(?P<who>1|2|a|b)\]\]"),
    ("boxed", r"\\boxed\{(?:\\text\{)?(?:answer )?(?P<who>1|2|a|b)\b"),
    (
        "更 好 佳 优 胜 强",
        rf"{_ZH_WHO}(?:优于|胜过|强于|好于|(?:明显|显然|更为|确实|总体|整体|是|要|的质量)?(?:更好|更优|更佳|较好|"
        r"最好|最佳|胜出|更胜一筹))",
    ),
    ("选 支持 偏好 倾向", rf"(?:选择|选|支持|偏好|倾向于?) ?{_ZH_WHO}"),
]
_WORDS_AGAINST = [
    (
        "worse worst inferior weaker",
        rf"{_WHO}{_IS}{_VERY} (?:worse|worst|inferior|weaker){_IN_ALL}",
    ),
    ("not n't", rf"{_WHO} (?:is|was)(?: not|n't){_VERY} (?:better|best|superior|preferable)\b"),
    ("差 不如", rf"{_ZH_WHO}(?:明显|显然|更为|确实|是|要)?(?:更差|较差|最差|不如)"),
]
# The same of a key that may as well be of a sum; the value ends there.
_LOOSE = re.compile(
    rf"{_ENTRY}(?:answer|choice|decision|judge?ment|selected|conclusion|result|pick|选择|结论)"
    rf"[\"'\\_]{{0,4}} ?[:=|>]+{_VALUE}"
    r"(?P<who>1|2|one|two|first|second|一|二)[\"'\\]{0,3}\s{0,3}(?:$|[,}\]<.;)|])",
    re.MULTILINE,
)
_LOOSE_WORDS = [
    "answer",
    "choice",
    "decision",
    "judgment",
    "judgement",
    "selected",
    "conclusion",
    "result",
    "pick",
    "选择",
    "结论",
]
_NOTHING_ELSE = re.compile(
    r"\W{0,20}(?:the )?(?:answer |回答|第)?(?P<who>1|2|one|two|first|second|一|二)(?: answer| one|个)?\W{0,20}"
)
_NUMBER = re.compile(r"\b(?:first|second|one|two|ii|[ab])\b|[12一二]")

# "Answer 2 is more complete, but ...": what is granted is a part of the comparison, and no preference.
_GRANTS = re.compile(
    r"\b(?:but|however|yet|although|though|while|whereas|despite|nevertheless|even if)\b|虽然|尽管|但|然而"
)
_GRANTED = re.compile(rf"{_IS}{_VERY} (?:clearer|more \w+)")
# "Some would prefer Answer 2", "it is not true that Answer 2 is better": another's opinion, or none
_NOT_ITS_OWN = re.compile(
    r"\b(?:some|others|many|one|you|readers|users|people)(?: people| readers| users)? (?:would|might|may|could)\b"
    r"|\b(?:not|n't) (?:true|the case|clear|obvious|say|claim|think|believe) (?:that|whether|if)\b|\bfalse that\b"
)
_SENTENCE_END = re.compile(r"[.!?;\n。！？；]")

_FORM = re.compile(r"\s*(?:```\w*\s*)?(?:[\"']?(?:\{|\[\s*[\"'{])|<\w+>)")
_FORM_LINE = re.compile(
    r"^[ \t\"'<|-]{0,10}(?:better[ _]?answer|更好的回答)[\"'>]{0,2} ?[:=>：|]", re.MULTILINE
)
_REFUSAL = re.compile(
    r"\W{0,10}(?:"
    r"(?:i'?m|i am) (?:very |so |really )?sorry\b(?!.{0,40}\bfor\b)|sorry,? (?:but )?i(?:'m| am| can(?:not|'t)?| could|'d| won't| will| must| do)\b|i apologi[sz]e\b"
    r"|(?:unfortunately,? )?(?:but )?(?:i'?m |i am |i )(?:can ?not|can't|unable to|not able to|won't|"
    r"will not|must decline|do not|don't|not going to) (?:be able )?(?:to )?(?:help|assist|comply|fulfil|answer|"
    r"do (?:that|this|so)|provide|judge|decide|determine|compare|evaluate|say|tell|choose|rate|translate|"
    r"agree|engage|continue|process|have enough)(?! (?:evidence )?(?:that )?(?:answer|response) [12])"
    r"|as an? (?:ai\b|(?:large )?language model)|i disagree|i have no opinion"
    r"|neither (?:answer|of (?:them|the)|one|response)(?!.{0,60}\bbut (?:answer|response) [12])"
    r"|(?:非常|很|真的)?(?:抱歉|对不起)|(?:我)?无法|我?不能(?:回答|判断|提供|翻译)|我(?:没有办法|不同意)"
    r"|作为(?:一个|一名)?(?:ai|人工智能|语言模型))"
)


_LOOKED_AT = 50_000  # characters at either end: no judge writes more


@dataclass(frozen=True)
class _Pattern:
    words: tuple[str, ...]
    """One of them is in each text that the pattern finds: a search for a word is a hundred times as
    fast as one for a pattern."""
    names_answers: bool
    """Whether one of _NAMES is, too."""
    pattern: re.Pattern[str]


def _compiled(patterns: list[tuple[str, str]]) -> list[_Pattern]:
    return [
        _Pattern(
            tuple(words.split()),
            _PLACED in pattern or _ZH_WHO in pattern,
            re.compile(pattern, re.MULTILINE),
        )
        for words, pattern in patterns
    ]


_FOR, _AGAINST = _compiled(_WORDS), _compiled(_WORDS_AGAINST)


def _has_one(text: str, words: Iterable[str]) -> bool:
    is_ascii = text.isascii()
    return any(word in text for word in words if not is_ascii or word.isascii())


def opinions(text: str, *, loosely: bool = False) -> set[int]:
    """The answers, 1 and 2, that the text calls better than the other, anywhere in it. loosely: also
    where `answer: 2` stands, which may be what the question asked for."""
    if len(text) > 2 * _LOOKED_AT:
        text = f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    text = _plain(text)
    names_answers = _has_one(text, _NAMES)
    found = {_number(match) for match in _matches(_FOR, text, names_answers)}
    found |= {3 - _number(match) for match in _matches(_AGAINST, text, names_answers)}
    if loosely and _has_one(text, _LOOSE_WORDS):
        found |= {_number(match) for match in _LOOSE.finditer(text)}
    alone = _NOTHING_ELSE.fullmatch(text) if len(text) < 60 else None
    return found | {_number(alone)} if alone else found


def _matches(patterns: list[_Pattern], text: str, names_answers: bool) -> Iterator[re.Match[str]]:
    for one in patterns:
        if (names_answers or not one.names_answers) and _has_one(text, one.words):
            yield from (match for match in one.pattern.finditer(text) if _is_meant(match, text))


def _is_meant(match: re.Match[str], text: str) -> bool:
    """Whether the sentence around it says so itself, and grants nothing by it."""
    ends = [
        end.start()
        for end in _SENTENCE_END.finditer(text, max(0, match.start() - 400), match.start())
    ]
    begin = ends[-1] + 1 if ends else max(0, match.start() - 400)
    stop = _SENTENCE_END.search(text, match.end())
    sentence = text[begin : stop.start() if stop else match.end() + 400]
    if _NOT_ITS_OWN.search(text[begin : match.start("who")]):
        return False
    return not (_GRANTED.search(match[0]) and _GRANTS.search(sentence))


def _number(match: re.Match[str]) -> int:
    return _NUMBERS[_NUMBER.findall(match["who"])[0]]  # of "the second one" the second


def _plain(text: str) -> str:
    """The text in small letters, its signs plain ones, without what only shows how it looks."""
    return html.unescape(text).translate(_SIGNS).lower()


def is_form(text: str) -> bool:
    """Whether the text begins as an object, a list or a tag: no plain words, also where nobody can
    read it."""
    text = html.unescape(text).lower()
    # the second is tried at every line: most texts are told by a word that they lack
    has_key = _has_one(text, ("better", "更好的回答"))
    return bool(_FORM.match(text) or (has_key and _FORM_LINE.search(text)))


def is_refusal(text: str) -> bool:
    """Whether the text begins as one that does not do what was asked."""
    return bool(_REFUSAL.match(_plain(text[:200])))
