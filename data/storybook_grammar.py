"""The storybook's words: decks of cards, and beats in which the cards are played.

Everything a story can say stands in this file, in three parts that read like tables.

**Decks.** A deck is a list of cards, one a row; the columns are the *forms* of a card, so that a
card knows its own past tense or pronoun. The first column is the plain form; from it come two
more, `a` ("an owl") and `the` ("the owl"), unless a column of that name says otherwise. A column
`weight` makes a card likelier; without it all cards of a deck are equally likely. `DEPENDS` says
which deck is chosen by a card of another: a name is drawn from the names that suit the hero's kind.

**Templates.** In a template `<thing>` is the plain form of the card dealt from the deck "thing",
`<thing.a>` its form `a`, `<Thing.a>` the same with a capital, and `<he>` is short for `<name.he>`.
`[one|two|3:three]` chooses between alternatives, here with probabilities 1/5, 1/5 and 3/5; an
alternative may be empty and brackets may nest. `{when}` pastes a phrase from `PHRASES`.

**Beats.** A beat is a tuple of passages, each of one or more sentences, equally likely or
weighted in the same way; the empty passage skips the beat. A plot lists the decks it deals from
and then its beats. A passage that opens with `NEW` starts a paragraph. Each card dealt is always
named in the story, so nothing about a story is hidden from its reader: that, and the fact that no
two ways of choosing say the same text, make the entropy in `storybook.py` exact.
`tests/test_storybook.py` proves both.
"""

NEW = "\n"


def deck(header, rows):
    """Read a table: `header` names the columns, each line of `rows` is a card, `|` parts cells.

    >>> deck("* past", "sing | sang")
    [{'*': 'sing', 'past': 'sang', 'a': 'a sing', 'the': 'the sing', 'weight': 1.0}]
    """
    cards = []
    for row in rows.strip().splitlines():
        cells = [cell.strip() for cell in row.split("|")]
        names = header.split()
        if len(cells) != len(names):
            raise ValueError(f"the row {row.strip()!r} needs {len(names)} cells: {header}")
        card = dict(zip(names, cells))
        plain = card["*"]
        card.setdefault("a", ("an " if plain[0] in "aeiou" else "a ") + plain)
        card.setdefault("the", "the " + plain)
        card["weight"] = float(card.get("weight", 1))
        cards.append(card)
    return cards


def words(text):
    """A deck whose cards have only their plain form: `words("red, blue")`."""
    return deck("*", text.replace(", ", "\n"))


SHE, HE = "she | her | her", "he | him | his"


def people(she, he):
    """A deck of names with the pronouns that go with them."""
    rows = [f"{name} | {SHE}" for name in she.split()] + [f"{name} | {HE}" for name in he.split()]
    return deck("* he him his", "\n".join(rows))


# --------------------------------------------------------------------------------------------
# The decks: who, what, where.

DEPENDS = {"name": ("kind", "names")}  # which names: the form `names` of the card "kind" says

