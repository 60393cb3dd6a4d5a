"""German: every noun has a capital, so names are known by titles, labels and lists, not by capitals."""

from __future__ import annotations

import re
from functools import lru_cache

from tmca_core.text.screen.interface import LANGUAGES, Cue, Language, words
from tmca_core.text.screen.shapes import calendar, several_digits, shape

_MONTH = (
    r"(?:Jan(?:uar)?|Jänner|Feb(?:ruar)?|Feber|Mär(?:z)?|Mrz|Apr(?:il)?|Mai|Juni?|Juli?|Aug(?:ust)?|Sep(?:t(?:ember)?)?"
    r"|Okt(?:ober)?|Nov(?:ember)?"
    r"|Dez(?:ember)?)\b\.?"
)
_YEAR = r"(?:19|20)\d\d"
_CAP = r"[A-ZÄÖÜ][\wäöüß-]*\.?"
_PERSON = r"[A-ZÄÖÜ][a-zà-öø-ÿćčšž]+(?:-[A-ZÄÖÜ][a-zà-öø-ÿćčšž]+)?"
_NUMBER = r"(?:[ -]?(?:Nr|Nummer|nummer|nr|No|ID|Id|Kennung|Zeichen|zeichen)\b\.?)*[:#. ]*"
_ID = r"(?P<id>(?:[A-Z]{1,4}[ -]?)?\d[A-Z\d]*(?:[-/.][A-Z\d]+)*)"
_STREET = (
    r"[A-ZÄÖÜ][\wäöüß.-]*(?:straße|strasse|str\.|weg|allee|gasse|damm|ufer|steig|chaussee|promenade|pfad|stieg|graben|twiete"
    r"|(?<!Bett)(?<!Beatmungs)(?<!Intensiv)platz)"
    r"|(?:[A-ZÄÖÜ][\wäöüß-]*[ -])?(?:Straße|Strasse|Str\.|Weg|Allee|Platz|Gasse|Chaussee)"
)
_KINDS_OF_CLINICS = words(
    """
chirurgische medizinische neurologische innere radiologische urologische kardiologische orthopädische onkologische pneumologische
psychiatrische gynäkologische dermatologische unfallchirurgische allgemeine hiesige hiesigen eigenen unseres unserer externe externen
externes auswärtige auswärtigen und der die das im in am an auf aus für von vom zur zum des dem den mit bei nach interventionelle
nuklearmedizinische poliklinik ambulanz station institut patient patienten aufenthalt behandlung entlassung untersuchung verlegung
aufnahme dr prof praxis
"""
)
_ORDINARY = words(
    """
typ typus stadium grad segment morbus patient patientin patienten pat herr frau hr fr dr prof med dipl pd priv doz oa oä ca aa ärztin arzt
ärzte oberarzt oberärztin chefarzt chefärztin assistenzarzt assistenzärztin kollege kollegin kollegen kolleginnen schwester pfleger
pflegekraft station stationsarzt hausarzt hausärztin facharzt radiologe radiologin radiologie chirurgie chirurg chirurgin internist
anästhesie intensivstation notaufnahme ambulanz klinik klinikum krankenhaus praxis institut abteilung dienst dienstarzt team mta mtra mtr
sekretariat und oder der die das den dem des ein eine einer eines einem einen im in am an auf aus bei mit nach von vom zu zum zur für über
unter vor seit bis ab kein keine keinen keiner nicht ist sind wird werden wurde wurden zeigt zeigen es sie er röntgen thorax aufnahme
aufnahmen ebene ebenen befund befunde beurteilung fragestellung klinische klinisch angaben anamnese indikation rechtfertigung technik
vergleich voraufnahme voruntersuchung verlauf verlaufskontrolle kontrolle vorbefund lunge lungen lungenflügel oberlappen mittellappen
unterlappen lingula oberfeld mittelfeld unterfeld herz herzgröße herzschatten mediastinum hilus hili zwerchfell zwerchfellhochstand sinus
rippe rippen klavikula clavicula skapula wirbelsäule bws lws hws bwk lwk pleura pleuraerguss erguss ergüsse pneumothorax infiltrat
infiltrate pneumonie stauung stauungszeichen dystelektase atelektase verschattung verschattungen rundherd rundherde raumforderung tumor
metastase metastasen fraktur frakturen drainage katheter zvk sonde magensonde tubus trachea karina carina aorta schrittmacher kabel sonden
nachweis verdacht zustand zeichen lage spitze länge größe höhe breite bild bilder serie ct mrt pet sono us kontrastmittel gabe links
rechts beidseits basal apikal zentral peripher liegend liegende stehend stehende sitzend sitzende seitlich lateral unauffällig unverändert
regelrecht regelrechte regelrechter altersentsprechend geb geboren geburtsdatum alter jahre jahr name vorname nachname adresse wohnhaft
telefon tel fax datum uhr unbekannt anonym anonymisiert geschwärzt muster mann weiblich männlich husten fieber dyspnoe luftnot sturz
sepsis koma lobektomie operation op therapie chemotherapie bestrahlung januar februar märz april mai juni juli august september oktober
november dezember montag dienstag mittwoch donnerstag freitag samstag sonntag deutschland österreich schweiz polen türkei syrien ukraine
russland rumänien italien spanien frankreich england ernst lang lange kurz klein kleine groß große weiß schwarz braun grau grün rot gelb
blau jung junge alt alte neu neue stark winter sommer herbst frühling frühjahr sauer wolf fuchs vogel hahn becker bauer koch schneider
richter weber müller schmied wagner fischer jäger kaiser könig graf kraus krause krämer zimmermann schäfer schreiber schuster kern horn
stein berg feld wald bach brand brandt mittlere mittlerer obere oberer untere unterer rechter rechte linker linke beide beider alle
sonstige sonst weitere weiterer zusätzlich insgesamt ferner hierbei dabei dort hier ebenso rein eher deutlich gering geringe mäßig mäßige
ausgeprägte rose iris viola art mark gene rod max eva heide ines ute kai mia nina uwe jens besten dank gruß grüße grüßen freundlichen
kollegialen hochachtungsvoll sehr geehrte geehrter liebe lieber vielen das fall rücksprache mitteilung information kenntnis
"""
)
_ENDINGS = tuple(
    words(
        """
ung ungen heit heiten keit keiten schaft tion tionen itis ose osen graphie skopie gramm ektomie tomie stomie plastie ämie urie pathie
megalie tät täten ismus mus aufnahme untersuchung schatten erguss ergüsse zeichen lappen feld felder rippe rippen körper wirbel gefäß
gefäße herd herde befund befunde kontrolle katheter sonde drainage klappe gang bereich anteil anteile seite seits bronchus thorax
pneumonie atelektase embolie dilatation stenose fraktur frakturen metastase metastasen karzinom karzinome syndrom lymphom therapie
"""
    )
)

