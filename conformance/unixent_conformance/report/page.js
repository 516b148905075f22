"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const S = data.strings, V = data.verdicts, ALL = data.implementations, MARKS = ["✓", "≈", "–", "✗", "⚡"];
const ABOUT = [
  "right within rounding, or the very error that was due",
  "right under another convention, which has a name and a formula",
  "a clear error, or no such option: not judged",
  "an answer without an error, and no known formula gives it",
  "an internal error, a segfault or no answer",
];
const GRAVITY = [3, 4, 1, 0, 2]; // what a reader wants first
const SHARE = "Share of the bound: the largest error among the cases that match, relative to the largest that rounding alone can cause in a correct implementation. Up to 1 every value is right. In float16 and bfloat16 rounding the result itself can use the whole bound, so that 1.00 is normal there, not a near miss.";

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
const at = (id) => document.getElementById(id);
const mark = (verdict) => h(`span.mark.v${verdict}`, { "aria-hidden": "true" }, MARKS[verdict]);
const number = (n) => n.toLocaleString("en");
const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
const worst = (cases) => Math.max(0, ...cases.map((one) => (one[1] === null ? Infinity : one[1])));
const size = (units) => (units === Infinity ? "beyond any bound" : `${units < 1e3 ? units : units < 1e6 ? number(units) : units.toExponential().replace("+", "")} × bound`);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const goto = (place) => history.replaceState(null, "", `#${place}`);
const listed = (words) => (words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

function counts(groups) {
  const found = V.map(() => 0);
  for (const group of groups) found[group.verdict] += group.cases.length;
  return found;
}
const totals = (one) => counts(Object.values(one.cells).flat());
const share = (groups) => worst(groups.filter((group) => group.verdict === 0).flatMap((group) => group.cases));
const spoken = (found) => V.map((name, i) => (found[i] ? `${found[i]} ${name}` : "")).filter(Boolean).join(", ");

/** The overall verdict: the gravest verdict that decides, and a sentence. */
function overall(one) {
  const found = totals(one), judged = sum(found) - found[2];
  const failed = [3, 4].filter((i) => found[i]).map((i) => `${number(found[i])} ${V[i]}`);
  const early = one.stopped ? `Stopped early (${one.stopped}). ` : "";
  if (failed.length) return [found[3] ? 3 : 4, `${early}${listed(failed)} of ${plural(judged, "judged case")}`];
  if (!sum(found)) return [2, `${early}No case was run: none is all that was asked for`];
  if (!found[0]) return [2, `${early}Nothing matches: no case shows that it is right`];
  if (found[1]) return [1, `${early}No failures: ${number(found[0])} of ${plural(judged, "judged case")} match, ${number(found[1])} follow another convention`];
  return [0, `${early}${one.stopped ? "So far all" : "All"} ${plural(judged, "judged case")} match`];
}

/** Every count of a cell, the gravest first; its colour is that of the first. */
function box(implementation, feature) {
  const groups = ALL[implementation].cells[feature];
  if (!groups) return h("span.soft", { title: "not in this run" }, "·");
  const found = counts(groups), verdict = GRAVITY.find((i) => found[i]);
  const label = `${ALL[implementation].name}, ${data.features[feature]}: ${spoken(found)}`;
  return h(`button.box.v${verdict}`, {
    title: label, "aria-label": label, "data-cell": `${implementation}-${feature}`, onclick: () => open(implementation, feature),
  }, GRAVITY.filter((i) => found[i]).map((i) => h(i === verdict ? "b" : "span", {}, `${MARKS[i]} ${found[i]}`)));
}
function drawMatrix() {
  const before = (i) => i && ALL[i].framework !== ALL[i - 1].framework;
  const head = h("tr", {}, h("th", { scope: "col" }, "feature"), ALL.map((one, i) =>
    h(`th${before(i) ? ".group" : ""}`, { scope: "col", title: one.version }, h("button.head", { "data-one": i, onclick: () => drawOne(i) }, one.name, h("small", {}, ` ${one.name.includes(one.framework) ? "" : one.framework}`)))));
  const rows = data.features.map((name, f) => h("tr", {}, h("th", { scope: "row" }, name),
    ALL.map((_, i) => h(`td${before(i) ? ".group" : ""}`, {}, box(i, f)))));
  const all = h("tr.total", {}, h("th", { scope: "row" }, "all"), ALL.map((one, i) => {
    const found = totals(one);
    return h(`td${before(i) ? ".group" : ""}`, {}, GRAVITY.filter((v) => found[v]).map((v) => h(`span.tag.v${v}`, {}, `${MARKS[v]} ${number(found[v])}`)));
  }));
  at("matrix").style.setProperty("--fit", Math.min(1, 1000 / (150 + 46 * ALL.length)).toFixed(3)); // of the width of paper
  at("matrix").append(
    h("p.soft", {}, "Each cell counts its cases by verdict, the gravest first, and opens to them. The name of an implementation opens its own report."),
    h("div.wide", { tabindex: "0", role: "region", "aria-label": "Features by implementations" },
      h("table", {}, h("thead", {}, head), h("tbody", {}, rows), h("tfoot", {}, all))));
}

/** The report of one implementation: its verdict, the worst failures, the table, conventions, what was not judged. */
function drawOne(i) {
  const one = ALL[i], found = totals(one), [gravest, sentence] = overall(one);
  const seen = V.map((_, v) => v).filter((v) => found[v] || v === 0);
  const names = Object.keys(data.dialects).filter((name) => Object.values(one.cells).flat().some((group) => group.dialects.includes(name)));
  at("one").replaceChildren(
    ...(ALL.length > 1 ? [h("h2", { style: "margin-top:0" }, one.name), h("p.soft", {}, aside(one))] : []),
    h(`p.overall.v${gravest}`, { role: "status" }, h("span", { "aria-hidden": "true" }, MARKS[gravest]), " ", sentence),
    h("ul.tiles", { "aria-label": "Cases by verdict" }, V.map((name, v) =>
      h(`li${found[v] ? "" : ".none"}`, {}, h("div", {}, mark(v), h("b", {}, number(found[v]))), h("strong", {}, name), h("span.about.soft", {}, ABOUT[v])))),
    ...(one.failures.length ? [h("h2", {}, "What failed, the worst first"), one.failures.map((failure, n) => drawFailure(i, failure, n < 3))] : []).flat(),
    ...(sum(found) ? [h("h2", {}, "Features"),
    h("div.wide", { tabindex: "0", role: "region", "aria-label": "Features" }, h("table.counts", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "feature"), seen.map((v) => h("th", { scope: "col", "aria-label": V[v] }, mark(v), h("span.word", {}, V[v]))), h("th", { scope: "col" }, "share of the bound"))),
      h("tbody", {}, Object.keys(one.cells).map((f) => {
        const groups = one.cells[f], n = counts(groups);
        return h("tr", {}, h("th", { scope: "row" }, h("button.link", { "data-cell": `${i}-${f}`, onclick: () => open(i, f) }, data.features[f])),
          seen.map((v) => h("td", {}, n[v] ? h(`span${v === 0 || v === 2 ? "" : `.tag.v${v}`}`, {}, number(n[v])) : h("span.faint", {}, "–"))), h("td", {}, n[0] ? share(groups).toFixed(2) : ""));
      })))),
    h("p.soft.note", {}, SHARE)] : []),
    ...(names.length ? [h("h2", {}, "Conventions it follows"), h("div.cards", {}, names.map((name) => h("div.card", {}, tip(name))))] : []),
    h("h2", {}, "What was judged, and what was not"),
    ...notJudged(one));
  if (ALL.length > 1) { show("one"); goto(`one=${i}`); }
}
function drawFailure(i, [verdict, n, features, one], opened) {
  const where = features.map((f) => data.features[f]);
  const title = verdict === 4 && S[one[3]].length < 90 ? S[one[3]] : where[0];
  return h(`details.failure.line${verdict}`, opened ? { open: "" } : {},
    h("summary", {}, h("span.title", {}, mark(verdict), h("strong", {}, `${V[verdict]}: ${title}`)), h("span.soft", {}, [plural(n, "case"), where.length > 1 ? plural(where.length, "feature") : "", verdict === 3 ? size(one[1] ?? Infinity) : ""].filter(Boolean).join(" · "))),
    drawCase([one[0], 0, ...one.slice(2)]),
    n < 2 ? null : h("p.more", {}, `All ${n}: `, features.map((f, k) => [k ? ", " : "", h("button.link", { onclick: () => open(i, f) }, data.features[f])])));
}
function notJudged(one, first = 8) {
  const table = (refused) => h("table.list", {}, h("thead", {}, h("tr", {}, ["it refuses", "cases", "features"].map((name) => h("th", {}, name)))), h("tbody", {}, refused.map(([n, reason, features]) =>
    h("tr", {}, h("td", {}, reason < 0 ? "no reason given" : S[reason]), h("td", { "data-of": "cases" }, number(n)), h("td.soft", { "data-of": "features" }, features.map((f) => data.features[f]).join(", "))))));
  const more = one.refused.slice(first);
  return [
    h("p", {}, `Judged by mode: ${Object.entries(one.judged).map(([mode, n]) => `${mode} ${number(n)}`).join(", ") || "none"}.`),
    one.left_out.length ? h("p", {}, `Not in this run: ${one.left_out.join("; ")}.`) : null,
    one.refused.length ? table(one.refused.slice(0, first)) : h("p.soft", {}, "It refused nothing."),
    more.length ? h("details", {}, h("summary", {}, `${plural(more.length, "more reason")}, of ${plural(sum(more.map((each) => each[0])), "case")}`), table(more)) : null,
  ].filter(Boolean);
}

