"""Names of languages: what is one language, what a file's name gives, what may have been meant."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from congrad_cli.records.language_table import LANGUAGES
from congrad_cli.records.languages import base, canonical, from_file_name, nearest

# labels as they stand in data sets: of ISO 639-1, -2 and -3, FLORES, NLLB, Aya, mC4 and others
SAME = {
    "en": "en EN eng ENG eng_Latn en_Latn en-Latn English english ENGLISH",
    "de": "de deu ger German deu_Latn DE",
    "fr": "fr fra fre French fra_Latn",
    "es": "es spa Spanish Castilian spa_Latn",
    "zh": "zh zho chi cmn zho_Hans zh-Hans zh_hans cmn_Hans cmn_Hani Chinese Mandarin",
    "zh-Hant": "zh-Hant zho_Hant ZH_HANT cmn-hant",
    "zh-TW": "zh-TW zh_tw zho_TW zh-Hans-TW",
    "zh-Hant-HK": "zh-Hant-HK zho_hant_hk",
    "yue": "yue yue_Hant Cantonese",
    "ja": "ja jpn jpn_Jpan Japanese",
    "ko": "ko kor kor_Hang kor-Kore Korean",
    "ar": "ar ara arb arb_Arab ar-Arab Arabic",
    "ar-Latn": "ar-Latn arb_Latn ARA_LATN",
    "arz": "arz arz_Arab",
    "he": "he heb iw heb_Hebr Hebrew",
    "id": "id ind in ind_Latn Indonesian",
    "ms": "ms msa may zsm zsm_Latn Malay",
    "yi": "yi yid ydd ji ydd_Hebr Yiddish",
    "jv": "jv jav jw Javanese",
    "fil": "fil tl tgl tgl_Latn fil_Latn Filipino Tagalog",
    "nb": "nb nob no nor nob_Latn no_Latn Norwegian Bokmål Bokmal",
    "nn": "nn nno nno_Latn Nynorsk",
    "sr": "sr srp srp_Cyrl sr-Cyrl Serbian",
    "sr-Latn": "sr-Latn srp_Latn SR_LATN",
    "hi": "hi hin hin_Deva Hindi",
    "hi-Latn": "hi-Latn hin_Latn",
    "et": "et est ekk ekk_Latn",
    "lv": "lv lav lvs lvs_Latn",
    "mn": "mn mon khk khk_Cyrl",
    "ne": "ne nep npi npi_Deva",
    "or": "or ori ory ory_Orya Odia Oriya",
    "fa": "fa fas per pes pes_Arab Persian Farsi",
    "mg": "mg mlg plt plt_Latn",
    "sw": "sw swa swh swh_Latn Swahili",
    "uz": "uz uzb uzn uzn_Latn",
    "sq": "sq sqi alb als als_Latn",
    "az": "az aze azj azj_Latn",
    "azb": "azb azb_Arab",
    "ku": "ku kur kmr kmr_Latn",
    "ckb": "ckb ckb_Arab Sorani",
    "ps": "ps pus pbt pbt_Arab Pashto",
    "ro": "ro ron rum mo mol ron_Latn Romanian",
    "sat": "sat sat_Beng sat_Olck",
    "ks-Deva": "ks-Deva kas_Deva",
    "en-US": "en-US en_us EN-us eng_US en_Latn_US",
    "en-GB": "en-GB en_gb en-UK",
    "pt-BR": "pt-BR pt_br por_BR PT-br",
    "es-419": "es-419 es_419 spa-419",
    "ceb": "ceb ceb_Latn Cebuano",
    "ga": "ga gle GA Irish",
    "vo": "vo vol Volapük Volapuk",
}
NAMES = {
    "Simplified Chinese": "zh",
    "Chinese (Simplified)": "zh",
    "Traditional Chinese": "zh-Hant",
    "traditional_chinese": "zh-Hant",
    "Brazilian Portuguese": "pt-BR",
    "Modern Standard Arabic": "ar",
    "Ta'izzi-Adeni Arabic": "acq",
    "Scottish Gaelic": "gd",
    "Norwegian  Bokmål": "nb",
    "Haitian Creole": "ht",
    "Western Frisian": "fy",
}
UNKNOWN = (
    "", "klingon-ish", "group 7", "code", "math", "xx", "zz_Latn", "en-zz", "hi-en", "is it", "en-",
    "-en", "en_Latn_US_x", "de-1996", "C++", "english 2", "zho_Hant_Hant", "en--US",
)  # fmt: skip
# https://huggingface.co/CohereForAI/aya-101: ISO 639-3
AYA = """
afr amh ara aze bel ben bul cat ceb ces cym dan deu ell eng epo est eus fin fil fra fry gla gle glg
guj hat hau heb hin hun hye ibo ind isl ita jav jpn kan kat kaz khm kir kor kur lao lav lat lit ltz
mal mar mkd mlg mlt mon mri msa mya nep nld nor nso nya ory pan pes pol por pus ron rus sin slk slv
smo sna snd som sot spa sqi srp sun swa swe tam tel tgk tha tur twi ukr urd uzb vie xho yid yor zho
zul
"""
ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv
dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie
ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv
mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm
rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr
ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
TWO_LETTERS = ISO_639_1.split()
NLLB = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab
ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn
ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl
cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn
dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn
fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn
heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn
jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn
kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn
lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn
luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn mni_Beng
khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab
quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn
slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn
sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi
taq_Latn taq_Tfng tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab
ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn
yue_Hant zho_Hans zho_Hant zul_Latn
"""
CODES = [code for line in LANGUAGES.split("\n") for code in line.split("|")[0].split()]
codes = st.sampled_from([code for code in CODES if "-" not in code])
scripts = st.sampled_from(["", "Latn", "Cyrl", "Arab", "Hans", "Hant", "Deva", "Hebr"])
regions = st.sampled_from(["", "US", "BR", "UK", "419", "IN", "NO"])
tags = st.builds(lambda *parts: "-".join(filter(None, parts)), codes, scripts, regions)


