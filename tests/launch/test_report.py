import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from launch import report
from launch.report import write_report
from launch.runtime import charts
from launch.runtime.images import save_png
from launch.runtime.metrics import MetricWriter
from rcg.errors import UserError

RED, GREEN, BLUE, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]
VOID = {"meta", "img", "br", "link", "line", "rect", "circle", "path", "polyline", "image"}


class Page(HTMLParser):
    """The pictures, the words and the outside references of a page; `open` is empty if tags match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.references, self.words = [], [], [], []
        self.feed(open(path, encoding="utf-8").read())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes["src"])
        self.references += [attributes[k] for k in ("src", "href") if k in attributes]

    def handle_startendtag(self, tag, attributes):
        self.references += [v for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data.replace("\u00a0", " "))

    def colours(self):
        found = []
        for uri in self.images:
            with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
                found.append(list(image.convert("RGB").getpixel((3, 3))))
        return found


def plain(colour, size=(20, 20)):
    return np.full((*size, 3), colour, np.uint8)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def workdir(tmp_path):
    """A pipeline of two stages, one measured, with samples, as the commands leave it."""
    stages = [
        {"name": "rdm", "kind": "train", "title": "RDM <small>", "seconds": 70.0, "dir": "rdm"}
        | {"experiment": "rcg.rdm", "steps": 40, "batch_size": 8, "parameters": 1_200_000},
        {"name": "rdm/evaluate", "kind": "evaluate", "title": "measure RDM", "seconds": 20.0, "dir": "rdm"},
        {"name": "mage", "kind": "train", "title": "Painter", "seconds": 30.0, "dir": "mage"}
        | {"experiment": "rcg.mage", "steps": 100, "parameters": None},
        {"name": "samples/plain", "kind": "sample", "title": "s", "seconds": 5.0, "dir": "samples/plain"},
    ]
    hardware = {"device": "abacus", "devices": 1, "jax": "9.9.9"}
    about = {"name": "x", "title": "A run", "description": "of all & sundry", "hardware": hardware}
    write_json(tmp_path / "pipeline.json", about | {"stages": stages})
    for folder, steps in (("rdm", 40), ("mage", 30)):
        write_json(tmp_path / folder / "config.json", {"batch_size": 8, "seed": 0})
        writer = MetricWriter(str(tmp_path / folder))
        for step in range(10, steps + 1, 10):
            writer.write_scalars(step, {"loss": 10 / step, "grad_norm": 1.0})
        writer.close()
    result = {"value": 0.412345, "samples": 2048, "seed": 7, "step": 40, "features": "encoder"}
    write_json(tmp_path / "rdm" / "results.json", {"frechet": result})
    save_png(str(tmp_path / "rdm" / "panels" / "step_00000020.png"), plain(BLACK))
    save_png(str(tmp_path / "rdm" / "panels" / "step_00000040.png"), plain(BLUE))
    for name, colour, guidance in (("plain", RED, 0.0), ("guided", GREEN, 3.0)):
        save_png(str(tmp_path / "samples" / name / "grid.png"), plain(colour))
        told = {"task": "generate", "samples": 16, "seed": 0, "settings": {"cfg_scale": guidance}}
        write_json(tmp_path / "samples" / name / "samples.json", told)
    save_png(str(tmp_path / "samples" / "real" / "grid.png"), plain(WHITE))
    return tmp_path


def test_page_is_whole_and_needs_nothing_beside_it(workdir):
    path = write_report(str(workdir))
    page = Page(path)
    assert path == str(workdir / "report.html") and not page.open
    assert page.references and all(r.startswith(("data:", "#")) for r in page.references)
    html = (workdir / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_guided_samples_beside_real_ones_then_the_rest(workdir):
    assert Page(write_report(str(workdir))).colours() == [GREEN, WHITE, RED, BLUE]


def test_numbers_come_with_what_made_them(workdir):
    text = Page(write_report(str(workdir))).text
    assert "rdm/results.json" in text
    row = text[text.index("rdm/results.json") :]
    for part in ("Fréchet", "Lower is better", "features encoder", "0.4123", "2,048", "7", "40"):
        assert part in row
    assert 'title="0.412345"' in (workdir / "report.html").read_text()


def test_stages_say_how_far_they_came(workdir):
    text = Page(write_report(str(workdir))).text
    assert "40 steps · batches of 8 · 1.2M parameters · 1 min 10 s" in text
    assert "stopped at step 30 of 100" in text
    assert "2 min 05 s in all" in text and "1 min 30 s" in text  # training and measuring as one bar
    assert "abacus" in text and "9.9.9" in text and "on the clock" not in text
    about = json.loads((workdir / "pipeline.json").read_text())

    def told(*spans):
        """The page where the stages ran in these seconds; None: as older versions left it."""
        for stage, span in zip(about["stages"], spans, strict=True):
            stage["spans"] = span and [[1.8e9 + begin, 1.8e9 + end] for begin, end in span]
        write_json(workdir / "pipeline.json", about)
        return Page(write_report(str(workdir))).text

    text = told([(0, 20), (50, 100)], [(100, 120)], [(65, 95)], [(195, 200)])  # the first in two goes
    assert "2 min 05 s in all" in text and "1 min 35 s on the clock, as stages ran side by side" in text
    text = told([(0.1, 70.1)], [(70.1, 90.1)], [(90.3, 120.3)], [(120.3, 125.3)])
    assert "side by side" not in text and "2 min 05 s" in text
    assert "on the clock" not in told([(0, 70)], None, [(65, 95)], [(195, 200)])


def test_a_mage_that_is_told_nothing_is_not_said_to_be_told(workdir):
    assert "told the picture's representation" in Page(write_report(str(workdir))).text
    write_json(workdir / "mage" / "config.json", {"model": {"conditioning": "none"}})
    text = Page(write_report(str(workdir))).text
    assert "is told nothing" in text and "told the picture's representation" not in text


def test_every_machine_of_a_run_is_named_once(workdir):
    about = json.loads((workdir / "pipeline.json").read_text())
    del about["hardware"]
    for stage, device in zip(about["stages"], ("abacus", "abacus", "sand", "abacus"), strict=True):
        stage["hardware"] = {"device": device, "devices": 1}
    write_json(workdir / "pipeline.json", about)
    text = Page(write_report(str(workdir))).text
    assert text.count("abacus") == 2 and "abacus, sand" in text  # at the top, and among the machines


def test_words_of_the_user_are_text(workdir):
    assert "RDM <small>" in Page(write_report(str(workdir))).text
    assert "of all &amp; sundry" in (workdir / "report.html").read_text()


@pytest.mark.parametrize(
    "gone",
    [
        "samples",
        "samples/real",
        "rdm",
        "mage",
        "rdm/metrics",
        "rdm/panels",
        "rdm/results.json",
        "rdm/config.json",
    ],
)
def test_what_is_missing_is_left_out(workdir, gone):
    path = workdir / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(str(workdir)))
    assert not page.open and "A run" in page.text
    if gone == "samples":
        assert "No samples yet" in page.text
    if gone == "mage":
        assert "not run yet" in page.text


def test_what_is_damaged_is_left_out(workdir):
    for path in workdir.rglob("*"):
        if path.suffix in (".png", ".json", ".jsonl") and path.name != "pipeline.json":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    page = Page(write_report(str(workdir)))
    assert not page.open and not page.images and "A run" in page.text


def test_pipeline_that_has_only_begun(tmp_path):
    write_json(tmp_path / "pipeline.json", {"name": "begun", "stages": []})
    page = Page(write_report(str(tmp_path)))
    assert not page.open and "begun" in page.text and "No samples yet" in page.text


def test_no_pipeline_and_no_place_to_write(workdir, tmp_path):
    with pytest.raises(UserError, match="no pipeline.json.*run launch.pipeline first"):
        write_report(str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="can't write .*missing/r.html"):
        write_report(str(workdir), "missing/r.html")
    (workdir / "pipeline.json").write_text("{")
    with pytest.raises(UserError, match="pipeline.json is damaged"):
        write_report(str(workdir))


def test_command(workdir, capsys):
    assert report.main(["report", f"--workdir={workdir}", "--out=other.html"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "other.html")
    with pytest.raises(UserError, match="--workdir"):
        report.main(["report"])


def test_large_pictures_are_made_smaller(tmp_path):
    save_png(str(tmp_path / "wide.png"), plain(RED, (30, 3000)))
    uri, width = report.data_uri(str(tmp_path / "wide.png"))
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (1280, 13) and width == 1280


# ---- curves


def places(svg, kind):
    return [
        tuple(map(float, p.split(","))) for p in re.search(f'class="{kind}" points="([^"]*)"', svg)[1].split()
    ]


def test_curve_spans_its_axes():
    line = places(charts.curve("loss", [(0, 4.0), (50, 3.0), (100, 2.0)]), "curve")
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert line[0] == (charts.LEFT, top) and line[2] == (charts.WIDTH - charts.RIGHT, bottom)
    assert line[1][1] == pytest.approx((top + bottom) / 2)


def test_curve_over_decades_is_logarithmic():
    svg = charts.curve("loss", [(0, 100.0), (50, 1.0), (100, 0.01)])
    line = places(svg, "curve")
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2, abs=0.1) and "log scale" in svg
    assert "log scale" not in charts.curve("loss", [(0, 2.0), (100, 1.0)])


def test_curve_leaves_out_and_counts_what_is_not_finite():
    svg = charts.curve("loss", [(0, 4.0), (50, math.nan), (75, math.inf), (100, 2.0)])
    assert "2 not finite" in svg and len(places(svg, "curve")) == 2
    assert "no finite value" in charts.curve("loss", [(0, math.nan)])


@pytest.mark.parametrize(
    "points", [[(5, 1.0)], [(0, 0.0), (9, 0.0)], [(0, -3.0), (9, 4.0)], [(1, 1e-9), (2, 1e9)]]
)
def test_curve_of_odd_shape(points):
    assert "nan" not in charts.curve("x", points)


def test_long_curve_is_thinned_and_smoothed():
    rng = np.random.default_rng(0)
    points = [(i, 1 + rng.normal()) for i in range(10_000)]
    svg = charts.curve("loss", points)
    assert len(svg) < 20_000
    raw, smooth = (np.array(places(svg, kind))[:, 1] for kind in ("raw", "curve"))
    assert smooth[20:-20].std() < raw.std() / 5


@pytest.mark.parametrize("low, high, log", [(0, 1, False), (0.013, 0.0172, False), (-5, 12000, False)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e6])
def test_ticks_are_few_and_inside(low, high, log, scale):
    found = charts.ticks(low * scale, high * scale, log)
    assert 2 <= len(found) <= 6 and low * scale - 1e-9 <= found[0] and found[-1] <= high * scale * (1 + 1e-9)


@pytest.mark.parametrize("low, high", [(0.02, 1.3), (1e-6, 1e4), (3, 100)])
def test_log_ticks_are_few_and_inside(low, high):
    found = charts.ticks(low, high, True)
    assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high


def test_numbers_that_are_there_to_compare_with_have_no_direction():
    for name in ("dialogue_unchanged", "rdm_frechet_floor", "rdm_frechet_noise", "clip_similarity_of_others"):
        assert report.meaning(name)[1] == "", name
    assert report.meaning("test/perplexity") == report.meaning("perplexity")
    assert report.meaning("frechet_generated")[1] == "lower"


def test_bars_leave_room_for_their_labels():
    labels = ["generated representation, temperature 4", "oracle representation, temperature 4"]
    wide, narrow = charts.bars("x", [(label, 1.0) for label in labels]), charts.bars("x", [("a", 1.0)])
    places = [float(re.search(r'class="bar" x="([\d.]+)"', svg)[1]) for svg in (wide, narrow)]
    assert places[0] > 6 * len(labels[0]) > 150 == places[1]


@pytest.mark.parametrize(
    "value, text", [(999_700, "1M"), (12_345, "12.3k"), (9_999, "9,999"), (0.03124, "0.03124")]
)
def test_short_numbers(value, text):
    assert charts.short(value) == text


def test_what_a_stage_learnt_from(workdir):
    data = {"source": "folder", "path": "/data/cakes & pies/", "num_records": 2000}
    config = {"data": data, "components": {"encoder": "runs/e", "rdm": ""}}
    told = report.learnt_from(config)
    assert told == "data: folder · cakes &amp; pies · with encoder"  # only the kitchen draws so many
    write_json(workdir / "rdm" / "config.json", config)
    assert "data: folder · cakes & pies · with encoder" in Page(write_report(str(workdir))).text
    assert report.learnt_from({"data": {"source": "kitchen", "num_records": 2000}}).endswith("2,000 records")
    assert report.learnt_from({}) == ""