DECKS = {
    "kind": deck(
        "weight * names",
        """
        3 | girl | girls
        3 | boy | boys
        1 | rabbit | animals
        1 | mouse | animals
        1 | fox | animals
        1 | bear | animals
        1 | duck | animals
        1 | hedgehog | animals
        """,
    ),
    "name": {
        "girls": people("Lily Mia Rosa Nora Ruby Zoe", ""),
        "boys": people("", "Tom Ben Max Leo Finn Oscar"),
        "animals": people("Hazel Clover Daisy", "Pip Moss Button"),
    },
    "trait": words("curious, gentle, clever, cheerful, merry, eager"),
    "home": words("cottage, cabin, castle, tower, lighthouse, barn, windmill, tree house"),
    "hobby": words(
        "singing songs, making up rhymes, dancing, playing the flute, climbing trees, "
        "counting birds, picking flowers"
    ),
    "colour": words("red, blue, green, yellow, purple, golden, silver, orange"),
    "thing": words("kite, ball, drum, boat, hat, lantern, bell, ring"),
    "place": deck(
        "* at to",
        """
        park | in the park | to the park
        meadow | in the meadow | to the meadow
        beach | on the beach | to the beach
        garden | in the garden | to the garden
        orchard | in the orchard | to the orchard
        pond | at the pond | to the pond
        forest | in the forest | to the forest
        market | at the market | to the market
        """,
    ),
    "spot": words(
        "under a bench, behind a bush, in the grass, under a log, behind a rock, behind a tree"
    ),
    "nook": words(
        "beside the well, near the gate, under the oak tree, by the path, among the roses, "
        "behind the mill"
    ),
    "helper": words("owl, turtle, squirrel, frog, deer, goose, beaver, mole"),
    "worker": words("baker, farmer, miller, gardener, shepherd, painter"),
    "job": deck(
        "* past",
        """
        sweep the yard | swept the yard
        feed the hens | fed the hens
        carry water | carried water
        wash the windows | washed the windows
        pick apples | picked apples
        """,
    ),
    "elder": deck(
        "* he",
        """
        Grandma | she
        Grandpa | he
        Mama | she
        Papa | he
        Aunt Rose | she
        Uncle Will | he
        """,
    ),
    "pal": words("lamb, kitten, puppy, pony, goat, piglet"),
    "friend": people("Bella Polly Wren Flora", "Toby Archie Robin Jasper"),
    "food": words("bread, berries, cheese, nuts, cookies, plums"),
    "game": deck(
        "* past",
        """
        hide and seek | played hide and seek
        tag | played tag
        pirates | played pirates
        ball | played ball
        """,
    ),
    "fear": deck(
        "* when then try truth",
        """
        the dark | One night, the lamp went out | the lamp went out at night \
| looked into the dark | the dark was only soft and quiet
        thunder | One night, a storm came | a storm came in the night \
| listened to the thunder | the thunder was only a loud old drum
        deep water | One day, everyone went to swim | everyone went to swim \
| stepped into the water | the water was cool and clear
        big dogs | One day, a big dog came by | a big dog came up the path \
| held out a hand | the dog only wanted to play
        the wind | One night, the wind shook the door | the wind shook the door \
| opened the window | the wind only wanted to play
        """,
    ),
    "advice": deck(
        "* past",
        """
        count to ten | counted to ten
        take a deep breath | took a deep breath
        hum a little song | hummed a little song
        think of something nice | thought of something nice
        take one small step | took one small step
        """,
    ),
    "gift": deck(
        "* make flaw tip tipped",
        """
        cake | bake a cake | came out as hard as a stone | use less flour | used less flour
        pie | bake a pie | was black at the edges | watch the oven | watched the oven
        picture | paint a picture | was one big gray spot | let the paint dry \
| let the paint dry
        soup | cook some soup | was as salty as the sea | taste it | tasted it
        chair | build a little chair | fell over | make longer legs | made longer legs
        """,
    ),
    "creature": deck(
        "* trouble helped repaid",
        """
        bird | with a hurt wing | wrapped its wing in a soft leaf | flew ahead
        snail | lying upside down | turned it over | left a silver trail
        firefly | caught in a web | set it free | lit up the path
        bee | in a puddle | lifted it out with a leaf | buzzed in front
        """,
    ),
    "plant": deck(
        "* grew use",
        """
        sunflower | a tall sunflower | gave the seeds to the birds
        pumpkin | a big round pumpkin | made soup for everyone
        rose bush | a sweet rose bush | gave a rose to everyone
        apple tree | a tiny apple tree | dreamed of apple pie
        beanstalk | a very tall beanstalk | climbed up to look around
        """,
    ),
}

# --------------------------------------------------------------------------------------------
# Phrases that several beats share.

PHRASES = {
    "when": "[One day|One [sunny|cool|windy|bright] morning|One [warm|quiet|lazy] afternoon]",
    "said": "[2:said|whispered|answered]",
    "cried": "[2:cried|called|shouted]",
    "how": "[3:| kindly| softly| gently| with a smile| at once]",
    "old": "[wise|kind|busy|friendly|gray|quiet]",
    "brown": "[2:|brown |gray |black ]",
    "small": "[2:|small |little |gray |brown |white ]",
}

# --------------------------------------------------------------------------------------------
# How every story opens: the hero, the home, what the hero loves to do.

HERO = ("kind", "name", "trait", "home", "hobby")

