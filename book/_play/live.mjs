// The live solver: a trained model iterated in the reader's browser, with controls around it.
//
// player.js, inlined in the page, draws and plays; rules.mjs reads problems; worker.mjs computes.
// Nothing but this file is fetched until the reader starts it (the runtime has 14 MB).
import { ProblemError, RULES } from "./rules.mjs";

const { KINDS, Player, element } = window.EqrPlay;

// Calls into the worker, each answered by a promise.
export class Solver {
  constructor() {
    this.worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
    this.waiting = new Map();
    this.last = 0;
    this.worker.onmessage = ({ data: { id, result, error } }) => {
      const { done, failed } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) failed(new Error(error));
      else done(result);
    };
    this.worker.onerror = (event) => {
      for (const { failed } of this.waiting.values()) failed(new Error(event.message || "the worker did not load"));
      this.waiting.clear();
    };
  }

  call(call, values = {}) {
    const id = ++this.last;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed });
      this.worker.postMessage({ call, id, ...values });
    });
  }
}

// A labelled control; `show` formats a slider's value.
function control(id, text, input, show = null) {
  const made = element("div", { class: "eqr-control" }, element("label", { for: id }, text), input);
  if (show) {
    const output = element("span", { class: "eqr-value", "aria-hidden": "true" });
    const update = () => {
      output.textContent = show(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", update);
    update();
    made.append(output);
  }
  return made;
}

const slider = (id, min, max, step, value) => element("input", { type: "range", id, min, max, step, value });

class Live {
  constructor(root) {
    const stored = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.models = stored.models.map((m) => ({ ...m, address: new URL(m.file, import.meta.url).href }));
    this.puzzles = stored.puzzles;
    this.solver = null;
    this.round = 0;
    root.querySelector(".eqr-wait")?.remove();
    this.build(root, stored);
    this.pickModel();
  }

  build(root, { title }) {
    const id = (name) => `eqr-live-${name}`;
    const option = (value, text) => element("option", { value }, text);
    this.fields = {
      model: element("select", { id: id("model") }, ...this.models.map((m, i) => option(i, m.title))),
      other: element("select", { id: id("other") }),
      puzzle: element("select", { id: id("puzzle") }),
      text: element("textarea", { id: id("text"), rows: 2, spellcheck: "false", autocomplete: "off" }),
      depth: slider(id("depth"), 1, 64, 1, 24),
      breadth: slider(id("breadth"), 1, 16, 1, 8),
      noise: slider(id("noise"), 0, 0.5, 0.01, 0),
      damping: slider(id("damping"), 0, 0.9, 0.05, 0.05),
      seed: element("input", { type: "number", id: id("seed"), min: 0, max: 9999, step: 1, value: 0 }),
    };
    const f = this.fields;
    this.message = element("p", { class: "eqr-message", role: "alert" });
    this.use = element("button", { type: "button" }, "Use this problem");
    this.keys = element("div", { class: "eqr-keys", role: "group", "aria-label": "Write into the cell" });
    const choice = element(
      "div",
      { class: "eqr-form" },
      control(f.model.id, "Model", f.model),
      control(f.other.id, "Compare with", f.other),
      control(f.puzzle.id, "Problem", f.puzzle),
    );
    const settings = element(
      "div",
      { class: "eqr-form" },
      control(f.depth.id, "Depth D", f.depth, (v) => `${v} iterations`),
      control(f.breadth.id, "Breadth B", f.breadth, (v) => (v === 1 ? "1 restart" : `${v} restarts`)),
      control(f.noise.id, "Noise β", f.noise, (v) => v.toFixed(2)),
      control(f.damping.id, "Damping λ", f.damping, (v) => v.toFixed(2)),
      control(f.seed.id, "Seed", f.seed),
      control(f.text.id, "A problem of your own", f.text),
      this.use,
    );
    const place = element("div", { class: "eqr-player" });
    root.append(choice, place, this.message, this.keys, settings);
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", title);
    f.model.addEventListener("change", () => this.pickModel());
    f.other.addEventListener("change", () => this.restart());
    f.puzzle.addEventListener("change", () => this.pickPuzzle());
    this.use.addEventListener("click", () => this.readText());
    f.depth.addEventListener("input", () => this.deepen());
    for (const name of ["breadth", "noise", "damping", "seed"]) {
      f[name].addEventListener("change", () => this.restart());
    }
    this.place = place;
  }

  get model() {
    return this.models[this.fields.model.value];
  }

  get task() {
    return this.model.facts.task;
  }

  get rules() {
    return RULES[this.task.kind];
  }

  // Models that can be asked the same problem.
  get rivals() {
    return this.models.filter((m) => m !== this.model && m.board === this.model.board);
  }

  pickModel() {
    const { other, puzzle, damping, text } = this.fields;
    const rivals = this.rivals;
    other.replaceChildren(element("option", { value: "" }, "no other model"));
    other.append(...rivals.map((m) => element("option", { value: this.models.indexOf(m) }, m.title)));
    other.disabled = !rivals.length;
    const own = this.puzzles.filter((p) => p.board === this.model.board);
    puzzle.replaceChildren(...own.map((p) => element("option", { value: this.puzzles.indexOf(p) }, p.title)));
    damping.value = this.model.facts.damping;
    damping.dispatchEvent(new Event("input"));
    text.setAttribute("placeholder", this.task.kind === "maze" ? "rows of # . S G, parted by /" : "digits, and . for a blank");
    const kind = KINDS[this.task.kind];
    const tokens = [...kind.symbols(this.task)].map((char, token) => [char, token]).slice(1);
    this.keys.replaceChildren(
      ...tokens.filter(([char]) => char !== "o").map(([char, token]) => {
        const key = element("button", { type: "button", "aria-label": kind.name(token) }, char);
        key.addEventListener("click", () => this.edit(this.player.views[0].board.at, token));
        return key;
      }),
    );
    this.pickPuzzle();
  }

  pickPuzzle() {
    const chosen = this.puzzles[this.fields.puzzle.value];
    this.inputs = this.rules.parse(chosen.text, this.task);
    this.fields.text.value = chosen.text;
    this.say("");
    this.restart();
  }

  // The written problem, unless it is a bad one: then a message, and the old one stays.
  readText() {
    try {
      this.take(this.rules.parse(this.fields.text.value, this.task));
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      this.say(`This is no problem for this model: ${error.message}. The board keeps the one before.`);
    }
  }

  edit(cell, token) {
    const tokens = [...this.inputs];
    // A maze has one S and one G: writing it elsewhere moves it.
    if (this.task.kind === "maze" && token > 2) tokens[tokens.indexOf(token)] = 2;
    tokens[cell] = token;
    try {
      this.take(tokens);
      this.fields.text.value = this.rules.format(tokens, this.task);
    } catch (error) {
      if (!(error instanceof ProblemError)) throw error;
      this.say(`Not written: ${error.message}.`);
    }
    this.player.views[0].board.focus(cell);
  }

  take(tokens) {
    const fault = this.rules.fault(tokens, this.task);
    if (fault) throw new ProblemError(fault);
    this.inputs = tokens;
    this.say(this.rules.note(tokens, this.task));
    this.restart();
  }

  say(text) {
    this.message.textContent = text;
  }

  recording(model) {
    const { breadth, noise, damping, seed } = this.fields;
    return {
      task: this.task, inputs: this.inputs, label: null, model: { name: model.title },
      breadth: Number(breadth.value), noise: Number(noise.value),
      damping: Number(damping.value), seed: Math.max(0, Math.trunc(Number(seed.value)) || 0), frames: [],
      verdict: this.rules.verdict(this.inputs, this.task),
    };
  }

  // New trajectories with the controls as they stand; what was being computed is forgotten.
  restart() {
    this.round += 1;
    this.started = false;
    const { other } = this.fields;
    this.shown = [this.model, ...(other.value === "" ? [] : [this.models[other.value]])];
    const recordings = this.shown.map((model) => this.recording(model));
    if (!this.player) {
      this.player = new Player(this.place, recordings, {
        advance: () => this.advance(), longest: this.longest, interval: 60,
        edit: (cell, token) => this.edit(cell, token),
      });
    } else {
      this.player.pause();
      this.player.load(recordings, this.longest);
    }
  }

  get longest() {
    return Number(this.fields.depth.value);
  }

  // Another depth keeps what has been computed.
  deepen() {
    this.player.longest = this.longest;
    this.player.slider.max = this.longest;
    this.player.seek(this.player.depth);
  }

  async advance() {
    const round = this.round;
    try {
      if (!this.started) await this.begin(round);
      const frames = [];
      for (const run of this.shown.keys()) frames.push(await this.solver.call("advance", { run }));
      if (round !== this.round) return false; // the controls have changed meanwhile
      this.player.recordings.forEach((recording, i) => this.append(recording, frames[i]));
      return true;
    } catch (error) {
      if (round === this.round) this.say(`The solver stopped: ${error.message}. Reload the page to try again.`);
      return false;
    }
  }

  async begin(round) {
    if (!this.solver) {
      this.solver = new Solver();
      this.say("Loading the solver (14 MB, once) …");
    }
    for (const [run, model] of this.shown.entries()) {
      await this.solver.call("load", { model: model.address, facts: model.facts });
      const { inputs, breadth, noise, damping, seed } = this.player.recordings[run];
      await this.solver.call("start", { run, model: model.address, inputs, breadth, noise, damping, seed });
    }
    if (round !== this.round) return;
    this.started = true;
    if (this.message.textContent.startsWith("Loading")) this.say("");
  }

  // The plane turns as states come in, so every frame gets its points anew.
  append(recording, { plane, ...frame }) {
    recording.frames.push(frame);
    plane.forEach((points, i) => (recording.frames[i].plane = points));
  }
}

export function start(root) {
  root.solver = new Live(root);
}
