"""English: how reports written in it give names, dates, numbers, addresses, hospitals and ages."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from tmca_core.text.screen.eponyms import NAMES as EPONYMS
from tmca_core.text.screen.interface import LANGUAGES, Cue, Language, words
from tmca_core.text.screen.shapes import calendar, number, several_digits, shape
from tmca_core.text.vocabulary import VOCABULARY

_MONTH = (
    r"(?P<month>(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?"
    r"|Dec(?:ember)?|JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?|SEPT?(?:EMBER)?|OCT(?:OBER)?"
    r"|NOV(?:EMBER)?|DEC(?:EMBER)?))\b\.?"
)
_DAY, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|ST|ND|RD|TH)?", r"(?:19|20)\d\d"
_ID = r"(?P<id>(?:[A-Z]{1,4}[ -]?)?[A-Za-z]{0,4}[-/]?\d[A-Za-z\d]*(?:[-/][A-Za-z\d]+)*(?: [A-Z]{1,4}\b(?=[^a-z]|$))?(?: \d{3,4}\b)*)"
_NUMBER = r"(?:'s)?(?i: ?(?:no|number|nr|num|id|identifier|code|reference|ref)\b\.?)*[:#. ]*(?:is |was |of )?"
_STREET = (
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Ct|Close|Way|Crescent|Cres|Place|Pl|Square|Sq|Terrace|Ter"
    r"|Boulevard|Blvd|Gardens"
    r"|Grove|Hill|Row|Mews|Park|Parade|Highway|Hwy|Parkway|Pkwy|Circle|Cir|Walk|Quay|Rise|View|Green|Wharf|Trail|Mount|Vale|Fields)"
)
_STATE = (
    r"(?:A[LKZR]|C[AOT]|D[EC]|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOT]|N[EVHJMYCD]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[TA]|W[AVIY]|A[PEAS]"
    r"|PR|VI|GU|MP|PW|FM|MH)"
)
_POSTCODE = r"(?:[A-Z]{1,2}\d[A-Z\d]? ?\d[ABD-HJLNP-UW-Z]{2})"
_ZIP = rf"(?:{_STATE}[ ,]+\d{{5}}(?:-\d{{4}})?)"
_CAP = r"[A-ZÀ-ÖØ-Þ](?:[\w'’-]|\.(?=\w|[ ][A-Z]))*"
_FLAT = r"(?:Flat|Studio|Apt|Apartment|Unit|Suite|Room)\.? \w{1,5}"

# A hospital's kind of house; the words before it must hold a name.
_HOUSE = (
    r"(?:Hospitals?|Infirmary|Medical (?:Cent(?:er|re)|Group|College)|Clinics?|Surgery|(?:University )?(?:NHS )?(?:Foundation )?Trust"
    r"|Health (?:Cent(?:er|re)|System|Network|Board)|Healthcare|Nursing Home|Care Home|Hospice|Sanatorium|Polyclinic|Medical Practice"
    r"|Imaging Cent(?:er|re)|Cancer Cent(?:er|re)|Radiology Associates|Maternity|Rehabilitation Cent(?:er|re)|Care Cent(?:er|re))"
)
_DEPARTMENTS = words(
    """
accident acute adult advanced allergy ambulatory anaesthesia anaesthetic angiography anticoagulation antenatal arrhythmia asthma bariatric
breast burns cancer cardiac cardiology cardiothoracic casualty chest child children's childrens clinic clinics colorectal community
consultant cottage county critical day dental dermatology diabetes diabetic diagnostic district eye emergency endocrine endocrinology ent
endoscopy escalation face-to-face family fertility field foreign foundation fracture gastroenterology general geriatric government gp
gynaecology haematology health heart hepatology hospital icu imaging infectious inpatient intensive internal international keyhole
laparoscopic liver local lung maternity maxillofacial medical medicine memorial memory mental metropolitan military minor mobile national
neonatal nephrology neuro neurology neurosurgery nhs nodule number nuclear nursing obesity obstetrics occupational oncology operative
ophthalmology oral orthopaedic orthopedic osteoporosis outpatient outpatients outside paediatric pain palliative patient peripheral
physiotherapy plastic pleural pre-assessment primary private provincial psychiatric psychiatry public pulmonary radiation radiology
radiotherapy reconstructive referring regional rehabilitation renal respiratory rheumatology robotic rural sarcoidosis secondary sleep
specialist specialty spinal state stroke surgery surgical teaching tertiary theatre thoracic trauma travel tuberculosis university upper
urgent urology vascular veterans visiting walk-in ward women's womens wound the this that our your their his her a an of and at for from
to in with on another other any no same previous prior old new post via by referred transferred seen admitted discharged attended
following after before current home local base mobile field hospice prevention
"""
)
# Words that reports begin with a capital in the middle of a sentence, and are no names of persons.
_ORDINARY = words(
    """