@pytest.mark.parametrize("name", SAME)
def test_the_labels_of_one_language_get_one_name(name):
    assert {label: canonical(label) for label in SAME[name].split()} == dict.fromkeys(
        SAME[name].split(), name
    )


@pytest.mark.parametrize(("label", "name"), NAMES.items())
def test_english_names_of_several_words_are_known(label, name):
    assert canonical(label) == name


@pytest.mark.parametrize("label", UNKNOWN)
def test_what_names_no_language_is_a_name_of_its_own(label):
    assert canonical(f" {label}\t") == label
    assert base(label) is None


def test_every_language_of_iso_639_1_goes_by_its_two_letters():
    assert len(TWO_LETTERS) == len(set(TWO_LETTERS)) == 184
    renamed = {code: canonical(code) for code in TWO_LETTERS if canonical(code) != code}
    assert renamed == {"no": "nb", "tl": "fil"}
    assert all(canonical(code.upper()) == canonical(code) for code in TWO_LETTERS)


def test_every_language_of_aya_is_known():
    assert len(AYA.split()) == 101
    assert len({canonical(code) for code in AYA.split()}) == 101
    assert {len(canonical(code)) for code in AYA.split()} == {2, 3}
    assert {code for code in AYA.split() if canonical(code) == code} == {"ceb", "fil", "nso"}


def test_every_language_of_nllb_is_known_and_stays_itself():
    names = {label: canonical(label) for label in NLLB.split()}
    assert len(set(names.values())) == len(names) == 202
    assert all(base(label) for label in names)
    # a script is named only where one language is written in two
    assert {label for label, name in names.items() if "-" in name} == {
        "ace_Arab", "bjn_Arab", "kas_Deva", "knc_Arab", "taq_Tfng", "zho_Hant",
    }  # fmt: skip


def test_no_code_and_no_english_name_stands_twice_in_the_table():
    names = [
        name.strip().casefold()
        for line in LANGUAGES.strip().split("\n")
        for name in line.split("|")[1].split(",")
    ]
    assert len(CODES) == len(set(CODES))
    assert len(names) == len(set(names))
    # a name that looks like a code would be read as the code
    assert not set(names) & set(CODES) - {"fon", "twi", "luo", "ewe", "ido", "lao"}
    assert all(canonical(name) == canonical(canonical(name)) for name in names)
    assert all(base(name) for name in names)


@given(tags | st.text("aenoshzt-_ \t.İſßＡ"))
@example("no")
@example(" UK ")
def test_a_canonical_name_is_its_own(label):
    assert canonical(canonical(label)) == canonical(label)


