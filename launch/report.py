"""One HTML file that shows what a pipeline did: `python -m launch.report --workdir=... [--out=report.html]`

Reads what the stages left in the workdir and nothing else; what is not there yet is left out. The file
holds its style, curves and pictures, and works offline.
"""

import base64
import glob
import io
import json
import os
import re
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from absl import flags
from PIL import Image

from launch.runtime import charts, chef_report, cli
from launch.runtime.metrics import read_metrics
from launch.runtime.page import page
from launch.runtime.progress import duration, number
from rcg.errors import UserError

MAX_PIXELS = 1280  # wider pictures are scaled down to it
Json = dict[str, Any]

# what MAGE is told in place of representations -> what it learned
MAGE_TOLD = {
    "none": "Learns to paint, too, but is told nothing: what representations are good for shows beside it.",
    "class": "Learns to paint, too, but is told what kind of picture it is, by a label or a cluster.",
}
# experiment -> (what it is, in plain words what it learned)
ROLES = {
    "rcg.moco_v3": (
        "Encoder",
        "Learns to see without labels. Two differently cropped and recoloured copies of one picture must get "
        "the same description, and other pictures another. That description, a short list of numbers, is the "
        "picture's representation.",
    ),
    "rcg.vqgan": (
        "Tokenizer",
        "Learns an alphabet of small image patches, so that a picture becomes a page of letters (tokens) and "
        "a page of letters becomes a picture again.",
    ),
    "rcg.rdm": (
        "RDM",
        "Learns what representations of such pictures look like, by taking noise out of them. "
        "Started from pure noise, it makes up representations that no real picture has.",
    ),
    "rcg.mage": (
        "MAGE",
        "Learns to paint. With most tokens of a picture hidden, it fills them in, told the picture's "
        "representation. From a blank page and a made-up representation, it paints a new picture.",
    ),
    "chef_fusion.opt": (
        "Language model",
        "Learns to write recipes: what word comes next, given all before it.",
    ),
    "chef_fusion.clip": (
        "CLIP",
        "Learns which picture and which text are of the same dish. Its eyes are what ChefFusion sees with, "
        "its reading of a text is what pictures are painted from.",
    ),
    "chef_fusion.judge": (
        "Judge",
        "Learns from real pictures what dish is on them and what is in it. It has no part in making any; "
        "it only says whether they show what was asked for.",
    ),
    "chef_fusion.vae": (
        "Autoencoder",
        "Learns to write a picture down in a few numbers, and to read them again.",
    ),
    "chef_fusion.stable_diffusion": (
        "Stable Diffusion",
        "Learns to paint, in the autoencoder's numbers, what a text says: by taking noise out, step by step.",
    ),
    "chef_fusion.joints": (
        "ChefFusion",
        "Joins them. A linear map turns what CLIP sees into words of the language model's kind; eight new "
        "words ask for a picture, and a small network turns them into what Stable Diffusion paints from.",
    ),
    "chef_fusion.recipe_rdm": (
        "RDM for recipes",
        "Learns to make up the representation of the dish that a recipe is about, so that MAGE can paint it.",
    ),
}

