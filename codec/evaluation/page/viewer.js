// Two codecs on one image: the divider, zoom and pan, the numbers of both files, and their errors. A picture is a data
// URI in an element of its own, decoded only when it is looked at. Errors are computed here, from the pictures shown.

const ORIGINAL = "original";
const stage = by("stage");
const slider = by("slider");
const choice = (name) => document.querySelector(`#${name} input:checked`).value;
const sides = ["a", "b"].map((side) => ({
  select: by(side), layer: by(`layer-${side}`), canvas: by(`layer-${side}`).firstElementChild, tag: by(`tag-${side}`),
  file: null, // {codec, quality, bytes, bpp, picture, psnr and other metrics}; null: the original
}));
const view = { width: 1, height: 1, x: 0, y: 0, zoom: 1 }; // of the picture, and where the stage's corner shows it
let turn = 0; // counts choices, so that only the last one is shown

const picked = () => data.pictures.images[by("image").selectedIndex];

// The file of a codec whose size is nearest to `bytes`, by ratio.
const fileNear = (codec, bytes) => nearest(picked().files.filter((file) => file.codec === codec), (file) => Math.abs(Math.log(file.bytes / bytes)));

// A is what its codec has nearest to the rate that was chosen, B what its codec has nearest to A's bytes.
function choose() {
  const image = picked();
  let bytes = (Number(by("target").value) * image.width * image.height) / 8;
  for (const side of sides) {
    side.file = side.select.value === ORIGINAL ? null : data.codecs[Number(side.select.value)].name;
    if (side.file !== null) {
      side.file = fileNear(side.file, bytes);
      bytes = side.file.bytes;
    }
  }
  return show();
}

async function load(picture) {
  const image = new Image();
  image.src = by(`picture-${picture}`).textContent;
  await image.decode();
  return image;
}

function pixels(image) {
  const canvas = new OffscreenCanvas(view.width, view.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, view.width, view.height);
}

// |shown - original| times the gain, in every channel.
function errors(image, original, gain) {
  const [difference, theirs] = [pixels(image), pixels(original).data];
  for (let i = 0; i < theirs.length; i++) {
    if (i % 4 !== 3) difference.data[i] = gain * Math.abs(difference.data[i] - theirs[i]);
  }
  return difference;
}

async function show() {
  const mine = ++turn;
  const image = picked();
  const [original, ...decoded] = await Promise.all([image.original, ...sides.map((side) => side.file?.picture ?? image.original)].map(load));
  if (mine !== turn) return;
  const fresh = view.width !== original.naturalWidth || view.height !== original.naturalHeight;
  [view.width, view.height] = [original.naturalWidth, original.naturalHeight];
  const gain = Number(choice("view"));
  sides.forEach((side, n) => {
    if (fresh) [side.canvas.width, side.canvas.height] = [view.width, view.height];
    const context = side.canvas.getContext("2d");
    if (gain === 1) context.drawImage(decoded[n], 0, 0);
    else context.putImageData(errors(decoded[n], original, gain), 0, 0);
  });
  place(fresh);
  numbers();
  by("viewer").dataset.turn = mine; // what is shown is complete
}

function numbers() {
  const [a, b] = sides.map((side) => side.file);
  const row = (label, value) => [label, ...[a, b].map((file) => (file ? value(file) : "–"))];
  const rows = [
    row("quality", (file) => (file.quality === null ? "–" : String(file.quality))),
    row("bytes", (file) => fixed(file.bytes, 0)),
    row("bpp", (file) => fixed(file.bpp, 3)),
    ...data.metrics.map(({ key, label, unit, digits }) => row(unit ? `${label}, ${unit}` : label, (file) => fixed(file[key], digits))),
  ];
  for (const { tag, file } of sides) {
    tag.textContent = !file ? ORIGINAL : score(file) === null ? file.codec : `${file.codec}, ${metric().label} ${withUnit(score(file), metric())}`;
  }
  const headings = ["", `A: ${a?.codec ?? ORIGINAL}`, `B: ${b?.codec ?? ORIGINAL}`];
  const words = [];
  if (a && b) {
    const more = 100 * (b.bytes / a.bytes - 1);
    const size = Math.abs(more) < 0.05 ? "B is as large as A" : `B is ${fixed(Math.abs(more), 1)} % ${more > 0 ? "larger" : "smaller"} than A`;
    const [of, than] = [score(b), score(a)];
    const gap = of === null || than === null ? null : of - than;
    words.push(gap === null ? `${size}.` : `${size}, its ${metric().label} ${withUnit(Math.abs(gap), metric())} ${gap < 0 ? "lower" : "higher"}.`);
  }
  by("numbers").replaceChildren(table(headings, rows), el("p", {}, words.join(" ")));
}

