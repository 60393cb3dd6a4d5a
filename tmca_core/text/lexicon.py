"""The words that report parsing knows, by what they do in a sentence. English radiology wording."""

from __future__ import annotations


def terms(text: str) -> frozenset[str]:
    """The blank-separated words of `text`, as a set."""
    return frozenset(text.split())


# Levels: 0 upper, 1 middle, 2 lower third of a lung.
LEVELS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(terms("upper apex apices apical apically superior suprahilar uppermost infraclavicular"), (0,)),
    **dict.fromkeys(terms("mid middle midzone midzones midlung midlungs hilum hilus hila hilar hilars lobe*"), (1,)),
    **dict.fromkeys(terms("perihilar parahilar perihilarly perilary hiliar parailar perhilar"), (1,)),
    **dict.fromkeys(terms("lower base bases basal basally basilar inferior infrahilar retrocardiac bibasal lowermost"), (2,)),
    **dict.fromkeys(terms("bibasilar biapical bihilar costophrenic supradiaphragmatic effusion effusions posterobasal subpulmonic"), (2,)),
    "biapical": (0,),
    "bihilar": (1,),
}
# Levels that stand alone ("opacity at the base"); the others need a side or a lung word beside them ("lower zone").
ANATOMICAL = terms(
    "apex apices apical apically suprahilar midzone midzones midlung midlungs hilum hilus hila hilar perihilar parahilar perilary "
    "bases basal basally basilar infrahilar retrocardiac bibasal bibasilar biapical bihilar lobe* posterobasal"
)
# A side is needed for these to count at all: "right effusion" is at the base, "no effusion" says nothing of a place.
SIDED_ONLY = terms("effusion effusions costophrenic superior inferior")
BOTH = terms("bilateral bilaterally both bilat bilaterals bibasal bibasilar biapical bihilar billateral bilteral")
WHOLE = terms("diffuse diffusely widespread throughout panlobar pancolar entire whole multilobar")
LUNG = terms(
    "lung lungs lobe lobes lob lobs lobar zone zones field fields hemithorax hemithoraces hemithoraxes region regions area areas "
    "third thirds portion portions parenchyma segment segments pulmonary part parts side sided sides aspect quadrant quadrants "
    "half site seat predominance predominant lungfield lungfields"
)
LUNGS = terms("lungs lungfields hemithoraces")
# A side followed by one of these is not a side of a lung.
ELSEWHERE = terms(
    "heart cardiac ventricle ventricular atrium atrial arm leg limb limbs hand foot breast jugular ijv subclavian femoral radial "
    "brachial brachiocephalic central catheter line picc cvc port pacemaker shoulder clavicle clavicular humerus rib ribs axilla "
    "axillary kidney renal temporal frontal parietal occipital temporo fronto temporoparietal weakness hemiplegia hemiparesis "
    "colectomy hemicolectomy facial eye eyelid bundle nephrectomy uq extremity extremities coronary carotid aortic vena limbs "
    "liver hepatic thyroid scapular pain iliac hip knee ear tonsil ovary testis adrenal respiratory gastrointestinal lip abdomen "
    "abdominal tenderness mastectomy deviation shift border hemidiaphragm hemi diaphragm diaphragmatic ij neck tongue skull "
    "arterial artery aged limit normal urinary tract airway airways eyelids legs arms tube drain drainage pleurodesis biopsy "
    "intercostal mediastinal mediastinum leaning decubitus main bronchus paratracheal sternal nostril"
)
# Words that may stand between a level and the noun or side it belongs to.
FILLERS = (
    terms(
        "lateral medial posterior anterior peripheral periphery outer inner medially central subpleural pleural lung lungs pulmonary "
        "more most very basal basilar predominantly partial small moderate large loculated parapneumonic its his her patient's same "
        "the a of in on at within sn"
    )
    | LUNG
)
JOINERS = terms("and or to through plus as well")
NEGATIONS = terms("no without not absence absent negative free denies denied never neither nor none nothing cannot excludes excluded")
# "not only", "no change", "cannot be excluded", "nothing but": no negation of what follows.
NO_NEGATION_AFTER = terms("only longer excluded exclude ruled be but")
COURSE = terms("change changes changed improvement improved resolution progression worsening regression difference")
# What is over: "has resolved", "resolution of"; not over with one of the words of `PARTLY` before it.
GONE = terms("resolved cleared gone disappeared vanished subsided")
GOING = terms("resolution clearing clearance disappearance")
PARTLY = terms(
    "partially partly partial incompletely incomplete nearly near almost mostly largely subtotal some little slight mild minimal slow poor "
    "marked significant considerable"
)
STAYING = terms(
    "residual persistent persisting persistence persist persists remain remains remaining unchanged stable new increased increasing"
)
# The side that they point to is a direction: "deviated to the left".
SHIFTING = terms(
    "shift shifts shifted shifting deviation deviations deviate deviates deviated deviating displacement displace displaces displaced "
    "displacing push pushes pushed pushing pull pulls pulled pulling rotation rotated convex"
)
PLEURAL = terms("effusion effusions costophrenic")
CLEAR = terms("clear normal unremarkable spared preserved unaffected uninvolved healthy normally free")
COPULAS = terms(
    "is are was were remain remains remained appear appears appeared otherwise within grossly essentially looks look be been "
    "seems both lung lungs field fields zone zones base bases lobe lobes apex apices still also largely relatively side left "
    "right"
)
SPARING = terms("sparing spares spared except excluding excepting")
DOUBT = terms(
    "possible possibly probable probably may might could maybe perhaps suspected suspicious suspicion suspect likely questionable "
    "equivocal suggest suggests suggesting suggestive suggested presumed presumptive unclear indeterminate doubtful"
)
WIDENING = terms("more especially particularly worse greater greatest larger notably accentuated prevalent above including particular")
FINDING = terms(
    "consolidation consolidations consolidative opacity opacities opacification opacifications infiltrate infiltrates "
    "infiltration infiltrations lesion lesions nodule nodules mass masses pneumonia infection ggo ggos thickening thickenings "
    "effusion effusions atelectasis change changes shadow shadows shadowing haziness haze disease markings densities density "
    "abnormality abnormalities pneumothorax fibrosis involvement glass groundglass opacifcation interstitial airspace patchy "
    "edema oedema pattern patches crepitation crepitations crackles involving hypodiaphania collapse cavity cavitation focus foci"
)
_COUNTING = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: value for value, word in enumerate(_COUNTING)} | {
    "single": 1,
    "solitary": 1,
}
COUNTED = terms(
    "area areas lesion lesions opacity opacities focus foci nodule nodules infiltrate infiltrates consolidation consolidations "
    "spot spots patch patches mass masses region regions zone zones site sites"
)
UNITS = terms("day days hour hours h week weeks month months year years minute minutes cm mm ml l mg kg times ct cts figure fig case")
BREAKS = terms("but however although while whereas though yet whilst")
REST = terms("rest remainder otherwise remaining elsewhere other")
IMAGING = terms("chest radiograph radiographs cxr x-ray xray ray film image study findings examination thorax")
OFF_TOPIC = terms("laboratory lab blood physical auscultation urinary history fever pain discomfort cough ejection language effects")

