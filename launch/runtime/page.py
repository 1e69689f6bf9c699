"""The look of the report: one HTML document with its style inside, light and dark, narrow and wide."""

from html import escape

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbf9f5; --card: #ffffff; --ink: #26221d; --soft: #6f675c; --line: #e6e0d6; --faint: #f2eee6;
  --accent: #b5502b; --accent-soft: #e9b79f; --second: #5d7a67; --third: #6a86ab;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "Liberation Serif", serif;
  --sans: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #161412; --card: #1f1c19; --ink: #ece6dc; --soft: #a39a8c; --line: #37322c; --faint: #2a2622;
  --accent: #e28a62; --accent-soft: #7d4a34; --second: #8fb39b; --third: #8ea9cf; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans); }
main { max-width: 1120px; margin: 0 auto; padding: 0 clamp(18px, 4vw, 40px) 72px; }
header { padding: clamp(40px, 7vw, 84px) 0 28px; }
h1, h2 { font-family: var(--serif); font-weight: 600; letter-spacing: -0.012em; text-wrap: balance; }
h1 { font-size: clamp(34px, 5.6vw, 58px); line-height: 1.08; margin: 0 0 16px; }
h2 { font-size: clamp(25px, 3.2vw, 33px); line-height: 1.2; margin: 0 0 8px; }
h3 { font-size: 16px; line-height: 1.35; margin: 0; }
p { margin: 0 0 12px; max-width: 68ch; }
a { color: var(--accent); text-underline-offset: 3px; }
code, pre { font-family: var(--mono); font-size: 0.84em; }
code { overflow-wrap: anywhere; }
section { padding-top: clamp(46px, 6vw, 76px); }
.over { color: var(--accent); font-size: 13px; font-weight: 650; letter-spacing: 0.09em;
  text-transform: uppercase; margin: 0 0 12px; }
.lead { font-size: clamp(17px, 1.7vw, 20px); line-height: 1.55; color: var(--soft); }
.quiet { color: var(--soft); font-size: 14.5px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14.5px; padding: 14px 0;
  border-block: 1px solid var(--line); }