january february march april may june july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec
monday tuesday wednesday thursday friday saturday sunday christmas easter spring summer autumn winter british english american european
african asian chinese indian german french spanish italian japanese korean hispanic caucasian latino arab arabic jewish african-american
russian polish turkish dutch swedish irish scottish welsh australian canadian mexican america africa asia europe australia canada china
india japan germany france spain italy england scotland wales ireland britain poland turkey russia pakistan bangladesh nigeria ghana kenya
egypt iran iraq israel brazil mexico vietnam thailand philippines korea indonesia malaysia singapore taiwan nepal lanka usa uk us eu
alabama alaska arizona arkansas california colorado connecticut delaware florida georgia hawaii idaho illinois indiana iowa kansas
kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri montana nebraska nevada hampshire jersey mexico
york carolina dakota ohio oklahoma oregon pennsylvania rhode tennessee texas utah vermont virginia washington wisconsin wyoming state
province country abroad overseas doctor dr mr mrs ms miss prof professor sir nurse sister matron physician surgeon radiologist
radiographer technologist technician registrar consultant resident fellow attending intern houseman sho gp specialist clinician
practitioner therapist physiotherapist pathologist oncologist pulmonologist cardiologist midwife pharmacist team staff doctors nurses
colleagues colleague ward theatre unit department clinic hospital home icu itu hdu ccu nicu picu ed er ent mdt duty call bleep patient
patients man woman male female boy girl child infant baby neonate adult lady gentleman mother father wife husband son daughter brother
sister partner parent parents family carer relative relatives next kin friend unknown none anonymous anonymised anonymized deidentified
redacted removed withheld name names surname forename doe example test dummy phantom volunteer subject control participant case cases age
sex gender date time number id mrn dob exam examination study studies series procedure protocol technique comparison indication
indications history impression conclusion conclusions findings finding recommendation recommendations clinical information details
question answer report reports reported reporting addendum opinion summary diagnosis signed dictated verified approved authorised
authorized transcribed typed electronically provisional final preliminary draft amended requested requesting referred referring referrer
performed by to from with and or of for the this that these those there then than dear regards sincerely yours thank thanks please kindly
note noted see seen view views reviewed review discussed informed contacted notified aware phoned telephoned called chest thorax abdomen
pelvis head neck spine x-ray xray x-rays radiograph radiographs ct mri mr pet us ultrasound scan scans scanner film films image images
imaging digital portable mobile ap pa lateral erect supine semi-erect sitting standing prone decubitus oblique rotated rotation centred
lying frail confused unwell well stable intubated ventilated cardiology thoracic cardiothoracic vascular general orthopaedic orthopaedics
orthopedics oncology respiratory medicine medical surgery surgical radiology pathology haematology hematology infectious diseases
microbiology paediatrics pediatrics neurology neurosurgery emergency accident intensive care critical anaesthetics anesthesia anaesthesia
obstetrics gynaecology urology nephrology gastroenterology dermatology rheumatology psychiatry geriatrics palliative physiotherapy
outpatient outpatients inpatient inpatients nuclear board committee society association college university institute school council
foundation group network guideline guidelines criteria classification version edition stage grade type class level score scale index ratio
group category figure table chapter section appendix world health organization organisation national international american north south
east west northern southern eastern western central upper lower middle great new old high low large small long short big little young
brown white black green grey gray blue red yellow orange pink purple golden silver iron steel stone wood rose lily iris flora crystal
amber ray bill rod art will mark grace frank hope faith dawn dale pat jack jordan chad florence victoria sandy lance max dean don gene
drew ava eva penny carol eve joy dick harry guy earl ernest major king queen prince duke bishop cook baker carpenter miller mason hunter
fisher fox wolf bird hart lang haas gill heather holly ivy hazel violet olive ginger cherry berry rice price day knight banks brooks
rivers wells fields woods hill hall park parks lane street road way house moore ball bell cross love best strong wise noble sharp grant
chase wade ward page ross case bass lamb swift cash chance power frost snow rain winters summers lan jin wei kim lee li lin ng see das le
lim tan an ho do so may jun min long ban bin chen dong sim sun sung song young yu yang wu xu ma he she tb hiv aids covid copd sars mers
gerd bpd chf ild ipf uip nsip ards ptx pcp pjp mac mrsa ckd esrd cabg avr mvr tavi tavr picc cvc ivc svc ngt ett iabp ecmo lvad icd quick
care plan surg ref urgent routine priority inpt outpt pt pts hx dx rx tx sx fx abd cxr kub ctpa hrct suv roi flair dwi adc fdg iv po im sc
prn bd tds qds od vitamin calcium potassium sodium oxygen nitrogen carbon gram positive negative culture cultures sputum blood bilateral
unilateral left right both total complete partial coli aureus epidermidis difficile influenzae pneumoniae pneumophila tuberculosis avium
kansasii jirovecii falciparum vivax albicans fumigatus gondii faecalis faecium pylori pyogenes aeruginosa baumannii cloacae mirabilis
catarrhalis burnetii psittaci public health screening service services antigen antibody antibodies polymerase chain reaction reverse
transcriptase ribonucleic acid real-time laboratory temperature pressure rate fig figs axial coronal sagittal baseline initial repeat
follow-up followup posteroanterior anteroposterior admission discharge day days week weeks month months year years hour hours novel severe
syndrome respiratory distress middle centers centres disease control prevention agency ministry government company corporation inc ltd llc
sequential computed standard organ failure assessment county kit research additional laboratories diagnostics diagnostic pharma
pharmaceuticals biomedical systems solutions technologies instruments tomography tomographic radiogram ray rays people provincial magnetic
resonance positron emission ground glass crazy paving tree bud acute chronic subject wall drive mount lake sea island beach summit cliff
forest garden gate church chapel temple street bank bridge port ford castle tower crown court green heath internet windows catheter wire
tube drain valve stent clip clips coil pump port line lines lead leads device electrode pacemaker defibrillator
"""
)
_ENDINGS = tuple(
    words(
        """