_MARKS = words(
    "der die das und ist im mit kein keine nach bei des am zur vom zum den dem nicht wird eine einer einen für auf von sind"
    " links rechts beidseits"
)
_T = (
    r"(?:Herrn?|Frau|Hr\.|Hrn\.|Fr\.|Dr\.|Dres\.|DR\.|Prof\.|PD|Priv\.-Doz\.|Dipl\.-Med\.|OA|OÄ|Oberarzt|Oberärztin|Chefarzt"
    r"|Chefärztin|CA|AA|Professor|Fräulein)"
)
_ROLE = (
    r"(?:Assistenzarzt|Assistenzärztin|Stationsarzt|Stationsärztin|Hausarzt|Hausärztin|Facharzt|Fachärztin|Radiologe"
    r"|Radiologin|Schwester|Pfleger|MTRA?|Dienstarzt|Dienstärztin"
    r"|Kollegen|Kollegin|Kollege|Chirurg|Chirurgin|Internist|Internistin|Ehefrau|Ehemann|Tochter|Sohn|Mutter|Vater|Bruder"
    r"|Betreuer|Betreuerin|Lebensgefährte|Lebensgefährtin|Sekretärin)"
)


def _day(match: re.Match[str]) -> bool:
    return calendar(int(match["d"]), int(match["m"]))


def _old(match: re.Match[str]) -> bool:
    return 90 <= int(match["years"]) <= 129


def _named_house(match: re.Match[str]) -> bool:
    return any(
        word[0].isupper() and word.lower() not in _KINDS_OF_CLINICS and word.lower() not in _ORDINARY
        for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", match["name"])
    )