// ---- the view ----

const fit = () => {
  const zoom = Math.min(stage.clientWidth / view.width, stage.clientHeight / view.height);
  return zoom > 1 ? Math.max(1, Math.floor(zoom + 0.02)) : zoom;
};

// Sets zoom and position; the middle of the stage stays where it is, unless the picture is another one.
function place(fresh = false) {
  const [width, height] = [stage.clientWidth, stage.clientHeight];
  const middle = fresh ? [view.width / 2, view.height / 2] : [(width / 2 - view.x) / view.zoom, (height / 2 - view.y) / view.zoom];
  view.zoom = choice("zoom") === "fit" ? fit() : Number(choice("zoom"));
  move(width / 2 - middle[0] * view.zoom, height / 2 - middle[1] * view.zoom);
}

// Puts the picture's corner at x, y of the stage, as far as it covers the stage; says whether that changed anything.
function move(x, y) {
  const keep = (value, room, size) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, value)));
  const [width, height] = [view.width * view.zoom, view.height * view.zoom];
  const before = [view.x, view.y];
  view.x = Math.round(keep(x, stage.clientWidth, width));
  view.y = Math.round(keep(y, stage.clientHeight, height));
  stage.classList.toggle("pannable", pannable());
  for (const { canvas, layer } of sides) {
    canvas.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    layer.classList.toggle("pixels", view.zoom >= 1);
  }
  return view.x !== before[0] || view.y !== before[1];
}

const pannable = () => view.width * view.zoom > stage.clientWidth + 1 || view.height * view.zoom > stage.clientHeight + 1;

function divide() {
  by("layer-a").style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  by("divider").style.left = `${slider.value}%`;
}

function drag(event) {
  const box = stage.getBoundingClientRect();
  const onDivider = Math.abs(event.clientX - box.left - (slider.value / 100) * box.width) < 24;
  const divides = onDivider || !pannable();
  const start = [event.clientX - view.x, event.clientY - view.y];
  const follow = (moved) => {
    if (divides) {
      slider.value = (100 * (moved.clientX - box.left)) / box.width;
      divide();
    } else move(moved.clientX - start[0], moved.clientY - start[1]);
  };
  stage.setPointerCapture(event.pointerId);
  stage.classList.add("dragging");
  if (divides) follow(event);
  stage.addEventListener("pointermove", follow);
  const end = () => {
    stage.removeEventListener("pointermove", follow);
    stage.classList.remove("dragging");
  };
  stage.addEventListener("lostpointercapture", end, { once: true });
}

function stageKeys(event) {
  const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
  if (step && move(view.x + step[0], view.y + step[1])) event.preventDefault();
  const inputs = [...document.querySelectorAll("#zoom input")];
  const next = inputs.findIndex((input) => input.checked) + ({ "+": 1, "-": -1 }[event.key] ?? NaN);
  if (inputs[next]) {
    inputs[next].checked = true;
    place();
  }
}

// ---- the choices ----

function fill() {
  const option = (value, text) => el("option", { value }, text);
  by("image").append(...data.pictures.images.map((image, n) => option(n, image.name)));
  by("target").append(...data.pictures.targets.map((bpp) => option(bpp, `about ${bpp} bpp`)));
  by("target").selectedIndex = data.pictures.targets.length >> 1;
  for (const { select } of sides) {
    select.append(...data.codecs.map((codec, n) => option(n, codec.name)), option(ORIGINAL, ORIGINAL));
  }
  const anchor = data.bd ? data.codecs.findIndex((codec) => codec.name === data.bd.anchor) : -1;
  by("b").selectedIndex = anchor > 0 ? anchor : 1; // after the only codec comes the original
}

by("pictures-note").textContent = data.pictures.note;
by("viewer").hidden = !data.pictures.images.length;
if (data.pictures.images.length) {
  fill();
  for (const id of ["image", "target", "a", "b"]) by(id).addEventListener("change", choose);
  by("view").addEventListener("change", show);
  by("metric").addEventListener("change", numbers);
  by("zoom").addEventListener("change", () => place());
  slider.addEventListener("input", divide);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("keydown", stageKeys);
  stage.addEventListener("wheel", (event) => move(view.x - event.deltaX, view.y - event.deltaY) && event.preventDefault(), { passive: false });
  new ResizeObserver(() => place()).observe(stage);
  divide();
  choose();
}
