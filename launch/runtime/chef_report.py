"""What a report shows of a ChefFusion: the paper's tables with their baselines, and the gallery."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from chef_fusion import recipes
from launch.runtime.charts import short

Json = dict[str, Any]
Figure = Callable[..., str]  # (path, title, text) -> HTML

# title, what it says, rows (prefix of the result's name -> what it is), columns (rest of the name -> heading)
TABLES = (
    (
        "Recipes from photos",
        "The paper's Table 1.",
        {
            "i2t": "ChefFusion",
            "retrieval": "recipe of the nearest training photo (of 32,768 at most)",
            "random": "another held-out recipe, or the same after another's photo",
        },
        {
            "sacrebleu": "SacreBLEU",
            "sacrebleu_as_published": "as published",
            "rouge2": "ROUGE-2",
            "ingredient_f1": "ingredient F1",
            "base_accuracy": "right dish",
            "perplexity": "perplexity",
        },
    ),
    (
        "Pictures from recipes",
        "The paper's Table 2.",
        {
            "t2i": "ChefFusion",
            "rcg": "ChefFusion, painted by RCG",
            "sd": "Stable Diffusion, told the recipe",
            "target": "Stable Diffusion, told what it learnt from",
            "random": "another recipe's picture",
            "real": "the real pictures",
        },
        {
            "clip_similarity": "CLIP similarity",
            "picture_base_accuracy": "right dish",
            "picture_ingredient_f1": "ingredient F1",
            "images_per_second": "pictures a second",
            "trained_parameters": "trained for it",
        },
    ),
    (
        "Conversations",
        "Whether a picture comes where it should.",
        {
            "": "ChefFusion",
            "omissions": 'of these, "now without ..."',
            "swaps": 'of these, "... instead of ..."',
            "additions": 'of these, "add ..."',
            "unchanged": "its first answer, given again",
            "random": "the true recipe and real picture of another; a question about another's photo",
            "chance": "always a picture",
            "true": "the true recipe and its real picture",
            "target": "Stable Diffusion, told what it learnt from of the true recipe",
        },
        {
            "decision_accuracy": "decision for a picture",
            "dialogue_pictured": "answers end in one",
            "it2t_pictureless": "answers about a photo without one",
            "it2t_right": "answer about a photo right",
            "dialogue_first": "first recipe's F1",
            "dialogue_recipe": "second recipe right",
            "dialogue_picture": "second picture right",
            "dialogue_both": "both",
        },
    ),
)
PARTS = ("omissions", "swaps", "additions")  # rows of some of the dishes
OF_OTHERS = ("perplexity", "images_per_second")  # columns of another number of dishes
# beginning of a column's name -> what is said besides where there is such a column
NOTES = {
    "sacrebleu": 'ROUGE-2 is the F-measure, without stemming; "as published" is the figure of the '
    "released code, which compares one text with all references.",
    "perplexity": "Perplexity is that of all true texts, after their photo and after another's.",
    "picture_": "What is seen in a picture is the word of a classifier that was trained on real pictures "
    "alone; the real pictures' row is what that word is worth.",
    "decision_": "The decision is looked at after true texts; beside it, whether both of a conversation's "
    "own answers end in exactly one picture, and whether none follows a question about a photo.",
    "dialogue_": "And whether a second wish changes what is written and painted.",
}


def tables(results: Mapping[str, Any], source: str) -> str:
    """HTML of the tables that `results` (results.json) has figures for; those of `launch.evaluate --split`
    come after the usual ones."""
    body = _tables(results, "")
    for split in sorted({name.partition("/")[0] for name in results if "/" in name}):
        own = {name.partition("/")[2]: r for name, r in results.items() if name.startswith(f"{split}/")}
        body += _tables(own, f", split {split}")
    return body and f'{body}<p class="quiet">From <code>{escape(source)}</code>.</p>'


def _tables(results: Mapping[str, Any], where: str) -> str:
    body = ""
    for title, lead, rows, columns in TABLES:
        held = {
            (prefix, column): results.get(f"{prefix}_{column}".lstrip("_"))
            for prefix in rows
            for column in columns
        }
        shown = [c for c in columns if any(held[p, c] for p in rows)]
        lines = ""
        for prefix, name in rows.items():
            if any(held[prefix, c] for c in shown):
                if prefix in PARTS:
                    name += f" ({_samples(held[prefix, c] for c in shown)})"
                cells = "".join(_cell(held[prefix, c], columns[c]) for c in shown)
                lines += f"<tr><td><b>{escape(name)}</b></td>{cells}</tr>"
        if lines:
            notes = (note for start, note in NOTES.items() if any(c.startswith(start) for c in shown))
            lead = " ".join([lead, *notes])
            whole = [r for (prefix, c), r in held.items() if prefix not in PARTS and c not in OF_OTHERS]
            head = "".join(f'<th class="n">{escape(columns[c])}</th>' for c in shown)
            body += (
                f'<h3>{escape(title + where)}</h3><p class="quiet">{escape(lead)}</p><table><thead><tr>'
                f"<th>Of {_samples(whole)} held-out dishes</th>{head}</tr></thead>"
                f"<tbody>{lines}</tbody></table>"
            )
    return body


def _cell(result: Any, label: str) -> str:
    value = result.get("value") if isinstance(result, dict) else None
    text = "–" if value is None else value if isinstance(value, str) else short(value)
    return f'<td class="n value" data-label="{escape(label, quote=True)}" title="{value}">{text}</td>'


def _samples(results: Any) -> str:
    counts = {str(r["samples"]) for r in results if isinstance(r, dict) and "samples" in r}
    return " or ".join(sorted(counts, key=int)) or "the"


def gallery(folder: str, figure: Figure) -> str:
    """HTML of the gallery in a folder; "" where there is none."""
    try:
        with open(os.path.join(folder, "gallery.json"), encoding="utf-8") as f:
            made = json.load(f)
    except (OSError, ValueError):
        return ""

    def at(name: str) -> str:
        return os.path.join(folder, name)

    def those(name: str, *keys: str) -> list[Json]:
        """What has all that is shown of it."""
        found = made.get(name) if isinstance(made, dict) else None
        whole = [one for one in found or () if isinstance(one, dict)]
        return [one for one in whole if set(keys) <= one.keys()]

    photos = "".join(
        f'<div class="told">{figure(at(one["photo"]), "")}<div><h4>Written</h4>{_recipe(one["written"])}'
        f"</div><div><h4>True</h4>{_recipe(one['true'])}</div></div>"
        for one in those("photos", "photo", "written", "true")
    )
    pictures = "".join(
        f'<div class="painted"><p>{escape(_short(one["text"]))}</p><div class="row">'
        + "".join(figure(at(file), name) for name, file in one["images"].items())
        + "</div></div>"
        for one in those("pictures", "text", "images")
    )
    talks = made.get("dialogues", ()) if isinstance(made, dict) else ()
    talks = "".join(_talk(talk, at, figure) for talk in talks)
    parts = {"From a photo to a recipe": photos, "From a recipe to pictures": pictures, "Talking": talks}
    return "".join(f"<h3>{title}</h3>{body}" for title, body in parts.items() if body)


def _recipe(text: str) -> str:
    found = recipes.parse(text)
    if found is None:
        return f'<p class="quiet">{escape(text)}</p>'
    items = "".join(f"<li>{escape(line)}</li>" for line in found.ingredients)
    steps = " ".join(found.instructions)
    return f'<p><b>{escape(found.title)}</b></p><ul>{items}</ul><p class="quiet">{escape(steps)}</p>'


def _short(text: str) -> str:
    found = recipes.parse(text)
    return text if found is None else f"{found.title}: {', '.join(found.ingredients)}"


def _talk(talk: Sequence[Json], at: Callable[[str], str], figure: Figure) -> str:
    lines = ""
    for message in talk:
        words = _recipe(message["text"]) if message["role"] == "assistant" else escape(message["text"])
        shown = "".join(figure(at(file), "") for file in message["pictures"])
        lines += f'<div class="said {escape(message["role"])}"><div>{words}</div>{shown}</div>'
    return f'<div class="card talk">{lines}</div>'
