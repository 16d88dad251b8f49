// Behaviour of ftnb/static/chart.js without a browser. Arguments: the module's path, a JSON file of cases from Python.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const [modulePath, casesPath] = process.argv.slice(2);
// Read as a data address: plain Node takes a lone .js file for CommonJS.
const source = readFileSync(modulePath, "utf8");
const chart = await import("data:text/javascript;base64," + Buffer.from(source).toString("base64"));
const cases = JSON.parse(readFileSync(casesPath, "utf8"));
const bytesOf = (text) => {
  const bytes = Buffer.from(text, "base64");
  const odd = new Uint8Array(bytes.length + 3); // as a websocket gives it: inside a larger buffer, at any offset
  odd.set(bytes, 3);
  return new DataView(odd.buffer, 3, bytes.length);
};

const tests = {
  "nothing is fetched and nothing imported"() {
    assert.doesNotMatch(source, /https?:|\bimport\s*[("'{*]|\bfetch\(|XMLHttpRequest|WebSocket/);
  },

  "numbers read as in Python"() {
    for (const { value, text } of cases.numbers) assert.equal(chart.formatNumber(value), text);
    for (const { value, text } of cases.durations) assert.equal(chart.formatDuration(value), text);
    assert.equal(chart.formatNumber(undefined), "–");
    assert.equal(chart.formatNumber(NaN), "–");
  },

  "the picture is the one that Python draws"() {
    for (const { name, summary, points, width, log, svg } of cases.pictures) {
      const number = /-?\d+(\.\d+)?/g;
      const mine = chart.drawSvg(summary, bytesOf(points), { width, log });
      assert.equal(mine.replace(number, "#"), svg.replace(number, "#"), name);
      const [a, b] = [mine, svg].map((text) => text.match(number).map(Number));
      a.forEach((value, i) => assert.ok(Math.abs(value - b[i]) <= 0.11, `${name}: ${value} and ${b[i]}`));
      const head = chart.headerHtml(summary) + `<div class="ftnb-values">${chart.valuesHtml(summary, summary.last)}</div>`;
      assert.equal(head, cases.pictures.find((p) => p.name === name).header, name);
    }
  },

  "names from outside cannot become markup"() {
    const { summary, points } = cases.pictures[0];
    const evil = { ...summary, metric: "<img src=x onerror=alert(1)>", note: "<b>", text: '"><script>', state: "<i>" };
    const out = chart.drawSvg(evil, bytesOf(points)) + chart.headerHtml(evil) + chart.valuesHtml(evil, evil.last);
    assert.doesNotMatch(out, /<img|<script|<i>|<b>&lt;|onerror=alert\(1\)>/);
    assert.match(out, /&lt;img/);
  },

  "the pointer reads the nearest values and the marks close by"() {
    const { summary, points } = cases.pictures.find((p) => p.name === "running");
    const curves = chart.unpack(summary, bytesOf(points));
    const read = chart.readOut(summary, curves, cases.pointer.step);
    for (const [key, value] of Object.entries(cases.pointer.values)) assert.ok(Math.abs(read[key] - value) < 1e-6, key);
    assert.deepEqual(read.hints, cases.pointer.hints);
    assert.equal(chart.valueAt([[], []], 3), null);
  },

  async "a view says ready, polls, draws what comes, and leaves nothing behind"() {
    const page = fakePage();
    const model = fakeModel();
    const el = page.element();
    const leave = chart.default.render({ model, el });
    assert.deepEqual(model.sent[0], { type: "ready" });
    const [root] = el.children;
    page.frame();
    assert.equal(root.style.display, "none"); // nothing to show yet
    const { summary, points } = cases.pictures.find((p) => p.name === "running");
    model.set({ summary, points: bytesOf(points) });
    page.frame();
    assert.equal(root.style.display, "");
    assert.match(root.find(".ftnb-drawing").innerHTML, /^<svg/);
    assert.match(root.find(".ftnb-top").innerHTML, /progressbar/);
    assert.equal(page.drawings, 2); // two traits changed, one drawing
    root.find(".ftnb-pointer").fire("pointermove", { clientX: 150 });
    page.frame();
    assert.match(root.find(".ftnb-values").innerHTML, /at step <b>\d+<\/b>/);
    root.find(".ftnb-pointer").fire("pointerleave", {});
    root.find(".ftnb-log").fire("click", {});
    page.frame();
    assert.equal(root.find(".ftnb-log").attributes["aria-pressed"], "true");
    page.tick();
    assert.deepEqual(model.sent.at(-1), { type: "poll" });
    leave();
    assert.equal(page.timers.size, 0);
    assert.equal(model.listeners.size, 0);
    assert.equal(el.children.length, 0);
  },
};

function fakeModel() {
  const state = {};
  const listeners = new Map();
  return {
    sent: [],
    listeners,
    get: (name) => state[name],
    send(message) { this.sent.push(message); },
    on: (event, f) => listeners.set(event, f),
    off: (event) => listeners.delete(event),
    set(values) {
      Object.assign(state, values);
      for (const name of Object.keys(values)) listeners.get(`change:${name}`)?.();
    },
  };
}

function fakePage() {
  const page = { timers: new Map(), frames: [], drawings: 0 };
  page.element = () => {
    const handlers = {};
    const parts = {};
    return {
      children: [], style: {}, attributes: {}, innerHTML: "", clientWidth: 640,
      appendChild(child) { this.children.push(child); child.parent = this; },
      remove() { this.parent.children = this.parent.children.filter((c) => c !== this); },
      querySelector: (name) => (parts[name] ??= page.element()),
      find: (name) => parts[name],
      addEventListener: (event, f) => { handlers[event] = f; },
      fire: (event, value) => handlers[event](value),
      setAttribute(name, value) { this.attributes[name] = value; },
      getBoundingClientRect: () => ({ left: 0, width: 640 }),
    };
  };
  page.frame = () => page.frames.splice(0).forEach((f) => { page.drawings += 1; f(); });
  page.tick = () => page.timers.forEach((f) => f());
  globalThis.document = { createElement: page.element, hidden: false };
  globalThis.requestAnimationFrame = (f) => page.frames.push(f);
  globalThis.setInterval = (f) => { page.timers.set(f, f); return f; };
  globalThis.clearInterval = (f) => page.timers.delete(f);
  globalThis.ResizeObserver = class { observe() {} disconnect() {} };
  return page;
}

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
