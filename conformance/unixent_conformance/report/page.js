"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const S = data.strings, V = data.verdicts, MARKS = ["✓", "≈", "–", "✗", "⚡"];
const ABOUT = [
  "right, within the error model, or the very error that was due",
  "right under another convention, which has a name and a formula",
  "a loud error, or no such option",
  "an answer, and no known formula gives it",
  "an internal error, a segfault or no answer",
];
const GRAVITY = [3, 4, 1, 0, 2]; // silently wrong, crashed, dialect, matches, refuses: the first found is a cell's headline

/** h("tag.class", {attributes}, ...children) makes an element; strings become text, never markup. */
function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes || {}))
    if (key.startsWith("on")) element[key] = value;
    else element.setAttribute(key, value);
  element.append(...children.flat(9).filter((child) => child != null));
  return element;
}
const mark = (verdict) => h(`span.mark.v${verdict}`, { "aria-hidden": "true" }, MARKS[verdict]);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const worst = (cases) => Math.max(0, ...cases.map((one) => (one[1] === null ? Infinity : one[1])));
const size = (units) => (units === Infinity ? "beyond any bound" : `${units} × bound`);

function counts(groups) {
  const found = V.map(() => 0);
  for (const group of groups) found[group.verdict] += group.cases.length;
  return found;
}
function headline(groups) {
  const found = counts(groups);
  return GRAVITY.find((verdict) => found[verdict]);
}
function box(implementation, feature) {
  const groups = data.implementations[implementation].cells[feature];
  if (!groups) return h("span.soft", { title: "not in this run" }, "·");
  const found = counts(groups), verdict = headline(groups), all = found.reduce((a, b) => a + b);
  const label = V.map((name, i) => (found[i] ? `${found[i]} ${name}` : "")).filter(Boolean).join(", ");
  return h(`button.box.v${verdict}`, {
    title: `${data.implementations[implementation].name}, ${data.features[feature]}: ${label}`,
    "aria-label": `${data.implementations[implementation].name}, ${data.features[feature]}: ${label}`,
    "data-cell": `${implementation}-${feature}`,
    onclick: () => open(implementation, feature),
  }, MARKS[verdict], h("small", {}, ` ${found[verdict]}`),
  h("span.bar", {}, found.map((n, i) => (n ? h(`i.s${i}`, { style: `width:${(100 * n) / all}%` }) : null))));
}

function drawMatrix() {
  const before = (i) => i && data.implementations[i].framework !== data.implementations[i - 1].framework;
  const head = h("tr", {}, h("th", { scope: "col" }, "feature"), data.implementations.map((one, i) =>
    h(`th${before(i) ? ".group" : ""}`, { scope: "col", title: one.version }, h("span.head", {}, one.name, h("small", {}, ` ${one.name.startsWith(one.framework) ? "" : one.framework}`)))));
  const rows = data.features.map((name, f) => h("tr", {}, h("th", { scope: "row" }, name),
    data.implementations.map((_, i) => h(`td${before(i) ? ".group" : ""}`, {}, box(i, f)))));
  document.getElementById("matrix").append(
    h("div.wide", { tabindex: "0", role: "region", "aria-label": "Features by implementations" },
      h("table", {}, h("thead", {}, head), h("tbody", {}, rows))));
}