# Kinds of phrase. What is seen on the film is descriptive, also where it has a name of its own (effusion, atelectasis, mass);
# why it is there, the disease, is diagnostic.
DIAGNOSIS = terms(
    "pneumonia pneumonias pneumonic pneumonitis bronchopneumonia infection infections infective infectious viral virus bacterial fungal "
    "covid covid19 coronavirus ncov sars cov mers influenza h1n1 h5n1 tuberculosis tuberculous tb legionella legionellosis pneumocystis "
    "pcp pjp jirovecii streptococcal streptococcus staphylococcal staphylococcus klebsiella mycoplasma chlamydia chlamydophila "
    "aspergillosis aspergillus varicella herpes nocardia ards sepsis septic abscess empyema aspiration inflammatory inflammation "
    "postinflammatory parapneumonic malignancy malignant metastasis metastases metastatic cancer carcinoma adenocarcinoma lymphoma "
    "neoplasm neoplastic tumour tumor tumours tumors sarcoidosis granuloma granulomas granulomatous emphysema copd asthma bronchitis "
    "bronchiolitis bronchiectasis oedema edema overload decompensation congestion failure embolism infarction haemorrhage hemorrhage "
    "contusion vasculitis silicosis pneumoconiosis disease diseases adenoma adenomas hyperplastic"
)
LOOK = (FINDING - DIAGNOSIS - terms("involving crepitation crepitations crackles involvement")) | terms(
    "opacified consolidated shadows haziness reticulation reticulations reticular reticulonodular bronchogram bronchograms nodular "
    "nodularity micronodules lucency lucencies calcification calcifications scar scars scarring cyst cysts bulla bullae hyperinflation "
    "haemothorax hydropneumothorax cardiomegaly fracture thickening ggo honeycombing paving infected nuclei nucleus cell cells polyp "
    "polyps lump lumps darkening whitening veil veiling silhouetting blunting spot spots patch coalescence fluid"
)
# Size, degree, shape, density and number: descriptive beside a finding, something else anywhere else ("moderate fever").
MODIFIER = terms(
    "small large tiny little huge big massive medium moderate moderately mild mildly severe slight slightly marked minimal minor subtle "
    "faint extensive new increasing increased decreased progressive old dense densely sparse sparsely evenly unevenly irregularly "
    "regularly irregular regular distributed scattered clustered high higher highest low lowest hazy fluffy confluent coalescent focal "
    "multifocal rounded round oval oblong ovoid flat sessile pedunculated linear layering band bandlike streaky segmental subsegmental "
    "homogeneous heterogeneous inhomogeneous ill well defined circumscribed spiculated cavitary cavitating ground free loculated multiple "
    "several numerous few many pink red white yellow pale brown reddish whitish pinkish dark bright mixed solid soft fine coarse fibrotic"
)
# Of an organ or a tissue; it goes with the finding that follows ("pulmonary infection") or with the place ("left pleural space").
ORGAN = terms("pulmonary pleural lobar parenchymal alveolar interstitial airspace bronchial lung respiratory community acquired post")
# Places that are no third of a lung.
POSITION = terms(
    "unilateral unilaterally peripheral peripherally periphery central centrally center centre top bottom corner lateral medial posterior "
    "anterior medially laterally subpleural multilobar multifocally perihilum"
)
CERTAINTY = DOUBT | terms(
    "keeping consistent compatible suspicion diagnosis diagnostic confirmed proven known typical characteristic represent represents "
    "representing reflecting reflects indicating indicative secondary due cannot excluded "
    "favour favor favouring favoring concerning worrisome related"
)
# What follows these is an interpretation, whatever its words ("in keeping with subsegmental collapse").
INTERPRETING = terms(
    "keeping consistent compatible suggestive suggesting suggest suggests suspicious represent represents representing reflecting "
    "reflects indicating indicative secondary due"
)
LINKS = terms("a an the of in on at to for with and or by from be is are was were this its also both")