# regex on a result's name -> (what it means, which way is better)
MEANINGS = (
    (r"^chance_accuracy|purity_chance", "what always naming the most common class would score", ""),
    (
        r"_of_others|chance|unchanged|random_perplexity",
        "what it is without knowing the right one, to compare with",
        "",
    ),
    (r"floor", "between two halves of the real ones, to compare with", ""),
    (r"frechet_noise", "of plain noise, to compare with", ""),
    (r"sacrebleu_as_published", "the published code's figure: its first text against all references", ""),
    (r"sacrebleu|rouge", "how much of its wording a recipe shares with the true one", "higher"),
    (r"ingredient_(f1|precision|recall)", "how well the ingredients are those of the dish", "higher"),
    (r"base_accuracy", "how often it is the right kind of dish", "higher"),
    (r"clip_similarity", "how much a picture is like the real one, by CLIP", "higher"),
    (r"decision|picture_where", "whether a picture comes after a text", ""),
    (
        r"it2t",
        "whether the answer to a question about a photo is right, or comes without a picture",
        "higher",
    ),
    (r"dialogue", "whether an answer is what was asked for", "higher"),
    (r"images_per_second", "pictures made in a second", "higher"),
    (r"token_accuracy", "how often the next word is guessed", "higher"),
    (r"recall_at", "how often the right text is among the first for a picture", "higher"),
    (r"^(i2t_)?perplexity", "among how many words it hesitates", "lower"),
    (r"knn", "how often a held-out picture's nearest neighbours name its class", "higher"),
    (
        r"linear_probe",
        "how often one linear layer on the features names a held-out picture's class",
        "higher",
    ),
    (r"representation_std", "how much representations differ from picture to picture; 0 is a collapse", ""),
    (r"psnr", "how closely rebuilt pictures match the originals, in decibels", "higher"),
    (r"fid|frechet", "distance between made and real in a network's features; 0 is no difference", "lower"),
    (r"codebook|usage|perplexity", "how much of the alphabet of patches is in use", "higher"),
    (r"lpips", "how different rebuilt pictures look from the originals", "lower"),
    (r"cosine", "how well directions of representations agree; 1 is the same", "higher"),
    (r"accuracy", "share of right answers", "higher"),
    (r"loss|mse|l1|error", "what training makes small", "lower"),
)
SPELLINGS = {
    "knn": "k-NN",
    "psnr": "PSNR",
    "fid": "FID",
    "lpips": "LPIPS",
    "frechet": "Fréchet",
    "i2t": "photo to recipe,",
    "t2i": "recipe to picture,",
    "it2t": "question about a photo,",
    "sacrebleu": "SacreBLEU",
    "rouge2": "ROUGE-2",
    "f1": "F1",
    "clip": "CLIP",
    "sd": "Stable Diffusion",
    "target": "Stable Diffusion by target texts,",
    "rcg": "RCG",
}
ASIDE = {"grad_norm", "param_norm", "learning_rate"}  # curves for those who look for them


# ---- reading: whatever is missing or damaged is None or empty


