"""How the vocabulary of the embedded text encoder was made: our own list of radiology English, and every letter.

`python -m tmca_core.text.vocabulary` writes vocabulary.json anew. The file is what the encoder reads, so that a checkpoint
keeps its meaning when this list grows: a changed vocabulary needs a new model. Nothing is copied from data sets or from other
vocabularies.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

VOCABULARY = Path(__file__).with_name("vocabulary.json")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_PUNCTUATION = string.punctuation + "’‘“”–—…·•×÷±≤≥≈°µ²³½→←↑↓αβγδ§€£"

_GRAMMAR = """
a an the this that these those it its he she they we you i his her their our my who whom whose which what when where why how and
or nor but however although though while whereas if then than as so because since due to of in on at by for from with without
within into onto over under above below between among through throughout across along around about against after before during
until up down out off near next beside behind is are was were be been being am has have had having do does did done can could may
might must shall should will would not no none never neither either both each every all any some few many much more most less
least several other another same such only just also too very quite rather still yet already again now here there today yesterday
day days week weeks month months year years hour hours minute minutes time times old ago later earlier early late new newly prior
previous previously recent recently current currently first second third last final one two three four five six seven eight nine
ten eleven twelve twenty hundred zero half once twice single double multiple numerous few pair number total
"""
_PLACES = """
left right bilateral bilaterally unilateral unilaterally both sided side sides upper middle lower mid central centrally peripheral
peripherally lateral laterally medial medially anterior anteriorly posterior posteriorly superior superiorly inferior inferiorly
basal basally apical apically base bases apex apices hilum hila hilar perihilar parahilar suprahilar infrahilar retrocardiac
paracardiac paratracheal mediastinal mediastinum lung lungs lobe lobes lobar zone zones field fields region regions area areas
segment segments segmental subsegmental third thirds part parts portion portions half quadrant quadrants corner edge border
borders margin margins contour contours outline angle angles level levels site sites lingula lingular hemithorax thorax thoracic
chest wall pleura pleural subpleural pleuropulmonary costophrenic cardiophrenic sulcus recess fissure fissures interlobar
interlobular interlobe oblique horizontal minor major diaphragm diaphragmatic hemidiaphragm hemidiaphragms subdiaphragmatic heart
cardiac cardiomediastinal pericardial pericardium aorta aortic arch knob knuckle trachea tracheal carina bronchus bronchi
bronchial bronchiole bronchioles bronchovascular peribronchial peribronchovascular airway airways airspace airspaces alveolar
alveoli alveolus acinar interstitial interstitium parenchyma parenchymal vessel vessels vascular vasculature vascularity artery
arteries vein veins venous rib ribs clavicle clavicles scapula scapulae spine spinal vertebra vertebrae vertebral sternum sternal
shoulder shoulders humerus bone bones bony osseous skeleton soft tissue tissues breast breasts axilla axillary neck abdomen
abdominal stomach gastric bowel colon liver spleen kidney kidneys adrenal oesophagus oesophageal esophagus esophageal node nodes
nodal lymph lymphatic thymus thyroid skin muscle muscles subcutaneous rul rml rll lul lml lll ruz rmz rlz luz lmz llz inner outer
deep superficial adjacent ipsilateral contralateral opposite extending extends extend reaching towards toward overlying overlies
underlying surrounding predominantly predominant predominance mainly mostly largely chiefly especially particularly
"""
_FINDINGS = """
finding findings lesion lesions opacity opacities opacification opacifications opacified consolidation consolidations consolidated
consolidative infiltrate infiltrates infiltration infiltrative infection infections infected infectious pneumonia pneumonias
pneumonic pneumonitis bronchopneumonia covid sars cov coronavirus viral virus bacterial bacteria fungal tuberculosis tuberculous
influenza legionella pneumocystis abscess empyema cavity cavities cavitation cavitary cavitating nodule nodules nodular
micronodule micronodules mass masses tumour tumor tumours tumors neoplasm neoplastic malignancy malignant benign cancer carcinoma
adenocarcinoma lymphoma metastasis metastases metastatic granuloma granulomas granulomatous cyst cysts cystic bulla bullae bullous
bleb emphysema emphysematous fibrosis fibrotic scar scars scarring atelectasis atelectatic collapse collapsed volume loss effusion
effusions fluid pneumothorax pneumothoraces hydropneumothorax haemothorax hemothorax pneumomediastinum oedema edema congestion
congested cephalization kerley lines line linear reticular reticulation reticulonodular reticulations ground glass groundglass ggo
ggos crazy paving honeycombing bronchiectasis bronchiectatic bronchogram bronchograms bronchitis bronchiolitis thickening
thickened thickenings septal septa septum tree bud mosaic hyperinflation hyperinflated hyperexpanded hyperlucent lucency lucencies
lucent calcification calcifications calcified plaque plaques embolism emboli infarct infarction haemorrhage hemorrhage aspiration
contusion laceration fracture fractures fractured dislocation deformity scoliosis kyphosis degenerative osteophyte osteophytes
cardiomegaly enlarged enlargement enlarging widened widening prominent prominence shift shifted deviation deviated elevated
elevation blunted blunting obliterated obliteration obscured obscuration obscuring silhouette silhouetting sign signs halo shadow
shadows shadowing haze haziness hazy density densities dense veiling whiteout marking markings pattern patterns change changes
abnormality abnormalities abnormal anomaly disease diseases disorder failure insufficiency hypertension hernia hiatal nucleus
nuclei nuclear cell cells cellular polyp polyps polypoid adenoma adenomatous mucosa mucosal ulcer inflammation inflammatory
necrosis necrotic stroma stromal gland glands glandular stain stained
"""
_QUALITIES = """
normal unremarkable clear cleared clearing healthy intact preserved spared sparing free stable unchanged resolved resolving
resolution improved improving improvement worse worsened worsening progressive progression progressing increased increasing
increase decreased decreasing decrease reduced reduction regressed regression persistent persisting persists residual remaining
interval acute subacute chronic old small smaller smallest large larger largest big tiny little minimal minimally mild mildly
moderate moderately severe severely marked markedly subtle faint slight slightly gross grossly extensive extensively diffuse
diffusely widespread focal focally multifocal patchy confluent coalescent scattered discrete circumscribed defined ill well poorly
round rounded oval lobulated spiculated irregular irregularly regular smooth sharp blurred hazily coarse fine heterogeneous
homogeneous inhomogeneous homogenous asymmetric asymmetrical asymmetry symmetric symmetrical symmetrically dense denser sparse
sparsely evenly unevenly uniform uniformly even distributed distribution high higher highest low lowest thick thin wide narrow
broad long short bright dark white black grey gray solid soft hard typical atypical classic nonspecific specific significant
significantly relevant suspected suspicious suspicion possible possibly probable probably likely unlikely questionable uncertain
definite definitely certain consistent compatible suggestive suggesting suggests suggest indicate indicates indicating indicative
concerning favour favor represent represents representing reflect reflects excluded exclude excluding cannot ruled rule evident
visible visualised visualized seen noted identified observed present absent absence presence evidence negative positive denied
except including include includes involving involves involved involvement affecting affected affects predominating confined
limited localised localized located location compared comparison similar greater less equal approximately maximal maximum size
sizes diameter measuring measures measured mm cm ml percent grade stage score type
"""
_WORLD = """
patient patients man woman male female boy girl child infant adult aged age history presents presented presenting presentation
complains complaint symptom symptoms symptomatic asymptomatic fever febrile cough productive sputum dyspnea dyspnoea shortness
breath breathing breathlessness pain fatigue malaise headache chills sweats weight smoker smoking diabetes diabetic asthma copd
hiv immune immunocompromised transplant surgery surgical postoperative operative trauma injury fall accident emergency department
hospital admission admitted discharge discharged icu ward clinic respiratory distress syndrome ards hypoxia hypoxic saturation
oxygen ventilation ventilated ventilator intubated intubation extubation treatment treated therapy antibiotic antibiotics steroid
steroids antiviral drug drugs dose response follow followup exam examination examinations study studies image images imaging
radiograph radiographs radiographic radiography radiological radiologist radiology xray ray rays film films scan scans ct mri
ultrasound pet cxr ap pa view views projection projections frontal supine erect upright sitting standing portable bedside
inspiration inspiratory expiration expiratory rotated rotation penetration exposure quality technique limited artefact artifact
marker contrast report reports impression conclusion diagnosis diagnostic differential indication comparison recommendation
recommend recommended correlate correlation clinical clinically context setting test tests pcr laboratory blood count culture swab
biopsy bronchoscopy histology microscopy endoscopy colonoscopy tube tubes endotracheal tracheostomy nasogastric catheter catheters
central venous jugular subclavian picc port pacemaker wire wires lead leads device devices drain drains chest stent valve clip
clips suture sutures sternotomy prosthesis implant tip position positioned situ support removed inserted placed placement show
shows showed showing shown demonstrate demonstrates demonstrated demonstrating reveal reveals revealed revealing appear appears
appeared appearance appearances remain remains see look case cases figure arrow arrows due related associated secondary cause
caused causes result results known unknown given further please none nothing otherwise elsewhere rest remainder overall together
alone good poor adequate inadequate complete completely incomplete partial partially entire entirely whole almost nearly developed
developing development form formation began started initial initially subsequent subsequently underwent performed obtained taken
done returned home died recovered recovery target located segmented region mask contains containing object structure structures
lies
"""
_FURTHER = """
accentuated arm arms arterial aspect atrial atrium auscultation basilar biapical bibasal bibasilar bihilar bilat bilaterals
brachial brachiocephalic bundle carotid changed clavicular colectomy coronary crackles crepitation crepitations cts cvc decubitus
denies difference discomfort doubtful drainage ear effects ejection equivocal essentially excepting excludes extremities extremity
eye eyelid eyelids facial femoral fig foci focus foot fronto gastrointestinal greatest hand hemi hemicolectomy hemiparesis
hemiplegia hemithoraces hemithoraxes hepatic hilus hip ij ijv iliac indeterminate infiltrations infraclavicular intercostal kg
knee lab language leaning leg legs limb limbs limit lip loculated longer looks lowermost lungfield lungfields main mastectomy
maybe mg midlung midlungs midzone midzones multilobar nephrectomy normally nostril notably occipital ovary pancolar panlobar
parapneumonic parietal particular patch patches perhaps perihilarly periphery physical pleurodesis plus posterobasal presumed
presumptive prevalent pulmonary radial relatively remained renal scapular seat seems skull solitary spares spot spots subpulmonic
suggested supradiaphragmatic suspect temporal temporo temporoparietal tenderness testis tongue tonsil tract unaffected unclear
uninvolved uppermost uq urinary vena ventricle ventricular weakness whilst perihilarly micronodular bibasilar biapical crackle
rales wheeze wheezes murmur edge edges triangular wedge shaped band bandlike curvilinear streaky streak streaks stranding plate
platelike discoid dependent nondependent predominance gravitational cephalad caudal caudad craniocaudal mild transient chronicity
evolving waxing waning migratory fleeting confluence aerated aeration reexpanded reexpansion expansion expanded volume volumes
overinflated underinflated tenting scalloping bulging effacement effaced outlining lies crossing sparing asymmetrically
superimposed superimposition summation nipple artefactual technical grid exposed overexposed underexposed lordotic decubitus
oblique swallow unfolded tortuous ectatic dilated dilatation aneurysm aneurysmal sclerosis sclerotic lytic erosion erosions
expansile pathological healing healed united callus rib cage kyphotic scoliotic osteopenia osteopenic osteoporosis osteoporotic
spondylosis disc discs
"""
_STEMS = """
pneumo broncho bronchi cardio pleuro pulmon hepato spleno nephro gastro osteo arthro lympho haemo hemo thoraco tracheo laryngo
pharyngo vaso angio arterio veno neuro myo cyto histo patho micro macro mega hyper hypo iso peri para intra inter extra sub supra
infra retro trans ante anti auto bi uni mono multi poly semi pseudo neo post pre pro re un non dis mis over under electro radio
immuno chemo cranio costo sterno
"""
_ENDINGS = """
s es ed ing er ers or ors est ly al ally ial ical ic ics ous ious ity ities ness less ful ment ments tion tions ation ations ative
ition sion sions able ible ably ant ent ance ence ancy ency ary ory ive ively ise ised ize ized izing ising isation ization ist
ism ate ated ating y ies ied itis osis oses oma omas omata ectasis ectasia ectomy ostomy otomy plasty pathy pathic graphy gram
grams graph scopy scopic logy logical logist genic genesis genous lysis lytic trophy trophic plasia plastic penia emia aemia uria
algia dynia plegia paresis pnea pnoea thorax cardia cardial cardium pulmonary bronchial vascular pleural lobar basal hilar apical
diaphragm mediastinal inal eal ean oid form like type ward wards wise hood ship th st nd rd en an in on un er re de le al el il ol
ul ar ir ur at et it ot ut as es is os us ac ec oc uc ad ed id od ud am em im om um ap ep ip op up ch sh ph gh ck ng nk nt nd mp
rt rd rk rm rn st sp sk ss ll tt ff pp rr ee oo ea ou ai ay ow ew au ie ue tr br cr dr fr gr pr str spr thr bl cl fl gl pl sl qu
ra ro ri ru la lo li lu ma mo mi mu na ne ni no nu pa pe pi po pu sa se si so su ta te ti to tu va ve vi vo vu ba be bo bu ca ce
ci co cu da di do du fa fe fi fo fu ga ge gi go gu ha he hi ho hu ja je jo ju ka ke ki ko
"""


def build_vocabulary() -> list[str]:
    """The pieces in the order of their ids: special tokens, single characters, whole words, beginnings, continuations ("##…").

    Every ASCII letter and digit is there as a beginning and as a continuation, and every ASCII punctuation mark, so that no
    English text gives [UNK].
    """
    characters = string.ascii_lowercase + string.digits
    words = " ".join((_GRAMMAR, _PLACES, _FINDINGS, _QUALITIES, _WORLD, _FURTHER)).split()
    words = [word for word in words if word.isalpha() and word.isascii() and len(word) > 1]
    pieces = [*SPECIAL, *_PUNCTUATION, *characters, *(f"##{character}" for character in characters)]
    pieces += [*words, *_STEMS.split(), *(f"##{ending}" for ending in _ENDINGS.split())]
    return list(dict.fromkeys(pieces))


def write_vocabulary(path: Path = VOCABULARY) -> None:
    """Write the vocabulary file: {"pieces": […]}, ids by position."""
    path.write_text(json.dumps({"pieces": build_vocabulary()}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def read_vocabulary(path: Path = VOCABULARY) -> list[str]:
    """Pieces of the shipped vocabulary, by id."""
    pieces: list[str] = json.loads(path.read_text(encoding="utf-8"))["pieces"]
    return pieces


if __name__ == "__main__":
    write_vocabulary()