nav a { color: var(--soft); text-decoration: none; } nav a:hover { color: var(--accent); }
.facts { display: flex; flex-wrap: wrap; gap: 14px 44px; margin: 26px 0 30px; padding: 0; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dt { color: var(--soft); font-size: 13.5px; }
.facts dd { margin: 0; font: 600 24px/1.25 var(--serif); font-variant-numeric: lining-nums; }
.facts dd.words { font: 600 17px/1.76 var(--sans); }
.pair, .two, .three { display: grid; gap: 28px; align-items: start; }
@media (min-width: 720px) { .pair, .two, .three { grid-template-columns: 1fr 1fr; } }
@media (min-width: 1000px) { .three { grid-template-columns: 1fr 1fr 1fr; } }
.pictures { margin-top: 24px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 12px; border: 1px solid var(--line);
  background: #fafafa; }
img.crisp { image-rendering: pixelated; }
figcaption { padding-top: 10px; font-size: 14.5px; line-height: 1.45; color: var(--soft); }
figcaption b { color: var(--ink); font-weight: 620; display: block; text-wrap: balance; }
.pair { padding-top: 34px; }
.pair figcaption b { font: 600 20px/1.3 var(--serif); }
#chef h3 { margin-top: 44px; }
.told, .row { display: grid; gap: 18px; align-items: start; margin: 18px 0; }
.told { grid-template-columns: 110px 1fr 1fr; border-top: 1px solid var(--line); padding-top: 18px; }
.told h4 { margin: 0 0 6px; } .told ul { margin: 4px 0; padding-left: 18px; }
.row { grid-template-columns: repeat(auto-fit, minmax(110px, 1fr)); max-width: 680px; }
.talk { margin: 18px 0; } .said { margin: 10px 0; } .said.user { text-align: right; font-style: italic; }
.said figure { max-width: 128px; }
@media (max-width: 640px) { .told { grid-template-columns: 1fr; } .told figure { max-width: 128px; } }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px; }
.lanes { display: grid; gap: 22px; margin: 26px 0 34px; }
@media (min-width: 880px) { .lanes { grid-template-columns: 1fr 1fr; } }
.lanes h3 { margin-bottom: 16px; font: 600 19px/1.3 var(--serif); }
ol.steps { list-style: none; margin: 0; padding: 0; display: grid; gap: 0; counter-reset: step; }
ol.steps li { display: grid; grid-template-columns: 40px 1fr; gap: 4px 14px; padding: 20px 0;
  border-top: 1px solid var(--line); counter-increment: step; }
ol.steps li::before { content: counter(step); font: 600 24px/1.15 var(--serif); color: var(--accent); }
ol.steps li > * { grid-column: 2; } ol.steps li > :first-child { grid-row: 1; }
ol.steps p { margin: 0; }
@media (min-width: 880px) { ol.steps li { grid-template-columns: 40px 5fr 7fr; grid-template-rows: auto 1fr; }
  ol.steps li > p:last-child { grid-column: 3; grid-row: 1 / span 2; } }
.stage { padding-top: 30px; } .stage + .stage { margin-top: 30px; border-top: 1px solid var(--line); }
.stage h3 { font: 600 21px/1.3 var(--serif); margin-bottom: 4px; }
.charts { display: grid; gap: 18px 26px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.chart figcaption { display: flex; justify-content: space-between; gap: 12px; padding: 0 0 6px; }
.chart figcaption span { font-variant-numeric: tabular-nums; white-space: nowrap; }
.chart figcaption b { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
.rule { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; opacity: 0.6; }
.bar { fill: var(--accent); opacity: 0.85; }
.curve, .raw { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: 0.3; } .end { fill: var(--accent); }
.lane { max-width: 560px; margin: 0 auto; } .lane text { font-size: 12.5px; }
@media (max-width: 560px) { .card { padding: 18px 14px; } .lane text { font-size: 16px; } }
.lane .name { fill: var(--card); font-size: 13.5px; font-weight: 620; }
.frame { fill: none; stroke: var(--line); stroke-width: 1.5; } .hidden { fill: var(--faint); }
.noise { fill: var(--ink); } .up { fill: var(--accent); } .down { fill: var(--second); }
.arrow { stroke: var(--soft); stroke-width: 1.5; } .head { fill: var(--soft); }
.network { fill: var(--second); }
.plate { fill: var(--faint); stroke: var(--line); stroke-width: 2; } .dish { fill: var(--accent-soft); }
.more { display: flex; flex-wrap: wrap; gap: 10px 26px; margin-top: 14px; }
details[open] { flex-basis: 100%; min-width: 0; }
summary { cursor: pointer; color: var(--soft); font-size: 14.5px; }
summary:hover { color: var(--accent); }
pre { background: var(--faint); border-radius: 10px; padding: 14px 16px; overflow: auto; max-height: 420px;
  line-height: 1.5; }
table { width: 100%; border-collapse: collapse; font-size: 15px; margin-top: 18px; }
th { text-align: left; font-size: 13px; font-weight: 600; color: var(--soft); padding: 8px 18px 8px 0; }
td { vertical-align: top; padding: 14px 18px 14px 0; border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.value { font: 600 19px/1.3 var(--serif); font-variant-numeric: lining-nums tabular-nums; }
td b { font-weight: 620; }
td small { display: block; color: var(--soft); font-size: 13.5px; line-height: 1.45; }
tbody code { color: var(--soft); font-weight: 400; font-size: 13px; margin-left: 8px; }
tbody th { padding: 30px 0 8px; font: 600 18px/1.3 var(--serif); color: var(--ink); }
@media (max-width: 719px) {
  table, tbody, tr, td, tbody th { display: block; } thead { display: none; }
  tr { padding: 14px 0; border-top: 1px solid var(--line); } tr.group { border: 0; padding: 14px 0 0; }
  tbody th { padding: 0; } td, td.n { border: 0; padding: 2px 0; text-align: left; white-space: normal; }
  td[data-label] { display: inline-block; margin-right: 20px; }
  td[data-label]::before { content: attr(data-label) " "; color: var(--soft); font-size: 13.5px; }
  td.value { font-size: 24px; } }
.bars { display: grid; gap: 18px; margin-top: 24px; }
.bar { display: grid; grid-template-columns: 1fr auto; gap: 3px 16px; font-size: 15px; }
.bar span:nth-child(2) { font-variant-numeric: tabular-nums; color: var(--soft); }
.bar i { grid-column: 1 / -1; margin: 2px 0; height: 10px; border-radius: 5px; background: var(--faint);
  overflow: hidden; }
.bar i { display: flex; } .bar b { min-width: 2px; width: var(--part); background: var(--colour); }
.bar small { grid-column: 1 / -1; color: var(--soft); font-size: 13.5px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; color: var(--soft); }
.key span::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 7px; background: var(--colour); }
.train { --colour: var(--accent); } .prepare { --colour: var(--soft); }
.evaluate { --colour: var(--second); } .sample { --colour: var(--third); }
dl.machine { display: grid; gap: 10px 24px; margin: 20px 0 0;
  grid-template-columns: minmax(90px, max-content) 1fr; }
dl.machine dt { color: var(--soft); } dl.machine dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 70px; padding-top: 18px; border-top: 1px solid var(--line); }
@media print { section, figure, .card { break-inside: avoid; } nav { display: none; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document that needs nothing beside it."""
    style = " ".join(STYLE.split())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