graphy graphic scopy scopic gram grams ology logical ological itis osis oses otic ectomy ostomy otomy plasty aemia emia uria pathy pathic
megaly mycin cillin azole ical tial cial tion tions sional tional sion sions ness ility ilities ivity ments ment ously eous ious ular
iasis olysis ceutical ceuticals stics biotic biotics mab vir statin phage phylaxis plasia sclerosis trophic trophy thorax cardial pleural
iform oid oids metry centesis desis rrhoea rrhea algia phagia pnoea pnea
"""
    )
)

_HEADS = words(
    """
sign signs syndrome syndromes disease diseases line lines node nodes nodule nodules tumour tumours tumor tumors catheter catheters tube
tubes drain drains valve valves fracture fractures hernia hernias criteria criterion classification score scores index indices angle
angles lymphoma lymphomas sarcoma effect band bands wire wires rod rods staging grade grading shunt shunts procedure operation repair
anomaly phenomenon triad tetralogy pentalogy law cyst cysts joint joints palsy diverticulum focus foci complex arteritis lesion lesions
cell cells body bodies stain reaction test method technique projection position manoeuvre maneuver formula units unit triangle space pouch
canal duct ligament fascia membrane muscle curve plaque plaques spot spots granulomatosis thyroiditis contracture chorea encephalopathy
neuroma gland reflex murmur breathing respiration fever virus bacillus forceps clamp retractor graft filter prosthesis society physiology
angina oesophagus esophagus fundoplication scan hump appearance deformity groove grooves histiocytosis injury oesophagectomy hemithorax
stage stages type types sac stenosis scale algorithm protocol model rule rules screw nail plate pins coil stent balloon mask laryngoscope
needle suture flap incision approach tubercle tuberosity carcinoma paralysis purpura dystrophy atrophy ataxia neuropathy nephropathy
thrombosis embolism dissection aneurysm malformation cirrhosis hepatitis pneumonia tracheobronchomegaly glomerulonephritis vasculitis
colitis gangrene ulcer abscess knot ring rings loop bundle fibres fibers layer zone sulcus fissure gyrus stroke bypass anastomosis
resection transplant ostomy colostomy pancreatitis arthropathy kyphosis exostosis nevus melanoma leukaemia leukemia strain strains
"""
)
_MARKS = words("the of is are in and with no there was on for at left right to has or which from by as seen lung not be this")


def _named_house(match: re.Match[str]) -> bool:
    """A word before the house is neither of a department nor an ordinary one."""
    given = re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", match["name"])
    if match[0].endswith("Healthcare") and any(word.lower() in EPONYMS for word in given):  # a maker of scanners
        return False
    return any(word[0].isupper() and word.lower() not in _DEPARTMENTS and word.lower() not in _plain() for word in given) or any(
        word in ("St", "Saint", "ST", "SAINT", "Mount") for word in given[:-1]
    )


def _not_on_part(match: re.Match[str]) -> bool:
    """A day and a month, not a part of something: "on 2/3 views"."""
    one, two = int(match["a"]), int(match["b"])
    return (calendar(one, two) or calendar(two, one)) and not re.match(
        r" ?(?:of|views?|images?|slices|sequences|projections|occasions|films|mm|cm|series|lobes|segments|%)\b", match.string[match.end() :]
    )


def _not_may(match: re.Match[str]) -> bool:
    """ "MAY" after a number is a month only where a date is spoken of: "SEGMENT 5 MAY REPRESENT"."""
    if match["month"].upper() != "MAY" or re.search(_YEAR, match[0]):
        return True
    before, after = match.string[max(0, match.start() - 12) : match.start()].lower(), match.string[match.end() : match.end() + 2]
    return bool(re.search(r"(?:on|dated|of|from|since|until|till|and) (?:the )?$", before)) or not re.match(r" [A-Za-z]", after)


def _old(match: re.Match[str]) -> bool:
    return 90 <= int(match["years"]) <= 129


@lru_cache(maxsize=1)
def _plain() -> frozenset[str]:
    """Ordinary words: those above, and radiology's English as the embedded text encoder knows it."""
    pieces = json.loads(VOCABULARY.read_text(encoding="utf-8"))["pieces"]
    return _ORDINARY | frozenset(piece for piece in pieces if piece.isalpha() and len(piece) > 2)


