"""Common given names and surnames of many countries. Hospitals have patients and staff from everywhere, in any language of reports."""

from __future__ import annotations

from tmca_core.text.screen.interface import words

GIVEN: frozenset[str] = words(
    """
aarav aaron abdul abdullah abigail abraham adaeze adam aditya adrian adriana adrien agatha agnes agnieszka ahmad ahmed aidan aileen ailsa
ainhoa aisha akira alan alastair alba albert alberto alejandra alejandro aleksandar aleksandr alessandra alessandro alex alexander
alexandra alexandre alexis alfred alfredo ali alice alicia alina alison allan allison alma alois alonso alwin amanda amara amber amelia
amina amir amit amparo amy ana anand anastasia anders andre andrea andreas andrei andrew andrzej angel angela angelika angelina angharad
angus anika anil anita anja anjali anke ann anna anne annegret anneliese annelore annette annie annika anselm ante anthony antje antoine
anton antonia antonio anuja aoife april ari arjun arlene armin arnd arno arnold art arthur arun arvind ashley ashok astrid atharv audrey
august aurélie austin autumn ava axel ayesha ayodele babatunde barbara barry bartholomew bastian beate beatrice beatrix beatriz becky
begoña ben benito benjamin benno benoît berit bernadette bernard bernd bernhard bernice bert berta bertha bertram beth bethany bettina
betty beverley beverly bianca bill birgit birte björn blake blanche bob bodo bogdan bonnie boris borja bosko bożena brad bradley brandi
brandon branka breanna brenda brendan brian brianna bridget brigitte britney britta brittany bronwen bruce brunhilde bruno bryan burkhard
bärbel caitlin callum calum cameron camille candice caoimhe carl carla carlos carly carmela carmelo carmen carol carole caroline carolyn
carsten caspar cassandra cassie catherine cathy catriona cayetano cecil cecilia cedric celia cerys chad chandra chantal charles charlie
charlotte chavvi chen cheryl chiara chidi chinedu chloe chris christa christel christian christiane christina christine christl christoph
christopher chus ciara cindy claire clara clarence claudia claus clemens clifford clint clive clyde cody colin colleen concepción connor
conor conrad constance consuelo cordula corinna cornelia cornelius courtney craig cristina crystal curtis cynthia céline dafydd dagmar
daisy dale damian damon dan daniel daniela danielle danièle danuta daphne darnell darren darryl daryl dave david dawn dean deborah debra
declan deepa deepak deirdre demetrius denise dennis derek desmond destiny detlef detlev devon dewey diana diane diego dieter dietmar
dietrich dirk divya dmitri dmitry dolores dominic dominik dominique don donald donna dora doreen doris dorothea dorothy doug douglas
dragan duane duncan dusan dwayne dwight dylan dziewior dörte eamon earl eberhard edelgard edelmira edeltraud edgar edith edmund edna
eduardo edward edwin effie egon ehrenfried eileen eilidh ekaterina ekkehard elaine eleanor elena elfi elfriede elias elijah elisa
elisabeth elise elizabeth elke ella ellen elliott elly elmer eloise elsa elsbeth emanuel emilia emilio emily emma emmanuel emmett emyr
encarnación enid enrico enrique eoghan erhard eric erica erich erik erika erin ernest ernestine ernst erwin esperanza esteban esther ethan
ethel euan eugen eugene eugenia eunice eusebio eva evelyn everett evi ewa ewan fabian fabrice faith falk farah fatima fatma fay felicity
felipe felix ferdinand fergus fermín fern fernando ffion fiona flora florence florentine florian floyd folake frances francesca francesco
francis francisco franco francois frank franz franziska françois françoise frauke fred freda frederick fredrik frieda friedbert friedhelm
friedrich fritz gabriel gabriela gabriele gail ganesh gareth gary gavin gaëlle geeta gemma gene geneviève geoff geoffrey georg george
georgia georgina geraint gerald geraldine gerard gerd gerda gerhard gerlinde gernot gerold gertie gertrud gertrude gesa gethin ghislaine
gianni giesela gilbert gilles gillian gina giovanni gisbert gisela giulia giuseppe gladys glen glenda glenn gloria goldie gonzalo goran
gordon gottfried grace graham grainne grant greg gregorio gregory greta grzegorz grégoire guadalupe gudrun guenther guido guillaume
guillermo gunda gunnar gunter gustav guy gwen gwendolyn gwyneth gérard günter günther hailey hakim haley halina hamid hamish hanna hannah
hannelore hanno hans harald hari harold harriet harry hartmut hartwig harvey hasan hassan hattie hazel heather hector hedwig heidemarie
heidi heike heiko heiner heinrich heinz heinz-peter helen helena helene helga helma helmut hendrik henri henriette henrik henry henryk
herbert heribert herman hermann hermine hertha hervé hilary hilda hilde hildegard hilmar hiltrud hiroshi holger holly homer hope horst
horst-dieter howard hubert hugh hugo hussein huw hélène iain ian ibrahim ida ieuan ignacio igor ike iker ilka ilona ilse imke imogen imran
ina ines inga inge ingeborg ingo ingrid inmaculada inés ioana irene irina iris irma irmgard irmtraud irmtrud irving isaac isabel isabella
isabelle isaiah isla ismail isolde ivan ivana ivica ivor iwan jacek jacinto jack jackie jacob jacqueline jacques jadwiga jaime jake jakob
jakub jamal james jamie jan jana jane janet janice janina janine jared jarosław jarrod jasmin jasmine jason jasper javier jay jayne jean
jean-pierre jeanette jeff jeffrey jelena jemima jenna jennifer jenny jens jerald jeremiah jeremy jermaine jerome jerry jerzy jesse jessica
jesus jesús jethro jill jillian jim jimmy jin jitendra jo joachim joan joana joanna joanne joaquin joaquín jobst jocelyne jochen jodi jody
joe joel joerg johan johann johanna johannes john johnny jolanta jolene jonas jonathan jordan jorge jose josef josefa josefina joseph
josephine joshua josiah josip jost josé joy joyce joëlle juan juan- carlos juana juanita judith judy julia julian juliana julie juliette
julio julita june jurgen justin justyna jutta jyoti jérôme józef jörg jörn jürgen kai kaitlin kaitlyn kamal kamila kara karen karim karin
karina karl karl-heinz karla karoline karsten katarzyna kate katelyn katharina katherine kathie kathleen kathryn kathy katja katrin kavya
kay kayla kazimierz keisha keith kelli kelly kelsey ken kendall kendra kenji kenneth kent kerry kerstin kevin khadija khalid kieran kim
kimberly kinga kiran kirk kirsten kirsty klara klaus klothilde kofi konrad konstantin kornelia krishna kristen kristi kristin kristina
kristy krystyna krzysztof kumar kunigunde kurt kurtis kwame kyle kylie käthe lachlan laetitia lakshmi lamar lambert lan larissa larry lars
laszlo lata latasha latoya laura lauren laurence laurent lawrence leah leandro lee leigh leila leland lena leo leon leonard leonardo
leonhard leonie leslie lester leszek leticia lettie levi lewis liam liane lidia liesbeth lieselotte lili lillian lily lina linda lindsay
lindsey lionel lisa liselotte lloyd lois lola lore lorenz lorenzo loretta lori lorna lorraine lothar lotte louis louisa louise lourdes
loïc luca lucas lucia lucie lucien lucille lucinda lucy ludovic ludwig luis luisa luise luitgard luka lukas luke lutz lydia lyle lynda
lynette lynn lynne léa mabel macarena maciej mackenzie madeleine madelyn madison mae magda magdalena magnus mahesh mahmoud maike mairead
mairi malcolm malgorzata malik mallory malte mandy manfred manish manoj manolo manuel manuela marc marcel marcelle marcia marco marcos
marcus marek margaret margarete margarethe margarita margaux marge margery margit margot margret maria mariam marian mariana marianne
mariano maribel maricarmen marie marija marilyn marina mario marion marita mariusz marjorie mark markus marla marlene marlies marlis
marlon marshall marta martha martin martina martine martín marvin mary maryam maryse marzena maría masako mateusz mathias mathieu mathilda
mathilde matilda matteo matthew matthias maude maureen maurice mavis max maximilian maximiliano maxine maxwell may małgorzata mechthild
meera megan mehmet mei meinhard melanie melinda melissa melvin mercedes merle meta mia micah michael michaela michal michał michel michele
michelle mieczysław miguel mike mikhail mila mildred milena millie milos milton mina minnie miranda mireia mireille miriam mirjana mirko
mirosław mitchell mladen mohamed mohammad mohammed moira mollie molly mona monica monika monique montserrat morag morgan moritz muhammad
mukesh murat muriel mustafa myra myrtle nadia nadine nadja nancy nannie naomi natalia natalie natalija natasha nathan nathaniel naveen
neha neil nele nellie nelson nerys nettie newton ngozi niall niamh nicholas nick nico nicola nicolas nicole nieves nigel nikita nikola
nikolai nils nina nisha nitin noah noel nora norbert norma norman notburga noémie nuala nuria núria odell odette odile odo oisin ola olaf
oleg olga olgierd oliver olivia olivier olumide omar onkar opal ora orla ortrud orville oscar oskar osman oswald otis ottilie ottmar otto
oumar owain owen pablo paco padraig paige pam pamela pankaj paola paolo parvati pascal pascale pascual patrice patricia patrick patrizia
patryk patsy patti paul paula paulette pauline pavel pawel paweł paz pearl pedro peggy penelope pepe percival percy perry peter petra phil
philip philipp philippa philippe phillip phoebe phyllis pia pierre pilar piotr polly pooja pradeep prakash preeti preston priscilla priya
przemysław pura purificación quentin quique rachel radosław rafael rafał rahul raik raimund rainer raj rajesh rakesh ralf ralph ramesh
ramiro ramon ramona ramón randall randy raphael rashid raul ravi ray raymond raymonde raúl rebecca reggie regina reginald reiner reinhard
reinhold rekha remedios renata renate renatus rene rené rex reza rhiannon rhoda rhodri rhona rhonda rhys ricardo richard rick rickey rico
rita ritu rob robert roberta roberto robin rochelle rocío rod roderick rodger rodney rodrigo roger rohan rohit roisin roland rolf roman
romy ron ronald ronan roosevelt roque rory rosa rosalie rosalind rosanna rosario roscoe rose rosel roselyne rosemarie rosemary rosetta
ross roswita roswitha rowena roxanne roy ruben ruby rubén rudi rudolf rufus rupert russell rusty ruth ryan ryszard régine rémi rémy
rüdiger sabine sabrina sachin sadie said salim sally salma salvador salvatore sam samantha samira samson samuel sandra sandrine sandy
sanjana sanjay sanjeev santiago saoirse sara sarah saskia satoshi saul savannah scott sean sebastian seema selina selma sergei sergey
sergio seth shane shaniqua shannon shanti shari sharon shaun shawn sheila sheldon shelley sheri sherri sherry sheryl shilpa shirley shobha
shona shreya sian sibylle sidney siegfried sieglinde siegmund siergiej sigfrido sigmund sigrid silas silke silvia silvio simon simone
sinead siobhan siobhán siân skyler slobodan sneha snezana sofia soledad solène sonia sonja sonny sophia sophie srinivas stacey stacy stan
stanislav stanisław stanley stefan stefanie steffen stella stephan stephanie stephen sterling steve steven stewart stjepan struan stuart
stéphane stéphanie subhash sudha sue sultan suman sunil sunita suresh susan susanna susanne susie suzanne suzie sven svenja svetlana swati
swetlana sybil sybille sylvia sylvie sylwia szymon sébastien sören sławomir tabitha tadeusz takeshi tamara tamika tania tanja tara tariq
tarun tasha tatiana tatjana taylor ted terence teresa teri terri terry thaddeus thea thekla thelma theo theodor theodore theresa therese
theresia thi thibaut thierry thilo thomas thorsten tiffany tilman tim timmy timothy tina tobias toby todd tom tomas tomasz tommy tomás
tonia tony tonya torben torsten tracey traci tracy traudel traute travis trevor tricia trinidad tristan troy trude trudy tunde tyler
tyrone udo ulf ulrich ulrike uma umar undine urban ursel ursula urszula uschi usha ute uwe valarie valentina valeria valerie valérie
vandana vanessa veit velma vera verena verna vernon veronica veronika vesna vicki vicky victor victoria vihaan vijay vikram viktor vince
vincent vincenzo vinod viola violet virginia virginie vivek vivian vladan vladimir volker volkmar véronique wacław wade walburga waldemar
waldtraut wallace wally walter waltraud wanda warren wayne wei wendell wendy werner wesley wiebke wiesław wilbur wilfried wilhelm will
willem willi william wilma winfried winifred winston witold wojciech wolfgang wolfram woodrow wulf władysław xavier xiao ximena yago yann
yannick yash yasmin yolanda yuki yusuf yves yvette yvonne zachary zack zahra zaida zainab zara zbigniew zdenka zoe zofia zoltan zoran zoé
zsofia zygmunt édouard éric étienne łukasz žarko
""",
)

