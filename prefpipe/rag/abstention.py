"""Whether an answer begins by saying that it does not know, or that the context does not say.

Models say so in many words, so the ways are patterns and not a list of sentences. An answer that only
names what a context lacks further on ("Call sorted. The context does not name others.") is none.
"""

import re
from collections.abc import Sequence

_CONTEXT = (
    "(contexts?|documents?|passages?|texts?|excerpts?|information|content|snippets?|sources?|"
    "documentation)"
)
_NOT = "( not|n't|nt)( really| actually| explicitly| directly| clearly)?"
_SAYS = (
    "(say|mention|contain|provide|explain|include|specify|state|describe|give|answer|tell|address|cover|"
    "discuss|indicate|show|offer|clarify|define|list|name|have|refer|make|seem|appear|help|detail|note|know)"
)
_ENDS = r"( (in|about|on|for|by|here)\b|[.,;!]|$)"
_CONTEXT_ZH = "(上下文|文档|资料|内容|信息|文本|段落)"

# What may stand before it; all patterns are of texts in lower case, with single spaces.
_OPENING = re.compile(
    rf"""((i'm |i am )?(sorry|afraid)( that)?|unfortunately|but|well|however|answer(?=:)|you're right"""
    r"""|as an? (ai|assistant|(large )?language)[\w ]{0,30}(?=[,.:])"""
    rf"""|(based on|according to|from|in|given) (the|this|that) (\w+ )?{_CONTEXT}( provided| given)?"""
    rf"""|抱歉|对不起|很遗憾|不好意思|但是?|(根据|基于|从|在).{{0,8}}?{_CONTEXT_ZH}中?"""
    r""")(\b|(?<=[\u3400-\u9fff]))[,.:; ，。：]*"""
)
_ABSTENTION = re.compile(
    "|".join(
        [
            rf"(i|we) do{_NOT} (know\b|have (enough|any|the|access|sufficient)\b|(see|find) (any|it|that|this|the))",
            r"you don'?t (know( how to\b|[.,!]|$)|have (an answer|(the|enough) (\w+ )?(context|information))\b)",
            r"(i|we)( am|'m| are|'re| was) (not (sure|certain|able|familiar)|unable|unsure)\b",
            rf"(i|we) (can( ?not|'?t)|could{_NOT}) "
            r"(answer|say|tell|determine|find|provide|see|give|infer|locate|identify|know)\b",
            # the context does not say, and there is nothing of it
            rf"(the|this|that|your) (\w+ )?{_CONTEXT}( provided| given| above| here)? "
            rf"((do|does|did){_NOT} {_SAYS}\b|lacks?\b|has no\b|contains? no\b|(is|are) (insufficient|not (enough|sufficient|equipped|able)))",
            rf"there (is|are|was)( no|{_NOT} (any|enough|sufficient)) (\w+ ){{0,2}}"
            r"(information|mention|details?|answer|context|data|evidence|reference)\b",
            r"no (\w+ )?(information|mention|details?|answer) (\w+ ){0,3}"
            r"((is|was|are) )?(in|about|on|found|provided|given|available|stated|mentioned)\b",
            rf"(it|this|that|the answer) (is|was){_NOT} (\w+ )?"
            r"(mentioned|stated|specified|said|clear|given|provided|described|explained"
            r"|possible to (answer|say|tell|determine))\b",
            r"(not (enough|sufficient)|insufficient) (information|context|details?|data)\b",
            rf"not (mentioned|specified|stated|given|provided|found|answerable|available){_ENDS}",
            # other languages
            r"no (lo )?s[eé]\b|no tengo (suficiente|informaci)|je ne sais pas\b",
            r"ich weiss (es |das )?nicht\b|(eu )?n[ãa]o (o )?sei\b|non (lo )?so\b",
            r"(я )?не знаю\b|ik weet (het )?niet\b|わかりません|分かりません|모르겠",
            r"我?们?(不(知道|清楚|确定(?!性)|太清楚)|无法(回答|确定|得知|判断|提供|找到)|没有.{0,6}(信息|内容|足够))",
            rf".{{0,6}}?{_CONTEXT_ZH}.{{0,6}}?"
            r"((没有?|未|并未)(明确|直接)?(提|说|给|包含|涉|回答|解释|介绍|描述|指出)|没有(任何|足够|相关|关于|答案|信息)"
            r"|不包含|不足)",
        ]
    )
)


def is_abstention(text: str, phrases: Sequence[str] = ()) -> bool:
    """Whether it is one; case and apostrophes do not matter. phrases: further ways to begin."""
    plain = _plain(text)
    at = 0
    while opening := _OPENING.match(plain, at):
        at = opening.end()
    known = _ABSTENTION.match(plain, at) is not None
    return known or any(plain.startswith(_plain(phrase), at) for phrase in phrases)


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split()).lstrip("\"'*-_. ")
