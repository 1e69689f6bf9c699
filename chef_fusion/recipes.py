"""Recipes as text: the published cleaning and caption, what a picture shows of them, back to structure.

A caption reads `This is food title: ... This is ingredient: [...] This is instruction: [...]`, the lists as
Python prints them (the published code's TSV). A prompt is a beginning of that sentence, or its parts in
another order.
"""

import ast
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TITLE, INGREDIENTS, INSTRUCTIONS = "This is food title:", "This is ingredient:", "This is instruction:"
_MARKS = re.compile(f"({TITLE}|{INGREDIENTS}|{INSTRUCTIONS})")
_FOREIGN = re.compile(r"[^a-z0-9+()/?!.,]")
_BRACKETED = re.compile(r"\([^)]*\)")
_SPACES = re.compile(r" +")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe. Where a data set says so, `detected` holds the bare names of its ingredients."""

    title: str
    ingredients: tuple[str, ...]
    instructions: tuple[str, ...]
    id: str = ""
    detected: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Recipe":
        """From Recipe1M's record form, whose lines are {"text": ...}, or from plain strings.

        Raises:
          ValueError: no title, or lines that are no text.
        """

        def lines(name: str) -> tuple[str, ...]:
            found = record.get(name) or ()
            if isinstance(found, str) or not isinstance(found, Sequence):
                raise ValueError(f"{name} is no list")
            texts = [line.get("text") if isinstance(line, Mapping) else line for line in found]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{name} holds a line that is no text")
            return tuple(texts)

        title = record.get("title")
        if not isinstance(title, str) or not title.strip():
            raise ValueError("it has no title")
        return cls(
            title,
            lines("ingredients"),
            lines("instructions"),
            str(record.get("id", "")),
            lines("detected"),
        )

    def record(self) -> dict[str, Any]:
        """{"title", "ingredients", "instructions"}, as JSON has it."""
        return {
            "title": self.title,
            "ingredients": list(self.ingredients),
            "instructions": list(self.instructions),
        }


def clean_line(text: str) -> str:
    """The published cleaning of a line of ingredients or instructions; may leave nothing.

    Lower case; what is none of a-z 0-9 + ( ) / ? ! . , becomes a space; brackets go with what is in them.
    """
    text = _FOREIGN.sub(" ", text.lower())
    return _SPACES.sub(" ", _BRACKETED.sub("", text)).strip()


def clean(recipe: Recipe) -> Recipe:
    """The recipe with its lines cleaned and the empty ones dropped; the title stays as it is."""

    def lines(found: Iterable[str]) -> tuple[str, ...]:
        return tuple(filter(None, map(clean_line, found)))

    return dataclasses.replace(
        recipe, ingredients=lines(recipe.ingredients), instructions=lines(recipe.instructions)
    )


def caption(recipe: Recipe) -> str:
    """The sentence the language model is trained on."""
    r = clean(recipe)
    return f"{TITLE} {r.title} {INGREDIENTS} {list(r.ingredients)} {INSTRUCTIONS} {list(r.instructions)}"


def prompt(
    title: str | None = None,
    ingredients: Sequence[str] | None = None,
    instructions: Sequence[str] | None = None,
    asking: bool = True,
) -> str:
    """What is given, then, if `asking`, the mark of what is to be written: the beginning of a caption, where
    it can be.

    What comes before a given part in a caption and is to be written moves behind it: ingredients for a title
    and steps are asked for as "This is food title: ... This is instruction: [...] This is ingredient:". A
    model that has only read captions has not seen that order. A prompt that does not begin with a title
    needs its task named (t2t): else it is taken for a turn of a conversation.
    """

    def lines(given: Sequence[str] | None) -> list[str] | None:
        return None if given is None else list(filter(None, map(clean_line, given)))

    parts = {TITLE: title, INGREDIENTS: lines(ingredients), INSTRUCTIONS: lines(instructions)}
    stated = [f"{mark} {part}" for mark, part in parts.items() if part is not None]
    missing = [mark for mark, part in parts.items() if part is None]
    return " ".join(stated + missing[: int(asking)])


def parse(text: str) -> Recipe | None:
    """The recipe that a caption, maybe one cut off at its end, states; None if it has no title or lists.

    Its parts may come in any order, with other words before and after; of a part said twice the first counts.
    """
    before, *rest = _MARKS.split(" ".join(text.split()))
    stated: dict[str, str] = {} if TITLE in rest else {TITLE: before.strip()}
    for mark, part in zip(rest[::2], rest[1::2], strict=True):
        if part.strip():
            stated.setdefault(mark, part.strip())
    title = stated.get(TITLE, "")
    found = _read_list(stated.get(INGREDIENTS, "")), _read_list(stated.get(INSTRUCTIONS, ""))
    if not title or not any(found):
        return None
    return Recipe(title, *found)


def _read_list(text: str) -> tuple[str, ...]:
    """A printed list of strings; if it is cut off, what there is of it, and without what is said after it."""
    inside = text.partition("]")[0]  # cleaned lines have no brackets
    for printed in (text, inside + "]"):
        try:
            found = ast.literal_eval(printed)
            if isinstance(found, list) and all(isinstance(item, str) for item in found):
                return tuple(found)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    if not text.startswith("["):
        return ()
    # between cleaned lines there is always ', '
    items = re.split(r"""['"],\s*['"]""", inside.strip("[ ").strip("'\""))
    return tuple(item.strip() for item in items if item.strip())