function tip(name) {
  const one = data.dialects[name];
  return h(`div.tip${one.hazard ? ".hazard" : ""}`, {}, h("p", {}, h("strong", {}, name), one.hazard ? " (hazard)" : ""),
    h("p", {}, h("code", {}, one.formula)), h("p.soft", {}, one.advice));
}
function copy(event, text) {
  const select = () => getSelection().selectAllChildren(event.target.parentElement.querySelector("pre"));
  const button = event.target;
  (navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject()).then(() => { button.textContent = "copied"; }, select);
}
function drawCase([id, units, mode, text, repro]) {
  const far = units === null ? Infinity : units;
  return h("div.case", {}, h("span.id", {}, S[id]), " ", h("span.units", {}, [S[mode] === "eager" ? "" : S[mode], far ? size(far) : ""].filter(Boolean).join(" · ")),
    text < 0 ? null : h("div.text.soft", {}, S[text]),
    repro < 0 ? null : h("details", {}, h("summary", {}, "lines to paste"),
      h("button.copy", { onclick: (event) => copy(event, S[repro]) }, "copy"),
      h("pre", {}, S[repro])));
}
function open(implementation, feature) {
  const one = ALL[implementation], groups = [...one.cells[feature]];
  groups.sort((a, b) => GRAVITY.indexOf(a.verdict) - GRAVITY.indexOf(b.verdict));
  const dialog = at("cell"), matched = share(groups);
  dialog.replaceChildren(
    h("div.top", {}, h("h2", { id: "cell-title" }, `${one.name} · ${data.features[feature]}`), h("button", { onclick: () => dialog.close() }, "close")),
    h("div.inside", {}, h("p.soft", {}, one.version, matched ? ` — largest error of what matches: ${size(matched)}` : ""),
      groups.map((group) => h("div.kind", {},
        h("h3", {}, mark(group.verdict), `${V[group.verdict]}: ${plural(group.cases.length, "case")}`,
          group.verdict !== 2 && worst(group.cases) ? h("span.soft", { style: "font-weight:400" }, `largest error ${size(worst(group.cases))}`) : null),
        group.dialects.map(tip),
        group.verdict === 2 ? reasons(group)
          : h("details", group.verdict === 0 ? {} : { open: "" }, h("summary", {}, "cases"), showSome(group))))));
  const back = location.hash.slice(1).startsWith("cell") ? "" : location.hash.slice(1);
  dialog.onclose = () => goto(back);
  dialog.showModal();
  dialog.scrollTop = 0;
  goto(`cell=${implementation}-${feature}`);
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
  const part = group.cases.slice(from, from + n).map(drawCase);
  const left = group.cases.length - from - n;
  if (left > 0) part.push(h("button.copy", { style: "float:none", onclick: (event) => event.target.replaceWith(...showSome(group, from + n, 200)) }, `${left} more`));
  return part;
}

