// The figures: rate-distortion curves, and BD-rate over time. They are SVG, drawn anew for the width that there is.

// The marks of plot.py, each in a box from -1 to 1.
const MARKS = {
  o: "M1 0A1 1 0 1 1 -1 0A1 1 0 1 1 1 0Z",
  s: "M-.88 -.88H.88V.88H-.88Z",
  "^": "M0 -1.05L1.05 .9H-1.05Z",
  v: "M0 1.05L1.05 -.9H-1.05Z",
  "<": "M-1.05 0L.9 1.05V-1.05Z",
  ">": "M1.05 0L-.9 1.05V-1.05Z",
  D: "M0 -1.2L1.2 0L0 1.2L-1.2 0Z",
  P: "M-.4 -1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  X: "M0 -.55L.55 -1.1L1.1 -.55L.55 0L1.1 .55L.55 1.1L0 .55L-.55 1.1L-1.1 .55L-.55 0L-1.1 -.55L-.55 -1.1Z",
  "*": "M0 -1.3L.33 -.42L1.24 -.4L.52 .17L.76 1.05L0 .54L-.76 1.05L-.52 .17L-1.24 -.4L-.33 -.42Z",
};

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const colour = (curve) => (curve.colour === "#000000" ? "var(--first)" : curve.colour); // black would vanish in the dark
const mark = (curve, x, y, size, hollow = false) =>
  draw("path", {
    d: MARKS[curve.marker],
    transform: `translate(${x} ${y}) scale(${size})`,
    style: `fill:${hollow ? "var(--paper)" : colour(curve)};stroke:${colour(curve)};stroke-width:${hollow ? 0.4 : 0}`,
  });
const line = (curve, d, width) =>
  draw("path", { d, style: `fill:none;stroke:${colour(curve)};stroke-width:${width};stroke-dasharray:${curve.dash.map((l) => l * width).join(" ") || "none"}` });

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) values.push(+(n * step).toPrecision(12));
  return values;
}

// 1, 2 and 5 times powers of ten from low to high; the powers alone where the others would be too dense for `room`.
function logTicks(low, high, room) {
  const values = [];
  const dense = room / Math.log10(high / low) > 110; // pixels of a decade
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of dense ? [1, 2, 5] : [1]) values.push(factor * 10 ** power);
  }
  return values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

