"""Talks about food in the terminal: `python -m launch.chat --workdir=runs/chef_fusion`

Tokens appear as they are written; pictures are saved under --out and named. A line is a turn. Besides:

    /image <file>  shows a photo with the next turn
    /picture       asks for an answer with a picture
    /seed <n>      draws differently from here on; 0 to 999999999
    /reset         forgets the conversation
    /save          writes the conversation to --out/conversation.json
    /quit          ends; so does the end of input
"""

import dataclasses
import os
import re
import sys
from typing import Any

import jax
from absl import flags

from chef_fusion import generate, tasks
from launch.runtime import answering, cli
from rcg.errors import UserError


class Conversation:
    """The turns so far, the photos waiting for the next one, and what the draws come from."""

    def __init__(self, chef: Any, settings: tasks.Settings, out: str, seed: int):
        self.chef, self.settings, self.out, self.seed = chef, settings, out, seed
        self.reset()
        self.pictures = self._first_free()

    def _first_free(self) -> int:
        """Pictures of an earlier conversation stay."""
        names = os.listdir(self.out) if os.path.isdir(self.out) else []
        found = [re.match(r"(\d{3,})_\d+\.png$", name) for name in names]
        return max((int(match.group(1)) + 1 for match in found if match), default=0)

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.photos: list[Any] = []
        self.forgotten = 0  # messages that no longer fit

    def _recent(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What of a conversation leaves room in the model's context for an answer: the last turns."""
        while len(messages) > 1:
            prompt = tasks.prompt_of(messages, "dialogue")
            left = generate.room(self.chef, len(generate.prompt_ids(self.chef, prompt)))
            if left >= min(self.settings.max_words, self.chef.context // 4):
                break
            messages = messages[2:]
        return messages

    def say(self, text: str, write: Any, force: bool = False) -> None:
        """A turn of the user, and the answer to it, written as it comes."""
        content = [*self.photos, text] if text else list(self.photos)
        said = [*self.messages, {"role": "user", "content": content}]
        messages = self._recent(said)
        if len(said) - len(messages) > self.forgotten:
            self.forgotten = len(said) - len(messages)
            write(f"[too long by now: the first {self.forgotten // 2} turns are forgotten]\n")
        key = jax.random.fold_in(jax.random.key(self.seed), len(said))
        settings = self.settings
        if force:
            settings = dataclasses.replace(settings, pictures="force", max_pictures=1)
        seen = ""

        def on_text(so_far: str) -> None:
            nonlocal seen
            so_far = so_far.rstrip("\ufffd")  # the last token may be half a letter
            if so_far.startswith(seen):
                write(so_far[len(seen) :])
                seen = so_far

        task = "" if len(said) == 1 and not force else "dialogue"
        made = tasks.reply(self.chef, messages, key, task=task, settings=settings, on_text=on_text)
        write("\n")
        self.messages, self.photos = [*said, made], []
        prefix = f"{self.pictures:03d}_"
        _, files = answering.shown(made, self.out, prefix)
        self.pictures += bool(files)
        for path in files:
            write(f"[{path}]\n")

    def save(self) -> str:
        """Writes the text of all turns; pictures as "[picture]"."""
        turns = [
            {
                "role": message["role"],
                "content": [part if isinstance(part, str) else "[picture]" for part in message["content"]],
            }
            for message in self.messages
        ]
        path = os.path.join(self.out, "conversation.json")
        answering.write_json(path, turns)
        return path


def obey(talk: Conversation, line: str, write: Any) -> bool:
    """Does what a line says; False: it was the last."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        if line or talk.photos:
            talk.say(line, write)
    elif command == "/quit":
        return False
    elif command == "/reset":
        talk.reset()
        write("forgotten\n")
    elif command == "/save":
        write(f"{talk.save()}\n")
    elif command == "/picture":
        talk.say(rest or "Show me a picture of it.", write, force=True)
    elif command == "/image":
        talk.photos.append(answering.read_photo(os.path.expanduser(rest)))
        write(f"{rest} goes with your next line\n")
    elif command == "/seed" and re.fullmatch(r"\d{1,9}", rest, re.ASCII):
        talk.seed = int(rest)
    else:
        raise UserError(f"{command} is none of /image <file>, /picture, /seed <n>, /reset, /save, /quit")
    return True


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        define_in = {"flag_values": values}
        flags.DEFINE_string("workdir", None, "a ChefFusion run's or pipeline's folder", **define_in)
        flags.DEFINE_string("out", "chat", "folder for pictures", **define_in)
        cli.define_seed(values)
        flags.DEFINE_float("temperature", 0.0, "of the words, 0: the likeliest", **define_in)
        scale = "guidance of pictures, by default 7.5, RCG's 0"
        flags.DEFINE_float("cfg_scale", None, scale, **define_in)
        flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "to compute in", **define_in)
        answering.define(values)

    values = cli.parse(argv, define, __doc__)
    settings = answering.settings(values)
    if settings.strength != 1:
        raise UserError("a conversation's pictures begin from nothing: --strength is for launch.sample's t2i")
    talk = Conversation(answering.load(values), settings, values.out, values.seed)
    asks = sys.stdin.isatty()

    def write(text: str) -> None:
        print(text, end="", flush=True)

    while True:
        try:
            line = input("> " if asks else "").strip()
            if not obey(talk, line, write):
                return 0
        except EOFError:
            return 0
        except UserError as error:  # a slip of the hand ends no conversation
            print(f"error: {error}", file=sys.stderr)
        except UnicodeDecodeError:
            print("error: that line is not UTF-8", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