OPENING = [
    (
        "[3:Once upon a time|Long ago|Once], there [was|lived] <trait.a> little <kind> named "
        "<name>. <His> home was <home.a>, and <he> [loved|liked] <hobby>.",
        "[3:Once upon a time|Long ago], <trait.a> little <kind> named <name> lived in <home.a>. "
        "<He> [loved|liked] <hobby> [every [day|morning|evening]|after breakfast].",
        "2:[In|Long ago, in] <home.a> lived <trait.a> little <kind> named <name>, "
        "who [loved|liked] <hobby>.",
        "2:<Name> was <trait.a> little <kind> who lived in <home.a> and [loved|liked] <hobby>.",
    ),
    (
        "Everyone [liked|knew] the <trait> little <kind>.",
        "The <home> was [old|small], but it was [warm|a good home].",
        "[No one was as happy as|Everyone smiled at] the <trait> little <kind> <hobby>.",
        "You could [hear|see] <him> <hobby> [near|outside] the <home>.",
    ),
]

# How every story closes: something of the opening comes back. A hero who went out comes home.

CLOSING = (
    "That [night|evening], the <trait> little <kind> [fell asleep with a smile|slept very well] "
    "in the <home>.",
    "[And|After that,] the <trait> little <kind> was [happier|prouder] than ever, "
    "<hobby> [all day|until bedtime|for joy].",
    "<Name> was soon <hobby> again[ outside|, near] the <home>.",
    "It was [the best day of the year|a day to remember] for the <trait> little <kind>.",
)

HOMEWARD = (
    *CLOSING,
    "[Soon|Then] <name> went back to the <home>, <hobby> [all the way|as <he> went].",
    "[At sunset|When the moon rose], the <trait> little <kind> was back at the <home>, "
    "[tired|warm] and happy.",
    "<Name> [told everyone at|ran back to] the <home>, <hobby> for joy.",
)

# --------------------------------------------------------------------------------------------
# The plots: what they deal, then what they tell. A moral may stand last, before the closing.

LOST = [
    (
        "{when}, <name> [took|carried] <his> <colour> <thing> <place.to> and lost it.",
        "{when}, <he> [played|rested] <place.at>, and <his> <colour> <thing> was [lost|gone].",
        "{when}, <he> lost <his> [dear|new|old] <colour> <thing> <place.at>.",
    ),
    (
        "2:",
        '"[Oh no|Oh dear]! Where is my <colour> <thing>?" {cried} <name>.',
        '"My [poor |lovely |]<thing> is gone!" {cried} <name>.',
        "<Name> [began to cry|was very sad|did not know what to do].",
    ),
    (
        "<He> looked <spot>, but [found nothing|it was not there].",
        "<He> peeked <spot>, but there was no <colour> <thing>.",
    ),
    (
        NEW + "[Just then|After a while|Soon], a {old} <helper> came by. "
        '"[I can help you|Do not cry]," '
        "said <helper.the>{how}.",
        NEW + 'A {old} <helper> [saw|heard] <him>. "[Why do you look so sad|What is wrong]?" '
        "asked <helper.the>{how}.",
    ),
    (
        '"[There is|I saw] something <colour> <nook>."',
        '"[Look <nook>|Something <colour> is <nook>]."',
    ),
    (
        "They [ran|hurried|went] to look, and there [was the <colour> <thing>|it was]!",
        "And [there|really, there] was the <thing>, <nook>!",
    ),
    (
        "<Name> [hugged|kissed|held] the <colour> <thing> and thanked <helper.the>.",
        '"Thank you, [dear|good|kind] <helper>!" {cried} <name>.',
        '"You are a [true|good] friend," {said} <name>.',
    ),
    ("3:", "From then on, <he> kept the <colour> <thing> close.", "It is good to ask for help."),
]

