"""Frozen encoders in Hugging Face layout: MiniLM from its package, a local folder (CXR-BERT's too), or an id from the hub.

transformers is imported only when features have to be computed, not when they come from the cache. Code that lies beside
weights ("remote code") is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tmca_core.errors import ConfigError, WeightsError
from tmca_core.pretrained import file_sha256, minilm_folder
from tmca_core.text.encoders import TEXT_ENCODERS, TextEncoder, pad

if TYPE_CHECKING:
    from tmca_core.config import NetworkSettings

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_SETTINGS = ("config.json", "tokenizer_config.json", "merges.txt", "special_tokens_map.json")
_PROBE = "bilateral pulmonary infection, two infected areas, upper left lung and lower right lung."
# Extra heads of a checkpoint are left out; a part of the encoder that the checkpoint lacks would stay random.
_MAY_LACK = ("pooler.", "embeddings.position_ids")


class FrozenEncoder(TextEncoder):
    """A pretrained encoder whose weights never change. Model and tokenizer are loaded when first used.

    It stays in evaluation mode and without gradients whatever `train()` or `requires_grad_()` say.
    """

    frozen = True

    def __init__(self, folder: Path, max_tokens: int = 0) -> None:
        """Read the folder's configuration and check that the files are there.

        Args:
            folder: config.json, weights and tokenizer files.
            max_tokens: longest report; 0: as long as the model can.

        Raises:
            WeightsError: a file is missing or is not what it should be.
        """
        super().__init__()
        self.folder = folder
        self._config = _read_json(folder / "config.json")
        self.dim = int(self._config.get("hidden_size") or self._config.get("dim") or 0)
        if self.dim <= 0:
            raise WeightsError(f"{folder / 'config.json'} names no hidden_size; an encoder such as BERT is needed.")
        if not any((folder / name).is_file() for name in _WEIGHTS):
            raise WeightsError(f"{folder} holds no weights: one of {', '.join(_WEIGHTS)} is needed.")
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise WeightsError(f"{folder} holds no tokenizer: one of {', '.join(_TOKENIZERS)} is needed.")
        own = self._own_limit()
        self.limit = min(max_tokens, own) if max_tokens else own
        self._tokenizer: Any = None
        self._model: Any = None
        self._fingerprint = ""

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.tokenize`."""
        tokenizer = self._load_tokenizer()
        rows = tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]
        return pad(rows, tokenizer.pad_token_id or 0)

    def spans(self, text: str) -> list[tuple[int, int] | None]:
        """See `TextEncoder.spans`."""
        options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        made = self._load_tokenizer()(text, truncation=True, max_length=self.limit, **options)
        pairs = zip(made["offset_mapping"], made["special_tokens_mask"], strict=True)
        return [None if special else (int(start), int(end)) for (start, end), special in pairs]

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `TextEncoder.forward`."""
        hidden: Tensor = self._load_model().to(ids.device)(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden.float()

    def fingerprint(self) -> str:
        """sha256 over the configuration, tokenizer and weight files and the token limit; needs no model in memory."""
        if not self._fingerprint:
            digest = hashlib.sha256(f"limit {self.limit}".encode())
            for path in sorted(self.folder.iterdir()):
                weights = path.suffix in (".safetensors", ".bin") and not path.name.startswith("training_args")
                named = path.name in (
                    *_TOKENIZERS,
                    *_WEIGHTS,
                    "config.json",
                    "tokenizer_config.json",
                    "merges.txt",
                    "special_tokens_map.json",
                )
                if path.is_file() and (weights or named):
                    digest.update(f"{path.name} {file_sha256(path)}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenEncoder:
        """Stay without gradients."""
        return super().requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    def _own_limit(self) -> int:
        """Positions of the model (RoBERTa's begin after the padding id), never more than 512."""
        positions = int(self._config.get("max_position_embeddings") or 512)
        if self._config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
            positions -= int(self._config.get("pad_token_id") or 1) + 1
        settings = self.folder / "tokenizer_config.json"
        longest = _read_json(settings).get("model_max_length") if settings.is_file() else None
        return min(512, positions, int(longest) if longest and longest > 1 else 512)

    def _is_bert(self) -> bool:
        return self._config.get("model_type") in ("bert", "cxr-bert")

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            import transformers

            # BertTokenizer(vocab_file=…) silently gives 5 tokens in transformers 5; from_pretrained reads the folder, and
            # needs no code of CXR-BERT's own.
            kind = transformers.BertTokenizer if self._is_bert() else transformers.AutoTokenizer
            try:
                tokenizer = kind.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise WeightsError(f"the tokenizer in {self.folder} cannot be loaded: {error}") from error
            if not tokenizer.is_fast:
                raise WeightsError(
                    f"the tokenizer in {self.folder} cannot say which characters a token stands for; put a tokenizer.json of the same "
                    "model into the folder (transformers' AutoTokenizer(…).save_pretrained writes one)."
                )
            size = int(self._config.get("vocab_size") or len(tokenizer))
            unknown = tokenizer(_PROBE)["input_ids"].count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
            if unknown or len(tokenizer) > size or len(tokenizer) < size / 2:
                raise WeightsError(
                    f"the tokenizer in {self.folder} does not fit its model: {len(tokenizer)} tokens against {size} embeddings, {unknown} "
                    "unknown words in a plain English sentence. Copy tokenizer.json or vocab.txt of the same model into the folder."
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def _load_model(self) -> Any:
        if self._model is None:
            import transformers
            from safetensors import SafetensorError

            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
            # CXR-BERT is published as pytorch_model.bin, a pickle: torch's restricted reader takes tensors from it and runs nothing.
            options |= {"dtype": torch.float32, "weights_only": True}
            kind: Any = transformers.AutoModel
            if self._is_bert():
                ours = {
                    k: v for k, v in self._config.items() if k not in ("auto_map", "model_type", "architectures", "torch_dtype", "dtype")
                }
                kind = transformers.BertModel
                options |= {"config": transformers.BertConfig(**ours), "add_pooling_layer": False}
            try:
                with _quiet():
                    model, info = kind.from_pretrained(str(self.folder), **options)
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
                raise WeightsError(f"the weights in {self.folder} cannot be loaded: {error}") from error
            missing = sorted(key for key in info["missing_keys"] if not key.startswith(_MAY_LACK))
            if missing or info.get("mismatched_keys"):
                raise WeightsError(
                    f"the weights in {self.folder} lack {len(missing)} tensors of the encoder (first: {missing[:1]}) or differ in shape "
                    f"({info.get('mismatched_keys') or 'none'}); they belong to another model."
                )
            self._model = model.requires_grad_(False).eval()
        return self._model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no list of the heads that are left out; what is missing is checked by us."""
    import transformers

    logging: Any = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def from_name(settings: NetworkSettings) -> FrozenEncoder:
    """A frozen encoder from a folder or from a Hugging Face id in the local cache; downloaded only with `allow_download`.

    Raises:
        ConfigError: neither a folder nor a cached id; says how to get it.
        WeightsError: the folder's files are unfit.
    """
    name = settings.text_encoder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return FrozenEncoder(folder, settings.max_tokens)
    known = ", ".join(TEXT_ENCODERS.names())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ConfigError(
            f"network.text_encoder: there is no folder {folder}; give one with config.json, weights and tokenizer, or one of {known}."
        )
    if "/" not in name:
        raise ConfigError(f"unknown text encoder '{name}'; known: {known}, a folder, or a Hugging Face id such as owner/name.")
    return FrozenEncoder(_from_hub(name, settings.allow_download), settings.max_tokens)


def _from_hub(name: str, download: bool) -> Path:
    """Folder of a Hugging Face id in the local cache; without `download` the network is not touched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model", "model*.safetensors*"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=not download))
        if download and not any(folder.glob("model*.safetensors*")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model.bin"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if download:
            raise ConfigError(f"network.text_encoder '{name}' could not be fetched from the Hugging Face hub: {error}") from error
        raise ConfigError(
            f"network.text_encoder '{name}' is neither a folder here nor in the local Hugging Face cache, and nothing is downloaded "
            "unasked. Set network.allow_download=true, or download it elsewhere and give its folder."
        ) from error
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; a folder in Hugging Face layout is needed.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object.")
    return value


@TEXT_ENCODERS.register("minilm")
def minilm(settings: NetworkSettings) -> TextEncoder:
    """all-MiniLM-L6-v2 from the `pretrained` extra, frozen, verified by sha256."""
    return FrozenEncoder(minilm_folder(), settings.max_tokens)