def read_json(*path: str) -> Any:
    try:
        with open(os.path.join(*path)) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def data_uri(path: str, max_pixels: int = MAX_PIXELS) -> tuple[str, int]:
    """(the PNG as a data URI, its width); ("", 0) where there is no readable picture."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return "", 0
    if max(image.size) > max_pixels:
        image.thumbnail((max_pixels, max_pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width


def figure(path: str, title: str, text: str = "") -> str:
    """A picture with its caption; "" where there is none."""
    uri, width = data_uri(path)
    if not uri:
        return ""
    crisp = ' class="crisp"' if width < 300 else ""
    return (
        f'<figure><img{crisp} src="{uri}" alt="{escape(title, quote=True)}">'
        f"<figcaption><b>{escape(title)}</b>{escape(text)}</figcaption></figure>"
    )


class Run:
    """What a pipeline's workdir holds.

    Raises:
      UserError: no pipeline there, or its pipeline.json is damaged.
    """

    def __init__(self, workdir: str):
        self.workdir = workdir
        path = os.path.join(workdir, "pipeline.json")
        if not os.path.isfile(path):
            raise UserError(f"no pipeline in {workdir} (it has no pipeline.json); run launch.pipeline first")
        about = read_json(path)
        if not isinstance(about, dict) or not isinstance(about.get("stages", []), list):
            raise UserError(f"{path} is damaged; the same launch.pipeline command writes it again")
        self.about: Json = about
        self.written = time.strftime("%Y-%m-%d", time.localtime(os.path.getmtime(path)))
        self.stages: list[Json] = about.get("stages", [])
        self.trained = [stage for stage in self.stages if stage.get("kind") == "train"]
        self.samples = self._samples()

    def path(self, *parts: str) -> str:
        return os.path.join(self.workdir, *parts)

    def machines(self) -> list[Json]:
        """What the stages ran on, each once."""
        found = [self.about.get("hardware"), *(stage.get("hardware") for stage in self.stages)]
        return list({json.dumps(h): h for h in found if isinstance(h, dict)}.values())

    def _samples(self) -> dict[str, Json]:
        """Task folder's name -> {"folder", and what samples.json tells}, in the pipeline's order."""
        places = [stage["dir"] for stage in self.stages if stage.get("kind") == "sample" and "dir" in stage]
        for folder in ["", *(stage.get("dir", "") for stage in self.trained)]:
            drawn = glob.escape(self.path(folder, "samples"))
            places += sorted(os.path.relpath(p, self.workdir) for p in glob.glob(os.path.join(drawn, "*")))
        found = {}
        for place in dict.fromkeys(places):
            if os.path.isfile(self.path(place, "grid.png")):
                told = read_json(self.path(place), "samples.json")
                found[place] = about_sample(told) | {"name": os.path.basename(place)}
        return found

    def task(self, place: str) -> str:
        return str(self.samples[place].get("task", self.samples[place]["name"]))

    def headline(self) -> str | None:
        """The task whose pictures stand for the run: from nothing, with the most guidance."""
        made = [
            p for p in self.samples if p != self.real and not re.search("reconstruct|interpol", self.task(p))
        ]
        guidance = {p: self.samples[p].get("cfg_scale") for p in made}
        rank = {p: g if isinstance(g, int | float) else 0.0 for p, g in guidance.items()}
        return max(made, key=lambda p: ("generate" in self.task(p), rank[p]), default=None)

    @property
    def shows_a_chef(self) -> bool:
        return any(stage.get("experiment") == "chef_fusion.joints" for stage in self.trained)

    @property
    def real(self) -> str | None:
        return next((place for place, told in self.samples.items() if told["name"] == "real"), None)

    def single(self, place: str | None) -> str:
        """One picture of a task, small, as a data URI; "" where there is none."""
        files = sorted(glob.glob(os.path.join(glob.escape(self.path(place)), "*.png"))) if place else []
        files = [f for f in files if os.path.basename(f) != "grid.png"]
        return data_uri(files[0], 168)[0] if files else ""

    def panels(self, stage: Json) -> dict[str, tuple[str, str]]:
        """Panel's name -> (path, step) of its newest picture; names are what is left without the step."""
        found = {}
        panels = glob.escape(self.path(stage.get("dir", ""), "panels"))
        for path in sorted(glob.glob(os.path.join(panels, "*.png"))):
            stem = os.path.splitext(os.path.basename(path))[0]
            match = re.fullmatch(r"(.*?)[_-]?(?:step[_-]?)?(\d+)", stem)
            name, step = (match[1], match[2].lstrip("0") or "0") if match else (stem, "")
            if int(step or 0) >= int(found.get(name, ("", "0"))[1] or 0):
                found[name] = (path, step)
        return found


# ---- sections, each a string of HTML, "" where there is nothing to show


def title_of(stage: Json) -> str:
    return str(stage.get("title") or stage.get("name", ""))


def section(anchor: str, title: str, lead: str, body: str) -> str:
    if not body:
        return ""
    return f'<section id="{anchor}"><h2>{title}</h2><p class="lead">{lead}</p>{body}</section>'


def words(name: str) -> str:
    """ "knn_accuracy" -> "k-NN accuracy"."""
    text = " ".join(SPELLINGS.get(word, word) for word in name.replace("/", " ").split("_"))
    return text if text.startswith("k-NN") else text[:1].upper() + text[1:]


def value_text(value: Any) -> str:
    return charts.short(value) if isinstance(value, int | float) else str(value)


def about_sample(told: Any) -> Json:
    """samples.json, its settings on one level with the rest."""
    told = told if isinstance(told, dict) else {}
    settings = told.get("settings")
    return told | (settings if isinstance(settings, dict) else {})


