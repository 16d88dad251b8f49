// The live chart of a training, an ES module for anywidget: no build step, no library, nothing from a network.
// It draws whole snapshots (a summary and one block of float32), so a lost message or a reload needs no repair.
// ftnb/widgets/svg.py draws the same picture in Python; a test holds the two together.

const HEIGHT = 310;
const MAX_EPOCH_LINES = 20;

export function unpack(summary, view) {
  const bytes = view ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(0);
  const values = new Float32Array(bytes.slice().buffer); // copied: a view may begin at an odd offset
  const curves = {};
  for (const { name, start, count } of summary.series) {
    curves[name] = [values.subarray(start, start + count), values.subarray(start + count, start + 2 * count)];
  }
  return curves;
}

export function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) {
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  return String(Math.abs(value) >= 1000 ? Math.floor(value + 0.5) : Number(value.toPrecision(3)));
}

export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.floor(seconds + 0.5);
  const two = (n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export function niceTicks(low, high, count) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => power * m >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) ticks.push(k * step);
  return ticks;
}

export function valueRange(curves, fromZero) {
  let [low, high] = [Infinity, -Infinity];
  for (const [, ys] of curves) {
    for (const y of ys) {
      if (y < low) low = y;
      if (y > high) high = y;
    }
  }
  if (low > high) return [0, 1];
  if (fromZero) return [0, high > 0 ? high * 1.08 : 1];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}

export function stepRange(summary) {
  const [step, total] = [Math.max(summary.step, 1), summary.num_steps];
  if (summary.finished || step >= total) return step;
  return total / [8, 4, 2, 1].find((part) => step <= total / part);
}

