"""The style sheet of the report: light and dark, desktop, phone and print."""

STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
:root{--page:#f5f6f8;--bar:#0072B2}
@media(prefers-color-scheme:dark){:root{--page:#101419;--bar:#56B4E9}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
main{max-width:1200px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:30px}
h1{font-size:clamp(28px,5vw,42px);line-height:1.15;letter-spacing:-.02em;margin:0 0 8px;
 overflow-wrap:anywhere}
h2{font-size:22px;letter-spacing:-.01em;margin:0 0 4px}
p{margin:0 0 16px;max-width:75ch}
small,.note,.over,dd,section>p{color:var(--muted)}
.over{font-size:13px;letter-spacing:.08em;text-transform:uppercase;margin:0 0 6px}
.lead{font-size:18px;margin:0}
.note{font-size:14px;margin-top:16px}
.unit{white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(3,1fr);gap:16px}
.card,section,.recovery{
 background:var(--surface);border:1px solid var(--line);border-radius:14px}
.card{padding:20px 22px;display:flex;flex-direction:column;justify-content:space-between;gap:8px}
.card small{display:block;font-size:14px;line-height:1.4}
.big{font-size:44px;font-weight:650;letter-spacing:-.03em;line-height:1.1;
 font-variant-numeric:tabular-nums;white-space:nowrap}
.swatch{width:14px;height:14px;margin-right:7px;vertical-align:-1px}
.recovery{padding:18px 22px;margin:16px 0}
.note:empty{display:none}
.recovery p{display:flex;justify-content:space-between;max-width:none;margin:0}
.recovery p:first-child{display:block;font-size:18px}
.track{height:12px;border-radius:6px;background:var(--line);margin:10px 0 6px;overflow:hidden}
.track i,.bar i{display:block;height:100%;background:var(--bar);border-radius:6px}
nav{display:flex;flex-wrap:wrap;gap:6px 20px;margin:24px 0;font-size:15px}
a{color:var(--bar);text-underline-offset:3px}
section{padding:24px;margin:0 0 20px;scroll-margin-top:12px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));
 gap:28px 32px;align-items:start}
figure{margin:0 auto;min-width:0;max-width:480px;width:100%}
figcaption{font-size:14px;line-height:1.45;margin-bottom:8px}
figcaption b{display:block;font-size:15px}
.grid{display:flex;gap:8px}
.grids{grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr));gap:24px}
.grid>div{display:grid;grid-auto-rows:1fr;align-items:center;flex:none;max-width:32%;text-align:right}
.grid span{font-size:12px;line-height:1;color:var(--muted);
 overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.grid img{min-width:0;flex:1;width:100%;height:auto;align-self:flex-start;border-radius:4px}
.pair{display:flex;flex-wrap:wrap;gap:16px 40px;align-items:start}
.pair dl{flex:1 1 300px;grid-template-columns:1fr;gap:2px}
.pair dd{margin-bottom:8px}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--surface)}
td{white-space:nowrap}
tbody th{font-weight:500}
thead th{font-size:14px;vertical-align:bottom}
td small{display:block;font-size:12px;line-height:1.3}
tbody tr:last-child>*{border-bottom:0}
dl{display:grid;grid-template-columns:minmax(9em,auto) 1fr;gap:6px 20px;font-size:14px;margin:8px 0 0}
dt{font-weight:600}
dd{margin:0}
.time{width:100%;max-width:640px}
.bar{width:100%}
.bar i{height:12px;min-width:2px;margin-top:6px}
.setup td{text-align:left;white-space:normal;overflow-wrap:anywhere;
 font-family:ui-monospace,monospace;font-size:13px}
details{margin:12px 0}
summary{cursor:pointer;font-weight:600;padding:4px 0}
@media(max-width:640px){
main{padding:24px 12px 40px}
section{padding:18px 14px;border-radius:12px}
.cards{grid-template-columns:1fr;gap:10px}
.card{flex-direction:row;align-items:center;padding:14px 16px}
.big{font-size:32px}
th,td{padding:7px 6px}
table{font-size:14px}
td small{font-size:11px}
thead .swatch{display:block;margin:0 0 0 auto}
dl{grid-template-columns:1fr;gap:2px}
dd{margin-bottom:10px}
}
@media print{section,.card{break-inside:avoid}nav{display:none}}
"""