_SHAPES = (
    # Dates.
    shape("date", rf"(?<![\w.,/]){_DAY}[ -]?(?:of |OF )?{_MONTH}(?:,?[ -]?(?:{_YEAR}|['’]?\d\d\b))?", _not_may),
    shape(
        "date",
        rf"\b{_MONTH},? (?:the )?{_DAY}\b(?!\d|[.,]\d| ?(?:mm|cm|%))(?:,? ?{_YEAR})?",
        lambda m: m["month"].upper() != "MAY" or "," in m[0] or (m[0][0] == "M" and m[0][1:3] != "AY"),
    ),
    shape("date", rf"\b{_MONTH},? ?(?:of )?{_YEAR}\b"),
    shape(
        "date",
        rf"\b(?:Christmas|Easter|Boxing|New Year['’]?s?|Thanksgiving|Good Friday)(?: (?:Day|Eve|Sunday|Monday)(?: {_YEAR})?| {_YEAR})\b",
    ),
    shape("date", rf"\b(?i:in|since|until|during|last|of|early|late|mid|by) (?P<id>{_MONTH})(?![-’'\w]| ?\d)(?! fracture| disease)"),
    shape("date", r"\b(?:on|dated|since|until|till|from|dtd|On|Since|From) (?P<id>(?P<a>\d{1,2})/(?P<b>\d{1,2}))(?![\d/.])", _not_on_part),
    # Telephones.
    shape(
        "phone",
        r"\b(?:tel|telephone|phone|phoned|mobile|fax|call|called|bleep|bleeped|pager|paged|ext|extension|dect|hotline|contact"
        r"|reached|ring|voicemail|switchboard|cell phone|cell:"
        r"|contact number)\b(?:[\s:.#(]|no\b|number\b|is\b|at\b|on\b|to\b|the\b|us\b|back\b|me\b|back number\b"
        r"|ward\b)*(?P<id>(?<![\d.,/])\+?\(?\d[\d ().-]{1,18}\d)(?![\d:/%]|[.,]\d)(?! ?(?:mm|cm|ml|mg|kg|hours|minutes|days|years)\b)",
        lambda m: several_digits(m) and not re.fullmatch(r"\d{1,2}[.-]\d{1,2}[.-](?:\d\d){1,2}", m["id"]),
        re.IGNORECASE,
    ),
    # Records.
    shape(
        "record",
        r"\b(?i:MRN|URN|CRN|UHID|medical record|hosp(?:ital)?\.? (?:no|number|id|num)|(?:patient|pat|pt)\.?(?:'s)? (?:id|no"
        r"|number|identifier)|accession|acc(?=[ .]?(?:#|no|number))"
        r"|case (?:no|number|id)|unit (?:no|number)|file (?:no|number)|encounter|(?:study|film|exam|examination|visit|scan"
        r"|request|order|specimen|sample|report|image|event|admission)(?= (?:no|number|id|reference|ref|nr)\b)"
        r"|episode|account|chart|registration|licen[cs]e|policy|claim|billing|requisition|folder|wristband|barcode"
        r"|insurance (?:policy|no|number|id)|vehicle registration|number plate|licen[cs]e plate|ref(?:erence)?|GMC|NPI|NMC"
        r"|DEA|filed under|stored under|UID)" + r"\b" + _NUMBER + _ID,
        lambda m: several_digits(m) and (len(re.sub(r"\D", "", m["id"])) >= 4 or bool(re.match(r"MRN|record", m[0]))),
    ),
    shape("record", r"\b(?i:vehicle registration|number plate|licen[cs]e plate)[: ]*(?P<id>[A-Z]{1,3}\d{1,4} ?[A-Z\d]{2,4})\b"),
    shape(
        "national_id",
        r"\b(?i:NHS|CHI|SSN|social security|national insurance|NINO|NI(?= (?:no|number))|passport|medicare|medicaid|MBI"
        r"|health (?:card|insurance)|national id(?:entity)?|identity card|id card"
        r"|driv(?:er'?s?|ing) licen[cs]e|insurance|aadhaar|pesel|cpr|personnummer|tax id|visa)"
        + _NUMBER
        + r"(?P<id>[A-Z]{0,3}[-]?\d[A-Z\d]*(?:[- ][A-Z\d]*\d[A-Z\d]*)*(?: [A-D]\b)?)",
        lambda m: len(re.sub(r"\D", "", m["id"])) >= 5,
    ),
    # Addresses.
    shape(
        "address",
        rf"\b(?:{_FLAT},? )?\d{{1,5}}[A-Za-z]?(?:[-/]\d+)?,? (?:(?:[NSEW]\.?|North|South|East|West) )?(?:{_CAP} ){{1,4}}?{_STREET}\b\.?"
        rf"(?:,? {_FLAT})?(?:, {_CAP}(?: {_CAP}){{0,2}}?(?= {_POSTCODE}|,? {_ZIP}|[.,;]|\s[a-z]|$))?(?:,? {_POSTCODE}\b|,? {_ZIP}\b)?",
    ),
    shape("address", rf"(?<![\w-]){_POSTCODE}(?![\w-])"),
    shape("address", rf"(?:\b\d{{1,5}}[A-Za-z]? (?:{_CAP} ){{1,4}}(?:{_FLAT})?, ?)?\b{_CAP}(?: {_CAP}){{0,2}},? {_ZIP}\b"),
    shape("address", rf"(?:\b(?:{_FLAT},? )?\d{{1,5}}[A-Za-z]?,? )?\b{_CAP},? (?:{_CAP},? ){{0,6}}{_POSTCODE}(?![\w-])"),
    shape(
        "address",
        rf"\b(?i:address(?: is)?|lives at|living at|resides at|residing at|resident of)[: ]+(?P<id>(?:\d|{_FLAT}|P\.?O|PSC|USS"
        rf"|USNS)[^.;\n]{{5,80}}?)(?=[.;\n]|$| with\b| and\b| who\b"
        r"| since\b| recorded\b| on the\b|, (?:ex|non|known|a|an|current|former|retired|history)\b)",
    ),
    shape("address", rf"\b(?i:p\.? ?o\.? ?box|post office box) \d+(?:, {_CAP}(?: {_CAP})*)?(?:,? {_POSTCODE}\b|,? {_ZIP}\b)?"),
    shape("address", rf"\b(?i:zip|zip code|postcode|postal code)[: ]*(?P<id>\d{{5}}(?:-\d{{4}})?|{_POSTCODE})\b"),
    # Hospitals.
    shape(
        "hospital",
        rf"\b(?P<name>{_CAP} (?:(?:(?:of|the|and|de|&) )?{_CAP} ){{0,5}}){_HOUSE}\b(?:(?: of| at| in|,) {_CAP}(?: {_CAP})?)?",
        _named_house,
    ),
    shape(
        "hospital",
        r"\b(?P<name>(?:[A-Z'’.-]{2,} ){1,5})(?:HOSPITAL|INFIRMARY|MEDICAL CENT(?:ER|RE)|NURSING HOME)\b",
        _named_house,
    ),
    shape("hospital", rf"\b(?:{_CAP} )?(?:{_HOUSE}|University) (?:of|at) (?!Origin|Radiology){_CAP}(?: {_CAP})*(?: {_HOUSE})?"),
    shape(
        "hospital",
        r"\b(?:Charit[ée]|Johns Hopkins|Mayo Clinic|Cleveland Clinic|Mass(?:achusetts)? General|Kaiser Permanente|Mount Sinai"
        r"|Mt\.? Sinai|Karolinska|Addenbrooke['’]?s|Guy['’]?s and St)\b",
    ),
    # Ages.
    shape(
        "age",
        r"(?<![\w.,/])(?P<years>\d{2,3})[\s-]*(?:years?|yrs?|y)\.?[\s-]*(?:olds?|/?\s?o\b\.?|of age|female|male|man|woman)",
        _old,
        re.IGNORECASE,
    ),
    shape("age", r"(?<![\w.,/])(?P<years>\d{2,3})[\s-]*(?:yo\b|y/o|y\.o\.|years? (?=\(?[mf]\b))", _old, re.IGNORECASE),
    shape(
        "age",
        r"\b(?:aged?|patient is|age of|turned)(?: of| is|:)? ?(?:\(?(?:years|yrs"
        r"|y)\)?:? )?(?P<id>(?P<years>\d{2,3}))\b(?! ?(?:days|weeks|months|hours|minutes|%|mm|cm|kg))(?![.,]\d)",
        _old,
        re.IGNORECASE,
    ),
    shape("age", r"\b(?:man|woman|male|female|lady|gentleman|patient) of (?P<id>(?P<years>\d{2,3})(?: years?)?)\b", _old, re.IGNORECASE),
    shape("age", r"\A\s*(?P<id>(?P<years>\d{2,3}) ?[MF]\b)", _old),
    shape(
        "age",
        r"\b(?:ninety|(?:one )?hundred(?: and)?(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?)(?:[- ](?:one|two"
        r"|three|four|five|six|seven|eight|nine))?[- ]years?[- ](?:old|of age)",
        flags=re.IGNORECASE,
    ),
    shape("age", r"\b(?:nonagenarian|centenarian|in (?:his|her|their) (?:nineties|90s))\b", flags=re.IGNORECASE),
    number("record", r"GB\d{9}"),
)