_SHAPES = (
    shape("date", rf"(?<![\w.,])(?:0?[1-9]|[12]\d|3[01])\. ?{_MONTH}(?: ?{_YEAR}| ?['’]?\d\d\b)?"),
    shape("date", rf"\b{_MONTH},? (?:des Jahres )?{_YEAR}\b"),
    shape("date", rf"\b(?:im|Im|seit|Seit|bis|Bis|Anfang|Ende|Mitte|letzten|vom) (?P<id>{_MONTH})(?![\w-])"),
    shape(
        "date",
        r"\b(?:vom|am|seit|bis|ab|zum|den|Vom|Am|Seit|Ab|Zum|und|geb\.|CT|Rö"
        r"|MRT) (?P<id>(?P<d>\d{1,2})\. ?(?P<m>\d{1,2})\.(?: ?\d\d(?!\d))?)(?!\d| ?(?:mm|cm))",
        _day,
    ),
    shape(
        "phone",
        r"\b(?i:tel|telefon|telefonnummer|fax|handy|mobil|mobiltelefon|durchwahl|dw|apparat|app|nebenstelle|funk|dect|piepser"
        r"|rufnummer|hotline|telefonisch|anruf|rückruf)\b"
        r"(?:[\s:.#(]|Nr\b|nummer\b|unter\b|der\b|des\b|Tochter\b|Sohnes\b"
        r"|Station\b)*(?P<id>(?<![\d.,/])\+?\(?\d[\d ()/.-]{1,18}\d)(?![\d:%]|[.,]\d)",
        lambda m: several_digits(m) and not re.fullmatch(r"\d{1,2}\.\d{1,2}\.(?:\d\d){0,2}", m["id"]),
    ),
    shape(
        "record",
        r"\b(?:Pat(?:ienten)?\.?-?|Fall|Aufnahme|Auftrags?|Untersuchungs|Akten|Befund|Behandlungs|Journal|Archiv|Vorgangs?"
        r"|Röntgen|Bild|Studien|Accession|Labor|Proben|Konto|Rechnungs|LANR|BSNR|IK|Kennzeichen|Az\.?|Aktenzeichen|SAP)"
        r"(?=[-. ]?(?:Nr|nr|Nummer|nummer|ID|Id|No|Zeichen|zeichen|Kennung)|\b[: ]*\d{5})" + _NUMBER + _ID,
        several_digits,
    ),
    shape(
        "national_id",
        r"\b(?i:versicherten|krankenversicherten|versicherungs|kv|krankenversicherungs|sozialversicherungs"
        r"|rentenversicherungs|steuer|steueridentifikations|personalausweis|ausweis|reisepass|pass|ahv|sv)"
        r"(?:-?(?:ID|Id|IdNr|Nr|nr|nummer|Nummer)\b\.?|nummer\b)[:. ]*(?P<id>[A-Z]{0,2}\d[A-Z\d]*(?:[ .-][A-Z\d]+)*)",
        several_digits,
    ),
    shape(
        "device", r"\b(?:Serien|Geräte|Fabrikations|Implantat)-?(?:[Nn]ummer|[Nn]r)\b\.?[: ]*(?P<id>[A-Z\d][A-Z\d-]{3,})", several_digits
    ),
    shape(
        "address",
        rf"\b(?:{_STREET}) ?\d{{1,4}}(?:[-/]\d{{1,4}})? ?[a-z]?\b(?!\d| ?(?:mm|cm|mg|ml))(?:,? (?:D-|A-|CH-)?\d{{4,5}} (?:Bad "
        rf"|Sankt )?{_CAP}(?: (?:an der|am|a\.|im) {_CAP})?)?",
    ),
    shape("address", rf"\b(?:[A-ZÄÖÜ][\wäöüß.-]*[ -]){{1,4}}\d{{1,4}} ?[a-z]?, (?:D-|A-|CH-)?\d{{4,5}} {_CAP}"),
    shape("address", rf"(?<![\w.,-])(?:D-|PLZ:? ?)?\d{{5}} (?!Patient|Fäll|Euro|Einheit){_CAP}(?=[\s,.;]|$)"),
    shape("address", r"\bPostfach \d+(?: \d+)*"),
    shape(
        "hospital",
        r"\b(?P<name>(?:[A-ZÄÖÜ][\wäöüß'-]*\.? ?-?){0,4}?[A-ZÄÖÜ][\wäöüß.'-]*[ -])(?:Klinik(?:um|en)?|Krankenhaus(?:es)?"
        r"|Hospital|Spital|Kantonsspital|Stift|Krankenanstalten|Pflegeheim|Seniorenheim|Altenheim|Hospiz)\b(?: (?:am |an der |im )?"
        + _CAP
        + r")?",
        _named_house,
    ),
    shape(
        "hospital",
        r"\b(?:Universitäts(?:klinik|klinikum|klinikums|spital|medizin)|Uniklinik(?:um)?|Klinik(?:um)?|Klinikums"
        r"|Krankenhaus(?:es)?|Kreiskrankenhaus|Kreisklinik|Stadtkrankenhaus|Bundeswehr(?:zentral)?krankenhaus"
        r"|Landeskrankenhaus|Marienhospital"
        r"|Pflegeheim|Seniorenheim|Altenheim|Seniorenresidenz|Hospiz|MVZ|Praxis|Gemeinschaftspraxis|Medizinische Hochschule"
        r"|Ev\. Krankenhaus|St\. ?-?)"
        r"(?P<name>(?: (?:Dres\.|Dr\.|med\.|am|an der|im|Bad|St\.|Prof\.))* " + _CAP + rf"(?: {_CAP})?)",
        _named_house,
    ),
    shape(
        "hospital",
        r"\b(?:Charit[ée]|MHH|UKE|UKSH|LMU Klinikum|Asklepios|Helios|Sana|Vivantes|AKH Wien)\b(?: Klinik(?:um)?)?(?: [A-ZÄÖÜ][\wäöüß-]+)?",
    ),
    shape(
        "name",
        rf"(?:\A|(?<=[.\n] ))(?P<id>{_PERSON} {_PERSON}) (?=stellt sich|klagt|berichtet|leidet|kommt (?:zur|mit|wegen))",
        lambda m: not any(word.lower() in _ORDINARY for word in m["id"].split()),
    ),
    shape(
        "address",
        r"\b(?:Adresse|Anschrift|wohnhaft|Wohnhaft|wohnt)(?: in der| in"
        r"| am)?:? (?P<id>[A-ZÄÖÜ][^;\n]{3,80}?\d{5} [A-ZÄÖÜ][\wäöüß-]+(?: [A-ZÄÖÜ][\wäöüß-]+)?)",
    ),
    shape("age", r"(?<![\w.,/])(?P<years>\d{2,3})[ -]?(?:jährig\w*|jähr\.|j\.)", _old),
    shape("age", r"(?<![\w.,/])(?P<years>\d{2,3}) ?(?:Jahre|J\.|Lebensjahre)(?: alt\w*)?(?! (?:Raucher|Nikotin|zurück|später|nach))", _old),
    shape("age", r"\b(?:Alter|alter):? (?P<id>(?P<years>\d{2,3}))\b(?! ?(?:Tage|Wochen|Monate))", _old),
    shape(
        "age",
        r"\b(?:(?:ein|zwei|drei|vier|fünf|sechs|sieben|acht|neun)und)?neunzig-?jährig\w*|\bhundert(?:ein|zwei|drei|vier|fünf)?jährig\w*",
        flags=re.IGNORECASE,
    ),
)

