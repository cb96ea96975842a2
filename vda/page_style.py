"""How report pages look: one inline style sheet, light and dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #16202b; --soft: #5c6b7a; --line: #dde3ea; --page: #f6f8fa; --card:
#fff;
  --accent: #2563eb; --up: #15803d; --down: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #93a1b0; --line: #2a333d; --page:
#0f1419;
  --card: #171e26; --accent: #7aa7ff; --up: #4ade80; --down: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 2rem 1.25rem 4rem; } h1 { font-size: 1.7rem; line-height:
1.25; letter-spacing: -.01em; margin: 0 0 1.25rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin:
0 0 .8rem; } h3 { font-size: .95rem; margin: 0 0 .5rem; overflow-wrap: anywhere; } section { background:
var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.25rem;
  margin: 1rem 0; }
.note { color: var(--soft); font-size: .85rem; margin: .6rem 0 0; } .cards { display: grid;
grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1rem; } .card { background: var(--card);
border: 1px solid var(--line); border-radius: 12px; padding: .9rem 1.1rem; } .card h3 { color: var(--soft);
font-weight: 600; } .card div { display: flex; align-items: baseline; gap: .5rem; } .card span { color:
var(--soft); width: 3.4rem; font-size: .85rem; } .card strong { font-size: 1.5rem; font-variant-numeric:
tabular-nums; } .card.ceiling { border-style: dashed; background: none; } .wide { overflow-x: auto; } table {
border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; min-width: 100%; } th, td {
padding: .4rem .55rem; text-align: right; white-space: nowrap; vertical-align: top; } thead th { color:
var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom; } tbody tr + tr >
* { border-top: 1px solid var(--line); } tbody th, thead th:first-child { text-align: left; position: sticky;
left: 0; background: var(--card); } tr.ceiling > * { font-style: italic; color: var(--soft); } .mean {
background: color-mix(in srgb, var(--accent) 7%, transparent); } td b { color: var(--accent); } small {
display: block; font-size: .75rem; color: var(--soft); } .card small { display: inline; font-size: .85rem; }
.up { color: var(--up); } .down { color: var(--down); } .swatch { display: inline-block; width: .75em; height:
.75em; border-radius: 3px; margin-right: .4em;
  border: 1px solid color-mix(in srgb, var(--ink) 25%, transparent); }
thead .swatch { display: block; margin: 0 0 .25rem auto; width: 1.6em; height: .5em; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; margin: 0 0 1rem;
  font-size: .88rem; }
.panel + .panel { border-top: 1px solid var(--line); margin-top: 1.1rem; padding-top: 1.1rem; } .panel h3 {
font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-weight: 500; color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: .8rem; } figure
{ margin: 0; } figcaption { color: var(--soft); font-size: .82rem; margin-top: .2rem; } .pictures img { width:
100%; display: block; border-radius: 6px; cursor: zoom-in; } .pictures input { position: absolute; opacity: 0;
pointer-events: none; } .pictures input:focus-visible + img { outline: 3px solid var(--accent); } .pictures
input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; object-fit: contain;
  background: rgb(0 0 0 / .85); border-radius: 0; z-index: 9; cursor: zoom-out; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: .8rem;
margin-bottom: 1rem; } .curve svg { width: 100%; display: block; } .curve text { font-size: 10px; fill:
var(--soft); } .curve figcaption b { color: var(--ink); float: right; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .line { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin:
round; } .band { fill: var(--accent); opacity: .16; } summary { cursor: pointer; color: var(--soft); } dl {
display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 0 2rem; font-size: .85rem;
  margin: .8rem 0 0; }
dl div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  padding: .2rem 0; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media print { body { background: none; } section, .card { break-inside: avoid; } }
"""