_T = r"(?:[Dd]rs?|[Mm]rs?|Ms|Mx|Miss|[Pp]rof|Professor|Sir|Dame|Rev|Capt|Lt|Sgt)"
_ROLE = (
    r"(?i:nurse|sister|matron|doctor|surgeon|physician|radiologist|radiographer|registrar|consultant|resident|fellow"
    r"|attending|intern|house officer|SHO|technician|technologist"
    r"|clerk|interpreter|clinician|practitioner|oncologist|pulmonologist|cardiologist|pathologist|baby|infant|neonate|twin"
    r"|anaesthetist|paramedic"
    r"|midwife|physiotherapist|secretary|supervisor|operator|referrer)"
)
_KIN = (
    r"(?i:son|daughter|wife|husband|mother|father|brother|sister|partner|parent|guardian|carer|caregiver|niece|nephew|aunt"
    r"|uncle|cousin|grandson|granddaughter|grandmother|grandfather"
    r"|twin|neighbour|neighbor|friend|spouse|next of kin)"
)
_CUES = (
    Cue("name", re.compile(rf"\b{_T}(?:\.? |\.)(?:\(?(?=[^\W\d_]))"), trust=2),
    Cue("name", re.compile(r"\b(?:DRS?|MRS?|MS|MISS|PROF|PROFESSOR)(?:\.? |\.)(?=[^\W\d_a-z]{2})"), trust=1),
    Cue(
        "name",
        re.compile(
            rf"\b(?i:(?:patient(?:'s)?|pt|full|first|last|sur|fore|family|given|maiden|subject)? ?names?|patient|pt|subject"
            rf"|client|{_ROLE}|reader|second reader|first reader|author|signatory|attn|attention|cc|copy to|consultant"
            rf"|(?:requesting|referring|ordering|attending|performing|reporting|reading|interpreting|responsible) (?:{_ROLE}"
            rf"|provider)|(?:requested|referred|ordered|performed|reported|read|interpreted|dictated|transcribed|typed|signed|verified"
            rf"|approved|authori[sz]ed|validated|checked|reviewed|electronically signed) ?by|next of kin|contact|nok|{_KIN}|gp"
            rf"|pcp)\s?[:=]\s*"
        ),
        trust=1,
    ),
    Cue("name", re.compile(r"\b(?i:regards|signed(?=[,:])|sincerely|faithfully|dear|yours truly)[,:]?\s+"), trust=1),
    Cue("name", re.compile(rf"\b{_KIN}(?:,? | \()(?=[^\W\d_])"), trust=1),
    Cue("name", re.compile(rf"\b(?:{_ROLE}|(?i:patient|pt|subject))(?:,? | \()(?=[^\W\d_])")),
    Cue(
        "name",
        re.compile(
            r"\b(?i:(?:dictated|verified|reported|signed|approved|authori[sz]ed|read|interpreted|transcribed|typed|performed"
            r"|reviewed|requested|referred|ordered|seen|checked|agreed|discussed|confirmed|conferred|consulted|spoken|spoke|"
            r"communicated|conveyed|relayed|telephoned|phoned|handed over|given|sent|known|forwarded|identified|inserted"
            r"|placed|obtained|examined|accompanied|called)"
            r" (?:off )?(?:by|with|to|as)|named|informed|notified|alerted|contacted|paged|bleeped|advised|told|asked"
            r"|referring|thank you for referring|informed|named|known as|nee|née|alias|aka|as per|per|c/o|on behalf of"
            r"|under the care of|care of|report for|report on|film of|films of|radiographs? of|images of|study of|case of)\s"
            r"+(?=[^\W\d_])"
        ),
    ),
    Cue(
        "hospital",
        re.compile(
            r"\b(?i:(?:transferred|transfer|referred|repatriated|discharged|admitted|moved|sent|retrieved|images|films"
            r"|imaging|studies) (?:here )?(?:over )?(?:from|to|at)) (?=[^\W\d_])"
        ),
    ),
    Cue(
        "hospital",
        re.compile(r"\b(?i:transferred|referred|repatriated|discharged|admitted) (?i:from|to|at) (?:St|Saint|Mount)\.? (?=[^\W\d_])"),
        trust=1,
    ),
    Cue(
        "address",
        re.compile(
            r"\b(?i:(?:lives|living|lived|resides|residing|resident|domiciled|born|grew up|works|worked|working|raised|brought up|housed)"
            r"(?! diagnos| impression)(?: [a-z]+){0,3}? (?:in|at|near)|(?:resident|native|citizen|inhabitant) of|"
            r"\ban? (?!film|image|scan|stud|radiograph|report|catheter|valve|device|stent|graft|referral|nodule|result|sample"
            r"|isolate)[a-z]+"
            r"(?: [a-z]+)? from|"
            r"(?:moved|comes|came|hails|returned|back|miner|welder|farmer|worker|man|woman|lady|gentleman|male|female|patient"
            r"|visitor|student|teacher|nurse|refugee|migrant|sailor|veteran|driver|traveller|tourist|originally|flown"
            r"|travel(?:led|ed)?) (?:here )?(?:from|to|of))\s+"
            r"(?=[^\W\d_])"
        ),
    ),
    Cue(
        "address", re.compile(r"\b(?i:(?:home )?address|town|city|village|place of (?:birth|residence)|birthplace)\s?[:=]?\s+(?=[^\W\d_])")
    ),
)


@LANGUAGES.register("en")
@lru_cache(maxsize=1)
def english() -> Language:
    """British and American English."""
    titles = words("dr drs mr mrs ms mx miss prof professor sir dame fr rev capt lt sgt md")
    return Language(_SHAPES, _CUES, titles, _plain(), _ENDINGS, _HEADS, _MARKS)
