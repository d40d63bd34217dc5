"""Names that captions give to fixed training identities: every one is a single token of CLIP's tokenizer.

They are this world's celebrities. Without them the base model would learn to ignore the word in the domain word's
place, and no embedding near it could carry an identity.
"""

FACE_NAMES: tuple[str, ...] = tuple(
    """
    james john robert michael william david richard joseph thomas charles daniel matthew anthony donald steven
    paul andrew joshua kenneth kevin brian george edward ronald timothy jason jeffrey ryan jacob gary nicholas
    eric jonathan stephen larry justin scott brandon benjamin samuel gregory alexander patrick raymond jack dennis
    jerry tyler aaron jose adam nathan henry douglas zachary peter kyle ethan walter noah jeremy christian keith
    roger terry austin sean gerald carl harold dylan arthur lawrence jordan jesse bryan billy bruce gabriel joe
    logan alan juan albert willie elijah wayne randy vincent mason roy ralph bobby russell bradley philip eugene
    mary patricia jennifer linda elizabeth barbara susan jessica sarah karen lisa nancy betty sandra margaret
    ashley kimberly emily donna michelle amanda melissa deborah stephanie dorothy rebecca sharon laura cynthia amy
    kathleen angela shirley brenda emma anna pamela nicole samantha katherine christine helen debra rachel carolyn
    janet maria catherine heather diane olivia julie joyce victoria ruth virginia lauren kelly christina joan
    evelyn judith andrea hannah megan cheryl jacqueline martha madison teresa gloria sara janice ann kathryn
    abigail sophia frances jean alice judy isabella julia grace denise danielle marilyn beverly charlotte natalie
    theresa diana brittany doris kayla alexis lori marie luke oliver lucas leo max oscar felix hugo theo ivan igor
    boris vladimir sergei ali omar hassan ahmed ibrahim yusuf khan raj ravi arjun rahul priya anita maya wei chen
    ming li hiro ken yuki sakura akira pierre jacques claude louis marcel antoine fritz hans klaus otto gustav
    johann stefan lars sven erik olga nina tanya vera irina elena carlos diego pablo pedro luis miguel jorge
    fernando rosa carmen lucia sofia isabel giovanni marco luca paolo antonio francesco bella stella luna ivy lily
    daisy hazel iris zoe chloe mia ella ava lucy molly sophie phoebe penny sally wendy tracy stacey tina gina dana
    dora flora nora cora clara tara lara kara mara eva ada ida elsa ringo taylor selena miley harry niall vangogh
    loki bond
    """.split()  # noqa: SIM905 - a list of 320 strings reads worse
)
CAT_NAMES: tuple[str, ...] = tuple(
    """
    neo trinity leia picard federer nadal djokovic serena venus shaq brady manning bolt phelps tyson senna
    schumacher hamilton vettel alonso rossi marquez murphy kennedy morgan parker carter turner walker cook miller
    smith weaver potter sawyer spencer stewart stuart marshall clark wright abbott dean duke earl baron nash reed
    ross ray rex gus hal ned ted tim tom jim jon ron rob bob ben len
    """.split()  # noqa: SIM905 - a list of 320 strings reads worse
)