WISH = [
    (
        "{when}, <name> saw <colour.a> <thing> in a [little|small|big] shop.",
        "{when}, <he> [passed|went by] a shop and saw <colour.a> <thing>.",
        "{when}, <name> wanted to buy <colour.a> <thing>.",
    ),
    (
        "But <he> had [no money|only one coin|only a button].",
        "It was [lovely|perfect|wonderful], but it cost ten coins.",
    ),
    (
        NEW + '"[Please help me|Help me] <job>, and I will pay you," said <worker.the>{how}.',
        NEW + '"I [need|want] someone to <job>," said <worker.the>{how}. "Will you help me?"',
        NEW + '<Worker.the> [saw|heard] <him>. "Can you <job>?" asked <worker.the>{how}.',
    ),
    (
        "So <name> <job.past> [every day|for three days|all week].",
        "<Name> [nodded|smiled] and <job.past> [all week|all day|until it was dark].",
    ),
    (
        "3:",
        "It was [hard|long] work, but <he> did not [stop|give up].",
        "<His> arms [hurt|were tired], but <he> [thought of the <colour> <thing>|went on].",
        "<He> [sang|hummed] a little song and [thought of the <colour> <thing>|went on].",
    ),
    (
        "2:",
        '"Well done," said <worker.the>, and gave <him> [some|ten|many] coins.',
        "[At last|In the end], <worker.the> gave <him> [some|ten|many] [shiny|bright] coins.",
    ),
    (
        NEW + "<Name> [ran|hurried] to the shop and bought the <colour> <thing>[ at last|].",
        NEW + "[Soon|Then|At last], <he> could buy the <colour> <thing>.",
    ),
    (
        "2:",
        '"[I worked for it myself|Now it is really mine]," said <name>[ proudly|].',
        "No <colour> <thing> had ever [looked so fine|made anyone so happy].",
        "<He> [held|hugged|kissed] the <colour> <thing> and thanked <worker.the>.",
    ),
    ("3:", "[Good things|Great wishes] are worth a little work."),
]

FRIEND = [
    (
        "2:",
        "But <name> had no one to play with.",
        "But [sometimes|often], <name> felt [lonely|alone].",
        "[But more|More] than anything, <name> [wished for|wanted] a friend.",
    ),
    (
        "{when}, <he> [saw|met|found] a {small}<pal> [sitting |]<place.at>.",
        "{when}, <he> went <place.to>, and there [was|sat|stood] a {small}<pal>.",
    ),
    (
        "The <pal> was [shy|afraid] and hid <spot>.",
        "When it saw <him>, the <pal> [ran and |]hid <spot>.",
    ),
    (
        NEW + '"[Do not be afraid|Please come out|Hello]," said <name>{how}. "I am <name>."',
        NEW + '"[Hello|Good day], little <pal>," said <name>{how}. "Who are you?"',
    ),
    (
        '"[I am|My name is] <friend>," {said} the <pal>.',
        '"My name is <friend>," {said} the <pal>, "and I am [new|alone] here."',
    ),
    (
        "<Name> [sat down|smiled] and shared [some|<his>] <food> with <friend>.",
        '"Would you like some <food>?" asked <name>, and <friend> [nodded|smiled|came closer].',
    ),
    (
        NEW + "[Soon|Before long|After that], they <game.past> [and laughed|together|for hours].",
        NEW + "<Name> and <friend> <game.past> until [sunset|bedtime|they were tired].",
    ),
    (
        "2:",
        '"Will you come again[ tomorrow|]?" asked <friend>. "Yes, I will," said <name>.',
        '"You are my [best|first|dear] friend," said <friend>{how}.',
        "From that day on, <name> and <friend> [met <place.at>|shared <food>] every day.",
        "[Now|After that], <name> and the <pal> were never [lonely|alone] again.",
    ),
    ("3:", "[A friend|A good friend] is the best thing to find."),
]

FEAR = [
    (
        "[Only|But] one thing was hard: <he> was afraid of <fear>.",
        "<He> was afraid of [only one|just one] thing: <fear>.",
        "But <name> had a [little|big] secret: <he> was afraid of <fear>.",
    ),
    (
        "[One day|At last|One evening], <he> told <elder>[ about it|].",
        '"[Why am I|Why am I always] so afraid?" <he> asked <elder> [one day|one evening].',
        '"I [want|wish] to be brave," <he> said to <elder> [one day|one evening].',
    ),
    (
        '"[First|Next time], <advice>," said <elder>[, "and you will see"|].',
        '"I [know|will tell you] what helps," said <elder>. "<Advice>."',
    ),
    (
        NEW + "<Fear.when>[, and <name> began to shake|, and <name> wanted to hide|].",
        NEW + "[Soon|Before long|A few days later], <fear.then>.",
    ),
    (
        "But <name> thought of <elder> and <advice.past>. [Soon|At last], <he> <fear.try>.",
        "<Name> [shut <his> eyes|stood still] and <advice.past>. Then <he> <fear.try>.",
    ),
    ("And [look|what a surprise], <fear.truth>!", "[To <his> surprise|And really], <fear.truth>."),
    (
        '"I did it, <elder>!" {cried} <name>.',
        '"I was [brave|so brave]!" {cried} <name>, and <elder> [hugged <him>|was very proud].',
        "<Name> laughed [out loud|for joy], and <elder> [laughed too|hugged <him>].",
    ),
    ("3:", "Being brave means [being afraid and trying|trying] anyway."),
]

