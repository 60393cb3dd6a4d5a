"""Names in medicine's own words, which identify nobody: of signs, diseases, classifications, devices and makers."""

from __future__ import annotations

from tmca_core.text.screen.interface import words

# Of several words; none of them is read as a name, whatever they mean alone. Lower case.
PHRASES: tuple[str, ...] = tuple(
    """
sister mary joseph|lady windermere|ivor lewis|ramsay hunt|austin flint|charles bonnet|ann arbor|swan ganz|golden s|golden's s
st jude|saint jude|st. jude|st. jude medical|boston scientific|general electric|edwards lifesciences|abbott vascular|port a cath|mary jane
world health organization|world health organisation|rocky mountain|christmas tree|easter egg|black lung|milan criteria|gulf war
st george's respiratory
st. george's respiratory|st vitus|st. vitus|von hippel lindau|von willebrand|von recklinghausen|von gierke
von meyenburg|de quervain|de toni|van der hoeve|van buchem|van ness|di george
le fort|la roche|mc burney|mac leod|o'donoghue|ann arbour|ross river
bence jones|west nile|rift valley|hong kong flu|spanish flu|marburg virus|ebola virus|hand schuller christian|hand schüller christian
abt letterer siwe
american college|american thoracic|american heart|british thoracic|british society|european society|european respiratory|fleischner society
royal college|national institute|north american|south american|african american|native american|pacific islander|middle eastern
gold stage|mayo classification|mayo score|new york heart|glasgow coma|glasgow blatchford|king's college criteria|denver criteria
sao paulo criteria|rome criteria|amsterdam criteria|vienna classification|paris classification|los angeles classification|tokyo guidelines
atlanta classification|banff classification|oxford classification|edinburgh score|montreal classification|boston criteria|toronto criteria
duke criteria|jones criteria|brock model|brock score|herder model|mayo model|framingham score|camino bolt|bristol myers|johnson & johnson
""".strip()
    .replace("\n", "|")
    .split("|")
)

