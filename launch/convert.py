"""Published weights <-> components.

    python -m launch.convert --kind=rcg.mage --source=mage-l.pth --out=runs/mage

--kind is rcg.rdm, rcg.mage, rcg.vqgan, rcg.encoder, rcg.inception (FID's network), rcg.lpips (the perceptual
distance: the state dict of `lpips.LPIPS(net="vgg")`), chef_fusion (also GILL's), or one of those that
transformers and diffusers publish as folders: opt, clip, vae (Stable Diffusion's autoencoder alone),
stable_diffusion. A file may hold several networks (the official MAGE files have the encoder and the tokenizer
in them): --kind says which is wanted, and every array of the file is accounted for, or nothing is written.
--source is a file, or owner/name/file on the Hugging Face hub; a folder, or owner/name. A tokenizer in the
folder goes along; one from elsewhere with --text_tokenizer.

    python -m launch.convert --export --source=runs/mage --out=mage.safetensors \\
        --encoder=runs/encoder --tokenizer=runs/tokenizer

writes a component in the published layout; --encoder and --tokenizer put the frozen networks into it, as
the official trainers do; --add_prefix=module.base_encoder. names an encoder's arrays as MoCo v3's own
files do. A backbone is written as a folder that transformers and diffusers read.
"""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from typing import Any

from absl import flags

from chef_fusion import checkpoints, tokenization
from chef_fusion.backbones import folders
from chef_fusion.backbones import published as backbones
from launch.runtime import cli
from rcg import component, published, weight_files
from rcg.errors import UserError

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
FROZEN = {"encoder": "rcg.encoder", "tokenizer": "rcg.vqgan"}


def parse_fields(text: str) -> dict[str, Any]:
    """`"num_heads=4,stem=patch"` -> {"num_heads": 4, "stem": "patch"}.

    Raises:
      UserError: an item that is no name=value.
    """
    fields = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise UserError(f'--architecture: "{item}" is not name=value')
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return fields


def strip_prefix(arrays: Any, prefix: str) -> dict[str, Any]:
    """Raises UserError if a name does not begin with `prefix`."""
    others = [name for name in arrays if not name.startswith(prefix)]
    if others:
        raise UserError(f'--strip_prefix={prefix}: not every name begins with it, for one "{others[0]}"')
    return {name[len(prefix) :]: arrays[name] for name in arrays}


