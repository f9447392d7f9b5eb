// What all parts of the page share, and its texts and tables. The data is one JSON element; text from it goes into the
// page through textContent alone, so that a name cannot become markup.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);

// An HTML element: el("td", {class: "text"}, "child", element). null children are left out.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A number with a fixed count of decimals and a true minus sign, or a dash where there is none.
function fixed(value, decimals) {
  if (value === null || value === undefined) return "–";
  const text = value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return text.replace("-", "−");
}

const signed = (value, decimals) => (value > 0 ? "+" : "") + fixed(value, decimals);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The mean of a list of numbers; null where there is no list, or where one is missing.
const meanOrNull = (values) => (values?.length && values.every((value) => value !== null) ? mean(values) : null);

// A table with headings, and rows of cells, each a string or {text, class}; first cells are headings.
function table(headings, rows) {
  const head = headings.map((label) => el("th", { scope: "col" }, label));
  const body = rows.map((cells) =>
    el("tr", {}, ...cells.map((cell, i) => {
      const { text, ...attributes } = typeof cell === "string" ? { text: cell } : cell;
      return i === 0 ? el("th", { scope: "row", ...attributes }, text) : el("td", attributes, text);
    })));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
}

// The metric that is looked at: {key, label, unit, axis, digits}. The switch has those that were measured.
const metric = () => data.metrics.find(({ key }) => key === document.querySelector("#metric input:checked")?.value) ?? { key: data.metric, label: "", unit: "", axis: "", digits: 2 };
const withUnit = (value, { digits, unit }) => `${fixed(value, digits)} ${unit}`.trim();

function metrics() {
  for (const { key, label } of data.metrics) {
    const button = el("input", { type: "radio", name: "metric", value: key });
    button.checked = key === data.metric;
    by("metric").append(el("label", {}, button, el("span", {}, label)));
  }
  by("metric").parentElement.hidden = data.metrics.length < 2;
}

// BD-rates at equal values of the metric that is looked at: {range, percent}; none where there is no anchor.
const rates = () => data.bd?.rates[metric().key];
const rate = (name) => rates()?.percent[name]; // a number, or why there is none
const rangeText = () => {
  const { range } = rates();
  const { label, unit } = metric();
  return (range === "full" ? `all ${label} that both curves have` : `${label} ${range[0]} to ${range[1]} ${unit}`.trim()) + `, ${data.bd.method}`;
};

function lead() {
  const first = data.codecs[0];
  const percent = rate(first.name);
  by("lead").replaceChildren();
  if (typeof percent !== "number" || first.name === data.bd.anchor) {
    by("lead").textContent = data.codecs.map((codec) => codec.name).join(", ");
    return;
  }
  const strong = `${first.name} needs ${fixed(Math.abs(percent), 1)} % ${percent < 0 ? "fewer" : "more"} bits`;
  by("lead").append(el("strong", {}, strong), ` than ${data.bd.anchor} at equal ${metric().label}.`);
}

// Figures of a codec that are shown in the summary where the results have them: label, and text or null.
const both = (a, b, decimals) => (a == null || b == null ? null : `${fixed(a, decimals)} + ${fixed(b, decimals)}`);
const milliseconds = (seconds) => (seconds === null ? null : 1e3 * seconds);
const TRAITS = [
  ["of it entropy coding", ({ results }) =>
    both(milliseconds(meanOrNull(results.encoding_entropy_time)), milliseconds(meanOrNull(results.decoding_entropy_time)), 1)],
  ["kMAC/pixel", (codec) => both(codec.kmac_per_pixel?.[0], codec.kmac_per_pixel?.[1], 1)],
  ["parameters, M", (codec) => (codec.parameters == null ? null : fixed(codec.parameters / 1e6, 2))],
  ["peak memory, MB", (codec) => (codec.peak_memory == null ? null : fixed(codec.peak_memory.process / 1e6, 0))],
];

