"""All of ChefFusion's tasks as one function: messages in, a message out.

    answer = reply(chef, [{"role": "user", "content": [photo]}], key)
    answer["content"]   # text and pictures, in order
    answer["recipe"]    # {"title", "ingredients", "instructions"} where the text is a recipe, else None

`content` is a list of strings and images. What a conversation becomes for the language model:

    one message that is a photo      the photo, then the beginning of a recipe (i2t)
    one message of recipe text       that text, as it stands: a beginning to go on from (t2t, t2i, t2ti)
    anything else                    turns of "Q: ...\\nA: ...\\n" (it2t, dialogue); the user's photos stand
                                     before their turn, the pictures of an answer after it
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from chef_fusion import decoding, generate, recipes
from chef_fusion.backbones.stable_diffusion import pipeline
from chef_fusion.decoding import ImageDecision, Sampling
from chef_fusion.generate import Chef, Draft, Part
from rcg.errors import UserError

TASKS = {
    "t2t": "recipe text from recipe text",
    "i2t": "a recipe from a photo",
    "it2t": "an answer about a photo",
    "t2i": "a picture from recipe text",
    "t2ti": "recipe text and, where the model wants one, a picture",
    "dialogue": "a turn of a conversation",
}
PICTURES = ("auto", "force", "forbid")
Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an answer is made.

    Attributes:
      max_words: tokens that may be written. sampling: how they are chosen.
      pictures: "auto", as the model decides; "force", one at once (t2i) or after the text; "forbid".
      image_bias: added to the logit of [IMG0], "auto" only: above 0 for more pictures.
      image_scale: the published code's knob instead, see `ImageDecision`.
      max_pictures: "auto" only: the answer ends with so many; text goes on between them.
      steps, cfg_scale, scheduler, negative, height, width: of a picture, see `generate.paint`.
      strength: below 1 a picture (t2i) begins from the photo of the message, and changes it by so much.
      rcg: settings of `rcg.generate.generate_from`, where RCG paints.
    """

    max_words: int = 256
    sampling: Sampling = dataclasses.field(default_factory=decoding.sampling)
    pictures: str = "auto"
    image_bias: float = 0.0
    image_scale: float = 1.0
    max_pictures: int = 1
    steps: int = 50
    cfg_scale: float = 7.5
    scheduler: str = "pndm"
    negative: str = ""
    height: int = 0
    width: int = 0
    strength: float = 1.0
    rcg: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def paint(self) -> dict[str, Any]:
        names = ("steps", "cfg_scale", "scheduler", "negative", "height", "width")
        return {name: getattr(self, name) for name in names}


def content_of(message: Message) -> list[Part]:
    """A message's parts; a string or an image alone is one.

    Raises:
      UserError: parts that are neither text nor image, or nothing from the user.
    """
    content = message.get("content")
    alone = isinstance(content, (str, np.ndarray)) or hasattr(content, "convert")
    parts = [content] if alone else list(content or ())
    parts = [part for part in parts if not (isinstance(part, str) and not part.strip())]
    if message.get("role") not in ("user", "assistant"):
        raise UserError(f'a message\'s role is "user" or "assistant", not {message.get("role")!r}')
    if not parts and message["role"] == "user":  # an answer may well be nothing
        raise UserError("the prompt is empty; give it text or an image")
    for part in parts:
        if not isinstance(part, str) and not hasattr(part, "convert") and not isinstance(part, np.ndarray):
            raise UserError(f"a message holds text and images, not {type(part).__name__}")
    return parts