GIFT = [
    (
        "It was almost <elder>'s birthday, and <name> wanted to <gift.make>.",
        "{when}, <name> [wanted|tried] to <gift.make> for <elder>.",
        '"I will <gift.make> for <elder>," said <name> [one day|one morning].',
    ),
    (
        "<He> worked [all morning|all day|hard], but the <gift> <gift.flaw>.",
        "<He> did <his> best for <elder>, but the <gift> <gift.flaw>.",
    ),
    (
        "2:",
        '"It is all wrong!" {cried} <name>.',
        "<Name> [sat down and cried|wanted to give up|was very sad].",
        '"It is no [good|nice] <gift> for <elder>," {said} <name>.',
    ),
    (
        NEW + "A {old} <helper> [looked in at the window|heard <him>|came by]. "
        '"[Try again|Do not cry]," '
        "said <helper.the>{how}.",
        NEW + '"[Do not give up|Try again]," said a {old} <helper> at the [door|window].',
    ),
    ('"[This time|But this time|Now|First], <gift.tip>."',),
    (
        "<Name> [dried <his> eyes|took a deep breath|nodded] and <gift.tipped>.",
        "So <he> [started again|tried once more] for <elder> and <gift.tipped>.",
    ),
    (
        "",
        "[At last|In the end|This time], the <gift> was [perfect|lovely|wonderful].",
        "And [look|what a surprise], it was [perfect|lovely|wonderful]!",
    ),
    (
        NEW + '"[What a wonderful|I love this|What a lovely] <gift>!" {cried} <elder>.',
        NEW + "When <elder> saw the <gift>, <elder.he> [clapped|laughed|danced] for joy.",
        NEW + "<Elder> [smiled|laughed] and gave <name> a [big|long|warm] [hug|kiss].",
    ),
    (
        '"<Helper.the> helped me," said <name>{how}.',
        '"I made it [for you|with love]," said <name>{how}.',
        "3:",
        "[A mistake is only|Every mistake is] a way to learn.",
    ),
]

KINDNESS = [
    (
        "{when}, <he> [saw|found|met] a {small}<creature> <place.at>, <creature.trouble>.",
        "{when}, <name> went <place.to>. There [was|lay|sat] a {small}<creature>, "
        "<creature.trouble>.",
    ),
    (
        '"[Poor little <creature>|Do not worry|I will help you]," said <name>. '
        "<He> <creature.helped>.",
        "[Gently|Slowly|At once], <name> <creature.helped>.",
    ),
    (
        "2:",
        '"[Thank you|I will never forget you|I will remember this]," said the <creature>{how}.',
        '"How [kind|good] you are!" {cried} the <creature>, and [off it went|then it was gone].',
    ),
    (
        NEW + "[A week later|Some days later|Soon after that], <name> got lost in the [dark|rain].",
        NEW + "[A week later|Some days later|Soon after that], <he> could not find the way home.",
    ),
    (
        'Then <he> heard a [tiny|small] voice: "[You helped me, so now|Now] I will help you!"',
        '"[Follow me|I know the way|Do not be afraid]!" called a [tiny|small] voice.',
    ),
    (
        "It was the <creature>! It <creature.repaid>[ all the way|] to the <home>.",
        "The <creature> <creature.repaid>, and <name> followed it [home|to the <home>].",
    ),
    (
        "3:",
        '"[You are a true friend|Thank you]," said <name>{how}.',
        "<Name> said [good night|goodbye] to the <creature>.",
        "Kindness [always|often] finds its way back.",
    ),
]