def told(sample: Json) -> str:
    """How a sample was drawn, in one line."""
    forms = {
        "samples": "{} pictures",
        "cfg_scale": "guidance {}",
        "rdm_steps": "{} RDM steps",
        "mage_steps": "{} MAGE steps",
        "seed": "seed {}",
    }
    parts = [form.format(value_text(sample[k])) for k, form in forms.items() if sample.get(k) is not None]
    return ", ".join(parts)


def header(run: Run, nav: str) -> str:
    about, machines = run.about, run.machines()
    parameters = sum(stage.get("parameters") or 0 for stage in run.trained)
    facts = {
        "on the clock": duration(clock) if (clock := on_the_clock(run.stages)) else "",
        "all stages together": duration(sum(stage.get("seconds") or 0 for stage in run.stages)),
        "networks trained": str(len(run.trained)) if run.trained else "",
        "parameters": charts.short(parameters) if parameters else "",
        "device": ", ".join({str(hardware.get("device", "")): None for hardware in machines}),
    }
    tiles = "".join(
        f"<div><dt>{k}</dt><dd{' class=words' * (len(v) > 16)}>{escape(v)}</dd></div>"
        for k, v in facts.items()
        if v
    )
    place = run.headline()
    made = figure(run.path(place, "grid.png"), "Made by this run", told(run.samples[place])) if place else ""
    real = run.real and figure(run.path(run.real, "grid.png"), "Real pictures", "held out, to compare with")
    heroes = made + (real or "")
    if not made and not run.shows_a_chef:
        heroes = f'<p class="quiet">No samples yet: the sampling stage has not run.</p>{heroes}'
    title = escape(str(about.get("title") or about.get("name") or "Pipeline"))
    description = escape(str(about.get("description", "")))
    return (
        f'<header><p class="over">Report of a run, {run.written}</p><h1>{title}</h1>'
        f'<p class="lead">{description}</p><dl class="facts">{tiles}</dl></header>'
        f'{nav}<div class="pair">{heroes}</div>'
    )


def how(run: Run) -> str:
    """What happened, in plain words, stage by stage."""
    lanes = ""
    if any(stage.get("experiment") in ("rcg.rdm", "rcg.mage") for stage in run.trained):
        learning = charts.learning_lane(run.single(run.real))
        creating = charts.creating_lane(run.single(run.headline()))
        lanes = (
            f'<div class="lanes"><div class="card"><h3>Learning</h3>{learning}</div>'
            f'<div class="card"><h3>Creating</h3>{creating}</div></div>'
        )
    items = ""
    for stage in run.trained:
        role, text = ROLES.get(stage.get("experiment", ""), ("", ""))
        config = read_json(run.path(stage.get("dir", "")), "config.json") or {}
        if stage.get("experiment") == "rcg.mage":
            text = MAGE_TOLD.get(config.get("model", {}).get("conditioning", ""), text)
        title = title_of(stage)
        name = f"{role}: {title}" if role and role.lower() not in title.lower() else title
        about = "<br>".join(filter(None, (size(run, stage), learnt_from(config))))
        items += f'<li><h3>{escape(name)}</h3><p class="quiet">{about}</p><p>{text}</p></li>'
    lead = (
        "A picture is hard to make up at once. So one network learns to describe pictures, a second one "
        "to make up descriptions, and a third to paint a picture for a description. No labels are needed."
        if lanes
        else "The networks this run trained, in order."
    )
    return section("how", "What happened", lead, lanes + (f'<ol class="steps">{items}</ol>' if items else ""))


def learnt_from(config: Json) -> str:
    """A stage's data, and the networks it stands on."""
    data = config.get("data") or {}
    parts = [f"data: {data['source']}"] if data.get("source") else []
    if data.get("path"):
        parts.append(os.path.basename(str(data["path"]).rstrip("/")))
    if data.get("num_records") and "kitchen" in str(data.get("source")):  # others read all there are
        parts.append(f"{data['num_records']:,} records")
    given = [name.replace("_", " ") for name, path in (config.get("components") or {}).items() if path]
    if given:
        parts.append(f"with {', '.join(given)}")
    return escape(" · ".join(parts))