function tip(name) {
  const one = data.dialects[name];
  return h(`div.tip${one.hazard ? ".hazard" : ""}`, {}, h("p", {}, h("strong", {}, name), one.hazard ? " (hazard)" : ""),
    h("p", {}, h("code", {}, one.formula)), h("p.soft", {}, one.advice));
}
function drawCase(verdict, [id, units, mode, text, repro]) {
  const far = units === null ? Infinity : units;
  return h("div.case", {}, h("span.id", {}, S[id]), " ", h("span.units", {}, [S[mode] === "eager" ? "" : S[mode], far ? size(far) : ""].filter(Boolean).join(" · ")),
    text < 0 ? null : h("div.text.soft", {}, S[text]),
    repro < 0 ? null : h("details", {}, h("summary", {}, "lines to paste"),
      h("button.copy", { onclick: (event) => { navigator.clipboard?.writeText(S[repro]); event.target.textContent = "copied"; } }, "copy"),
      h("pre", {}, S[repro])));
}
function open(implementation, feature) {
  const one = data.implementations[implementation], groups = [...one.cells[feature]];
  groups.sort((a, b) => [3, 4, 1, 2, 0].indexOf(a.verdict) - [3, 4, 1, 2, 0].indexOf(b.verdict));
  const dialog = document.getElementById("cell");
  const matched = groups.filter((group) => group.verdict === 0).flatMap((group) => group.cases);
  dialog.replaceChildren(
    h("div.top", {}, h("h2", { id: "cell-title" }, `${one.name} · ${data.features[feature]}`), h("button", { onclick: () => dialog.close() }, "close")),
    h("div.inside", {}, h("p.soft", {}, one.version, matched.length ? ` — largest error of what matches: ${size(worst(matched))}` : ""),
      groups.map((group) => h("div.kind", {},
        h("h3", {}, mark(group.verdict), `${V[group.verdict]}: ${plural(group.cases.length, "case")}`,
          group.verdict !== 2 && worst(group.cases) ? h("span.soft", { style: "font-weight:400" }, `largest error ${size(worst(group.cases))}`) : null),
        group.dialects.map(tip),
        group.verdict === 2 ? reasons(group)
          : h("details", group.verdict === 0 ? {} : { open: "" }, h("summary", {}, "cases"), showSome(group))))));
  dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#cell=${implementation}-${feature}`);
}
/** Refusals by what was said, since one reason has many cases. */
function reasons(group) {
  const by = new Map();
  for (const one of group.cases) by.set(one[3], [...(by.get(one[3]) || []), one]);
  return [...by].sort((p, q) => q[1].length - p[1].length).map(([text, cases]) =>
    h("details", {}, h("summary", {}, `${text < 0 ? "no reason given" : S[text]} · ${plural(cases.length, "case")}`),
      cases.map((one) => h("div.id", {}, S[one[0]]))));
}
/** The first few cases, the rest on demand: a cell can have hundreds. */
function showSome(group, from = 0, n = 6) {
  const part = group.cases.slice(from, from + n).map((one) => drawCase(group.verdict, one));
  const left = group.cases.length - from - n;
  if (left > 0) part.push(h("button.copy", { style: "float:none", onclick: (event) => event.target.replaceWith(...showSome(group, from + n, 200)) }, `${left} more`));
  return part;
}

function drawDifferences(a, b) {
  const section = document.getElementById("differences"), all = data.implementations;
  const pick = (chosen, other, first) => h("select", { "aria-label": first ? "from" : "to", onchange: (event) => {
    const now = Number(event.target.value);
    first ? drawDifferences(now, b) : drawDifferences(a, now);
    history.replaceState(null, "", `#differences=${first ? now : a}-${first ? b : now}`);
  } }, all.map((one, i) => h("option", { value: i, ...(i === chosen ? { selected: "" } : {}) }, one.name)));
  const spoken = [a, b].map((i) => new Set(Object.values(all[i].cells).flat().flatMap((group) => group.dialects)));
  const only = [0, 1].map((side) => [...spoken[side]].filter((name) => !spoken[1 - side].has(name)));
  const rows = data.features.flatMap((name, f) => {
    const [left, right] = [a, b].map((i) => all[i].cells[f] || []);
    const [x, y] = [left, right].map(byCase);
    const differ = [...x.keys()].filter((id) => y.has(id) && x.get(id).key !== y.get(id).key);
    if (!differ.length) return [];
    return [h("tr", {}, h("td", {}, h("strong", {}, name), h("div.soft", {}, `${differ.length} of ${plural([...x.keys()].filter((id) => y.has(id)).length, "case")}`)),
      h("td", { "data-of": all[a].name }, box(a, f), says(left, differ)), h("td", { "data-of": all[b].name }, box(b, f), says(right, differ)))];
  });
  section.replaceChildren(...[
    h("p.soft", {}, "For people who port a model: what the same call comes to in one and in the other. Values of cases that both match are the same up to their error bounds."),
    h("div.pick", {}, "from", pick(a, b, true), "to", pick(b, a, false)),
    a === b ? h("p", {}, "Choose two different implementations.") : [
      [0, 1].map((side) => only[side].length ? [h("h2", {}, `Only ${all[[a, b][side]].name} says`), h("div.cards", {}, only[side].map((name) => h("div.card", {}, tip(name))))] : null),
      h("h2", {}, rows.length ? `${plural(rows.length, "feature")} ${rows.length === 1 ? "differs" : "differ"}` : "No case tells them apart"),
      rows.length ? h("table.list", {}, h("thead", {}, h("tr", {}, h("th", {}, "feature"), h("th", {}, all[a].name), h("th", {}, all[b].name))), h("tbody", {}, rows)) : null],
  ].flat(9).filter((child) => child != null));
}
function byCase(groups) {
  return new Map(groups.flatMap((group) => group.cases.map((one) => [`${S[one[0]]} ${S[one[2]]}`, { key: `${group.verdict} ${group.dialects}`, group }])));
}
/** What one side does in the cases that differ, as tags: a verdict or the names of its dialects. */
function says(groups, differ) {
  const found = byCase(groups), tags = new Map();
  for (const id of differ) {
    const group = found.get(id).group;
    for (const name of group.dialects.length ? group.dialects : [V[group.verdict]]) {
      const tag = `${group.verdict}\n${name}`;
      tags.set(tag, (tags.get(tag) || 0) + 1);
    }
  }
  return [...tags].sort((p, q) => q[1] - p[1]).map(([tag, n]) => h(`span.tag.v${tag.split("\n")[0]}`, {}, `${tag.split("\n")[1]} · ${n}`));
}