def task_of(messages: Sequence[Message]) -> str:
    """What a conversation asks for, if nothing else says so."""
    parts = content_of(messages[-1])
    photos = [part for part in parts if not isinstance(part, str)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(messages) > 1:
        return "dialogue"
    if photos:
        return "it2t" if texts else "i2t"
    return "t2ti" if texts and texts[0].startswith(recipes.TITLE) else "dialogue"


def prompt_of(messages: Sequence[Message], task: str) -> list[Part]:
    """The prompt of a conversation.

    Raises:
      UserError: what the task needs is not there.
    """
    if not messages:
        raise UserError("the prompt is empty; give it text or an image")
    if task not in TASKS:
        raise UserError(f'task "{task}" is not one of {", ".join(TASKS)}')
    last = messages[-1]
    content = last.get("content")
    if task in ("i2t", "it2t") and (content is None or (isinstance(content, (str, list)) and not content)):
        raise UserError(f"the task {task} ({TASKS[task]}) needs an image: --image=<file>")
    parts = content_of(last)
    photos = [part for part in parts if not isinstance(part, str)]
    texts = [part.strip() for part in parts if isinstance(part, str)]
    if task in ("i2t", "it2t") and not photos:
        raise UserError(f"the task {task} ({TASKS[task]}) needs an image: --image=<file>")
    if task in ("t2t", "t2i", "t2ti", "it2t") and not texts:
        raise UserError(f"the task {task} ({TASKS[task]}) needs text: --prompt=...")
    if task == "i2t":
        return [*photos, *(texts or [recipes.TITLE])]
    if task in ("t2t", "t2i", "t2ti"):
        return [*photos, " ".join(texts)]
    turns: list[Part] = []
    for message in messages:
        own = content_of(message)
        if message["role"] == "user":
            said = " ".join(part.strip() for part in own if isinstance(part, str))
            turns += [*(part for part in own if not isinstance(part, str)), f"Q: {said}\nA:"]
        else:  # a picture stands where it was made
            own = own if own and isinstance(own[0], str) else ["", *own]
            turns += [f" {part.strip()}" if isinstance(part, str) else part for part in own] + ["\n"]
    if last["role"] != "user":
        raise UserError("the last message must be the user's")
    return turns


def decision_of(task: str, settings: Settings, can_paint: bool) -> ImageDecision:
    """When pictures may come."""
    if settings.pictures not in PICTURES:
        raise UserError(f'pictures "{settings.pictures}" is not one of {", ".join(PICTURES)}')
    wanted = {"t2i": "force", "t2t": "forbid", "i2t": "forbid"}.get(task, "auto")
    wanted = wanted if settings.pictures == "auto" else settings.pictures
    if settings.max_pictures < 1 or (settings.max_pictures > 1 and wanted != "auto"):
        raise UserError(
            f"max_pictures {settings.max_pictures} must be at least 1, and above that only where the model "
            'decides: pictures "auto", and not in the tasks t2i, t2t and i2t'
        )
    if wanted == "forbid" or (wanted == "auto" and not can_paint):
        return generate.NO_IMAGES
    if task == "t2i" and wanted == "force":
        return ImageDecision(bias=np.inf, ends=True)
    if wanted == "force":
        return ImageDecision(bias=-np.inf, ends=True, at_end=True)
    return ImageDecision(
        settings.image_bias, settings.image_scale, max_images=settings.max_pictures, ends=True
    )


def reply(
    chef: Chef,
    messages: Sequence[Message],
    key: jax.Array,
    *,
    task: str = "",
    settings: Settings | None = None,
    on_text: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The next message of a conversation.

    Args:
      messages: {"role": "user" or "assistant", "content": text, or a list of texts and images}.
      key: what all draws come from.
      task: one of TASKS; by default what the messages look like, see `task_of`.
      on_text: is given what has been written so far, every few tokens.

    Returns:
      {"role": "assistant", "content": [text and uint8 [H, W, 3] pictures], "recipe", "task", "complete"}.

    Raises:
      UserError: something is missing or can't be used.
    """
    return reply_all(chef, [messages], key, task=task, settings=settings, on_text=on_text)[0]


def reply_all(
    chef: Chef,
    conversations: Sequence[Sequence[Message]],
    key: jax.Array,
    *,
    task: str = "",
    settings: Settings | None = None,
    on_text: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """`reply` for several conversations of one task, in one batch."""
    settings = settings or Settings()
    if not conversations or not all(conversations):
        raise UserError("the prompt is empty; give it text or an image")
    task = task or task_of(conversations[0])
    prompts = [prompt_of(messages, task) for messages in conversations]
    decision = decision_of(task, settings, chef.paints)
    if (task == "t2i" or settings.pictures == "force") and not chef.rcg:
        generate.needs_images(chef)
    photos = _begun_from(chef, prompts, task, settings) if settings.strength != 1 else []
    may_paint = decision is not generate.NO_IMAGES and chef.rcg is None and chef.sd is not None
    if may_paint:  # what is wrong is said before a word is written
        names = ("scheduler", "steps", "strength", "height", "width")
        pipeline.planned(chef.sd, *(getattr(settings, name) for name in names))
    write_key, paint_key = jax.random.split(key)
    options = {"max_words": settings.max_words, "settings": settings.sampling, "images": decision}
    options["stop"] = ("\n",) if task in ("dialogue", "it2t") else ()
    if on_text is None:
        drafts = generate.write(chef, prompts, write_key, **options)
    else:
        for drafts in generate.stream(chef, prompts, write_key, **options):
            on_text(drafts[0].text)
    states = np.concatenate([draft.states for draft in drafts])
    begun = {"photos": photos, "strength": settings.strength} if photos else {}
    pictures: list[Any] = []
    if len(states) and chef.rcg is not None:
        pictures = list(generate.paint_rcg(chef, states, paint_key, **settings.rcg))
    elif len(states) and chef.sd is not None:
        pictures = list(generate.paint(chef, states, paint_key, **settings.paint(), **begun))
    return [_message(draft, prompt, task, pictures) for draft, prompt in zip(drafts, prompts, strict=True)]


def _begun_from(chef: Chef, prompts: Sequence[Sequence[Part]], task: str, settings: Settings) -> list[Part]:
    """The last photo of each prompt, which its picture begins from.

    Raises:
      UserError: nothing to begin from, or nothing that does.
    """
    photos = [[part for part in prompt if not isinstance(part, str)][-1:] for prompt in prompts]
    if task != "t2i" or chef.rcg is not None or not all(photos):
        raise UserError(
            "a strength other than 1 needs the task t2i, Stable Diffusion and a photo: --image=<file>"
        )
    return [photo for (photo,) in photos]


def _message(draft: Draft, prompt: Sequence[Part], task: str, pictures: list[Any]) -> dict[str, Any]:
    """Takes its own from the front of `pictures`."""
    content: list[Any] = []
    for i, piece in enumerate(draft.pieces):
        if piece.strip():
            content.append(piece.strip())
        if i < len(draft.states) and pictures:
            content.append(pictures.pop(0))
    begun = "" if task in ("dialogue", "it2t") else " ".join(p for p in prompt if isinstance(p, str))
    recipe = recipes.parse(begun + draft.text)
    return {
        "role": "assistant",
        "content": content,
        "recipe": recipe.record() if recipe else None,
        "task": task,
        "complete": draft.complete,
    }
