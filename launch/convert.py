"""Published weights <-> components.

    python -m launch.convert --kind=rcg.mage --source=mage-l.pth --out=runs/mage

--kind is rcg.rdm, rcg.mage, rcg.vqgan, rcg.encoder or rcg.inception (FID's network). A file may hold several
networks (the official MAGE files have the encoder and the tokenizer in them): --kind says which is wanted,
and every array of the file is accounted for, or nothing is written. --source is a file, or owner/name/file
on the Hugging Face hub.

    python -m launch.convert --export --source=runs/mage --out=mage.safetensors \\
        --encoder=runs/encoder --tokenizer=runs/tokenizer

writes a component in the published layout; --encoder and --tokenizer put the frozen networks into it, as
the official trainers do.
"""

import ast
import hashlib
import os
from typing import Any

from absl import flags

from launch.runtime import cli
from rcg import component, published, weight_files
from rcg.errors import UserError

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


def import_component(values: flags.FlagValues) -> component.Component:
    """The component of the file that the flags name."""
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


def export_file(values: flags.FlagValues, out: str) -> int:
    """Writes the component that the flags name in the published layout; returns how many arrays."""
    if not out.endswith(".safetensors"):
        raise UserError(f"--out={out}: the published layout is written as a .safetensors file")
    made = component.load(cli.required(values, "source"))
    frozen = {
        kind: component.load(values[name].value, kind) for name, kind in FROZEN.items() if values[name].value
    }
    arrays = published.publish(made, frozen)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    weight_files.write(out, arrays, {"kind": made.kind, "content_hash": made.content_hash})
    return len(arrays)


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        def text(name: str, default: str | None, usage: str) -> None:
            flags.DEFINE_string(name, default, usage, flag_values=values)

        text("kind", None, ", ".join(published.CODE))
        text("source", None, "file of weights or owner/name/file on the hub; with --export: a component")
        text("out", None, "the component's folder; with --export: a .safetensors file")
        text("architecture", "", "fields that shapes do not tell: num_heads=4,decoder_num_heads=2")
        text("strip_prefix", "", "what to take off the beginning of every name")
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
    made = import_component(values)
    digest = component.save(out, made)
    fields = ", ".join(f"{k}={v}" for k, v in made.architecture.items())
    print(f"{out}: {made.kind} ({fields}), content {digest[:12]}")
    return 0


if __name__ == "__main__":
    cli.run(main)