NAMES: frozenset[str] = words(
    """
abernethy cameron rasmussen garland löfgren lofgren heerfordt tenckhoff rett strauss churg hermansky pudlak boeck mallampati cormack
lehane killip abrams achilles addison adson agatston agutter aicardi albright alport alzheimer amplatz amyand angelchik antopol apgar
apert aschoff asherman askin asperger assmann auenbrugger auerbach austin azzopardi babinski bachmann backhaus baker balthazar balint
bankart banti barlow barr barrett barth bartholin barton bartter basedow batson battle bazex bazin beau bechterew beck becker beckwith
behcet behçet bekhterev bell bence bennett bentall berger bernstein berry bezold bielschowsky billroth binet binswanger birt bjork björk
blake blakemore blalock blesovsky bloom blount blumberg blumer bochdalek boehler boerhaave bonnet borchardt bordetella bornholm bosniak
bouchard bouveret bowen boyden bozner braun breslow brill brinton brixia broca brock broden brodie broviac brown brucella brudzinski
brugada brunner brush buck budd buelau bülau buerger burkitt burnett buschke byler cabot caffey calot calve calvé camper canavan cantlie
caplan caroli carney carpentier carrington carvallo castleman chadwick chagas chance charcot chassaignac chediak chiari chilaiditi child
chopart christ christmas chvostek clark claude cloquet clutton coats cobb cockayne codman cogan colles conn conrad cooley coombs cooper
cope corrigan couinaud courvoisier couvelaire cowden cowper coxsackie creutzfeldt crohn cronkhite crouzon crow cruveilhier cullen curling
cushing czerny dacron damoiseau dance dandy dawson debakey dejerine dejerine denonvilliers denver dercum descemet devic diamond dieulafoy
digeorge dobhoff donald dorello dorfman douglas down dressler dubé dube dubin dubois duchenne ducrey dukes dupuytren duret duroziez eaton
ebola ebstein edwards ehlers ehrlich eisenmenger ellis emden epstein erb erdheim essex ester evans ewart ewing fabry fallot fanconi
fasciola felson felty finkelstein fisher fitz fleischner foley fontan forestier foster fournier fowler franseen freiberg freyberger
friedlander friedländer friedreich frohlich fuchs gaensslen galeati galeazzi galen gamna gandy ganz garden gardner garland garré gartland
gartner gaucher gehrig geneva gerbode gerdy gerota ghon giardia giemsa gilbert gilles glasgow gleason glenn glisson goldenhar goligher
golgi goodpasture gorham gorlin gottron gowers graf graham gram graves greenfield greulich grey groshong grocott grover grynfeltt guedel
guglielmi guillain gunther gustilo guyon haglund hallervorden haller halsted hamman hampton hansen hand harrington harris harrison
hartmann hartnup hashimoto hasson haversian heberden heerfordt hegglin heimlich heister heller henle henoch herxheimer heschl hesselbach
hickman hill hinchey hippel hirschsprung hodgkin hoffa hoffmann holt homan homans honda hoover hopkins horner hounsfield hoehn howell
hughes hunt hunter huntington hurler hurst hutchinson hutch ilizarov insall israel ito ivor jackson jaccoud jacod jacob jaffe jansky
jarisch jatene jefferson jeune jirovecii job jobst johnson jones judkins kager kambin kaplan kaposi karnofsky kartagener kasabach kasai
kawasaki kayser kearns keith kellgren kerley kernig kerckring khan kienbock kienböck kikuchi killian killip kimura kirschner klatskin
klebsiella klein kleinfelter klinefelter klippel koch kocher köhler kohler kohn koplik korotkoff korsakoff krabbe krukenberg kuhn kugel
kulchitsky kümmell kummell kuntscher kussmaul küttner kveim laennec lambert lambl langer langerhans langhans larrey larsen lasegue lauge
laurin lawrence leber legg legionella leigh leishmania lemierre lennox leopold leri leriche lesch letterer leventhal levine lewis lewy
leyden lhermitte libman lieberkuhn liesegang light lichtenstein lisch lisfranc listeria litten little littre littré loeffler lofgren
löfgren löffler lou louis lown ludwig lugano lumiere lupus luque luschka lutembacher luys lyell lyme lynch mach macintosh macklin macleod
maffucci magendie maisonneuve mallory malpighi mantoux marfan marie marjolin markle maroteaux marshall martin mason mcardle mcburney
mccune mcgrath mckeown mckusick mcginn mcmurray meckel meigs melanson menetrier ménétrier meniere ménière menkes merkel meyenburg meyer
meyers mercedes michaelis mikulicz miller milroy minamata mirizzi mitchell mobitz modic moebius moersch mohs monaldi mondor monge monod
monro monteggia montgomery morel morgagni morison moro morquio morton mounier müller muller munchausen murphy mustard mycobacterium
naclerio neer nelson neumann nezelof nissen nikolsky nocardia noonan norwood oddi ogilvie ollier omaya ommaya ondine ormond ortner osborn
osgood osler osman outerbridge pacini paget palmer pancoast panda pandy panner panton papanicolaou papillon parinaud parkes parkinson
parks paterson patrick paul pauwels pautrier pearson pellegrini pel penrose perthes peutz peyer peyronie pfannenstiel pfeiffer pfirrmann
phalen phemister pick pickwick pierre pirani plummer poirier poland pompe poncet pott potter potts poupart prader prehn prinzmetal proteus
pugh purkinje putti quervain queckenstedt quincke ramsay ramstedt ranke ranson rastelli rathke raynaud recklinghausen reed refsum reid
reinke reissner reiter rendu retzius reye rhese ricketts richter rickettsia riedel rieger riley rigler ringer rinne ritter robin robson
rokitansky rolando romberg rosai rosen rosenmuller rosenthal ross roth rotor roux rouvière rouviere rovsing roux rubinstein russell ryle
salmonella salter santorini sappey satava scarpa schatzki schatzker schaumann scheie scheuermann schick schilder schiller schlatter
schmorl schonlein schönlein schwann seldinger sengstaken senning serratia sertoli sever sezary sheehan shenton shigella shone shprintzen
shy sicard simmonds simon simpson sims sipple sitzmarks sjogren sjögren skene sly smith sniff snellen spiegler spetzler spigelian spitz
sprengel stanford starr stensen stewart steinberg steinmann stener stent stevens stickler still stokes streptococcus strumpell sturge
sudeck swan swanson swyer sydenham syme sylvius takayasu takotsubo talairach tarlov taussig tay taylor tessier thebesius thiersch thomas
thomsen thompson thorel thoms thurner tietze todd tossy tourette toxoplasma traube treacher treitz trendelenburg trousseau turcot turner
twining ulrich unna usher valsalva valentine vaquez vater vaughan velcro virchow volkmann vogt waardenburg waldenstrom waldenström
waldeyer wallenberg wallace warthin waterhouse waterston watson weaver weber wegener weil welander wells wenckebach werdnig werner
wernicke wernig westermark whartin wharton whipple whitaker wiedemann wilkie williams willebrand willis wilms wilson winslow winter
wirsung wiskott wolff wolman woods wright yersinia youden zellweger ziehl zenker zieve zollinger zollner zuska hamartoma luftsichel gore
wuhan delta omicron schistosoma echinococcus aspergillus candida cryptococcus histoplasma pneumocystis mycoplasma chlamydia chlamydophila
escherichia pseudomonas haemophilus moraxella acinetobacter enterobacter staphylococcus
""",
    # Makers, devices, contrast media and medicines that reports write with a capital.
    """
siemens somatom healthineers philips digitaldiagnost ge revolution lightspeed discovery optima canon toshiba aquilion fuji fujifilm
carestream agfa hologic samsung hitachi shimadzu mindray esaote konica minolta kodak varian elekta accuray definium ysio axiom multix
medtronic micra biotronik guidant abbott cordis cook bard baxter amplatzer impella evita watchman mitraclip zenith endurant excluder
gore-tex goretex teflon silastic tesio permcath portacath mediport vascath quinton pleurx pleurex denver dräger drager puritan bennett
omnipaque omnipaque ultravist visipaque isovue iopamiron xenetix iomeron imeron gadovist dotarem magnevist primovist multihance prohance
sonovue definity gastrografin lipiodol optiray vancomycin tazocin augmentin meropenem remdesivir dexamethasone tocilizumab kaletra tamiflu
zithromax avastin keytruda opdivo herceptin humira remicade plaquenil lasix heparin aspirin warfarin clexane eliquis xarelto cordarone
amiodarone venflon tegaderm steri neurolite lexiscan technegas aida dicom pacs epic cerner powerscribe dragon bluetooth windows excel
pfizer biontech moderna astrazeneca sinovac sputnik janssen novavax comirnaty quantiferon xpert genexpert
""",
    # Places that classifications, criteria and germs are named after.
    """
stanford lugano berlin wuhan lyme coxsackie bornholm geneva glasgow denver milan rome tokyo paris vienna banff montreal toronto boston
birmingham helsinki framingham norwalk marburg ebola zika dengue salem bethesda rotterdam barcelona sydney york bern basel heidelberg
""",
)
