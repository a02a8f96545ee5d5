/* The page's script. It reads the JSON in #data and draws it.

   Texts come from models. They reach the page in one way only: as the data of a text node (words()),
   with control characters made visible. Nothing here parses markup, and no attribute that could name
   an address takes a text. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const $ = (id) => document.getElementById(id);

  // ---- elements

  // Orders to a terminal, and signs that turn the direction of what follows, are shown and do nothing.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const visible = (text) =>
    String(text).replace(/\r\n?/g, "\n").replace(HIDDEN, (c) => {
      const code = c.charCodeAt(0);
      return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    });

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    for (const child of children.flat(3)) {
      if (child == null || child === false) continue;
      element.append(child instanceof Node ? child : document.createTextNode(visible(child)));
    }
    return element;
  }
  const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // ---- numbers

  function number(value) {
    if (value == null) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return value;
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size >= 100) return value.toFixed(1);
    if (size >= 10) return value.toFixed(2);
    if (size !== 0 && size < 0.001) return value.toExponential(1);
    return value.toFixed(3);
  }
  const middle = (value) => (value && typeof value === "object" ? value.value : value);
  /* A number with its interval; a whole number that is a share or a mean, with decimals like its neighbours. */
  const decimals = (value) => (Number.isInteger(value) && Math.abs(value) < 1000 ? value.toFixed(3) : number(value));
  function full(value) {
    if (!value || typeof value !== "object") return number(value);
    return "low" in value ? `${decimals(value.value)} [${decimals(value.low)}, ${decimals(value.high)}]` : decimals(value.value);
  }

  function cell(value) {
    if (value && typeof value === "object" && value.row) return rowLink(value.text, ...value.row);
    return full(value);
  }
  const isNumber = (value) => value == null || typeof middle(value) === "number";

  // ---- blocks

  const figure = (block, ...inside) =>
    h("figure", { class: `block ${block.kind}` }, h("figcaption", {}, block.caption), inside);

  /* Numbers behind a picture, for a reader who does not see it. */
  const behind = (head, rows) =>
    h("details", { class: "behind" }, h("summary", {}, "The numbers"), tableOf(head, rows));

  function tableOf(head, rows, caption) {
    const body = rows.map((row) =>
      h("tr", {}, row.map((value, k) =>
        k === 0 ? h("th", { scope: "row", dir: "auto" }, cell(value))
          : h("td", { class: isNumber(value) ? "number" : null, dir: isNumber(value) ? null : "auto" }, cell(value)))));
    const table = h("table", {}, caption && h("caption", {}, caption),
      h("thead", {}, h("tr", {}, head.map((name) => name === "" ? h("td") : h("th", { scope: "col" }, name)))), h("tbody", {}, body));
    return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption || "Table" }, table);
  }

  const draw = {
    words: (block) => h("p", { class: "block words" }, block.text),
    table: (block) => h("div", { class: `block table${block.head.length > 4 ? " across" : ""}` }, tableOf(block.head, block.rows, block.caption)),
    bars, histogram, lines, matrix, flow, examples, choice,
    scatter: lines,
  };
  const drawn = (block) => draw[block.kind](block);

  function scale(low, high, from, to) {
    const span = high - low || 1;
    return (value) => from + ((value - low) / span) * (to - from);
  }

  /* Three to six round numbers from low to high. */
  function ticks(low, high) {
    const rough = (high - low || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Number(v.toPrecision(10)));
    return found;
  }
  const tick = (value) => Math.abs(value) >= 10000 ? value.toLocaleString("en", { notation: "compact" }) : value.toLocaleString("en", { maximumSignificantDigits: 4 });

  function bars(block) {
    const rows = block.rows, high = Math.max(...rows.map(([, v]) => (v && v.high) ?? middle(v) ?? 0), block.reference ?? 0, 0);
    const low = Math.min(...rows.map(([, v]) => (v && v.low) ?? middle(v) ?? 0), 0);
    const line = 24, height = rows.length * line + 4, x = scale(low, high, 1, 399);
    const svg = s("svg", { viewBox: `0 0 400 ${height}`, class: "bars", "aria-hidden": "true", preserveAspectRatio: "none" });
    rows.forEach(([, value], k) => {
      const y = k * line + 4, end = x(middle(value) ?? 0);
      svg.append(s("rect", { x: Math.min(x(0), end), y, width: Math.max(1, Math.abs(end - x(0))), height: line - 8, class: "a" }));
      if (value && typeof value === "object" && "low" in value)
        svg.append(s("line", { x1: x(value.low), x2: x(value.high), y1: y + 8, y2: y + 8, class: "interval", "vector-effect": "non-scaling-stroke" }));
    });
    if (block.reference != null)
      svg.append(s("line", { x1: x(block.reference), x2: x(block.reference), y1: 0, y2: height, class: "reference", "vector-effect": "non-scaling-stroke" }));
    const list = h("dl", { class: "barrows" });
    rows.forEach(([label, value]) => list.append(h("dt", { dir: "auto", title: visible(label) }, label), h("dd", {}, full(value))));
    return figure(block, h("div", { class: "barchart" }, list, svg));
  }

  const W = 420, H = 230, LEFT = 60, BOTTOM = 34;
  function axes(svg, x, y, [x0, x1], [y0, y1], names) {
    for (const v of ticks(x0, x1)) svg.append(s("line", { x1: x(v), x2: x(v), y1: 8, y2: H - BOTTOM, class: "grid" }), s("text", { x: x(v), y: H - BOTTOM + 14, class: "tick middle" }, tick(v)));
    for (const v of ticks(y0, y1)) svg.append(s("line", { x1: LEFT, x2: W - 8, y1: y(v), y2: y(v), class: "grid" }), s("text", { x: LEFT - 5, y: y(v) + 4, class: "tick end" }, tick(v)));
    if (names.x) svg.append(s("text", { x: (LEFT + W) / 2, y: H - 3, class: "tick middle" }, names.x));
    if (names.y) svg.append(s("text", { x: 10, y: (H - BOTTOM) / 2, class: "tick middle", transform: `rotate(-90 10 ${(H - BOTTOM) / 2})` }, names.y));
  }
  const canvas = (block) => s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": visible(block.caption) });
  const legend = (names) => names.length < 2 ? null
    : h("p", { class: "legend" }, names.map((name, k) => h("span", { class: `key ${"abcd"[k % 4]}` }, name)));

  function histogram(block) {
    const { edges, series } = block, svg = canvas(block);
    // shares, so that series of different sizes compare; counts stand in the numbers behind
    const shares = series.map((one) => one.counts.map((n) => n / one.n)), most = Math.max(...shares.flat());
    const x = scale(edges[0], edges.at(-1), LEFT, W - 8), y = scale(0, most, H - BOTTOM, 8);
    axes(svg, x, y, [edges[0], edges.at(-1)], [0, most], { x: "", y: "share" });
    shares.forEach((of, k) => {
      const steps = of.map((v, i) => `L${x(edges[i])} ${y(v)}L${x(edges[i + 1])} ${y(v)}`).join("");
      svg.append(s("path", { d: `M${x(edges[0])} ${y(0)}${steps}L${x(edges.at(-1))} ${y(0)}`, class: `area ${"abcd"[k % 4]}` }));
    });
    const note = series.map((one) => `${one.name}: n = ${number(one.n)}, median ${number(one.median)}`).join("; ")
      + (block.most > edges.at(-1) ? `; the last bin holds what is beyond, up to ${number(block.most)}` : "")
      + (block.least < edges[0] ? `; the first one what is below, down to ${number(block.least)}` : "");
    const rows = edges.slice(0, -1).map((edge, i) => [`${number(edge)} to ${number(edges[i + 1])}`, ...series.map((one) => one.counts[i])]);
    return figure(block, svg, legend(series.map((one) => one.name)), h("p", { class: "note" }, note), behind(["from, to", ...series.map((one) => one.name)], rows));
  }

  function lines(block) {
    const svg = canvas(block), points = block.series.flatMap((one) => one.points);
    const range = (k) => [Math.min(...points.map((p) => p[k])), Math.max(...points.map((p) => p[k]))];
    let [x0, x1] = range(0), [y0, y1] = range(1);
    if (block.diagonal) [x0, x1, y0, y1] = [0.5, 1, Math.min(0.5, y0), 1];
    if (block.kind === "scatter") [x0, x1, y0, y1] = [Math.min(0, x0), Math.max(1, x1), Math.min(0, y0), Math.max(1, y1)];
    if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
    const x = scale(x0, x1, LEFT, W - 10), y = scale(y0, y1, H - BOTTOM, 10);
    axes(svg, x, y, [x0, x1], [y0, y1], block);
    if (block.diagonal) svg.append(s("line", { x1: x(0.5), y1: y(0.5), x2: x(1), y2: y(1), class: "reference" }));
    block.series.forEach((one, k) => {
      const letter = "abcd"[k % 4];
      if (block.kind === "lines") svg.append(s("polyline", { points: one.points.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), class: `curve ${letter}` }));
      if (block.kind === "scatter" || one.points.length < 40)
        one.points.forEach((p) => svg.append(k % 2 ? s("rect", { x: x(p[0]) - 2.5, y: y(p[1]) - 2.5, width: 5, height: 5, class: `dot ${letter}` }) : s("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, class: `dot ${letter}` })));
    });
    const rows = block.series.flatMap((one) => one.points.map((p) => [one.name, ...p]));
    return figure(block, svg, legend(block.series.map((one) => one.name)), behind(["", block.x, block.y], rows));
  }

  function matrix(block) {
    const values = block.values.flat().map(middle).filter((v) => v != null), low = Math.min(...values), high = Math.max(...values);
    const shade = (v) => v == null || high === low ? 0 : Math.round(scale(low, high, 0, 5)(v));
    const rows = block.values.map((row, k) =>
      h("tr", {}, h("th", { scope: "row", dir: "auto" }, block.rows[k]), row.map((v) => h("td", { class: `number shade${shade(middle(v))}` }, full(v)))));
    const head = h("tr", {}, h("td", { class: "corner" }, block.corner), block.columns.map((name) => h("th", { scope: "col", dir: "auto" }, name)));
    return figure(block, h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": visible(block.caption) }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))));
  }

  /* The ledger: a bar for each run as wide as its rows, what it keeps flowing down into the next, what it
     leaves out flowing to the right. Thin flows have a least width, so that one row is seen. */
  const hasRejects = data.sections.some((section) => section.id === "left-out");
  function flow(block) {
    const width = Math.min(560, innerWidth - 66), from = 2, room = width - 225, step = 34;
    return figure(block, h("div", { class: "blocks" }, block.chains.map((chain) => {
      const most = Math.max(...chain.stages.map((stage) => stage.read)), size = (n) => (n ? Math.max(1.5, (n / most) * room) : 0);
      let y = 20;
      const svg = s("svg", { class: "flow", role: "group", "aria-label": `Flow of the path ${chain.name}` });
      chain.stages.forEach((stage, k) => {
        const next = chain.stages[k + 1], kept = size(stage.kept), goesOn = next && next.goes_on, tall = Math.max(goesOn ? step : step - 14, 14 + stage.left_out.length * 17);
        svg.append(s("text", { x: from, y: y - 5, class: "stage" }, stage.name, s("tspan", { class: "muted" }, `  ${number(stage.read)} read, ${number(stage.kept)} kept`)));
        svg.append(s("rect", { x: from, y, width: size(stage.read), height: 12, class: "node" }, s("title", {}, `${stage.place}: written: ${stage.written || "nothing"}`)));
        const below = y + (goesOn ? tall : 20), end = goesOn ? size(next.read) : kept, half = (y + 12 + below) / 2;
        svg.append(s("path", { d: `M${from} ${y + 12}V${below}H${from + end}C${from + end} ${half} ${from + kept} ${half} ${from + kept} ${y + 12}Z`, class: goesOn ? "kept" : "kept end" }));
        let at = from + kept;
        stage.left_out.forEach(([reason, n, id], i) => {
          const wide = Math.min(size(n), 12), level = y + 8 + i * 17, x2 = from + room + 16;
          const share = (size(stage.read) - kept) * (n / (stage.read - stage.kept));
          const top = level + 4 - wide / 2, bottom = top + wide, right = at + share;
          svg.append(s("path", { d: `M${at} ${y + 12}H${right}C${right} ${top} ${(right + x2) / 2} ${top} ${x2} ${top}V${bottom}C${(at + x2) / 2} ${bottom} ${at} ${bottom} ${at} ${y + 12}Z`, class: "out" }));
          const label = s("text", { x: x2 + 5, y: level + 8, class: hasRejects ? "reason linked" : "reason" }, `${number(n)} ${reason}`);
          svg.append(hasRejects ? s("a", { href: `#${encodeURIComponent(id)}` }, label) : label);
          at += share;
        });
        y += tall + (next ? 20 : 4);
      });
      for (const [name, value] of Object.entries({ width, height: y, viewBox: `0 0 ${width} ${y}` })) svg.setAttribute(name, value);
      const rows = chain.stages.map((stage) => [stage.name, stage.place, stage.read, stage.kept, stage.left_out.map(([r, n]) => `${number(n)} ${r}`).join(", ") || "none", stage.written]);
      return h("div", { class: "chain" }, h("h3", {}, `Path ${chain.name}`), h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": `Flow of the path ${chain.name}` }, svg),
        behind(["run", "place", "read", "kept", "left out", "written"], rows));
    })));
  }

  function examples(block) {
    return figure(block, block.groups.map((group) => {
      const shown = group.rows.length;
      const details = h("details", { id: encodeURIComponent(group.id), class: "group" },
        h("summary", {}, h("b", {}, number(group.count)), " ", group.name, group.note && h("span", { class: "note" }, ` ${group.note}`)));
      // made when it is opened: most are never read
      details.addEventListener("toggle", () => {
        if (details.childElementCount > 1) return;
        details.append(h("ol", { class: "texts" }, group.rows.map(({ title, parts }) =>
          h("li", {}, h("p", { class: "id", dir: "auto" }, title), parts.map(([name, text]) => [name && h("p", { class: "part" }, name), h("div", { class: "text", dir: "auto" }, readable(text))])))));
        if (group.count > shown) details.append(h("p", { class: "note" }, `${number(shown)} of ${number(group.count)} are shown.`));
      });
      return details;
    }));
  }

  let choices = 0;
  function choice(block) {
    const id = `choice${++choices}`, holder = h("div", { class: "blocks" });
    const select = h("select", { id, on: { change: () => show(select.selectedIndex) } }, block.choices.map((one) => h("option", {}, one.name)));
    const show = (k) => holder.replaceChildren(...block.choices[k].blocks.map(drawn));
    show(0);
    return h("div", { class: "block choice" }, block.choices.length > 1 ? h("p", {}, h("label", { for: id }, `${block.caption}: `), select) : h("p", {}, `${block.caption}: `, h("b", {}, block.choices[0].name)), holder);
  }

  // ---- texts: code, formulas, differences

  const PIECES = /```|\s+|\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}]/gu;
  const pieces = (text) => text.match(PIECES) || [];

  /* Which pieces of each text the other lacks: those outside of a longest common subsequence. Of texts for
     which that would take too long, those that the other text has nowhere. */
  function differing(a, b) {
    const key = (piece) => (/^\s+$/.test(piece) ? " " : piece);
    let start = 0, end = 0;
    const x = a.map(key), y = b.map(key);
    while (start < x.length && start < y.length && x[start] === y[start]) start++;
    while (end < x.length - start && end < y.length - start && x[x.length - 1 - end] === y[y.length - 1 - end]) end++;
    const n = x.length - start - end, m = y.length - start - end, inA = new Uint8Array(x.length), inB = new Uint8Array(y.length);
    if (n * m > 4e6) {
      const ofA = new Set(x), ofB = new Set(y);
      for (let i = start; i < start + n; i++) inA[i] = !ofB.has(x[i]);
      for (let j = start; j < start + m; j++) inB[j] = !ofA.has(y[j]);
      return [inA, inB];
    }
    const best = new Uint16Array((n + 1) * (m + 1)), at = (i, j) => i * (m + 1) + j;
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        best[at(i, j)] = x[start + i] === y[start + j] ? best[at(i + 1, j + 1)] + 1 : Math.max(best[at(i + 1, j)], best[at(i, j + 1)]);
    let i = 0, j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && x[start + i] === y[start + j]) { i++; j++; }
      else if (j >= m || (i < n && best[at(i + 1, j)] >= best[at(i, j + 1)])) inA[start + i++] = 1;
      else inB[start + j++] = 1;
    }
    return [inA, inB];
  }

  /* A text as nodes: fenced code in a box of its own, formulas set apart, and marked pieces marked. */
  function readable(text, marks, side) {
    const all = pieces(text), out = [];
    let target = out, run = "", marked = false, inCode = false, formula = "";
    const flush = () => { if (run) target.push(marked ? h("mark", { class: side }, run) : run); run = ""; };
    all.forEach((piece, k) => {
      if (piece === "```") {
        flush();
        if (inCode) { out.push(h("code", { class: "fence" }, target)); target = out; } else target = [];
        inCode = !inCode;
        return;
      }
      const isMarked = Boolean(marks && marks[k]);
      if (isMarked !== marked) { flush(); marked = isMarked; }
      if (!inCode && piece === "$" && (formula || closes(all, k))) {
        run += formula ? piece : "";
        flush();
        if (formula) { out.push(h("span", { class: "formula" }, target)); target = out; formula = ""; return; }
        target = []; formula = "$";
      }
      run += piece;
    });
    flush();
    if (inCode) out.push(h("code", { class: "fence" }, target));
    else if (target !== out) out.push(...target);
    return out;
  }
  /* Does a formula begin at this dollar sign: is there another on the same line? */
  function closes(all, k) {
    if (/^\s/.test(all[k + 1] || " ")) return false;
    for (let j = k + 1; j < all.length && !all[j].includes("\n") && all[j] !== "```"; j++) if (all[j] === "$") return true;
    return false;
  }

  // ---- one pair at a time

  const reader = data.reader, rows = reader ? reader.rows : [];
  const where = new Map(rows.map((row, k) => [`${reader.files[row.f].name}\n${row.id}`, k]));
  const linkOf = (row) => `#row/${encodeURIComponent(reader.files[row.f].name)}/${encodeURIComponent(row.id)}`;
  function rowLink(text, file, id) {
    const k = where.get(`${file}\n${id}`);
    return k === undefined ? h("span", {}, text) : h("a", { href: linkOf(rows[k]) }, text);
  }
  let matching = rows.map((_, k) => k), at = 0;

  function options(values, all) {
    return [h("option", { value: "" }, all), ...values.map((value) => h("option", { value: visible(value) }, value))];
  }
  const distinct = (of) => [...new Set(rows.flatMap(of))].sort();
  const field = (id, label, control) => h("p", { class: "field" }, h("label", { for: id }, label), control);

  function readerSection() {
    if (!reader) return null;
    const lists = {
      file: ["File", reader.files.map((file) => file.name), (row) => reader.files[row.f].name],
      source: ["Source", distinct((row) => row.s || []), (row) => row.s],
      against: ["Disagrees with the data", distinct((row) => row.d || []), (row) => row.d],
      reason: ["Left out later", distinct((row) => row.w || []), (row) => row.w],
      order: ["Ties", rows.some((row) => row.t) ? ["ties only", "no ties"] : [], (row) => (row.t ? "ties only" : "no ties")],
    };
    const controls = {}, made = [];
    const search = h("input", { id: "search", type: "search", autocomplete: "off", spellcheck: "false", on: { input: filter } });
    made.push(field("search", "Search ( / )", search));
    for (const [name, [label, values, of]] of Object.entries(lists)) {
      if (values.length < (name === "file" || name === "source" ? 2 : 1)) continue;
      const select = h("select", { id: `by-${name}`, on: { change: filter } }, options(values, "all"));
      controls[name] = { select, values, of };
      made.push(field(`by-${name}`, label, select));
    }
    const bounds = rows.some((row) => row.m != null) && ["least", "most"].map((word) => {
      const input = h("input", { id: `${word}-margin`, type: "number", step: "any", on: { input: filter } });
      made.push(field(`${word}-margin`, word === "least" ? "Margin from" : "Margin to", input));
      return input;
    });
    // what is searched, once: 1,000 lower-cased texts take longer than the search itself
    const haystack = rows.map((row) => [row.id, row.p, row.c, row.r].join("\n").toLowerCase());

    function filter() {
      const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = Object.values(controls).map(({ select, values, of }) => [values[select.selectedIndex - 1], of]).filter(([value]) => value !== undefined);
      const [least, most] = bounds ? bounds.map((input) => (input.value === "" ? null : Number(input.value))) : [null, null];
      matching = [];
      for (let k = 0; k < rows.length; k++) {
        const row = rows[k];
        if (!words.every((word) => haystack[k].includes(word))) continue;
        if (!chosen.every(([value, of]) => [of(row)].flat().includes(value))) continue;
        if (least != null && !(row.m >= least)) continue;
        if (most != null && !(row.m != null && row.m <= most)) continue;
        matching.push(k);
      }
      at = 0;
      showRow();
    }
    reset = () => {
      search.value = "";
      for (const { select } of Object.values(controls)) select.selectedIndex = 0;
      if (bounds) for (const input of bounds) input.value = "";
      filter();
    };
    const shown = reader.files.map((file) => `${number(file.shown)} of ${number(file.total)} of ${file.name}`).join("; ");
    return h("section", { id: "read", "aria-labelledby": "read-title" },
      h("h2", { id: "read-title" }, "One pair at a time"),
      h("p", { class: "note" }, `Here to read: ${shown}; drawn by the seed ${data.seed}. `, h("kbd", {}, "j"), " next, ", h("kbd", {}, "k"), " previous, ", h("kbd", {}, "/"), " search, ", h("kbd", {}, "f"), " filters."),
      h("details", { id: "filters", open: true }, h("summary", {}, "Search and filters"), h("form", { on: { submit: (event) => event.preventDefault() } }, made, h("p", { class: "field" }, h("button", { type: "button", on: { click: () => reset() } }, "Show all")))),
      h("div", { class: "turn" }, h("button", { type: "button", id: "previous", on: { click: () => turn(-1) } }, "← previous"), h("span", { id: "count", role: "status" }), h("button", { type: "button", id: "next", on: { click: () => turn(1) } }, "next →")),
      h("article", { id: "pair", tabindex: "-1", "aria-label": "The pair" }));
  }
  let reset = () => {};

  function turn(by) {
    at = Math.min(Math.max(at + by, 0), matching.length - 1);
    showRow();
    if (matching.length) history.replaceState(null, "", linkOf(rows[matching[at]]));
  }

  const both = (row) => {
    const texts = [pieces(row.c), pieces(row.r)], [inChosen, inRejected] = differing(...texts);
    return [readable(row.c, inChosen, "chosen"), readable(row.r, inRejected, "rejected")];
  };

  function showRow() {
    if (!reader) return;
    $("count").textContent = matching.length ? `${number(at + 1)} of ${number(matching.length)}` : "none fits";
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= matching.length - 1;
    if (!matching.length) return $("pair").replaceChildren();
    const row = rows[matching[at]], [chosen, rejected] = both(row);
    // what belongs to both sides is a fact of the row
    const parts = (row.x || []).filter((part) => part.length === 3), shared = (row.x || []).filter((part) => part.length === 2);
    const facts = [...shared, ["file", reader.files[row.f].name], ["source", row.s], ["margin", row.m], ["alike", row.a], ["disagrees with the data", row.d && row.d.join(", ")], ["left out later", row.w && row.w.join(", ")]];
    $("pair").replaceChildren(
      h("h3", {}, h("a", { href: linkOf(row), dir: "auto" }, row.id), row.t ? h("span", { class: "tie" }, " a tie: in no order") : null),
      h("dl", { class: "facts" }, facts.filter(([, value]) => value != null && value !== "").map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, number(value))))),
      h("h4", {}, "Prompt"), h("div", { class: "text prompt", dir: "auto" }, readable(row.p)),
      h("div", { class: "sides" },
        h("div", { class: "side chosen" }, h("h4", {}, row.t ? "One answer" : "Chosen"), h("div", { class: "text", dir: "auto" }, chosen)),
        h("div", { class: "side rejected" }, h("h4", {}, row.t ? "The other" : "Rejected"), h("div", { class: "text", dir: "auto" }, rejected))),
      parts.length ? tableOf(["", "chosen", "rejected"], parts, "Scores and parts") : "",
      row.j ? h("details", { open: true }, h("summary", {}, "What judges said"), h("ul", { class: "texts" }, row.j.map(([who, said, text]) => h("li", {}, h("p", { class: "part" }, who, said && [": ", h("b", {}, said)]), h("div", { class: "text", dir: "auto" }, readable(text)))))) : "");
  }

  // ---- labels: a reader's own marks, blind

  /* 32 bits of a text (FNV-1a, its bits mixed once more); orders the rows and draws which side stands first. */
  function hash(text) {
    let value = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
    value = Math.imul(value ^ (value >>> 15), 0x2c1b3ce5) >>> 0;
    return (value ^ (value >>> 13)) >>> 0;
  }
  const labels = { file: 0, order: [], at: 0, marks: new Map(), open: false };
  const store = {
    key: () => `prefpipe labels ${data.title} ${data.seed} ${reader.files[labels.file].name}`,
    load() { try { return new Map(JSON.parse(localStorage.getItem(this.key())) || []); } catch { return new Map(); } },
    save() { try { localStorage.setItem(this.key(), JSON.stringify([...labels.marks])); } catch { /* the browser keeps nothing: the marks last as long as the page */ } },
  };
  const draws = (row, what) => hash(`${data.seed}\n${what}\n${reader.files[labels.file].name}\n${row.id}`);
  const chosenIsFirst = (row) => draws(row, "side") % 2 === 0;
  /* What the data says, as the reader saw the answers: 1, 2, or 0 for a tie. */
  const ofData = (row) => (row.t ? 0 : chosenIsFirst(row) ? 1 : 2);

  function labelsSection() {
    if (!reader) return null;
    const select = h("select", { id: "label-file", on: { change: () => begin(select.selectedIndex) } }, reader.files.map((file) => h("option", {}, file.name)));
    return h("section", { id: "labels", "aria-labelledby": "labels-title" },
      h("h2", { id: "labels-title" }, "Labels of your own"),
      h("p", { class: "note" }, "Which answer is better? Sources, scores and what the data says are hidden, the order is drawn by the seed. ",
        h("kbd", {}, "1"), " or ", h("kbd", {}, "2"), " that one, ", h("kbd", {}, "0"), " neither, ", h("kbd", {}, "j"), " and ", h("kbd", {}, "k"), " turn. Marks stay in this browser until you download them for ", h("code", {}, "accuracy.py --labels"), "."),
      h("p", { class: "field" }, h("label", { for: "label-file" }, "File"), select, " ", h("button", { type: "button", id: "begin", on: { click: () => begin(select.selectedIndex) } }, "Begin")),
      h("div", { id: "labelling", hidden: true },
        h("p", {}, h("progress", { id: "progress", max: "1", value: "0", "aria-label": "Rows marked" }), " ", h("span", { id: "progress-words", role: "status" })),
        h("article", { id: "blind", tabindex: "-1", "aria-label": "Two answers to compare" }),
        h("div", { class: "turn" }, [["1", "1 is better"], ["0", "neither"], ["2", "2 is better"]].map(([mark, words]) => h("button", { type: "button", "data-mark": mark, on: { click: () => setMark(Number(mark)) } }, words))),
        h("p", {}, h("button", { type: "button", id: "download", on: { click: download } }, "Download labels.csv"), " ", h("button", { type: "button", id: "finish", on: { click: agreement } }, "Compare with the data")),
        h("div", { id: "agreement", role: "status" })));
  }

  function begin(file) {
    labels.file = file;
    labels.open = true;
    labels.order = rows.filter((row) => row.f === file && !row.o).sort((a, b) => draws(a, "order") - draws(b, "order") || (a.id < b.id ? -1 : 1));
    labels.marks = store.load();
    labels.at = Math.max(0, labels.order.findIndex((row) => !labels.marks.has(row.id)));
    $("labelling").hidden = false;
    $("agreement").replaceChildren();
    mode = "labels";
    showBlind();
    $("blind").focus();
  }

  function showBlind() {
    const row = labels.order[labels.at], answers = chosenIsFirst(row) ? [row.c, row.r] : [row.r, row.c];
    const done = labels.order.filter((one) => labels.marks.has(one.id)).length;
    $("progress").max = labels.order.length;
    $("progress").value = done;
    $("progress-words").textContent = `${number(done)} of ${number(labels.order.length)} marked; this is number ${number(labels.at + 1)}`;
    for (const button of document.querySelectorAll("[data-mark]")) button.setAttribute("aria-pressed", String(labels.marks.get(row.id) === Number(button.dataset.mark)));
    $("blind").replaceChildren(h("h3", {}, "Prompt"), h("div", { class: "text prompt", dir: "auto" }, readable(row.p)),
      h("div", { class: "sides" }, answers.map((text, k) => h("div", { class: "side" }, h("h3", {}, `Answer ${k + 1}`), h("div", { class: "text", dir: "auto" }, readable(text))))));
    if (done === labels.order.length) agreement();
  }

  function setMark(mark) {
    if (!labels.open) return;
    labels.marks.set(labels.order[labels.at].id, mark);
    store.save();
    const left = labels.order.findIndex((row, k) => k > labels.at && !labels.marks.has(row.id));
    if (left >= 0) labels.at = left;
    showBlind();
  }

  const marked = () => labels.order.filter((row) => labels.marks.has(row.id));

  function agreement() {
    const done = marked(), n = done.length;
    if (!n) return $("agreement").replaceChildren(h("p", {}, "Nothing is marked yet."));
    const table = [1, 2, 0].map((mine) => [1, 2, 0].map((its) => done.filter((row) => labels.marks.get(row.id) === mine && ofData(row) === its).length));
    const same = table.reduce((sum, row, k) => sum + row[k], 0) / n;
    const chance = [0, 1, 2].reduce((sum, k) => sum + (table[k].reduce((a, b) => a + b) / n) * (table.reduce((a, row) => a + row[k], 0) / n), 0);
    const kappa = chance < 1 ? (same - chance) / (1 - chance) : null;
    const names = ["1", "2", "neither"];
    $("agreement").replaceChildren(h("p", {}, `You and the data agree on ${number(Math.round(same * n))} of ${number(n)} (${number(same)}); Cohen's kappa ${number(kappa)}.`),
      tableOf(["you say", ...names.map((name) => `data: ${name}`)], table.map((row, k) => [names[k], ...row]), "Your marks against the data"));
  }

  /* A field of a CSV; where a spreadsheet would take it for a formula, it stays what it is: ids must be joined. */
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function csv() {
    const lines = marked().map((row) => [reader.files[labels.file].name, row.id, labels.marks.get(row.id), ofData(row), chosenIsFirst(row) ? "chosen" : "rejected"].map((value) => quoted(String(value))).join(","));
    return ["file,id,label,data,first", ...lines].join("\n") + "\n";
  }

  function download() {
    const link = h("a", { download: "labels.csv" });
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // ---- keys and places

  let mode = "read";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !reader) return;
    const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (isTyping) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const labelling = mode === "labels" && labels.open;
    if (event.key === "j" || event.key === "k") {
      const by = event.key === "j" ? 1 : -1;
      if (labelling) { labels.at = Math.min(Math.max(labels.at + by, 0), labels.order.length - 1); showBlind(); } else turn(by);
    } else if (labelling && "120".includes(event.key)) setMark(Number(event.key));
    else if (event.key === "/" || event.key === "f") {
      mode = "read";
      const filters = $("filters");
      filters.open = event.key === "/" || !filters.open;
      filters.scrollIntoView({ block: "start" });
      if (event.key === "/") $("search").focus();
      else if (filters.open) (filters.querySelector("select") || $("search")).focus();
    } else return;
    event.preventDefault();
  });
  document.addEventListener("focusin", (event) => {
    if (event.target.closest("#labels")) mode = "labels";
    else if (event.target.closest("#read")) mode = "read";
  });

  function go() {
    const hash = location.hash.slice(1), [kind, file, id] = hash.split("/");
    if (kind === "row" && id !== undefined && reader) {
      const k = where.get(`${decode(file)}\n${decode(id)}`);
      if (k === undefined) return;
      if (!matching.includes(k)) reset();
      at = matching.indexOf(k);
      mode = "read";
      showRow();
      $("read").scrollIntoView();
      return;
    }
    const target = hash && $(hash);
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }
  function decode(text) { try { return decodeURIComponent(text); } catch { return text; } }

  // ---- the page

  document.title = `prefpipe: ${visible(data.title)}`;
  $("top").append(h("h1", {}, "prefpipe ", h("span", { class: "muted" }, data.title)));
  if (data.limit) $("top").append(h("p", { class: "note" }, `Only the first ${number(data.limit)} rows of each file were read (--limit).`));
  const sections = data.sections.map((section) =>
    h("section", { id: section.id, "aria-labelledby": `${section.id}-title` }, h("h2", { id: `${section.id}-title` }, section.title), h("div", { class: "blocks" }, section.blocks.map(drawn))));
  const place = sections.findIndex((section) => section.id === "pairs") + 1;
  sections.splice(place || sections.length, 0, ...[readerSection()].filter(Boolean));
  main.replaceChildren(...sections, ...[labelsSection()].filter(Boolean));
  $("contents").append(h("ul", {}, [...main.querySelectorAll("section")].map((section) => h("li", {}, h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)))));
  showRow();
  addEventListener("hashchange", go);
  go();
})();