function summary() {
  const traits = TRAITS.filter(([, text]) => data.codecs.some((codec) => text(codec) !== null));
  const headings = ["codec", ...(rates() ? [`BD-rate against ${data.bd.anchor}`] : []), "encode, ms", "decode, ms"];
  headings.push(...traits.map(([label]) => label));
  const known = data.codecs.map((codec) => rate(codec.name)).filter((percent) => typeof percent === "number");
  const rows = data.codecs.map((codec) => {
    const cells = [codec.name];
    const percent = rate(codec.name);
    if (rates()) {
      const best = percent === Math.min(...known) ? "best" : "";
      cells.push(typeof percent === "number" ? { text: `${signed(percent, 1)} %`, class: best } : "–");
    }
    for (const time of ["encoding_time", "decoding_time"]) cells.push(fixed(milliseconds(meanOrNull(codec.results[time])), 1));
    cells.push(...traits.map(([, text]) => text(codec) ?? "–"));
    return cells;
  });
  by("summary").replaceChildren(table(headings, rows));
  const without = data.codecs.filter((codec) => typeof rate(codec.name) === "string");
  by("rates-without").textContent = without.map((codec) => `No BD-rate of ${codec.name}: ${rate(codec.name)}.`).join(" ");
  by("rates-note").textContent =
    (rates()
      ? `BD-rate: bits needed on average at equal ${metric().label} relative to ${data.bd.anchor}, over ${rangeText()}, on the curve of means. `
      : "") + "Times are of one image, from memory to memory: means over images and qualities. In the figures, down and left is better.";
}

// Labels and formats of the columns; what is not here is shown under its own name.
const COLUMNS = {
  quality: ["quality", (v) => fixed(v, 0)],
  bytes: ["bytes", (v) => fixed(v, 0)],
  bpp: ["bpp", (v) => fixed(v, 3)],
  "psnr-rgb": ["PSNR, dB", (v) => fixed(v, 2)],
  "ms-ssim-rgb": ["MS-SSIM", (v) => fixed(v, 4)],
  "ms-ssim-rgb-db": ["MS-SSIM, dB", (v) => fixed(v, 2)],
  ssimulacra2: ["SSIMULACRA 2", (v) => fixed(v, 2)],
  cvvdp: ["CVVDP, JOD", (v) => fixed(v, 3)],
  encoding_time: ["encode, ms", (v) => fixed(1e3 * v, 1)],
  decoding_time: ["decode, ms", (v) => fixed(1e3 * v, 1)],
  encoding_entropy_time: ["entropy coding", (v) => fixed(1e3 * v, 1)],
  decoding_entropy_time: ["entropy decoding", (v) => fixed(1e3 * v, 1)],
  estimated_bytes: ["estimated bytes", (v) => fixed(v, 0)],
  cross_entropy: ["bits/symbol", (v) => fixed(v, 4)],
  empirical_entropy: ["empirical", (v) => fixed(v, 4)],
  block_edges: ["block edges", (v) => fixed(v, 3)],
};

function tables() {
  for (const codec of data.codecs) {
    const known = Object.keys(COLUMNS).filter((key) => key in codec.results);
    const keys = [...known, ...Object.keys(codec.results).filter((key) => !(key in COLUMNS))];
    const format = (key, value) => (value === null ? "–" : (COLUMNS[key]?.[1] ?? ((v) => String(+v.toPrecision(4))))(value));
    const rows = (codec.results.bpp ?? []).map((_, i) => keys.map((key) => format(key, codec.results[key][i])));
    const label = `Figures of ${codec.name}`;
    by("tables").append(el("details", {},
      el("summary", {}, el("strong", {}, codec.name), el("span", {}, codec.description)),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
        table(keys.map((key) => COLUMNS[key]?.[0] ?? key), rows))));
  }
}

function about() {
  const fact = (name, ...value) => value.join("") && by("facts").append(el("dt", {}, name), el("dd", {}, ...value));
  fact("Command", el("code", {}, data.command));
  fact("Written", data.written);
  fact("Machine", [...new Set(data.codecs.map((codec) => codec.device))].join("\n"));
  fact("System", data.system);
  fact("Code", data.commit);
  fact("Versions", Object.entries(data.versions).map(([name, version]) => `${name} ${version}`).join(", "));
  if (data.bd) fact("BD-rate", `against ${data.bd.anchor}, ${data.bd.method}`);
  for (const { name, by: codecs } of data.codecs[0].lossless) fact("Kept without loss", `${name}, by ${codecs.join(", ")}; in no mean`);
  fact("Not coded", data.failures.map((f) => `${f.codec}: ${f.image}${f.quality === null ? "" : ` at quality ${f.quality}`}: ${f.error}`).join("\n"));
  const rows = data.images.map((image) => [image.name, fixed(image.width, 0), fixed(image.height, 0), { text: image.sha256.slice(0, 32), title: image.sha256, class: "hash" }]);
  const headings = ["image", "width", "height", "SHA-256 of the pixels, first half"];
  by("images").append(el("details", {},
    el("summary", {}, el("strong", {}, "Images"), el("span", {}, `${data.images.length}, with sizes and hashes`)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Images" }, table(headings, rows))));
}

metrics();
lead();
summary();
tables();
about();
by("metric").addEventListener("change", () => {
  lead();
  summary();
});
