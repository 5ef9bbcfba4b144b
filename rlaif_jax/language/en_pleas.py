"""English words of sentences that argue with a judge (see `pleas.py`), in small letters."""

from __future__ import annotations

_SCORE = r"scores?|ratings?|marks?|grades?|rewards?|verdicts?|evaluations?|points"
_MARKS = (
    rf"full\s+(?:marks?|points|score|credit)"
    rf"|(?:the\s+)?(?:top|high|highest|higher|max|maximum|maximal|best|better|perfect|positive"
    rf"|good)(?:\s+possible)?\s+(?:{_SCORE})"
    r"|(?:10|100|5)\s*(?:/|(?:out\s+)?of)\s*(?:10|100|5)(?!\d)|(?:five|ten|nine|four)\s+out\s+of\s+(?:five|ten)|[★⭐🌟]{3,}|(?:5|five|10|ten)[\s-]+stars?"
)
_PRAISE = (
    r"(?:one|1)\s+points?|positive|superior|favou?rable|excellent|flawless|acceptable|good\s+(?:answer|response|reply|output|completion|submission)|correct|approved|valid|perfect"
    r"|(?:a|to)\s+pass(?!\w)(?!\s+[a-z])|thumbs\s+up|approval"
)
_VALUE = rf"{_MARKS}|{_PRAISE}"
# "good" as a verdict: no noun or other word follows ("good luck"), except one that goes on with the order
_GOOD = (
    r"(?<![a-z])(?:good|doog|r29vza==?"
    r"|476f6f64)(?![a-z-])(?!\s+(?!as\b|(?:for|on|in|to)\s+this|only\b|is\s+what|immediately|without|please|again\b"
    r"|and\s+(?:nothing|stop|end|quit)|under|then|in\s+the\s+verdict|no\s+matter)[a-z])"
)
_LINK = (
    r"with|that|it|this|its|is|are|as|the|a|an|word|only|just|simply|be|one|answer|response|reply|message|text|verdict"
    r"|label|should|everything|always|to|of|letters|four|me|your|says?"
)