function drawDifferences(a, b) {
  const pick = (chosen, first) => h("select", { "aria-label": first ? "from" : "to", onchange: (event) => {
    const now = Number(event.target.value);
    first ? drawDifferences(now, b) : drawDifferences(a, now);
    goto(`differences=${first ? now : a}-${first ? b : now}`);
  } }, ALL.map((one, i) => h("option", { value: i, ...(i === chosen ? { selected: "" } : {}) }, one.name)));
  const said = [a, b].map((i) => new Set(Object.values(ALL[i].cells).flat().flatMap((group) => group.dialects)));
  const only = [0, 1].map((side) => [...said[side]].filter((name) => !said[1 - side].has(name)));
  const rows = data.features.flatMap((name, f) => {
    const [left, right] = [a, b].map((i) => ALL[i].cells[f] || []);
    const [x, y] = [left, right].map(byCase);
    const both = [...x.keys()].filter((id) => y.has(id)), differ = both.filter((id) => x.get(id).key !== y.get(id).key);
    if (!differ.length) return [];
    return [h("tr", {}, h("td", {}, h("strong", {}, name), h("div.soft", {}, `${differ.length} of ${plural(both.length, "case")}`)),
      [[a, left], [b, right]].map(([i, groups]) => h("td", { "data-of": ALL[i].name }, box(i, f), says(groups, differ))))];
  });
  at("differences").replaceChildren(...[
    h("p.soft", {}, "For people who port a model: what the same call comes to in one and in the other. Values of cases that both match are the same up to their error bounds."),
    h("div.pick", {}, "from", pick(a, true), "to", pick(b, false)),
    a === b ? h("p", {}, "Choose two different implementations.") : [
      [0, 1].map((side) => only[side].length ? [h("h2", {}, `Only ${ALL[[a, b][side]].name} says`), h("div.cards", {}, only[side].map((name) => h("div.card", {}, tip(name))))] : null),
      h("h2", {}, rows.length ? `${plural(rows.length, "feature")} ${rows.length === 1 ? "differs" : "differ"}` : "No case tells them apart"),
      rows.length ? h("table.list", {}, h("thead", {}, h("tr", {}, h("th", {}, "feature"), h("th", {}, ALL[a].name), h("th", {}, ALL[b].name))), h("tbody", {}, rows)) : null],
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
  const cards = Object.keys(data.dialects).map((name) => {
    const speakers = ALL.flatMap((one) => {
      const n = sum(Object.values(one.cells).flat().filter((group) => group.dialects.includes(name)).map((group) => group.cases.length));
      return n ? [`${one.name} (${n})`] : [];
    });
    return h("div.card", {}, tip(name), h("p", {}, speakers.join(", ")));
  });
  at("dialects").append(
    h("p.soft", {}, "Conventions found in this run. Each is a formula, and an answer counts as a dialect only if that formula gives it within the error model. A hazard is a convention that makes a plausible number out of bad data, or loses digits. In brackets: cases."),
    cards.length ? h("div.cards", {}, cards) : h("p", {}, "None: every answer follows the definition."));
}
function drawEnvironments() {
  at("environments").append(h("table.list", {},
    h("thead", {}, h("tr", {}, ["implementation", "framework", "how it was run", "verdicts"].map((name) => h("th", {}, name)))),
    h("tbody", {}, ALL.map((one) => h("tr", {}, h("td", {}, h("strong", {}, one.name)), h("td", { "data-of": "framework" }, one.framework), h("td", { "data-of": "how it was run" }, aside(one)),
      h("td", { "data-of": "verdicts" }, totals(one).map((n, i) => (n ? h(`span.tag.v${i}`, {}, `${V[i]} · ${number(n)}`) : null))))))));
}

const aside = (one) => [one.date, one.version, one.machine].filter(Boolean).join(" · ");
/** What the header says of all of them: dates, versions, machines, each once, and the definition that judges. */
function drawHeader() {
  const once = (texts) => [...new Set(texts.filter(Boolean))];
  const days = once(ALL.map((one) => (ALL.length > 1 ? one.date.slice(0, 10) : one.date))).sort();
  const parts = [days.length > 2 ? `${days[0]} to ${days.at(-1)}` : days.join(" and "), once(ALL.flatMap((one) => one.version.split(", "))).join(", "), once(ALL.map((one) => one.machine)).join("; ")];
  at("meta").append(parts.filter(Boolean).join(" · "), parts.some(Boolean) ? " · " : "", "judged by ", data.definition ? h("a", { href: data.definition, rel: "noreferrer" }, "unixent's definition") : "unixent's definition");
  if (ALL.length === 1) { at("lead").remove(); at("legend").remove(); return; }
  const all = ALL.map(totals), total = sum(all.map(sum)), judged = total - sum(all.map((found) => found[2]));
  at("lead").append(`${plural(ALL.length, "implementation")}, ${plural(data.features.length, "feature")}: ${number(judged)} of ${plural(total, "case")} judged against exact values and derived error bounds, the rest refused.`);
  at("legend").append(...V.map((name, i) => h("li", {}, mark(i), h("span", {}, h("strong", {}, name), h("span.about.soft", {}, ` ${ABOUT[i]}`)))));
}

const VIEWS = { matrix: "Matrix", differences: "Differences", dialects: "Dialects", environments: "Environments" };
function show(view) {
  for (const name of ["one", ...Object.keys(VIEWS)]) at(name).hidden = name !== view;
  for (const button of document.querySelectorAll("#tabs button")) button.setAttribute("aria-selected", String(button.dataset.view === view));
}
drawHeader();
at("cell").addEventListener("click", (event) => event.target.id === "cell" && event.target.close());
const [place, which] = decodeURIComponent(location.hash.slice(1)).split("=");
const [x, y] = (which || "").split("-").map(Number);
if (ALL.length === 1) {
  drawOne(0);
  show("one");
} else {
  at("tabs").hidden = false;
  at("tabs").append(...Object.entries(VIEWS).map(([view, name]) =>
    h("button", { "data-view": view, role: "tab", "aria-controls": view, onclick: () => { show(view); goto(view); } }, name)));
  at("tabs").onkeydown = (event) => { // as a screen reader expects of tabs
    const step = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
    if (step && event.target[step]) event.target[step].focus();
  };
  drawMatrix();
  drawDifferences(...(place === "differences" && ALL[x] && ALL[y] ? [x, y] : [0, 1]));
  drawDialects();
  drawEnvironments();
  show(VIEWS[place] ? place : "matrix");
  if (place === "one" && ALL[x]) drawOne(x);
}
if (place === "cell" && ALL[x]?.cells[y]) open(x, y);