_CUES = (
    Cue("name", re.compile(rf"\b{_T} ?(?:\(?(?=[^\W\d_]))"), trust=1),
    Cue(
        "name",
        re.compile(
            r"\b(?:Herrn?|Frau|Hrn?\.|Dr\.(?: med\.)?|Prof\.) (?=[^\W\d_]+(?:-[^\W\d_]+)?(?:$|[.,;:)]| (?:ist|hat|wurde|wird"
            r"|zeigt|war|bei|mit|stellt|kommt|erfolgt|bittet|und|am|vom|wünscht)\b))"
        ),
        trust=2,
    ),
    Cue(
        "name",
        re.compile(
            r"\b(?:Patient(?:in)?|Pat\.|Name|Vorname|Nachname|Familienname|Geburtsname|Patientenname|Befunder(?:in)?"
            r"|Untersucher(?:in)?|Anforderer|Anforderin|Zuweiser(?:in)?|Überweiser(?:in)?|Arzt|Ärztin|Hausarzt|Radiologe"
            r"|Unterschrift|Schreibkraft|Sekretariat|Diktat|Diktiert|Validiert|Freigegeben|Vidiert|Erstbefunder|Zweitbefunder"
            r"|Ansprechpartner(?:in)?|Kontakt|Angehörige[r]?|Betreuer(?:in)?|Gez\.|gez\.|Z\. ?Hd\.)\s?(?::|(?<=ez\.))\s*(?=[^\W\d_])"
        ),
        trust=1,
    ),
    Cue(
        "name",
        re.compile(
            r"\b(?:[Gg]ez\.|Grüßen?,?|Gruß,?|geb\. (?=[A-ZÄÖÜ])|[Vv]idiert|[Bb]efundet(?: von)?|[Dd]iktiert von"
            r"|[Ff]reigegeben von|[Uu]nterzeichnet von)\s*,?\s*(?=[^\W\d_])"
        ),
        trust=1,
    ),
    Cue("name", re.compile(rf"\b{_ROLE},? (?=[^\W\d_])")),
    Cue("address", re.compile(r"\b(?:wohnhaft|wohnt|lebt|geboren|stammt|gebürtig) (?:in|aus) (?=[^\W\d_])")),
)


@LANGUAGES.register("de")
@lru_cache(maxsize=1)
def german() -> Language:
    """German, as written in Germany, Austria and Switzerland."""
    titles = words(
        "herr herrn frau hr hrn fr dr dres prof pd priv doz priv-doz med dipl dipl-med oa oä oberarzt oberärztin ca aa professor"
    )
    heads = words(
        "syndrom zeichen linien linie katheter sonde drainage tumor zyste hernie krankheit erkrankung klassifikation score"
        " index winkel lymphom fraktur knoten operation shunt "
        "klappe typ stadium grad kriterien einheiten nadel prothese draht"
    )
    before = words("morbus mb nach typ typus stadium sog sogenannter sogenannte syndrom m")
    return Language(
        _SHAPES, _CUES, titles, _ORDINARY, _ENDINGS, heads, _MARKS, before_eponym=before, capital_nouns=True, no_initials="AMNVZR"
    )
