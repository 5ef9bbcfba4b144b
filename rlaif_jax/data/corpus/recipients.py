"""The recipients, how they are addressed, and the phrases of each group of recipients, tone and sensitive topic."""

from __future__ import annotations

import dataclasses

from rlaif_jax.data.corpus.occasions import OCCASIONS

# recipient -> (group, how a greeting addresses them)
RECIPIENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "爷爷": ("elder", ("亲爱的爷爷", "敬爱的爷爷")),
    "奶奶": ("elder", ("亲爱的奶奶", "敬爱的奶奶")),
    "外公": ("elder", ("亲爱的外公", "敬爱的外公")),
    "外婆": ("elder", ("亲爱的外婆", "敬爱的外婆")),
    "妈妈": ("parent", ("亲爱的妈妈", "妈妈")),
    "爸爸": ("parent", ("亲爱的爸爸", "爸爸")),
    "老师": ("teacher", ("敬爱的老师", "尊敬的老师")),
    "领导": ("leader", ("尊敬的领导", "敬爱的领导")),
    "老板": ("leader", ("尊敬的老板", "敬爱的老板")),
    "客户": ("client", ("尊敬的客户", "尊贵的客户")),
    "邻居": ("neighbour", ("亲爱的邻居", "好邻居")),
    "同事": ("colleague", ("亲爱的同事", "好同事")),
    "闺蜜": ("friend", ("亲爱的闺蜜", "好闺蜜")),
    "兄弟": ("friend", ("亲爱的兄弟", "好兄弟")),
    "朋友": ("friend", ("亲爱的朋友", "老朋友")),
    "同学": ("friend", ("亲爱的同学", "老同学")),
    "女友": ("lover", ("亲爱的女友", "我的姑娘")),
    "男友": ("lover", ("亲爱的男友", "我的男孩")),
    "妻子": ("lover", ("亲爱的妻子", "老婆")),
    "丈夫": ("lover", ("亲爱的丈夫", "老公")),
    "女儿": ("child", ("亲爱的女儿", "宝贝女儿")),
    "儿子": ("child", ("亲爱的儿子", "宝贝儿子")),
    "弟弟": ("sibling", ("亲爱的弟弟", "好弟弟")),
    "妹妹": ("sibling", ("亲爱的妹妹", "好妹妹")),
}

GROUP_WISHES: dict[str, tuple[str, ...]] = {
    "elder": ("愿{你}福寿绵长笑口常开", "愿{你}腰板硬朗步履轻快", "愿{你}儿孙绕膝乐享清闲", "愿{你}松鹤延年精神好",
              "愿{你}耳聪目明胃口好"),
    "parent": ("愿{你}少些操劳多些欢笑", "愿{你}鬓边白发来得慢些", "愿{你}被岁月温柔以待", "换我来做{你}的依靠",
               "愿{你}以我为傲事事舒心"),
    "teacher": ("愿{你}桃李满园芬芳如故", "愿{你}讲台之上神采飞扬", "谢{你}为我点亮一盏灯", "愿{你}的教诲开出繁花",
                "愿{你}门下人才辈出"),
    "leader": ("愿{你}运筹帷幄宏图大展", "愿{你}带队前行再攀高峰", "谢{你}一路提携与信任", "愿{你}决策从容步步领先",
               "愿{你}麾下人人争先"),
    "client": ("谢{你}长久以来的信赖", "愿{你}与我们携手共赢", "愿{你}商路宽广订单如潮", "盼与{你}再续合作佳话",
               "愿{你}与我们越走越近"),
    "neighbour": ("谢{你}平日里的照应", "愿{你}家门和睦灯火可亲", "愿我们守望相助常来常往", "愿{你}推窗见暖开门迎喜",
                  "愿{你}与左邻右舍常欢聚"),
    "colleague": ("愿{你}方案顺利不再加班", "愿{你}咖啡常热灵感常来", "谢{你}与我并肩赶过的夜",
                  "愿{你}会议变短下班变早", "愿{你}的表格从不出错"),
    "friend": ("愿我们的情谊越久越香", "愿{你}有书有诗有远方", "愿{你}永远少年气十足", "愿{你}想我时我就在身边",
               "愿{你}和我一起疯到老"),
    "lover": ("愿与{你}共赴每个黄昏", "余生的路牵着{你}慢慢走", "{你}是我心底最软的月光", "愿{你}的梦里都有我",
              "愿{你}永远赖在我怀里"),
    "child": ("愿{你}像小树一样向上长", "愿{你}勇敢追自己的风筝", "爸妈永远做{你}的后盾", "愿{你}眼里总有星星",
              "愿{你}在爸妈怀里撒娇到老"),
    "sibling": ("有事就找我给{你}撑腰", "愿{你}闯出自己的天地", "小时候的糖还给{你}留着", "愿{你}跑得快也走得稳",
                "愿{你}还像小时候跟着我跑"),
}  # fmt: skip