export function escapeText(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };
  return String(text).replace(/[&<>"']/g, (c) => names[c]);
}

const px = (value) => value.toFixed(1);

class Plot {
  constructor(box, steps, [low, high], log = false) {
    Object.assign(this, { box, steps, log });
    [this.low, this.high] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  }

  x(step) {
    const [left, , right] = this.box;
    return left + (right - left) * Math.min(step / this.steps, 1);
  }

  y(value) {
    const [, top, , bottom] = this.box;
    const level = this.log ? Math.log10(value) : value;
    return bottom - ((bottom - top) * (level - this.low)) / (this.high - this.low);
  }

  ticks(count) {
    if (!this.log) return niceTicks(this.low, this.high, count);
    const fine = [];
    for (let k = Math.floor(this.low); k <= Math.ceil(this.high); k++) fine.push(...[1, 2, 5].map((m) => m * 10 ** k));
    return fine.filter((v) => this.low <= Math.log10(v) && Math.log10(v) <= this.high);
  }

  grid(count) {
    const [left, , right] = this.box;
    return this.ticks(count)
      .map((value) => {
        const y = this.y(value);
        const name = formatNumber(Math.abs(value) < 1e-12 ? 0 : value);
        return (
          `<line class="g" x1="${px(left)}" x2="${px(right)}" y1="${px(y)}" y2="${px(y)}"/>` +
          `<text class="t" x="${px(left - 6)}" y="${px(y + 4)}" text-anchor="end">${name}</text>`
        );
      })
      .join("");
  }

  vertical(step, cls, hint = "") {
    const [, top, , bottom] = this.box;
    const title = hint ? `<title>${escapeText(hint)}</title>` : "";
    const x = px(this.x(step));
    return `<line class="${cls}" x1="${x}" x2="${x}" y1="${px(top)}" y2="${px(bottom)}">${title}</line>`;
  }

  line([steps, values], cls, dots = false) {
    if (!steps.length) return "";
    const pairs = Array.from(steps, (step, i) => [px(this.x(step)), px(this.y(values[i]))]);
    const path = `<path class="${cls}" d="M${pairs.map((p) => p.join(" ")).join("L")}"/>`;
    const circles = dots || pairs.length === 1 ? pairs : [];
    return path + circles.map(([x, y]) => `<circle class="${cls}" cx="${x}" cy="${y}" r="3"/>`).join("");
  }

  stepsAxis(count) {
    const [, , right, bottom] = this.box;
    return niceTicks(0, this.steps, count)
      .map((step) => {
        const x = this.x(step);
        const anchor = x > right - 8 ? "end" : "middle";
        return `<text class="t" x="${px(x)}" y="${px(bottom + 15)}" text-anchor="${anchor}">${formatNumber(step)}</text>`;
      })
      .join("");
  }
}

const heading = ([left, top], text) => `<text class="h" x="${px(left)}" y="${px(top - 8)}">${escapeText(text)}</text>`;

function legend([, top, x]) {
  const y = top - 12;
  return (
    `<path class="loss" d="M${px(x - 118)} ${px(y)}L${px(x - 102)} ${px(y)}"/>` +
    `<text class="t" x="${px(x - 98)}" y="${px(y + 4)}">train</text>` +
    `<circle class="valid" cx="${px(x - 60)}" cy="${px(y)}" r="3"/>` +
    `<text class="t" x="${px(x - 53)}" y="${px(y + 4)}">validation</text>`
  );
}

function epochs(plots, summary) {
  const perEpoch = summary.steps_per_epoch;
  let count = perEpoch ? Math.floor(plots[0].steps / perEpoch) : 0;
  if (count > MAX_EPOCH_LINES) count = 0; // many lines say nothing
  let out = "";
  for (const plot of plots) for (let k = 1; k <= count; k++) out += plot.vertical(k * perEpoch, "e");
  return out;
}

function marks(plots, summary) {
  let out = "";
  const freeFrom = [-1, -1]; // two lines of labels: a change made in a pause stands below the pause
  for (const { step, kind, label, hint } of summary.marks) {
    for (const plot of plots) out += plot.vertical(step, `m m-${kind}`, hint);
    const [x, [, top, right]] = [plots[0].x(step), plots[0].box];
    const line = freeFrom.findIndex((from) => x >= from);
    if (line >= 0 && x < right - 6 * label.length) {
      out += `<text class="t k-${kind}" x="${px(x + 4)}" y="${px(top + 9 + 12 * line)}">${escapeText(label)}</text>`;
      freeFrom[line] = x + 10 + 6 * label.length;
    }
  }
  return out;
}

function boxes(width, height) {
  const [split, bottom, gap] = [Math.floor(width * 0.6), height - 22, 26];
  const tall = (bottom - 24 - 2 * gap) / 3;
  const small = [0, 1, 2].map((k) => [split + 58, 24 + k * (tall + gap), width - 8, 24 + k * (tall + gap) + tall]);
  return [[44, 24, split, bottom], ...small];
}

/** Place the four plots of a snapshot; the drawing and the pointer's read-out share it. */
export function plan(summary, curves, { width = 700, height = HEIGHT, log = false } = {}) {
  const steps = stepRange(summary);
  const losses = [curves.loss, curves.smooth, curves.valid_loss];
  let [low, high] = [Infinity, -Infinity];
  for (const [, ys] of losses) for (const y of ys) [low, high] = [Math.min(low, y), Math.max(high, y)];
  log = log && low > 0 && low <= high;
  const frames = boxes(width, height);
  return [
    new Plot(frames[0], steps, log ? [low * 0.9, high * 1.1] : valueRange(losses, false), log),
    new Plot(frames[1], steps, valueRange([curves.metric], false)),
    new Plot(frames[2], steps, valueRange([curves.lr], true)),
    new Plot(frames[3], steps, valueRange([curves.speed], true)),
  ];
}

export function drawSvg(summary, view, options = {}) {
  const curves = unpack(summary, view);
  const plots = plan(summary, curves, options);
  const [loss, metric, lr, speed] = plots;
  const { width = 700, height = HEIGHT } = options;
  const { best } = summary;
  const ring = best
    ? `<circle class="best" cx="${px(metric.x(best.step))}" cy="${px(metric.y(best.value))}" r="6"/>`
    : "";
  const text = escapeText(summary.text);
  return [
    `<svg class="ftnb-svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="${text}">`,
    `<title>${text}</title>`,
    loss.grid(7),
    ...plots.slice(1).map((plot) => plot.grid(3)),
    epochs(plots, summary),
    marks(plots, summary),
    heading(loss.box, "loss"),
    legend(loss.box),
    heading(metric.box, summary.metric || "metric"),
    heading(lr.box, "learning rate"),
    heading(speed.box, "examples per second"),
    loss.line(curves.loss, "raw"),
    loss.line(curves.smooth, "loss"),
    loss.line(curves.valid_loss, "valid", true),
    metric.line(curves.metric, "metric", true),
    ring,
    lr.line(curves.lr, "lr"),
    speed.line(curves.speed, "speed"),
    loss.stepsAxis(6),
    speed.stepsAxis(3),
    "</svg>",
  ].join("");
}

const valueNames = (summary) => [
  ["loss", "▬", "loss"],
  ["valid_loss", "●", "validation loss"],
  ["metric", "●", summary.metric || "metric"],
  ["lr", "▬", "learning rate"],
  ["speed", "▬", "examples/s"],
];

export function valuesHtml(summary, values) {
  return valueNames(summary)
    .map(([key, mark, name]) => {
      const number = formatNumber(values[key]);
      return `<span><span class="ftnb-key-${key}">${mark}</span> ${escapeText(name)} <b>${number}</b></span>`;
    })
    .join("");
}

export function headerHtml(summary) {
  const percent = 100 * summary.progress;
  const state = escapeText(summary.state);
  const where =
    `epoch ${formatNumber(summary.epoch)} of ${summary.num_epochs} · ` +
    `step <span class="ftnb-step">${summary.step}</span> of ${summary.num_steps}`;
  let left = `${formatDuration(summary.seconds)} so far`;
  if (summary.eta !== null && summary.eta !== undefined) left = `${formatDuration(summary.eta)} left · ${left}`;
  return (
    `<div class="ftnb-head"><span class="ftnb-state ftnb-state-${state}">${state}</span>` +
    `<span>${where}</span><span class="ftnb-left">${left}</span></div>` +
    `<div class="ftnb-bar ftnb-bar-${state}" role="progressbar" aria-label="progress of the run" aria-valuemin="0" ` +
    `aria-valuemax="100" aria-valuenow="${percent.toFixed(0)}"><div style="width:${percent.toFixed(1)}%"></div></div>` +
    (summary.note ? `<div class="ftnb-note">${escapeText(summary.note)}</div>` : "")
  );
}

/** The value of a curve at the drawn point nearest to a step; null for an empty curve. */
export function valueAt([steps, values], step) {
  let nearest = -1;
  for (let i = 0; i < steps.length; i++) {
    if (nearest < 0 || Math.abs(steps[i] - step) < Math.abs(steps[nearest] - step)) nearest = i;
  }
  return nearest < 0 ? null : values[nearest];
}

/** What the pointer reads at a step: the nearest value of every curve, and the marks close by. */
export function readOut(summary, curves, step) {
  const close = Math.max(stepRange(summary) / 80, 0.5);
  return {
    loss: valueAt(curves.smooth, step),
    valid_loss: valueAt(curves.valid_loss, step),
    metric: valueAt(curves.metric, step),
    lr: valueAt(curves.lr, step),
    speed: valueAt(curves.speed, step),
    hints: summary.marks.filter((mark) => Math.abs(mark.step - step) <= close).map((mark) => mark.hint),
  };
}

const SKELETON = `
  <div class="ftnb-top"></div>
  <div class="ftnb-values-row" style="display:flex;align-items:baseline;gap:12px">
    <div class="ftnb-values"></div>
    <button class="ftnb-log" type="button" aria-pressed="false" title="Show the loss on a logarithmic axis">log</button>
  </div>
  <div class="ftnb-picture" style="position:relative">
    <div class="ftnb-drawing"></div>
    <div class="ftnb-pointer" style="position:absolute;inset:0"></div>
    <div class="ftnb-crosses" aria-hidden="true"></div>
  </div>`;

export function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "ftnb ftnb-chart-live";
  root.innerHTML = SKELETON;
  root.style.display = "none"; // until there is something to show
  el.appendChild(root);
  const find = (name) => root.querySelector(name);
  const [top, values, button] = [find(".ftnb-top"), find(".ftnb-values"), find(".ftnb-log")];
  const [drawing, pointer, crosses] = [find(".ftnb-drawing"), find(".ftnb-pointer"), find(".ftnb-crosses")];
  let [log, hover, width] = [false, null, 700]; // hover: pointer's x in pixels of the drawing

  function showValues(summary, curves, plots) {
    const [left, , right] = plots[0].box;
    const frame = hover === null ? null : plots.find(({ box }) => hover >= box[0] && hover <= box[2]);
    if (!frame || !summary.step) {
      values.innerHTML = valuesHtml(summary, summary.last);
      crosses.innerHTML = "";
      return;
    }
    const step = Math.min(
      Math.round(((hover - frame.box[0]) / (frame.box[2] - frame.box[0])) * frame.steps), summary.step);
    const read = readOut(summary, curves, step);
    const hints = read.hints.length ? `<span class="ftnb-note">${read.hints.map(escapeText).join("; ")}</span>` : "";
    values.innerHTML = `<span>at step <b>${step}</b></span>` + valuesHtml(summary, read) + hints;
    crosses.innerHTML = plots
      .map((plot) => {
        const [, y0, , y1] = plot.box; // in percent: a narrow page scales the drawing
        const [x, y, tall] = [plot.x(step) / width, y0 / HEIGHT, (y1 - y0) / HEIGHT].map((v) => (100 * v).toFixed(2));
        const style = `left:${x}%;top:${y}%;height:${tall}%`;
        return `<div style="position:absolute;pointer-events:none;width:1px;background:currentColor;opacity:.6;${style}"></div>`;
      })
      .join("");
  }

  function draw() {
    const summary = model.get("summary");
    const shown = Boolean(summary && summary.series);
    root.style.display = shown ? "" : "none";
    if (!shown) return;
    const options = { width, height: HEIGHT, log };
    const curves = unpack(summary, model.get("points"));
    top.innerHTML = headerHtml(summary);
    drawing.innerHTML = drawSvg(summary, model.get("points"), options);
    showValues(summary, curves, plan(summary, curves, options));
  }

  let queued = false; // several traits change together and pointers move fast: one drawing a frame is enough
  function later() {
    if (queued) return;
    queued = true;
    const run = () => {
      queued = false;
      draw();
    };
    if (document.hidden) setTimeout(run, 250);
    else requestAnimationFrame(run);
  }

  button.addEventListener("click", () => {
    log = !log;
    button.setAttribute("aria-pressed", String(log));
    later();
  });
  pointer.addEventListener("pointermove", (event) => {
    const frame = pointer.getBoundingClientRect();
    hover = ((event.clientX - frame.left) * width) / Math.max(frame.width, 1);
    later();
  });
  pointer.addEventListener("pointerleave", () => {
    hover = null;
    later();
  });
  const observer = new ResizeObserver(() => {
    const now = Math.floor(el.clientWidth || 700);
    width = Math.min(Math.max(now, 480), 1000);
    later();
  });
  observer.observe(el);
  model.on("change:summary", later);
  model.on("change:points", later);
  model.send({ type: "ready" });
  const timer = setInterval(() => model.send({ type: "poll" }), 1000);
  later();
  return () => {
    clearInterval(timer);
    observer.disconnect();
    model.off("change:summary", later);
    model.off("change:points", later);
    root.remove();
  };
}

export default { render };