def size(run: Run, stage: Json) -> str:
    """Steps done of those wanted, batch, parameters, time."""
    lines = read_metrics(run.path(stage.get("dir", ""), "metrics", "metrics.jsonl"))
    steps, done = stage.get("steps"), lines[-1].get("step", 0) if lines else 0
    config = read_json(run.path(stage.get("dir", "")), "config.json") or {}
    parts = []
    if steps and not lines:
        parts.append("not run yet")
    elif steps:
        parts.append(f"{steps:,} steps" if done >= steps else f"stopped at step {done:,} of {steps:,}")
    if batch := stage.get("batch_size") or config.get("batch_size"):
        parts.append(f"batches of {batch}")
    if stage.get("parameters"):
        parts.append(f"{charts.short(stage['parameters'])} parameters")
    if stage.get("seconds"):
        parts.append(duration(stage["seconds"]))
    return escape(" · ".join(part.replace(" ", "\u00a0") for part in parts))


def pictures(run: Run) -> str:
    """All samples and the newest panels."""
    titles = {
        "real": "Real pictures",
        "generate": "New pictures",
        "class_conditional": "New pictures of a class asked for",
        "reconstruct": "Real pictures (left), described and painted again",
        "interpolate": "From one picture to another",
    }
    order = list(titles)
    shown = [place for place in run.samples if place not in (run.real, run.headline())]
    shown.sort(key=lambda p: order.index(run.task(p)) if run.task(p) in order else len(order))
    body = ""
    for place in shown:
        task, name = run.task(place), run.samples[place]["name"]
        title = titles.get(task, task.replace("_", " ").capitalize())
        named = "" if name == task else f"{name.replace('_', ' ')}; "
        body += figure(run.path(place, "grid.png"), title, named + told(run.samples[place]))
    body = f'<div class="three pictures">{body}</div>' if body else ""
    panels = ""
    for stage in run.trained:
        for name, (path, step) in run.panels(stage).items():
            title = title_of(stage) + (f": {name.replace('_', ' ')}" if name else "")
            panels += figure(path, title, f"at step {int(step):,}" if step else "")
    if panels:
        panels = f'<h3>What each network sees</h3><div class="two pictures">{panels}</div>'
        panels = f'<div class="stage">{panels}</div>'
    lead = "Other ways to sample, and what the networks showed at the end of their training."
    return section("pictures", "Pictures", lead, body + panels)


def chef(run: Run) -> str:
    """Tables and gallery of a ChefFusion."""
    body = ""
    for stage in run.trained:
        folder = str(stage.get("dir", ""))
        if stage.get("experiment") == "chef_fusion.joints":
            results = read_json(run.path(folder), "results.json")
            if isinstance(results, dict):
                body += chef_report.tables(results, os.path.join(folder, "results.json"))
    for stage in run.stages:
        if stage.get("kind") == "sample":
            body += chef_report.gallery(run.path(str(stage.get("dir", ""))), figure)
    lead = "Recipes from photos, pictures from recipes, and conversations, as they came out."
    return section("chef", "ChefFusion", lead, body)