GROUP_FOURS: dict[str, tuple[str, ...]] = {
    "elder": ("福寿安康", "松鹤延年", "老当益壮", "儿孙满堂"),
    "parent": ("椿萱并茂", "笑口常开", "岁月温柔", "舐犊情深"),
    "teacher": ("桃李芬芳", "师恩如海", "春风化雨", "门墙桃李"),
    "leader": ("宏图大展", "步步领先", "再攀高峰", "运筹帷幄"),
    "client": ("合作共赢", "商路宽广", "信赖长存", "携手同进"),
    "neighbour": ("守望相助", "家门和睦", "邻里情深", "常来常往"),
    "colleague": ("并肩同行", "业绩长虹", "灵感常来", "同舟共济"),
    "friend": ("情谊长青", "少年如初", "肝胆相照", "知己难得"),
    "lover": ("执手同行", "情深意浓", "此生有你", "朝暮相伴"),
    "child": ("茁壮成长", "勇敢追梦", "天天向上", "活泼可爱"),
    "sibling": ("手足情深", "闯出天地", "一路同心", "血浓于水"),
}

# "" = no tone requested; 敬语 and 亲切 determine the pronoun; 幽默 and 文艺 require a clause of that kind
TONES = ("", "敬语", "亲切", "幽默", "文艺")
CLOSINGS: dict[str, tuple[str, ...]] = {
    "温馨": ("这份牵挂一直都在", "隔着山水也送来暖意", "想把最好的都给{你}", "这份心意请{你}收好", "惦记从没断过"),
    "敬语": ("谨致诚挚的祝福", "特此向{你}致意", "谨以此言聊表心意", "恭祝{你}诸事安好"),
    "文艺": ("清风为笺寄我心意", "把祝福写进一行云里", "月色替我轻轻叩门", "字句短而情意长", "山长水远心意不远"),
    "幽默": ("再不笑我就上门挠痒痒", "请签收这份快乐快递", "本祝福概不退换", "笑一个算{你}赢", "快乐余额已经充满"),
}
FIXED_FORMAL = frozenset({"leader", "client"})
FIXED_FAMILIAR = frozenset({"lover", "child", "sibling"})
FORMAL_BY_DEFAULT = FIXED_FORMAL | {"elder", "teacher", "parent"}


@dataclasses.dataclass(frozen=True)
class Topic:
    """Clauses about a sensitive topic, which please some recipients and hurt others.

    Attributes:
      clauses: for any occasion except those in `never`.
      groups: groups of recipients that they suit.
      never: occasions that they do not suit.
      relation: the word in a request that forbids the topic.
      told_of: groups whose requests may contain that word.
      clash: occasions that the word does not fit.
    """

    clauses: tuple[str, ...]
    groups: frozenset[str]
    never: frozenset[str]
    relation: str
    told_of: frozenset[str]
    clash: frozenset[str]