# --- what is on the plate

_UNITS = (
    "cups? tablespoons? tbsps? tbs teaspoons? tsps? ounces? oz pounds? lbs? grams? g kg ml l liters? litres? "
    "pints? quarts? gallons? pinch(?:es)? dash(?:es)? cloves? cans? jars? packages? packets? pkgs? "
    "bunch(?:es)? slices? pieces? sticks? heads? stalks? sprigs? handfuls? drizzle drops? bottles? bags? "
    "boxes? containers? sheets? strips? rings? wedges? cubes? dollops? scoops? spoonfuls? leaf leaves "
    "florets? shavings? inch(?:es)? cm small medium large"
).split()
_AMOUNTS = (
    r"about|approx\.?|a few|a little|plenty of|some|several|many|just|a generous amount of|an?|the|to|or|of"
)
_LEADING = re.compile(rf"^(?:(?:{_AMOUNTS}|[\d/.,+x-]+|{'|'.join(_UNITS)})\.?(?:\s+|(?<=\d)|$))+")
_MANNERS = (
    "chopped minced sliced diced grated shredded crushed ground fresh freshly dried peeled cooked melted "
    "softened finely coarsely thinly roughly toasted frozen canned boneless skinless optional divided packed "
    "beaten plain organic ripe whole lean extra virgin unsalted salted"
).split()
# what a photo of the dish does not show
HIDDEN = frozenset(
    "salt pepper water oil flour sugar baking soda powder yeast vanilla extract vinegar stock broth "
    "cornstarch starch seasoning spray wine essence nutmeg cinnamon paprika cumin oregano thyme msg bouillon "
    "gelatin shortening dough".split()
)
COLOURS = frozenset("green red yellow orange bell sweet".split())


def ingredient_name(line: str) -> str:
    """The bare name in a line of ingredients: "2 cups chopped onions, or more" -> "onions"."""
    line = _BRACKETED.sub(" ", line.lower()).split(",")[0].split(":")[0]
    line = _SPACES.sub(" ", re.sub(r"[^a-z0-9 /.+-]", " ", line)).strip()
    line = _LEADING.sub("", line)
    words = [w for w in line.split() if w not in _MANNERS and not any(c.isdigit() for c in w)]
    return " ".join(words).strip(" .-/")


def ingredient_names(recipe: Recipe) -> frozenset[str]:
    """The set that precision, recall and F1 compare: detected names, else those in the lines; singular."""
    names = recipe.detected or tuple(map(ingredient_name, recipe.ingredients))
    return frozenset(filter(None, map(_singular, names)))


def _singular(name: str) -> str:
    return re.sub(r"(?<=[a-z]{2})(?:(?<=o)es|(?<!s)s)$", "", name.strip().lower())


def visible_text(recipe: Recipe) -> str:
    """What a picture of the dish shows: its title, then the ingredients that can be seen.

    The published target is the caption's first 77 tokens: a title and the first lines, measures and all.
    """
    names = dict.fromkeys(recipe.detected or map(ingredient_name, recipe.ingredients))
    seen = [name for name in names if name and not _is_hidden(name)]
    return f"{recipe.title}: {', '.join(seen)}" if seen else recipe.title


def _is_hidden(name: str) -> bool:
    words = set(name.split())
    if words & {"pepper", "peppers"} and words & COLOURS:  # the vegetable
        words -= {"pepper", "peppers"}
    return bool(HIDDEN & words)


TARGETS = {"caption": caption, "visible": visible_text}