def curves(run: Run) -> str:
    body = ""
    for stage in run.trained:
        folder = stage.get("dir", "")
        lines = read_metrics(run.path(folder, "metrics", "metrics.jsonl"))
        series: dict[str, list[charts.Point]] = {}
        for line in lines:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and isinstance(line.get("step"), int):
                    series.setdefault(name, []).append((line["step"], value))
        names = sorted(series, key=lambda n: (n in ASIDE, n != "loss", n))
        main = [n for n in names if n not in ASIDE][:3]
        drawn = "".join(charts.curve(n, series[n]) for n in main)
        rest = "".join(charts.curve(n, series[n]) for n in names if n not in main)
        if not drawn:
            drawn = '<p class="quiet">Nothing logged yet.</p>'
        if rest:
            rest = f'<details><summary>More curves</summary><div class="charts">{rest}</div></details>'
        config = read_json(run.path(folder), "config.json")
        settings = ""
        if config:
            text = escape(json.dumps(config, indent=1))
            settings = f"<details><summary>Settings of this stage</summary><pre>{text}</pre></details>"
        title = escape(title_of(stage))
        body += (
            f'<div class="stage"><h3>{title}</h3><p class="quiet">{size(run, stage)}</p>'
            f'<div class="charts">{drawn}</div><div class="more">{rest}{settings}</div></div>'
        )
    lead = "How each training went, step by step. Thin lines: as logged; thick ones: their running mean."
    return section("curves", "Learning curves", lead, body)


def meaning(name: str) -> tuple[str, str]:
    """(what a number means, which way is better), by its name."""
    for pattern, text, better in MEANINGS:
        if re.search(pattern, name.lower().rpartition("/")[2]):  # without the split
            return text, better
    return "", ""


def numbers(run: Run) -> str:
    """Every figure of every results.json, with what it takes to measure it again."""
    titles = {stage.get("dir", ""): title_of(stage) for stage in run.trained}
    rows = ""
    for folder in dict.fromkeys([*titles, *(str(stage.get("dir", "")) for stage in run.stages), ""]):
        results = read_json(run.path(folder), "results.json")
        if not isinstance(results, dict) or not results:
            continue
        title = escape(titles.get(folder, folder) or "The whole chain")
        source = escape(os.path.join(folder, "results.json"))
        rows += f'<tr class="group"><th colspan="5">{title}<code>{source}</code></th></tr>'
        rows += "".join(number_row(name, result) for name, result in results.items())
    head = "".join(f'<th class="n">{name}</th>' for name in ("Value", "Samples", "Seed", "Step"))
    body = f"<table><thead><tr><th>What was measured</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    lead = (
        "Each figure with the number of samples, the seed and the training step that gave it, "
        "and the file it is read from."
    )
    return section("numbers", "Numbers", lead, body if rows else "")


def number_row(name: str, result: Any) -> str:
    result = result if isinstance(result, dict) else {"value": result}
    text, better = meaning(name)
    text = str(result.get("meaning", text)).rstrip(".")
    sentences = [text[:1].upper() + text[1:], f"{better} is better".capitalize() if better else ""]
    text = " ".join(f"{sentence}." for sentence in sentences if sentence)
    columns = ("samples", "seed", "step")
    extra = ", ".join(
        f"{k.replace('_', ' ')} {value_text(v)}"
        for k, v in result.items()
        if k not in ("value", "meaning", *columns) and isinstance(v, int | float | str)
    )
    cells = ""
    for column in columns:
        value = result.get(column, "–")
        shown = f"{value:,}" if isinstance(value, int) and column != "seed" else str(value)
        cells += f'<td class="n" data-label="{column}">{escape(shown)}</td>'
    exact = escape(str(result.get("value")), quote=True)
    return (
        f"<tr><td><b>{escape(words(name))}</b><small>{escape(text)}</small><small>{escape(extra)}</small></td>"
        f'<td class="n value" title="{exact}">{escape(value_text(result.get("value", "–")))}</td>{cells}</tr>'
    )