// An empty figure in `holder`: svg, and x and y from values to pixels. `axis`: {low, high, ticks, label, log}.
function axes(holder, xAxis, yAxis) {
  const [width, height] = [holder.clientWidth, holder.clientHeight];
  const [left, right, top, bottom] = [46, width - 12, 26, height - 44];
  const scale = (axis, from, to) => {
    const map = axis.log ? Math.log : (v) => v;
    return (v) => from + ((to - from) * (map(v) - map(axis.low))) / (map(axis.high) - map(axis.low));
  };
  const [x, y] = [scale(xAxis, left, right), scale(yAxis, bottom, top)];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const value of yAxis.ticks) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")));
  }
  for (const value of xAxis.ticks) {
    svg.append(draw("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: bottom }));
    svg.append(draw("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, String(value)));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  svg.append(draw("text", { x: 0, y: 12 }, yAxis.label));
  svg.append(draw("text", { x: right, y: bottom + 38, "text-anchor": "end" }, xAxis.label));
  holder.querySelector("svg")?.remove();
  holder.prepend(svg);
  return { svg, x, y, left, right, top, bottom };
}

// ---- rate-distortion curves ----

const shown = new Set(data.curves.map((curve) => curve.name));
let places = []; // of the points drawn: {curve, point, x, y}
let current = null; // the place that the tip tells about

const score = (point) => point[metric().key];
const pointsOf = (curve) => curve.points.filter((point) => score(point) !== null);

function drawCurves() {
  const curves = data.curves.filter((curve) => shown.has(curve.name) && pointsOf(curve).length);
  const measured = curves.filter((curve) => data.codecs.some((codec) => codec.name === curve.name));
  const most = 1.05 * Math.max(...(measured.length ? measured : curves).flatMap(pointsOf).map((point) => point.bpp), 0.01);
  const points = curves.flatMap(pointsOf).filter((point) => point.bpp <= most); // published curves may go on to the right
  hideTip();
  places = [];
  const without = data.curves.filter((curve) => shown.has(curve.name) && !pointsOf(curve).length).map((curve) => curve.name);
  by("without").textContent = without.length ? `Without ${metric().label}: ${without.join(", ")}.` : "";
  const holder = by("plot");
  const values = points.length ? points.map(score) : [20, 40];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.05 * (high - low || 1);
  const xAxis = { low: 0, high: most, ticks: ticks(0, most, holder.clientWidth / 80), label: "bits per pixel" };
  const yAxis = { low: low - pad, high: high + pad, ticks: ticks(low - pad, high + pad, 6), label: metric().axis };
  const { svg, x, y, left, right, bottom } = axes(holder, xAxis, yAxis);
  const inside = draw("clipPath", { id: "inside" }, draw("rect", { x: left, y: 0, width: right - left, height: bottom }));
  svg.append(inside);
  for (const curve of [...curves].reverse()) { // the first one on top
    const first = curve === data.curves[0];
    const all = pointsOf(curve).map((point) => ({ curve, point, x: x(point.bpp), y: y(score(point)) }));
    const here = all.filter((place) => place.point.bpp <= most);
    const path = line(curve, "M" + all.map((place) => `${place.x} ${place.y}`).join("L"), first ? 2.4 : 1.6);
    path.setAttribute("clip-path", "url(#inside)");
    svg.append(path, ...here.map((place) => mark(curve, place.x, place.y, first ? 4.4 : 3.8)));
    places.push(...here);
  }
}

function showTip(place) {
  current = place;
  const holder = by("plot");
  const svg = holder.querySelector("svg");
  svg.querySelector(".halo")?.remove();
  svg.append(draw("circle", { class: "halo", cx: place.x, cy: place.y, r: 8 }));
  const { curve, point } = place;
  const quality = point.quality === null ? "" : `quality ${point.quality}`;
  const lines = [`${fixed(point.bpp, 3)} bpp, ${withUnit(score(point), metric())}`, quality].filter(Boolean);
  const tip = by("tip");
  tip.replaceChildren(el("strong", {}, curve.name), ...lines.map((text) => el("div", {}, text)));
  tip.hidden = false;
  const wide = place.x + 16 + tip.offsetWidth > holder.clientWidth;
  tip.style.left = `${Math.max(0, wide ? place.x - 16 - tip.offsetWidth : place.x + 16)}px`;
  tip.style.top = `${Math.min(Math.max(0, place.y - tip.offsetHeight / 2), holder.clientHeight - tip.offsetHeight)}px`;
}

function hideTip() {
  current = null;
  by("tip").hidden = true;
  by("plot").querySelector(".halo")?.remove();
}

const nearest = (list, distance) => list.reduce((best, item) => (best === null || distance(item) < distance(best) ? item : best), null);

function curveKeys(event) {
  if (event.key === "Escape") return hideTip();
  const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const across = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!places.length || !(along || across)) return;
  event.preventDefault();
  const names = data.curves.map((curve) => curve.name).filter((name) => places.some((place) => place.curve.name === name));
  if (!current) return showTip(places.find((place) => place.curve.name === names[0]));
  const name = across ? names[(names.indexOf(current.curve.name) + across + names.length) % names.length] : current.curve.name;
  const same = places.filter((place) => place.curve.name === name);
  if (across) return showTip(nearest(same, (place) => Math.abs(place.x - current.x)));
  showTip(same[Math.min(Math.max(same.indexOf(current) + along, 0), same.length - 1)]);
}

function legend() {
  for (const curve of data.curves) {
    const sample = draw("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" }, line(curve, "M0 7H30", 2), mark(curve, 15, 7, 4));
    const button = el("button", { type: "button", "aria-pressed": "true" }, sample, el("span", {}, curve.name));
    button.addEventListener("click", () => {
      if (!shown.delete(curve.name)) shown.add(curve.name);
      button.setAttribute("aria-pressed", shown.has(curve.name));
      drawCurves();
    });
    by("legend").append(button);
  }
}

// ---- BD-rate over time ----

const timed = (kind) =>
  data.codecs
    .map((codec, n) => ({ curve: data.curves[n], time: meanOrNull(codec.results[kind]), percent: rate(codec.name) }))
    .filter((item) => item.time !== null && typeof item.percent === "number");

function drawSpeed(id, kind) {
  const items = timed(kind);
  const all = [...timed("encoding_time"), ...timed("decoding_time")];
  const [fast, slow] = [Math.min(...all.map((i) => 1e3 * i.time)) / 2, Math.max(...all.map((i) => 1e3 * i.time)) * 2];
  const percents = all.map((item) => item.percent);
  const [low, high] = [Math.min(...percents), Math.max(...percents)];
  const pad = 0.12 * (high - low || 10);
  const holder = by(id);
  const xAxis = { low: fast, high: slow, log: true, ticks: logTicks(fast, slow, holder.clientWidth), label: "milliseconds an image" };
  const yAxis = { low: low - pad, high: high + pad, ticks: ticks(low - pad, high + pad, 5), label: `BD-rate in % against ${data.bd.anchor}` };
  const { svg, x, y, left, right, top, bottom } = axes(holder, xAxis, yAxis);
  const taken = []; // boxes [x0, y0, x1, y1] of marks and names
  const free = (box) =>
    box[0] >= left && box[2] <= right && box[1] >= top && box[3] <= bottom &&
    !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
  for (const item of items) {
    const [cx, cy] = [x(1e3 * item.time), y(item.percent)];
    taken.push([cx - 6, cy - 6, cx + 6, cy + 6]);
    svg.append(mark(item.curve, cx, cy, 5));
  }
  for (const item of items) {
    const [cx, cy] = [x(1e3 * item.time), y(item.percent)];
    const name = draw("text", { class: "name" }, item.curve.name.length > 24 ? item.curve.name.slice(0, 23) + "…" : item.curve.name);
    svg.append(name);
    const width = name.getComputedTextLength();
    const at = (px, py) => [px, py - 7, px + width, py + 7];
    const offers = [0, 14, -14, 28, -28, 42, -42].flatMap((dy) => [at(cx + 10, cy + dy), at(cx - 10 - width, cy + dy)]);
    offers.push(at(cx - width / 2, cy + 16), at(cx - width / 2, cy - 16));
    const box = offers.find(free);
    if (!box) { // the legend above names it by its mark
      name.remove();
      continue;
    }
    taken.push(box);
    name.setAttribute("x", box[0]);
    name.setAttribute("y", box[1] + 11);
  }
}

function drawAll() {
  if (!by("plot").clientWidth) return; // a window that is not shown yet
  drawCurves();
  by("speed").hidden = !timed("encoding_time").length || !timed("decoding_time").length;
  if (!by("speed").hidden) {
    drawSpeed("speed-encoding", "encoding_time");
    drawSpeed("speed-decoding", "decoding_time");
  }
}

legend();
by("metric").addEventListener("change", drawAll);
by("plot").addEventListener("pointermove", (event) => {
  const box = by("plot").getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  const place = nearest(places, (p) => (p.x - px) ** 2 + (p.y - py) ** 2);
  if (place && place !== current) showTip(place);
});
by("plot").addEventListener("pointerleave", hideTip);
by("plot").addEventListener("blur", hideTip);
by("plot").addEventListener("keydown", curveKeys);
new ResizeObserver(drawAll).observe(by("plot"));