def file_hash(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def import_component(values: flags.FlagValues, staging: str) -> component.Component:
    """The component of the file or folder that the flags name; `staging`: a folder for tokenizer files."""
    kind = cli.required(values, "kind")
    refuse_unused(kind, values)
    if kind in backbones.KINDS:
        return import_backbone(kind, values, staging)
    if kind == "chef_fusion":
        return import_joints(values)
    path = weight_files.fetch(cli.required(values, "source"))
    arrays = weight_files.read(path)
    if values.strip_prefix:
        arrays = strip_prefix(arrays, values.strip_prefix)
    made = published.convert(
        cli.required(values, "kind"),
        arrays,
        os.path.basename(path),
        architecture=parse_fields(values.architecture),
        weights=values.weights,
        widen=values.widen,
    )
    made.provenance["sha256"] = file_hash(path)
    return made


def refuse_unused(kind: str, values: flags.FlagValues) -> None:
    """Raises UserError: a flag is given that the import of this kind would not heed."""
    ours = kind in published.CODE
    takes = {"architecture": ours or kind == "chef_fusion", "text_tokenizer": kind in backbones.KINDS}
    takes |= {"strip_prefix": ours, "widen": ours, "add_prefix": False, "encoder": False, "tokenizer": False}
    for name, heeded in takes.items():
        if values[name].value and not heeded:
            raise UserError(f"--{name} has no meaning for importing {kind}; see --help")


def import_backbone(kind: str, values: flags.FlagValues, staging: str) -> component.Component:
    """A published folder's component, with its tokenizer."""
    folder = backbones.fetch(kind, cli.required(values, "source"))
    made = backbones.read(kind, folder)
    made.provenance["source"] = values.source
    given = values.text_tokenizer
    place = given or (os.path.join(folder, "tokenizer") if kind == "stable_diffusion" else folder)
    files = [f for f in folders.TOKENIZER_FILES if os.path.isfile(os.path.join(place, f))]
    if given and not files:
        raise UserError(
            f"--text_tokenizer={given} holds no tokenizer; looked for {folders.TOKENIZER_FILES[0]}"
        )
    for name in files:
        shutil.copy(os.path.join(place, name), staging)
    if not files:
        return made
    made = dataclasses.replace(made, tokenizer=staging)
    check_tokenizer(made)
    return made


def published_ids(folder: str, words: Any) -> None:
    """Writes a tokenizer's special ids into the config.json of its language model."""
    path = os.path.join(folder, "config.json")
    about = folders.read_json(path)
    own = {name: getattr(words, name) for name in SPECIAL}
    with open(path, "w", encoding="utf-8") as f:
        json.dump(about | {name: i for name, i in own.items() if i is not None}, f, indent=2)


def check_tokenizer(made: component.Component) -> None:
    """Raises UserError if the tokenizer has more tokens than the network's table, or other special ones."""
    fields = made.architecture
    text = fields.get("text_encoder", fields).get("text") or fields
    words = tokenization.load(made.tokenizer)
    rows, known = text.get("vocab_size"), len(words)
    if rows is not None and known > rows:
        raise UserError(
            f"the tokenizer has {known} tokens, but the network's embedding {rows} rows; give another"
        )
    if made.kind != "opt":
        return
    for name in SPECIAL:
        wanted, own = made.provenance.get("config", {}).get(name), getattr(words, name)
        if wanted is not None and own != wanted:
            raise UserError(
                f"the tokenizer's {name} is {own}, but {wanted} in the network's config.json: it is another "
                "network's; give this one's"
            )


def import_joints(values: flags.FlagValues) -> component.Component:
    """A published ChefFusion or GILL checkpoint; model_args.json beside it is heeded."""
    path = weight_files.fetch(cli.required(values, "source"))
    told = checkpoints.read_arguments(os.path.dirname(os.path.abspath(path)))
    fields = told | parse_fields(values.architecture)
    made = checkpoints.convert(weight_files.read(path), os.path.basename(path), fields)
    made.provenance["sha256"] = file_hash(path)
    return made


def export_file(values: flags.FlagValues, out: str) -> int:
    """Writes the component that the flags name in the published layout; returns how many arrays."""
    made = component.load(cli.required(values, "source"))
    if made.kind in backbones.KINDS:
        if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
            raise UserError(f"--out={out} exists and is not empty; name another folder")
        count = backbones.write(made, out)
        if made.tokenizer:
            inside = os.path.join(out, "tokenizer") if made.kind == "stable_diffusion" else out
            shutil.copytree(made.tokenizer, inside, dirs_exist_ok=True)
            fields = made.architecture.get("text_encoder", made.architecture)
            tokenization.limit(inside, (fields.get("text") or fields).get("max_position_embeddings"))
            if made.kind == "opt":
                published_ids(out, tokenization.load(inside))
        return count
    pickled = made.kind == "chef_fusion" and out.endswith(weight_files.PICKLES)
    if not out.endswith(".safetensors") and not pickled:
        raise UserError(
            f"--out={out}: the published layout is written as a .safetensors file (joints: or .pth.tar)"
        )
    frozen = {
        kind: component.load(values[name].value, kind) for name, kind in FROZEN.items() if values[name].value
    }
    arrays = checkpoints.publish(made) if made.kind == "chef_fusion" else published.publish(made, frozen)
    arrays = {values.add_prefix + name: array for name, array in arrays.items()}
    folder = os.path.dirname(os.path.abspath(out))
    os.makedirs(folder, exist_ok=True)
    weight_files.write(out, arrays, {"kind": made.kind, "content_hash": made.content_hash})
    if pickled:
        checkpoints.write_arguments(folder, made)
    return len(arrays)


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        def text(name: str, default: str | None, usage: str) -> None:
            flags.DEFINE_string(name, default, usage, flag_values=values)

        text("kind", None, ", ".join((*published.CODE, "chef_fusion", *backbones.KINDS)))
        text("source", None, "file or folder of weights, or its place on the hub; with --export: a component")
        text(
            "out",
            None,
            "the component's folder; with --export: a .safetensors file (joints: or .pth.tar), or a folder",
        )
        text("text_tokenizer", "", "folder of the tokenizer that goes with opt, clip or stable_diffusion")
        text("architecture", "", "fields that shapes do not tell: num_heads=4,decoder_num_heads=2")
        text("strip_prefix", "", "what to take off the beginning of every name")
        text("add_prefix", "", "with --export: what to put before every name, such as module.base_encoder.")
        text("encoder", "", "with --export: component to put in as the frozen encoder")
        text("tokenizer", "", "with --export: component to put in as MAGE's frozen tokenizer")
        flags.DEFINE_enum("weights", "ema", published.WEIGHTS, "which of an RDM's", flag_values=values)
        flags.DEFINE_bool("widen", False, "let half-precision arrays in, as float32", flag_values=values)
        flags.DEFINE_bool("export", False, "component -> published layout", flag_values=values)

    values = cli.parse(argv, define, __doc__)
    out = cli.required(values, "out")
    if values.export:
        print(f"{out}: {export_file(values, out)} arrays")
        return 0
    with tempfile.TemporaryDirectory() as staging:
        made = import_component(values, staging)
        digest = component.save(out, made)
    fields = ", ".join(f"{k}={v}" for k, v in made.architecture.items())
    print(f"{out}: {made.kind} ({fields}), content {digest[:12]}")
    return 0


if __name__ == "__main__":
    cli.run(main)