function drawDialects() {
  const cards = Object.entries(data.dialects).map(([name]) => {
    const speakers = data.implementations.flatMap((one, i) => {
      const n = Object.values(one.cells).flat().filter((group) => group.dialects.includes(name)).reduce((sum, group) => sum + group.cases.length, 0);
      return n ? [`${one.name} (${n})`] : [];
    });
    return h("div.card", {}, tip(name), h("p", {}, speakers.join(", ")));
  });
  document.getElementById("dialects").append(
    h("p.soft", {}, "Conventions found in this run. Each is a formula, and an answer counts as a dialect only if that formula gives it within the error model. A hazard is a convention that makes a plausible number out of bad data, or loses digits. In brackets: cases."),
    cards.length ? h("div.cards", {}, cards) : h("p", {}, "None: every answer follows the definition."));
}
function drawEnvironments() {
  document.getElementById("environments").append(h("table.list", {},
    h("thead", {}, h("tr", {}, ["implementation", "framework", "versions", "verdicts"].map((name) => h("th", {}, name)))),
    h("tbody", {}, data.implementations.map((one) => h("tr", {}, h("td", {}, h("strong", {}, one.name)), h("td", {}, one.framework), h("td", {}, one.version),
      h("td", {}, counts(Object.values(one.cells).flat()).map((n, i) => (n ? h(`span.tag.v${i}`, {}, `${V[i]} · ${n}`) : null))))))));
}

const VIEWS = { matrix: "Matrix", differences: "Differences", dialects: "Dialects", environments: "Environments" };
if (data.implementations.length < 2) delete VIEWS.differences;
function show(view) {
  for (const name of ["matrix", "differences", "dialects", "environments"]) document.getElementById(name).hidden = name !== view;
  for (const button of document.querySelectorAll("#tabs button")) button.setAttribute("aria-selected", String(button.dataset.view === view));
}
const total = data.implementations.reduce((sum, one) => sum + counts(Object.values(one.cells).flat()).reduce((a, b) => a + b), 0);
document.getElementById("lead").textContent =
  `${plural(data.features.length, "feature")}, ${plural(data.implementations.length, "implementation")}, ${total.toLocaleString("en")} cases judged against exact values and derived error bounds. A cell shows its gravest verdict and how many cases have it; open it for the cases, their largest error and lines to paste.`;
document.getElementById("legend").append(...V.map((name, i) => h("li", {}, mark(i), h("span", {}, h("strong", {}, name), h("span.about.soft", {}, ` ${ABOUT[i]}`)))));
document.getElementById("tabs").append(...Object.entries(VIEWS).map(([view, name]) =>
  h("button", { "data-view": view, role: "tab", onclick: () => { show(view); history.replaceState(null, "", `#${view}`); } }, name)));
drawMatrix();
if (VIEWS.differences) drawDifferences(0, 1);
drawDialects();
drawEnvironments();
document.getElementById("cell").addEventListener("close", () => history.replaceState(null, "", "#matrix"));
document.getElementById("cell").addEventListener("click", (event) => event.target.id === "cell" && event.target.close());
const [place, which] = decodeURIComponent(location.hash.slice(1)).split("=");
show(VIEWS[place] ? place : "matrix");
if (which) {
  const [x, y] = which.split("-").map(Number);
  if (place === "cell" && data.implementations[x]?.cells[y]) open(x, y);
  if (place === "differences" && data.implementations[x] && data.implementations[y]) drawDifferences(x, y);
}