@given(tags, st.data())
def test_case_and_separators_make_no_difference(tag, data):
    cases = data.draw(st.lists(st.booleans(), min_size=len(tag), max_size=len(tag)))
    varied = "".join(c.upper() if up else c.lower() for c, up in zip(tag, cases, strict=True))
    assert canonical(varied) == canonical(varied.replace("-", "_")) == canonical(tag)
    assert base(varied) == canonical(tag.split("-")[0])


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("de.jsonl", "de"),
        ("DE.JSONL", "de"),
        ("pairs.de.jsonl", "de"),
        ("pairs-de.jsonl.gz", "de"),
        ("train_deu_Latn.parquet", "de"),
        ("deu_Latn.arrow", "de"),
        ("dpo_german.json", "de"),
        ("pairs.pt-BR.jsonl", "pt-BR"),
        ("pairs_pt_br.ndjson.zst", "pt-BR"),
        ("zho_Hant.jsonl", "zh-Hant"),
        ("x-traditional_chinese.jsonl", "zh-Hant"),
        ("train_eng.jsonl", "en"),
        ("data.fr/pairs.it.jsonl", "it"),
        ("aya_mar.jsonl", "mr"),
        ("v2.id.jsonl", "id"),
        ("pairs.es-419.json", "es-419"),
        ("pairs.rm.jsonl", "rm"),
        ("min_Latn.jsonl", "min"),
        ("de", "de"),
    ],
)
def test_a_file_name_gives_its_language(name, language):
    assert from_file_name(name) == language


@pytest.mark.parametrize(
    "name",
    [
        "my_data.jsonl", "preferences.jsonl", "train.jsonl", "v1_dpo_demo.jsonl", "pairs_2024.json",
        "data-00000-of-00003.arrow", "de-00001.jsonl", "de/pairs.jsonl", "pairsde.jsonl", ".jsonl",
        "", "-", "de_.jsonl", "pairs.de.txt", "hh-rlhf.jsonl", "ultrafeedback_binarized.json",
    ],
)  # fmt: skip
def test_other_file_names_give_none(name):
    assert from_file_name(name) is None


WORDS = """
all new old raw dev val min max sub big out pre dpo hh test train eval demo rm sft kl ab cv in io ii
iii final clean small part run per vol geo mac may jan feb jun jul sep oct nov dec aug ori ref gen
top low mid num tmp bak org gpt llm api csv txt set one two six ten day job log bad good pos neg
hard code math chat tool safe rank pair pairs data json v1 v2 b x 1 01 ml4 rlhf orpo kto ppo
"""


@pytest.mark.parametrize("word", WORDS.split())
def test_common_words_at_the_end_of_a_file_name_are_no_language(word):
    for name in (word, f"pairs_{word}", f"pairs-{word}", f"pairs_{word.upper()}"):
        assert from_file_name(f"{name}.jsonl") is None
    if len(word) > 2:
        assert from_file_name(f"pairs.{word}.jsonl") is None


@given(st.sampled_from(TWO_LETTERS), st.sampled_from([".jsonl", ".json.gz", ".parquet", ".zst"]))
def test_two_letters_after_a_full_stop_are_always_a_language(code, suffix):
    assert from_file_name(f"x.{code}{suffix}") == canonical(code)


@pytest.mark.parametrize("code", TWO_LETTERS)
def test_every_two_letter_code_after_a_full_stop_is_a_language(code):
    assert from_file_name(f"x.{code}.jsonl") == canonical(code)


@pytest.mark.parametrize(
    ("label", "known", "meant"),
    [
        ("germn", ["en", "de"], "de"),
        ("portugese", ["es", "pt-BR", "pt"], "pt"),
        ("pt-BR", ["es", "pt"], "pt"),
        ("zh_TW", ["en", "zh"], "zh"),
        ("deu_Latn", ["en", "de"], "de"),
        ("de", ["German"], "German"),
        ("klingon", ["en", "klingon-ish"], "klingon-ish"),
        ("group 6", ["group 7", "de"], "group 7"),
        ("xx", ["en", "de"], None),
        ("xyzzyq", ["en", "de"], None),
        ("de", [], None),
    ],
)
def test_the_nearest_known_label_is_found(label, known, meant):
    assert nearest(label, iter(known)) == meant
    assert nearest(label, reversed(known)) == meant