def _topic(clauses: str, groups: str, never: str, relation: str, told_of: str, clash: str = "") -> Topic:
    return Topic(
        tuple(clauses.split()), frozenset(groups.split()), frozenset(never.split()), relation,
        frozenset(told_of.split()), frozenset(clash.split()),
    )  # fmt: skip


TOPICS: dict[str, Topic] = {
    "food": _topic("好吃的敞开肚皮吃 多吃几口也不怕胖 胖三斤也是福气",
                   "elder parent neighbour colleague friend lover child sibling", "康复", "正在减肥的",
                   "parent colleague friend lover sibling", "康复"),
    "drink": _topic("今晚一定多喝两杯 下次见面不醉不归 好酒已经替{你}温上", "parent neighbour colleague friend lover",
                    "康复 高考 满月 儿童节", "戒了酒的", "parent neighbour colleague friend lover", "高考 儿童节"),
    "love": _topic("愿{你}早日脱单 桃花正朝{你}开来 愿{你}遇见命定的人", "colleague friend sibling",
                   "结婚 情人节 七夕 满月 高考", "不想恋爱的", "colleague friend sibling", "结婚 满月 高考"),
    "work": _topic("愿{你}升职加薪如约而至 愿{你}的老板天天夸{你} 愿{你}年终奖拿到手软",
                   "colleague friend lover sibling", "退休 高考", "刚失业的", "friend lover sibling",
                   "升职 退休 开业 高考"),
    "age": _topic("年纪见长风采不减 眼角皱纹也好看 愿{你}越老越有味道", "elder parent neighbour colleague friend lover",
                  "高考 儿童节 毕业 升学 满月", "怕变老的", "parent colleague friend lover", "高考 儿童节 毕业 升学"),
    "play": _topic("书本先丢到一边去 今晚玩到天亮才睡 愿{你}再不用早起背书", "child sibling friend", "高考 康复",
                   "正备考的", "child sibling friend", "高考 毕业 升学 结婚 满月 开业"),
    "money": _topic("记得请我吃顿大餐 红包要包个大的 这回该轮到{你}请客", "colleague friend sibling neighbour",
                    "康复 高考", "手头紧的", "colleague friend sibling", "开业 高考"),
}  # fmt: skip
RELATIONS: dict[str, str] = {topic.relation: name for name, topic in TOPICS.items()}

CLICHES = (
    "祝{你}身体健康", "万事如意", "心想事成", "恭喜发财", "大吉大利", "祝{你}天天开心", "祝{你}工作顺利", "一切顺利",
    "祝{你}幸福快乐每一天", "祝{你}好运连连", "祝{你}吉祥如意",
)  # fmt: skip
ADVERTS = (
    "扫码领取优惠券", "点击链接立减五十元", "本店全场八折", "添加微信送好礼", "下载应用领红包", "关注公众号抽大奖",
)  # fmt: skip
PLACEHOLDERS = ("某某节日快乐", "亲爱的某某", "愿某某一切都好", "在某某的日子里", "来自某某的祝福")


def group_of(recipient: str) -> str:
    """The group of a recipient."""
    return RECIPIENTS[recipient][0]


def fits(recipient: str, occasion: str) -> bool:
    """Whether this recipient fits this occasion."""
    row = OCCASIONS[occasion]
    return recipient == row.only if row.only else group_of(recipient) in row.groups


def tones_of(recipient: str) -> tuple[str, ...]:
    """Tones that a request for this recipient may have: no jokes for a client, no formal tone for a child."""
    group = group_of(recipient)
    if group in FIXED_FORMAL:
        return ("", "敬语", "文艺")
    if group in FIXED_FAMILIAR:
        return ("", "亲切", "幽默", "文艺")
    return ("", "敬语", "亲切", "文艺") if group == "teacher" else TONES


def pronoun(recipient: str, tone: str) -> str:
    """您 or 你: determined by the tone, else by the recipient."""
    if tone in ("敬语", "亲切"):
        return "您" if tone == "敬语" else "你"
    return "您" if group_of(recipient) in FORMAL_BY_DEFAULT else "你"