SURNAMES: frozenset[str] = words(
    """
heath washington ford power field fields woods day date wall chad jennings frost lamb hart carpentier valentine noble savage case cases
steele abbott abdi abraham acharya adams adebayo adeyemi agarwal aggarwal aguilar ahmad ahmed ahrens akhtar albrecht alexander ali allen
alonso alvarez amin andersen anderson andersson andrews ansari appiah armstrong arndt arnold arora asante ashworth atkinson awad aziz
bailey bajwa baker ball balogun banerjee banks barker barnes barrett barros bartels basu batra bauer baum baumann beck becker bedi begum
bell bello bennett berg berger bergmann bernard berry beyer bhatia bhatt bhattacharya bianchi bishop black blackwell blanco blum boateng
bond bose bowen boyd brandl brandt braun brennan brinkmann brooks brown bruce bruno bruns bryant burke burns burton busch butler byrne
böhm böttcher cabo cabrera calvo cameron campbell campos cano cardoso carlson carpenter carrasco carroll carter carvalho castillo castro
chambers chan chandra chang chapman chatterjee chaudhary chaudhry chavez chen cheng choi chopra chowdhury christensen chukwu clark clarke
coelho coleman collins connolly conrad conti cook cooper cortes cortez costa cox crawford crespo crosby cruz cunningham daly das dasgupta
davidson davies davis dawson de-luca decker delgado desai dhillon diallo dias diaz dietrich dittrich dixon doherty dominguez douglas doyle
dubey dubois duncan dunn dupont duran durand dutta döring dąbrowski ebert eckert edwards eklund elliott ellis engel eriksson ernst escobar
espinoza esposito estrada evans eze fairweather farrell feldmann ferguson fernandes fernandez ferrari figueroa fink fischer fisher
fitzgerald fleming flores fofana fontaine fontana foster fournier fox francisco franke franz freeman friedrich friedrichs fritz fuchs
fuentes funk förster gallagher gallego galli gallo gandhi ganguly garcia gardner garg garnier garrido gebhardt geiger gerlach ghosh gibson
gil gill gimenez giordano girard goel goldberg gomes gomez gonzales gonzalez gonçalves gordon goswami graf graham grant gray greco green
greene grenier grewal grimm gross guerin guerrero gupta gutierrez götz günther haas hall hamilton hammer hansen hansson harper harris
harrison hart hartmann hartung harvey hashemi hayes hein heinemann heinrich henderson henley henry hermann hernandez herrera herrmann hess
hesse heuer hidalgo higgins hill hinz hoffman hoffmann hofmann holmes holz horn horvath hossain hosseini howard huang hughes hunt hunter
hussain hübel ibanez ibrahim iglesias iqbal islam ivanov iyer jackson jacobs jahn jain james jansen janssen jansson jenkins jensen jha
jimenez johansson john johnson johnston jones jordan joshi jost jung jäger kahl kaiser kamara kamiński kang kaplan kapoor karim kaur
kaushik kaya keil keller kellner kelly kennedy kern khan khanna khatun kim king kirchner kirsch klein klose knight knoll koch kolb konrad
kopp kowalczyk kowalska kowalski kozlov kozłowski kramer kraus krause krawczyk krebs krishnan kruse krämer krüger kuhn kulkarni kumar
köhler köhn könig kühn lam lambert lambrecht lang lange langer larsen larsson lauer laurent lawrence lawson le leconte lee lefebvre
lefevre lehmann leon leone leroy lewandowska lewandowski lewis li lim lin lindberg lindner liu lloyd lombardi long lopes lopez lorenz
lozano ludwig lynch löffler macdonald mackenzie madan mahmood maier malhotra malik mancini mandal mander mariani marin marini marino
marquardt marsh marshall martel martin martinez marx mason matthews maurer may mayer mayr mazur mbeki mccarthy mcdonald mckenzie medina
mehta meier mendes mendez mendoza menon mensah menzel mercier merkel mertens metzger meyer michaud michel miller mills miranda mirza
mishra mitchell mohamed molina moll montero moore mora morales moreau morel moreno moretti morgan morris morrison moser moya mueller
mukherjee mukhopadhyay munoz murphy murray musa muñoz möller müller nagel naidoo nair nakamura naumann navarro nayak ndiaye nelson
neubauer neumann newman ng nguyen nielsen nilsson noack nolte novak nowak nowicki nunez nwosu núñez o'brien o'connor o'leary o'neill
o'sullivan obi obrien ochoa oconnor oduya ogunleye okafor okeke okonkwo oliveira olsen olsson opitz ortega ortiz osei ott otto owens owusu
oyelaran pacheco palmer pandey park parker parra parsons pascual patel pathak paul pauli pawłowski pearson pedersen pemberton pereira
perera perez perrin perry persson peters petersen petit petrov petrova peña pfeiffer pham phillips pillai pinto pires pohl popescu porter
powell preuß price prieto quinn qureshi raghunathan rahman rai ramirez ramon ramos rana rao rasmussen rathore rauf reddy reed reich
reichert reid reimann reinhardt renard reuter rey reyes reynolds ribeiro ricci richards richardson richter riedel riley rinaldi ritter
rivera rizvi rizzo robert roberts robertson robinson rocha rodrigues rodriguez rogers rojas roman romano romero rose rosenberg ross rossi
roth rousseau roussel roy rubio rudolph ruiz runge russell russo ryan röder sahni saini saito salazar salinas sanchez sander sanders
santos sanz sarkar sato sauer saxena schenk schilling schindler schlosser schlüter schmid schmidt schmitt schmitz schneider scholz
schreiber schreiner schroeder schröder schubert schuhmacher schulte schultz schultze schulz schulze schumacher schuster schwab schwarz
schäfer schürmann scott seidel seifert sen serrano sethi shah shaikh sharma shaw sheikh siddiqui siebert silva simmons simon simpson singh
sinha smirnov smith sokolov soler sommer soni soto sousa souza spencer springer srinivasan stark steffens stein steiner stephan stephens
stevens stewart stoll stone straub strauß suarez subramanian sullivan suzuki svensson szabo takahashi tan tanaka tandon taylor teixeira
thakur thapa thiel thiele thomas thompson thomson tiwari torres tran traore tripathi trujillo tucker turner ullrich ulrich umar unger
urban usman valdez valencia vargas varma vasquez vega velasquez vera verma vidal vieira villa vogel vogt voigt volkov voss vyas völker
wagner walker wallace walsh walter wang ward warren watanabe watkins watson weaver webb weber weigel weiss weiß wells wendt wenzel
werner west white wiegand wijaya wilhelm williams williamson willis wilms wilson winkler winter wirth witt wittmann wiśniewski wolf wolff
wolfram wong wood woods woźniak wright wu wulf wójcik xu yadav yamamoto yang yilmaz young yusuf yıldız zając zaman zamora zander zeller
zhang zhao zheng zhou zhu ziegler zieliński zimmer zimmermann zirme zuniga öztürk
""",
)

PARTICLES: frozenset[str] = words("van von de der den da di du dos das del della la le el al bin ibn abu ten ter zu zur zum vom af")
