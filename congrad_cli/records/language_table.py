"""The languages that labels of preference data name, and the scripts and regions beside them.

Everything in ISO 639-1, FLORES-200 and NLLB, Aya and py3langid, and some more.
"""

LANGUAGES = """
aa aar | Afar
ab abk | Abkhazian, Abkhaz | Cyrl
ace | Acehnese, Achinese
acm | Mesopotamian Arabic, Iraqi Arabic | Arab
acq | Ta'izzi-Adeni Arabic | Arab
ae ave | Avestan | Avst
aeb | Tunisian Arabic | Arab
af afr | Afrikaans
ajp | South Levantine Arabic | Arab
ak aka | Akan
am amh | Amharic | Ethi
an arg | Aragonese
apc | Levantine Arabic, North Levantine Arabic | Arab
ar ara arb | Arabic, Standard Arabic, Modern Standard Arabic | Arab
arq | Algerian Arabic | Arab
ars | Najdi Arabic | Arab
ary | Moroccan Arabic | Arab
arz | Egyptian Arabic | Arab
as asm | Assamese | Beng
ast | Asturian
av ava | Avaric, Avar | Cyrl
awa | Awadhi | Deva
ay aym ayr | Aymara, Central Aymara
az aze azj | Azerbaijani, North Azerbaijani
azb | South Azerbaijani | Arab
ba bak | Bashkir | Cyrl
ban | Balinese
bar | Bavarian
bbc | Batak Toba, Toba Batak
bcl | Central Bikol
be bel | Belarusian | Cyrl
bem | Bemba
bg bul | Bulgarian | Cyrl
bho | Bhojpuri | Deva
bi bis | Bislama
bjn | Banjar
bm bam | Bambara
bn ben | Bengali, Bangla | Beng
bo bod tib | Tibetan, Standard Tibetan | Tibt
br bre | Breton
brx | Bodo | Deva
bs bos | Bosnian
bug | Buginese
ca cat | Catalan, Valencian
ce che | Chechen | Cyrl
ceb | Cebuano
ch cha | Chamorro
chr | Cherokee | Cher
cjk | Chokwe
ckb | Central Kurdish, Sorani | Arab
cnh | Hakha Chin
co cos | Corsican
cr cre | Cree | Cans
crh | Crimean Tatar
cs ces cze | Czech
csb | Kashubian
cu chu | Church Slavic, Church Slavonic, Old Church Slavonic | Cyrl
cv chv | Chuvash | Cyrl
cy cym wel | Welsh
da dan | Danish
de deu ger | German, Standard German
dgo | Dogri | Deva
din dik | Dinka, Southwestern Dinka
dsb | Lower Sorbian
dv div | Divehi, Dhivehi, Maldivian | Thaa
dyu | Dyula
dz dzo | Dzongkha | Tibt
ee ewe | Ewe
efi | Efik
el ell gre | Greek, Modern Greek | Grek
en eng | English
eo epo | Esperanto
es spa | Spanish, Castilian
et est ekk | Estonian, Standard Estonian
eu eus baq | Basque
ext | Extremaduran
fa fas per pes | Persian, Farsi, Iranian Persian, Western Persian | Arab
ff ful fuv | Fulah, Fula, Nigerian Fulfulde
fi fin | Finnish
fil tl tgl | Filipino, Tagalog
fj fij | Fijian
fo fao | Faroese
fon | Fon
fr fra fre | French
frp | Arpitan, Franco-Provençal
fur | Friulian
fy fry | Western Frisian, Frisian, West Frisian
ga gle | Irish, Irish Gaelic
gaa | Ga language
gcf | Guadeloupean Creole French
gcr | Guianese Creole French
gd gla | Scottish Gaelic, Scots Gaelic, Gaelic
gl glg | Galician
gn grn gug | Guarani, Paraguayan Guaraní
gom | Goan Konkani | Deva
grc | Ancient Greek | Grek
gsw | Swiss German, Alemannic
gu guj | Gujarati | Gujr
guw | Gungbe
gv glv | Manx
ha hau | Hausa
haw | Hawaiian
hbo | Ancient Hebrew | Hebr
he heb iw | Hebrew | Hebr
hi hin | Hindi | Deva
hil | Hiligaynon
hmn | Hmong
hne | Chhattisgarhi | Deva
ho hmo | Hiri Motu
hr hrv scr | Croatian
hsb | Upper Sorbian
ht hat | Haitian, Haitian Creole
hu hun | Hungarian
hy hye arm | Armenian | Armn
hyw | Western Armenian | Armn
hz her | Herero
ia ina | Interlingua
iba | Iban
id ind in | Indonesian, Bahasa Indonesia
ie ile | Interlingue, Occidental
ig ibo | Igbo
ii iii | Sichuan Yi, Nuosu | Yiii
ik ipk | Inupiaq
ilo | Iloko, Ilocano
inh | Ingush | Cyrl
io ido | Ido
is isl ice | Icelandic
it ita | Italian
iu iku | Inuktitut | Cans
ja jpn | Japanese | Jpan
jam | Jamaican Creole English, Jamaican Patois
jbo | Lojban
jv jav jw | Javanese
ka kat geo | Georgian | Geor
kaa | Kara-Kalpak, Karakalpak
kab | Kabyle
kac | Kachin, Jingpho
kam | Kamba
kbd | Kabardian | Cyrl
kbp | Kabiyè
kea | Kabuverdianu
kg kon | Kongo, Kikongo
kha | Khasi
ki kik | Kikuyu, Gikuyu
kj kua | Kuanyama
kk kaz | Kazakh | Cyrl
kl kal | Kalaallisut, Greenlandic
km khm | Khmer, Central Khmer | Khmr
kmb | Kimbundu
kn kan | Kannada | Knda
ko kor | Korean | Hang Kore
kok | Konkani | Deva
kr kau knc | Kanuri, Central Kanuri
krc | Karachay-Balkar | Cyrl
kri | Krio
ks kas | Kashmiri | Arab
ku kur kmr | Kurdish, Northern Kurdish, Kurmanji
kv kom | Komi | Cyrl
kw cor | Cornish
ky kir | Kyrgyz, Kirghiz | Cyrl
la lat | Latin
lad | Ladino
lb ltz | Luxembourgish
lg lug | Ganda, Luganda
li lim | Limburgish, Limburgan
lij | Ligurian
lld | Ladin
lmo | Lombard
ln lin | Lingala
lo lao | Lao | Laoo
lt lit | Lithuanian
ltg | Latgalian
lu lub | Luba-Katanga
lua | Luba-Lulua, Luba-Kasai
luo | Luo, Dholuo
lus | Lushai, Mizo
lv lav lvs | Latvian, Standard Latvian
mad | Madurese
mag | Magahi | Deva
mai | Maithili | Deva
mg mlg plt | Malagasy, Plateau Malagasy
mh mah | Marshallese
mhr chm | Mari, Eastern Mari, Meadow Mari | Cyrl
mi mri mao | Maori
min | Minangkabau
mk mkd mac | Macedonian | Cyrl
ml mal | Malayalam | Mlym
mn mon khk | Mongolian, Halh Mongolian, Khalkha Mongolian | Cyrl
mni | Manipuri, Meitei | Beng
mos | Mossi, Mooré
mr mar | Marathi | Deva
mrj | Western Mari, Hill Mari | Cyrl
ms msa may zsm | Malay, Standard Malay, Bahasa Melayu
mt mlt | Maltese
mwl | Mirandese
my mya bur | Burmese, Myanmar | Mymr
myv | Erzya | Cyrl
mzn | Mazanderani | Arab
na nau | Nauru, Nauruan
nah | Nahuatl
nan | Min Nan Chinese, Hokkien | Hant Hans
nap | Neapolitan
nb nob no nor | Norwegian, Norwegian Bokmål, Bokmål
nd nde | North Ndebele, Northern Ndebele
nds | Low German, Low Saxon
ne nep npi | Nepali | Deva
new | Newari, Nepal Bhasa | Deva
ng ndo | Ndonga
nl nld dut | Dutch, Flemish
nn nno | Norwegian Nynorsk, Nynorsk
nqo | N'Ko | Nkoo
nr nbl | South Ndebele, Southern Ndebele
nso | Pedi, Sepedi, Northern Sotho
nus | Nuer
nv nav | Navajo
ny nya | Chichewa, Nyanja, Chewa
nyn | Nyankole, Runyankole
oc oci | Occitan
oj oji | Ojibwa, Ojibwe | Cans
om orm gaz | Oromo, West Central Oromo
or ori ory | Odia, Oriya | Orya
os oss | Ossetian, Ossetic | Cyrl
pa pan | Panjabi, Punjabi, Eastern Panjabi, Eastern Punjabi | Guru
pag | Pangasinan
pam | Kapampangan, Pampanga
pap | Papiamento
pcm | Nigerian Pidgin
pdc | Pennsylvania German
pi pli | Pali
pl pol | Polish
pms | Piemontese, Piedmontese
pnb | Western Panjabi, Western Punjabi | Arab
prs | Dari | Arab
ps pus pbt | Pashto, Pushto, Southern Pashto | Arab
pt por | Portuguese
pt-BR | Brazilian Portuguese
qu que quy | Quechua, Ayacucho Quechua
rm roh | Romansh
rn run | Rundi, Kirundi
ro ron rum mo mol | Romanian, Moldavian, Moldovan
rom | Romany, Romani
ru rus | Russian | Cyrl
rup | Macedo-Romanian, Aromanian
rw kin | Kinyarwanda
sa san | Sanskrit | Deva
sah | Yakut, Sakha | Cyrl
sat | Santali | Olck Beng
sc srd | Sardinian
scn | Sicilian
sco | Scots
sd snd | Sindhi | Arab
sdh | Southern Kurdish | Arab
se sme | Northern Sami
sg sag | Sango
sh hbs | Serbo-Croatian
shn | Shan | Mymr
si sin | Sinhala, Sinhalese | Sinh
sk slk slo | Slovak
sl slv | Slovenian, Slovene
sm smo | Samoan
sn sna | Shona
so som | Somali
sq sqi alb als | Albanian, Tosk Albanian
sr srp scc | Serbian | Cyrl
ss ssw | Swati, Swazi
st sot | Southern Sotho, Sotho, Sesotho
su sun | Sundanese
sv swe | Swedish
sw swa swh | Swahili, Kiswahili
szl | Silesian
ta tam | Tamil | Taml
taq | Tamasheq
tcy | Tulu | Knda
te tel | Telugu | Telu
tet | Tetum
tg tgk | Tajik | Cyrl
th tha | Thai | Thai
ti tir | Tigrinya | Ethi
tig | Tigre | Ethi
tk tuk | Turkmen
tn tsn | Tswana, Setswana
to ton | Tongan, Tonga
tpi | Tok Pisin
tr tur | Turkish
ts tso | Tsonga
tt tat | Tatar | Cyrl
tum | Tumbuka
tvl | Tuvalu, Tuvaluan
tw twi | Twi
ty tah | Tahitian
tyv | Tuvinian, Tuvan | Cyrl
tzm | Central Atlas Tamazight | Tfng
udm | Udmurt | Cyrl
ug uig | Uyghur, Uighur | Arab
uk ukr | Ukrainian | Cyrl
umb | Umbundu
ur urd | Urdu | Arab
uz uzb uzn | Uzbek, Northern Uzbek
uzs | Southern Uzbek | Arab
ve ven | Venda
vec | Venetian
vi vie | Vietnamese
vls | Vlaams, West Flemish
vmw | Makhuwa
vo vol | Volapük
wa wln | Walloon
war | Waray
wo wol | Wolof
wuu | Wu Chinese | Hans
xal | Kalmyk | Cyrl
xh xho | Xhosa, isiXhosa
xmf | Mingrelian | Geor
yi yid ydd ji | Yiddish, Eastern Yiddish | Hebr
yo yor | Yoruba
yua | Yucateco, Yucatec Maya
yue | Cantonese, Yue Chinese | Hant
za zha | Zhuang
zea | Zeeuws, Zeelandic
zgh | Standard Moroccan Tamazight | Tfng
zh zho chi cmn | Chinese, Mandarin, Mandarin Chinese, Simplified Chinese, \
Chinese Simplified | Hans Hani
zh-Hant | Traditional Chinese, Chinese Traditional
zu zul | Zulu, isiZulu
zza | Zaza
"""
"""A line each: the name we use and the other codes | English names | default scripts, if not Latn.

A language of ISO 639-1 goes by its two letters, the others by three; a line whose name is a longer
tag only adds English names. Filipino and Tagalog are told apart by name alone, so they are one
language, called ``fil`` as in the Unicode CLDR. What is labelled Norwegian and no more is nearly
always Bokmål, so ``no`` is ``nb``. NLLB's ``sat_Beng`` is text in Ol Chiki.
"""

SCRIPTS = """
Adlm Arab Armn Avst Bali Beng Bopo Bugi Cakm Cans Cher Cyrl Deva Egyp Ethi Geor Goth Grek Gujr
Guru Hang Hani Hans Hant Hebr Hira Java Jpan Kana Khmr Knda Kore Lana Laoo Latn Limb Lisu Mlym
Mong Mtei Mymr Nkoo Olck Orya Rohg Runr Samr Sinh Sund Sylo Syrc Tale Talu Taml Telu Tfng Tglg
Thaa Thai Tibt Vaii Yiii
"""

REGIONS = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT
BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH
ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT
HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS
LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI
NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG
SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG
UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW 419
"""
"""Two letters of ISO 3166-1, Kosovo, and 419, Latin America. Other numbers are those of shards."""

WORDS_IN_FILE_NAMES = """
ab ae av ce cv ho ia ie ii in io kl na os rm
arm ast bak bar bug cor ext geo her ice iii lim lit mac mag may min mol mos new ori per que rom run
sat ton vol war
"""
"""Codes that mean something else at the end of a data file's name: ``opt_in``, ``data_rm`` (reward
model), ``answers_ab``, ``part_ii``, ``pairs_new``, ``pairs_may``, ``data_ori`` (original).
"""
