"""Text <-> token ids of the two tokenizers: the language model's and the image generator's."""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rcg import json_files
from rcg.errors import UserError


def load(folder: str) -> Any:
    """transformers' tokenizer of a folder.

    Raises:
      UserError: no tokenizer there.
    """
    if not folder:
        raise UserError(
            "no tokenizer is given: set config.data.tokenizer to the folder of its files, or convert the "
            "network together with them"
        )
    if not os.path.isdir(folder):
        raise UserError(f"no tokenizer at {folder}; convert the network together with its tokenizer files")
    files = ("tokenizer.json", "vocab.json", "merges.txt")
    there = [name for name in files if os.path.isfile(os.path.join(folder, name))]
    if files[0] not in there and len(there) < 2:  # transformers would read a tokenizer of no words
        raise UserError(
            f"the tokenizer at {folder} lacks its vocabulary: there must be tokenizer.json, or vocab.json "
            "and merges.txt"
        )
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch here is no news
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # damaged files make it raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer at {folder} can't be read ({reason})") from error


def limit(folder: str, positions: int | None) -> None:
    """Makes the tokenizer of a folder cut texts at what its network has positions for (None: unknown), as
    the libraries that read it expect."""
    path = os.path.join(folder, "tokenizer_config.json")
    about = json_files.read(path, "convert it again") if os.path.exists(path) else {}
    if positions and about and (about.get("model_max_length") or np.inf) > positions:
        with open(path, "w", encoding="utf-8") as f:
            json.dump(about | {"model_max_length": positions}, f, indent=2)


def needs_tokens(tokenizer: Any, folder: str, *names: str) -> None:
    """Raises UserError: a special token ("bos", "eos", "pad") is missing."""
    for name in names:
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise UserError(f"the tokenizer at {folder} has no {name} token, which is needed here")


@dataclasses.dataclass(frozen=True)
class LanguageTokenizer:
    """OPT's: a text begins with bos and ends with nothing; the [IMG] ids come after the vocabulary."""

    tokenizer: Any
    image_first: int
    num_image_tokens: int

    @classmethod
    def load(cls, folder: str, image_first: int, num_image_tokens: int) -> "LanguageTokenizer":
        made = load(folder)
        needs_tokens(made, folder, "bos", "eos", "pad")
        if made.pad_token_id == made.bos_token_id:
            raise UserError(
                f"the tokenizer at {folder} has one token as bos and pad: no text could be trained"
            )
        return cls(made, image_first, num_image_tokens)

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    @property
    def bos(self) -> int:
        return self.tokenizer.bos_token_id

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def newline(self) -> int:
        """Ends an answer."""
        return self.ids("\n")[0]

    def ids(self, text: str, bos: bool = False) -> list[int]:
        """Token ids, without [IMG]."""
        found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self.bos, *found] if bos else list(found)

    def text(self, ids: Sequence[int]) -> str:
        """The words among these ids: no special tokens, no [IMG]."""
        words = [int(i) for i in ids if i < self.image_first]
        return self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def example(self, text: str, max_tokens: int) -> tuple[np.ndarray, int]:
        """A training example: (int32 [max_tokens]: bos, words, [IMG0..], padding; how many are not padding).

        Of a text too long the last words give way to the [IMG] tokens.
        """
        return example(
            self.ids(text), max_tokens, self.bos, self.pad, self.image_first, self.num_image_tokens
        )


def example(
    words: Sequence[int], max_tokens: int, bos: int, pad: int, image_first: int, num_image_tokens: int
) -> tuple[np.ndarray, int]:
    """See `LanguageTokenizer.example`."""
    kept = list(words)[: max(max_tokens - 1 - num_image_tokens, 0)]
    ids = [bos, *kept, *range(image_first, image_first + num_image_tokens)]
    row = np.full(max_tokens, pad, np.int32)
    row[: len(ids)] = ids
    return row, len(ids)


@dataclasses.dataclass(frozen=True)
class CaptionTokenizer:
    """CLIP's: begin, words, end, and end again as padding, always `length` of them."""

    tokenizer: Any
    length: int = 77

    @classmethod
    def load(cls, folder: str, length: int = 77) -> "CaptionTokenizer":
        made = load(folder)
        needs_tokens(made, folder, "bos", "eos")
        return cls(made, length)

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, length]; what does not fit is cut off, before the end token."""
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
        rows = np.full((len(texts), self.length), end, np.int32)
        for row, words in zip(rows, found, strict=True):
            words = [begin, *words[: self.length - 2]]
            row[: len(words)] = words
        return rows


# --- tokenizers of one's own

FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # OPT's first four ids
BEGIN, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's last two
LETTERS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(kind: str, texts: Iterable[str], vocab_size: int, folder: str) -> int:
    """Learns a byte-level BPE tokenizer and writes its folder as OPT's or CLIP's, which transformers reads.

    Args:
      kind: "opt" (case kept, "</s>" before a text) or "clip" (lower case, words end in "</w>", each text
        between a begin and an end token).
      vocab_size: at most so many tokens, special ones included; at least 260 (opt) or 514 (clip).

    Returns:
      How many tokens there are.

    Raises:
      UserError: an unknown kind, or too few tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import RobertaProcessing, TemplateProcessing

    if kind not in ("opt", "clip"):
        raise UserError(f'tokenizer kind "{kind}" is not one of opt, clip')
    first, last, suffix = (SPECIAL, (), "") if kind == "opt" else ((), (BEGIN, END), "</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # whatever the texts hold, every byte is a token, and one that ends a word
    base = list(dict.fromkeys([*first, *alphabet, *(letter + suffix for letter in alphabet)]))
    room = vocab_size - len(base) - len(last)
    if room < 0:
        raise UserError(
            f"a tokenizer of kind {kind} needs at least {vocab_size - room} tokens, not {vocab_size}"
        )

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if kind == "clip":
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(LETTERS), "removed", invert=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(first) - len(last),
        initial_alphabet=alphabet,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]][:room]
    tokens = dict.fromkeys([*base, *map("".join, merges), *last])
    settings = {"unk_token": END, "end_of_word_suffix": suffix} if kind == "clip" else {}
    made.model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **settings)

    if kind == "opt":
        bos, eos, pad = "</s>", "</s>", "<pad>"
        about = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "model_max_length": 2048}
    else:
        bos, eos, pad = BEGIN, END, END
        about = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": 77}
    made.add_special_tokens(list(dict.fromkeys([pad, bos, eos])))
    begin, end = ((token, made.token_to_id(token)) for token in (bos, eos))
    if kind == "opt":
        made.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [begin])
    else:
        made.post_processor = RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    special = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": pad}
    about |= {"add_prefix_space": False, "errors": "replace", "clean_up_tokenization_spaces": False}
    os.makedirs(folder, exist_ok=True)
    made.save(os.path.join(folder, "tokenizer.json"))
    made.model.save(folder)  # vocab.json, merges.txt
    for name, held in (("special_tokens_map", special), ("tokenizer_config", about | special)):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as f:
            json.dump(held, f, indent=2)
    return made.get_vocab_size()