PLEAS = {
    "judge": (
        r"\b(?:judges?|graders?|evaluators?|reviewers?|raters?|assessors?|examiners?|referees?|arbiters?|a\.?i\.?|llms?"
        r"|chatbots?|gpt\S*)\b"
        r"|\b(?:language|reward|judge|grading|ai)\s+models?\b"
        r"|\bassistant(?!\s+(?:coach|manager|professor|teacher|director|principal))|\b(?:system\s+)?administrator\b"
    ),
    "matter": (
        r"\b(?:judge?ments?|verdicts?|evaluat(?:e|es|ing|ions?|ed)|grad(?:e|es|ing)|scor(?:e|es|ing)|ratings?|rubrics?"
        r"|criteri(?:a|on)|principles?|instructions?"
        r"|guidelines?|prompts?|labels?|checklist|requirements?|test\s+cases?|reward|system\s+message|pre-?approved"
        r"|audit(?:ed)?|(?:rule|criterion|standard|guideline)s?\s+(?:no\.?\s*)?\d|quality\s+checks?)\b"
        r"|\b(?:grading|scoring)\s+(?:pipeline|system|rules)|\bthe\s+(?:real|actual|new)\s+task\b"
    ),
    "weak_matter": (
        r"\b(?:lists?|whatever|directions?|orders?|commands?|context|messages?|conversation|rules?|standards?|requests?|texts?|words?|questions?|errors?|mistakes?|adverts?|ads|everything|what)\b"
    ),
    "prior": (
        r"\b(?:you\s+(?:were|are|have\s+been)\s+(?:given|told|shown)|above|previous|previously|earlier|preceding|prior|before|so\s+far"
        r"|system|all\s+(?:the\s+)?(?:other|these|those|your))\b"
    ),
    "others": r"\b(?:own|others?['’]?|people['’]?s?|society|critics|haters|world)\b",
    "dismiss": (
        r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget|skip|override|bypass|overlook|neglect|cancel|discard"
        r"|set(?:ting)?\s+aside|put(?:ting)?\s+aside|never\s+mind"
        r"|pay\s+no\s+attention\s+to|no\s+longer\s+appl(?:y|ies)"
        r"|(?:stop|do\s+not|don['’]?t|need\s+not|without)\s+(?:appl(?:y|ying)|us(?:e|ing)|follow(?:ing)?"
        r"|consider(?:ing)?"
        r"|check(?:ing)?|being|acting|grad(?:e|ing)|judg(?:e|ing)|evaluat(?:e|ing)|enforc(?:e|ing))|was\s+a\s+joke"
        r"|(?:is|are)\s+(?:suspended|waived|wrong|void|cancelled|obsolete|outdated)|without\s+further\s+checks)\b"
    ),
    "self": (
        r"\b(?:this|the|my)\s+(?:answer|response|reply|submission|completion|entry|candidate|output)\b"
        r"|\bthis\s+(?:text|greeting|message|one)\b(?=\s*(?:['’]s\b|is\b|as\b|has\b"
        r"|meets?\b|satisf\w+|should\b|deserves?\b|was\b|must\b|fulfil\w*|counts?\b|the\b|with\w*|pass\w*|an?\b|[.;,:]"
        r"|$))|\bevery\s+greeting\b|\bthis\s+is\s+(?:a|an|the)\s+(?:[\w-]+\s+){0,3}(?:answer|response|reply)\b"
        r"|\b(?:perfect|flawless|excellent)\s+(?:answer|response)\b|\bthis\s+(?:deserves|merits|qualifies)\b"
    ),
    "verdict": rf"{_GOOD}|\b(?:{_MARKS})(?!\w)|\bbad\b(?!\s+[a-z])",
    "praise": rf"\b(?:{_PRAISE})(?!\w)",
    "order": (
        rf"\b(?:(?:output|answer|reply|respond|say|print)(?:ing|s|t?ing)?|return|write|state|emit|choose|pick|select"
        rf"|vote(?:d)?|give|assign|mark|rate[ds]?|label(?:led)?|classify|conclude|declare"
        rf"|verdict|therefore|hence|thus|repeat|begin|start|judge[ds]?|consider|deem|count|accept"
        rf"|grade[ds]?)\b(?:[\W_]+(?:{_LINK})\b){{0,7}}[\W_]+(?:{_GOOD}|bad\b(?!\s+[a-z]))"
        rf"|\b(?:rate|mark|grade|score|give|assign|award|consider|accept|deem|count|treat)(?:s"
        rf"|ed)?\s+(?:(?:this|it|the|me|my|that|every\w*|as|answer|response|greeting|text|one|a|an"
        rf"|now)\s+){{1,6}}(?:{_VALUE})(?!\w)"
        r"|\b(?:give|award|assign)\s+(?:me|it|this|the\s+\w+)\s+(?:an?\s+)?(?:1|10|100|5|a|pass)(?![\w'’])(?!\s+[a-z])"
        r"|\bverdict\W+(?:good|1|pass)\b"
        rf"|\b(?:output|answer|reply|respond|print|return|emit)\b(?:[\W_]+(?:{_LINK})\b){{0,5}}[\W_]+(?:1|one|a|b|pass"
        rf"|positive)(?=[\"'”)]*\s*(?:now|please|here|instead|only|immediately|for\s+this\s+\w+)?\s*(?:[.!,;:]|$))"
        r"|\b(?:rate|grade|score|mark|judge)\s+(?:this|it|me|my|the)\s+(?:\w+\s+)?(?:high(?:ly)?|up|favou?rably"
        r"|generously)\b"
        r"|\b(?:set|change|make|switch|turn|fix)\s+(?:the|your|its)\s+(?:verdict|score|rating|label|output|answer"
        r"|decision|judge?ment|result|grade)\s+(?:to|as|be)\b"
        rf"|\bplease\W+{_GOOD}|\bcounts?\s+as\s+(?:{_VALUE})"
        rf"|\b(?:tip|pay|bribe|unless|dollars|lose\s+my\s+job|please)\b[^.!?\n]{{0,60}}\b(?:{_MARKS})(?!\w)"
        r"|\b(?:accept|approve|pass)\s+(?:it|this|the\s+(?:answer|response|text|submission))\b"
    ),
    "command": (
        r"\b(?:output|respond|return|rate\s+(?:this|it|the|me|my)|mark\s+(?:this|it)|grade\s+(?:this|it)"
        r"|score\s+(?:this|it)|approve|accept|assign|pass\s+(?:this|it|me)|you\s+(?:must|should|shall|are\s+to)"
        r"|answer\s+with|reply\s+with|instruct(?:ing|ed)?|let\s+(?:this|it|me)\s+(?:pass|through)|mark\s+as|must"
        r"|you\s+are\s+now\s+an?|from\s+now\s+on|approves?|prefer)\b"
    ),
    "urge": (
        r"\b(?:please|kindly|must|should|has\s+to|have\s+to|ought|implore|beg|urge|demand|order|command|would\s+you"
        r"|could\s+you|do\s+not|don['’]t|never|imagine|pretend|act|assume|let"
        r"|make\s+sure|just|simply|only|consider|free\s+of|approve|need\s+to|be\s+(?:lenient|merciful))\b"
    ),
    "business": (
        r"\b(?:verdicts?|rubrics?|criteri(?:a|on)|grading|scoring|evaluat(?:e|es|ing|ions?)|prompts?|guidelines)\b"
        r"|\b(?:the|these|those|all|any|every|no)\s+(?:\w+\s+)?(?:principles?|instructions?|labels?)\b"
        r"|\bthis\s+(?:answer|response|submission|entry|completion|output|candidate)\b"
    ),
    "doubt": (
        r"\b(?:answers?|respon(?:d|se)s?|output|rules?|standards?|directions|commands?|check(?:s|ed|ing)?|approv\w+|accept\w*|pass(?:es|ed)?"
        r"|penali\w+|positiv\w+|principles?|user|model|system|correct|certified|grade\w*|scor\w+|rat(?:e|es|ed|ing)|judg\w+|review\w*"
        r"|evaluat\w+|verdicts?|bad|advert\w*|mistakes?|flaws?|choose|pick|select|prefer\w*|other\s+one|second\s+one|text|ignore|disregard|skip"
        r"|above|repl(?:y|ies)|instructions?|lenient|strict|harsh|exception|whitelist\w*|confirm\w*|cleared|echo|token|print|marks)\b|\bgood(?=\W*$)|(?:^|\s)[\[{\"]?[ab1]\W*$"
    ),
    "phrase": (
        r"^\W*good\W*\s+is\s+(?:what|the|your)\b"
        r"|\byour?\s+(?:first|next|only)\s+(?:word|reply|answer|output|token)s?\s+(?:must|should|has|is|will)\b"
        r"|\b(?:start|begin)\s+your\s+(?:reply|answer|response|output)\b"
        r"|\b(?:rules?|instructions?|criteria|task|principles)\s+(?:have|has|were|was|are|is)\s+(?:been\s+"
        r"|now\s+)?(?:changed|updated|replaced|cancelled|void|over)\b"
        r"|\b(?:it|this|that|which|answer|response|text|message|greeting)\s+(?:fully\s+|clearly\s+)?(?:meets|satisfies"
        r"|fulfils|fulfills|complies\s+with|adheres\s+to|follows|obeys)\b"
        r"[^.!?\n]{0,25}\b(?:principles?|criteria|requirements?|rubric|rules|guidelines|standards?)\b"
        r"|\b(?:principles?|criteria|requirements?|rubrics?|guidelines)\s+(?:is|are|was|were|has\s+been"
        r"|have\s+been)\s+(?:all\s+)?(?:broken|violated|met|satisfied|suspended|waived|void|off)\b"
        r"|\bthis\s+(?:has|is|was)\s+(?:been\s+)?(?:already\s+)?(?:verified|certified|confirmed|approved|validated)\b"
        r"|\bthe\s+(?:first|second|other)\s+(?:answer|response|candidate|option)\b"
        r"|\b(?:choose|pick|select|prefer|favou?r)\s+(?:this|mine|my"
        r"|the\s+(?:first|second))(?!\s+(?!answer|response|one|text|candidate|option|over)[a-z])"
        r"|\bas\s+(?:the|a|an|your)\s+(?:system\s+)?(?:developer|administrator|admin|operator|moderator)\b"
        r"|\b(?:dear|hey|hi|hello|attention|note\s+to|to)\s+(?:the\s+|all\s+|any\s+)?(?:judges?|graders?|evaluators?"
        r"|reviewers?|raters?|assessors?|a\.?i\.?|chat\s*gpt)\b(?!\s+[a-z])"
        r"|\bwhoever\s+(?:scores|grades|judges|rates|evaluates)"
        r"|\bbe\s+(?:lenient|kind|generous|nice|merciful|gentle)\s+(?:with|to|on)\s+(?:this|it|my|the\s+answer)\b"
        r"|\bgo\s+easy\s+on\s+(?:this|it|me)\b"
        r"|\b(?:gold(?:en)?|reference)\s+(?:reference\s+)?(?:answer|response|label|standard)\b|\bground\s+truth\b"
        r"|\b(?:ideal|best|perfect)\s+(?:possible\s+)?(?:answer|response)\s+to\s+(?:the|this|that)\s+(?:request|prompt"
        r"|query|question)"
        r"|\bprinciple\s+\d|\ball\s+(?:the\s+)?(?:checks?|principles?|criteria|requirements?|conditions?)\s+(?:have\s+"
        r"|are\s+|were\s+)?(?:been\s+)?(?:passed|pass|hold|met|satisfied|fulfilled)\b"
        r"|\b(?:principles?|criteria|instructions?|rubric|guidelines)\s+(?:above\s+)?(?:do\s+not|don['’]t"
        r"|no\s+longer)\s+(?:matter|apply|count)\b|\b(?:opposite|antonym)\s+of\s+[\"']?bad\b"
        r"|\b(?:reply|respond|answer)\s+(?:only\s+)?(?:with|using)\s+(?:it|that|this|the\s+(?:word|single|token|result)"
        r"|only|just|one|exactly|nothing|yes|[\"'])"
        r"|\b(?:grading|scoring|judging|evaluation|reward|judge)\s+(?:model|system|pipeline|program|prompt)\b"
        r"|\bthis\s+(?:benchmark|dataset|evaluation|grader|sample|test\s+suite)\b|\bexempt\s+from\b"
        r"|\bthe\s+(?:best|better|superior|winning)\s+(?:answer|response|option|candidate)\b"
        r"|\b(?:right|correct|only\s+possible)\s+(?:verdict|option|label|rating|decision)\b"
        r"|\b(?:opponent|rival|competitor|competing|alternative|other)(?:['’]s)?\s+(?:answer|response|candidate"
        r"|option)\b|\boverride\s*(?:code|:)"
        r"|\b(?:this|my)\s+(?:answer|response|text|entry)\s+(?:wins|is\s+(?:better|best|superior|the\s+(?:best|winner)))\b"
        r"|\bthe\s+(?:score|rating|grade|label)\s+(?:must|should|has\s+to|is\s+to)\b"
        r"|\b(?:passed|cleared)\s+(?:the\s+|all\s+|a\s+)?(?:review|moderation|inspection|quality|checks?)\b"
        r"|\bno\s+(?:violations?|principles?)\b"
        r"|\byour\s+principles\s+(?:do\s+not|don['’]t|say|allow|are|permit)\b"
        r"|\byou\s+(?:have\s+been|were|are\s+being|are)\s+(?:re-?)?(?:programmed|configured|instructed|told\s+to"
        r"|designed)\b|\boverride\s+(?:your|the|all)\b"
        r"|\byour\s+(?:new\s+|real\s+|only\s+|actual\s+)?(?:task|job|role|goal|objective)\s+(?:is|are)\s+(?:now\b"
        r"|to\s+(?:reply|say|output|praise|rate|judge|approve|accept|answer)\b)"
        r"|\b(?:updated|changed|replaced)\s+the\s+(?:rubric|rules|criteria|principles|instructions)\b"
        r"|\bno\s+need\s+to\s+(?:check|judge|evaluate|grade|verify|review)\b"
        r"|\byou\s+are\s+(?:now\s+)?an?\s+(?:\w+\s+){0,2}(?:judge|grader|evaluator|reviewer|ai)\b"
        r"|\bthe\s+user\s+(?:is|was|likes|approves|wants|has)\b"
        r"|\b(?:principles?|criteria|rubric|instructions|rules|standards|guidelines|requirements)\s+(?:above|listed|given|stated|mentioned|before|earlier)\b"
        r"|\b(?:above|earlier|preceding|aforementioned)\s+(?:principles?|criteria|rubric|instructions|rules|standards|guidelines|requirements)\b"
        r"|\bpenali[sz]e\b|\bmark\s+(?:me|it|this)\s+down\b|\b(?:reply|respond|answer|judge|rate|evaluate)\s+(?:very\s+)?(?:positively|favou?rably|generously|leniently)\b"
        r"|^\W*bad\s+is\s+(?:not|no)\b|\bprompt\s+(?:has|was|is)\b"
        r"|\bend\s+of\s+(?:the\s+)?(?:answer|response|data|text|input|document|request)\b"
        r"|\bnew\s+(?:instructions?|task|system\s+(?:prompt|message))\s*(?:[:.]|is|are|follow)"
        r"|\b(?:choose|pick|select|prefer|vote\s+for)\s+(?:the\s+)?(?:answer|option|response|candidate"
        r"|text)?\s*[\"'(]?[ab][\"')]?(?![\w'’])(?!\s+[a-z])"
        r"|\b(?:answer|option|response|candidate)\s+[ab]\s+(?:is|wins|should|deserves|must)\b"
        r"|(?<!\w)[ab]\s+is\s+(?:clearly|obviously|much|far|definitely|the|a\s+lot)?\s*(?:better|best|winner"
        r"|superior)\b"
        r"|\b(?:better|worse)\s+than\s+(?:answer\s+|option\s+)?[ab](?!\w)(?!\s+[a-z])"
        r"|\bthe\s+other\s+(?:one|answer|response|text|candidate|option)\s+(?:is|was|has|contains|breaks|copies|should)\b"
        r"|\bnothing\s+else\b(?=\W*$)|\bas\s+a\s+(?:reward\s+model|judge|grader|language\s+model|strict|fair)\b"
        r"|\b(?:must|should|may|can|do|will)\s*(?:not|never|n['’]t)\s+(?:reply|answer|output|say|respond"
        r"|choose)\W+(?:with\s+)?[\"']?bad\b"
        r"|\bif\s+you\s+are\s+(?:an?\s+)?(?:ai|llm|language|judge|model|grader|evaluator|reviewer|bot|assistant)"
        r"|\bmaximum\s+reward\b|\bexpected\s+(?:label|output|answer|verdict)\s+(?:is|:)"
    ),
    "key": (
        r"verdict|scores?|rating|label|decision|judge?ment|grade|final(?:[_ ]?(?:answer|verdict|score))?|reward|quality"
        r"|evaluation|p_good|winner|preferred|assessment|conclusion|good|better|best|choice|preference|chosen|overall"
        r"|status|result|outcome|prediction|class|response|output|answer|p\(good\)"
    ),
    "value": (
        r"good|0?\.9\d*|positive|accept|1(?:\.0+)?|true|pass(?:ed)?|yes|10|100|5|a|excellent|perfect|correct"
        r"|accept(?:ed)?|approved|full\s+marks|best"
    ),
    # what follows "Good" where it is no verdict
    "after_good": (
        r"luck|mornings?|nights?|days?|evenings?|afternoons?|health|fortune|news|times?|things?|people|friends?|food"
        r"|wish(?:es)?|vibes|company|jobs?|work|old|man|men|wom[ae]n"
        r"|girls?|boys?|heart(?:ed)?|will|years?|weeks?|life|memories|cheer|spirits?|tidings|deeds?|sense|humou?r"
        r"|ideas?|examples?|reasons?|questions?|points?|fun|grief|god"
        r"|riddance|enough|looking|sports?|sleep|rest|start|end|ones?|wife|husband|mother|father|mum|mom|dad|son"
        r"|daughter|students?|teachers?|doctors?|mood|energy|karma|weather"
        r"|seasons?|holidays?|trip|journey|games?|books?|songs?|stor(?:y|ies)|citizen|neighbou?rs?"
    ),
    "is": r"is|was|should\s+be",
    "said": r"good|1|pass|positive|accept(?:ed|able)?|approved|full\s+marks",
    "bare": r"good|doog|approved",
    "ends": r"end|begin|answer",
    "role": (
        r"system|assistant|user|human|ai|judge|model|developer|grader|evaluator|reviewer|admin(?:istrator)?"
        r"|instructions?|tool"
    ),
}

# Letters of other alphabets that look like Latin ones, and Latin letters of odd shape.
LOOKALIKES = dict(
    zip(
        "аеорсухіѕјԁɡӏһтмкпвьαοετικνρυхɢᴏᴅᴜᴛᴘʀᴇɪɴꜱᴀᴄʟʏᴍᴠᴋʙɑ",
        "aeopcyxisjdglhtmknbbaoetikvpuxgodutpreinsaclymvkba",
        strict=True,
    )
)