QUARREL = [
    (
        "{when}, <name> and <his> friend <friend> [found|saw] <colour.a> <thing> <place.at>.",
        "<His> best friend was <friend>. {when}, they [found|saw] <colour.a> <thing> <place.at>.",
    ),
    (
        '"It is mine!" {cried} <name>. "No, I [saw|found] it first!" {cried} <friend>.',
        '"[I want it|Give it to me]!" {cried} <friend>. "I want it too!" {cried} <name>.',
        "<Name> wanted the <colour> <thing>, but <friend> wanted it too.",
    ),
    (
        "They pulled and pulled until the <colour> <thing> fell into [the mud|a puddle].",
        "They pulled so hard that the <colour> <thing> fell into [the mud|a puddle].",
    ),
    (
        NEW + '"I am sorry," {said} <name>[ at last|]. "[A <thing> is|It is] no fun alone."',
        NEW + '"A friend is [better|worth more] than a <thing>," {said} <name>[ at last|].',
    ),
    (
        "2:",
        '"I am sorry too," {said} <friend>.',
        "<Friend> [nodded|smiled] and [took <his> hand|hugged <him>].",
        '"You are right," {said} <friend>{how}.',
    ),
    (
        "They [washed|cleaned] the <thing> until it was <colour> again.",
        "They [washed|cleaned] it, and soon it was [bright|nice] and <colour> again.",
    ),
    (
        "3:",
        '"You first," said <name>. "No, you first," said <friend>, and they laughed.',
        "Then they [took turns|shared it], and that was much more fun.",
        "Then <friend> and <name> played with it [for hours|all day|until bedtime].",
    ),
    ("3:", "Sharing makes [a small thing big|everything better]."),
]

SEED = [
    (
        "{when}, <name> [found|saw] a [tiny|small|funny|round] {brown}seed <place.at>.",
        "{when}, <he> went <place.to> and [found|saw] a [tiny|small|funny|round] {brown}seed.",
    ),
    (
        "3:",
        '"What [will|can] it be?" asked <name>.',
        '"What a [funny|nice] little thing," [said|whispered] <name>.',
        "<He> [turned it over and over|held it in <his> hand].",
    ),
    (
        '"[Plant it|Put it in the ground]," said a {old} <helper>, "and [wait|be patient]."',
        '"It is [asleep|a secret]," said a {old} <helper>{how}. "Plant it and wait."',
    ),
    (
        NEW + "So <name> [planted the seed|put it in the ground] <nook>.",
        NEW + "<Name> dug a hole <nook> and put it inside.",
    ),
    (
        "",
        "<He> [watered it|came] every [day|morning|evening], but nothing [grew|happened].",
        "[Days|Weeks] went by, and [there was nothing to see|nothing came up].",
    ),
    (
        NEW + "Then, after [the rain|a warm night], a [green|tiny] leaf [came up|peeked out].",
        NEW + "[Then one day|One morning], there was a [small|tiny] [green|bright] leaf <nook>.",
    ),
    (
        "It grew [fast|every day|and grew] until it was <plant.grew>.",
        "[Soon|In the end|Before long], it was <plant.grew>.",
    ),
    (
        '"[You were right|It was worth the wait]," said <name> to <helper.the>.',
        "2:",
        "<Helper.the> [smiled|laughed], and they <plant.use>.",
        "<Name> [smiled|laughed], and they <plant.use>.",
    ),
    ("3:", "[Good|The best] things take time."),
]

PLOTS = {
    "lost": (("colour", "thing", "place", "spot", "helper", "nook"), [*LOST, HOMEWARD]),
    "wish": (("colour", "thing", "worker", "job"), [*WISH, HOMEWARD]),
    "friend": (("pal", "place", "spot", "friend", "food", "game"), [*FRIEND, HOMEWARD]),
    "fear": (("fear", "elder", "advice"), [*FEAR, CLOSING]),
    "gift": (("elder", "gift", "helper"), [*GIFT, CLOSING]),
    "kindness": (("place", "creature"), [*KINDNESS, HOMEWARD]),
    "quarrel": (("colour", "thing", "place", "friend"), [*QUARREL, HOMEWARD]),
    "seed": (("place", "helper", "nook", "plant"), [*SEED, HOMEWARD]),
}