def on_the_clock(stages: Sequence[Json]) -> float:
    """Seconds in which at least one of the stages ran; 0 where one of them does not say when."""
    spans = [span for s in stages if s.get("seconds") for span in s.get("spans") or [None]]
    if None in spans:
        return 0.0
    total, reached = 0.0, 0.0
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def times(run: Run) -> str:
    """One bar a trained stage, split into training and measuring, and one for all sampling."""
    timed = [stage for stage in run.stages if stage.get("seconds")]
    bars: dict[str, list[Json]] = {}
    for stage in timed:
        bars.setdefault("samples" if stage.get("kind") == "sample" else stage.get("dir", ""), []).append(
            stage
        )
    longest = max((sum(s["seconds"] for s in stages) for stages in bars.values()), default=0)
    body = ""
    for folder, stages in bars.items():
        sampling = stages[0].get("kind") == "sample"
        parts = "".join(
            f'<b class="{escape(str(s.get("kind")), quote=True)}" '
            f'style="--part: {100 * s["seconds"] / longest:.2f}%"></b>'
            for s in stages
        )
        if sampling:
            note = ", ".join(
                f"{words(os.path.basename(s.get('dir', ''))).lower()} {duration(s['seconds'])}"
                for s in stages
            )
        else:
            note = speed_note(run, folder)
        title = "Samples" if sampling else title_of(stages[0])
        body += (
            f'<div class="bar"><span>{escape(title)}</span>'
            f"<span>{duration(sum(s['seconds'] for s in stages))}</span><i>{parts}</i>"
            f"<small>{escape(note)}</small></div>"
        )
    if not body:
        return ""
    kinds = {"prepare": "preparing", "train": "training", "evaluate": "measuring", "sample": "sampling"}
    used = {stage.get("kind") for stage in timed}
    key = "".join(f'<span class="{k}">{word}</span>' for k, word in kinds.items() if k in used)
    seconds = sum(stage["seconds"] for stage in timed)
    total = duration(seconds)
    clock = on_the_clock(run.stages)
    lead = f"{total} in all, with start-up and compilation" + (
        f"; {duration(clock)} on the clock, as stages ran side by side."
        if 0 < clock < 0.99 * seconds
        else "."
    )
    body = f'<div class="key">{key}</div><div class="bars">{body}</div>'
    return section("time", "Where the time went", lead, body)


def speed_note(run: Run, folder: str) -> str:
    speed = read_json(run.path(folder), "metrics", "speed.json")
    if not isinstance(speed, dict) or not speed.get("steps_per_second"):
        return ""
    steps, examples = speed["steps_per_second"], speed.get("examples_per_second", 0)
    compiling = duration(speed.get("compile_seconds", 0))
    return f"{number(steps)} steps/s, {number(examples)} examples/s; compiling took {compiling}"


def machine(run: Run) -> str:
    parts = []
    for hardware in run.machines():
        rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in hardware.items())
        parts.append(f'<dl class="machine">{rows}</dl>' if rows else "")
    lead = "What the times above were taken on."
    return section("machine", "Machine and versions", lead, "".join(parts)) if parts else ""


def write_report(workdir: str, out: str = "report.html") -> str:
    """Writes the report of the pipeline in `workdir` to `out` (taken from there) and returns its path.

    Raises:
      UserError: no pipeline there, a damaged pipeline.json, or a place that can't be written to.
    """
    run = Run(workdir)
    parts = [how(run), chef(run), pictures(run), curves(run), numbers(run), times(run), machine(run)]
    found = [re.match(r'<section id="(\w+)"><h2>(.*?)</h2>', part) for part in parts]
    links = "".join(f'<a href="#{m[1]}">{m[2]}</a>' for m in found if m)
    nav = f"<nav>{links}</nav>" if links else ""
    footer = (
        '<footer class="quiet">Written by <code>python -m launch.report</code> from what the run left in its '
        "folder.</footer>"
    )
    body = header(run, nav) + "\n".join(parts) + footer
    path = os.path.join(workdir, out)
    title = str(run.about.get("title") or run.about.get("name") or "Pipeline")
    try:
        with open(path + ".incomplete", "w", encoding="utf-8") as f:
            f.write(page(title, body))
        os.replace(path + ".incomplete", path)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}; name another place with --out") from error
    return path


def main(argv: list[str]) -> int:
    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "a pipeline's workdir", flag_values=values)
        flags.DEFINE_string("out", "report.html", "the file to write, seen from workdir", flag_values=values)

    values = cli.parse(argv, define, __doc__)
    print(write_report(cli.required(values, "workdir"), values.out))
    return 0


if __name__ == "__main__":
    cli.run(main)
