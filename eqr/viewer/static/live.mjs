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
      const error = new Error(event.message || "its scripts did not load");
      for (const { failed } of this.waiting.values()) failed(error);
      this.waiting.clear();
    };
  }

  close() {
    this.worker.terminate();
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
    this.pending = null;
    this.remark = "";
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
    this.status = element("p", { class: "eqr-status", role: "status" });
    this.help = element("p", { class: "eqr-help", id: id("help") });
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
    root.append(choice, place, this.message, this.status, this.keys, this.help, settings);
    root.setAttribute("role", "region");
    root.setAttribute("aria-label", title);
    f.model.addEventListener("change", () => this.pickModel());
    f.other.addEventListener("change", () => this.restart());
    f.puzzle.addEventListener("change", () => this.pickPuzzle());
    this.use.addEventListener("click", () => this.readText());
    f.depth.addEventListener("input", () => this.deepen());
    for (const name of ["breadth", "noise", "damping"]) {
      f[name].addEventListener("change", () => this.restart());
    }
    f.seed.addEventListener("change", () => {
      f.seed.value = Math.min(9999, Math.max(0, Math.trunc(Number(f.seed.value)) || 0));
      this.restart();
    });
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
    this.help.textContent = kind.help;
    this.keys.replaceChildren(
      ...[...kind.keys(this.task)].map((char) => {
        const token = kind.symbols(this.task).indexOf(char);
        const key = element("button", { type: "button", "aria-label": `${char} ${kind.name(token)}` }, char);
        key.addEventListener("click", () => this.edit(this.player.views[0].board.at, token, false));
        return key;
      }),
    );
    this.pickPuzzle();
  }

  pickPuzzle() {
    const chosen = this.puzzles[this.fields.puzzle.value];
    this.take(this.rules.parse(chosen.text, this.task));
    this.fields.text.value = this.rules.format(this.inputs, this.task);
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

  // Write into a cell of the board; from the board itself the focus returns there.
  edit(cell, token, refocus = true) {
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
    if (refocus) this.player.views[0].board.focus(cell);
  }

  take(tokens) {
    const fault = this.rules.fault(tokens, this.task);
    if (fault) throw new ProblemError(fault);
    this.inputs = tokens;
    this.remark = this.rules.note(tokens, this.task);
    this.restart();
  }

  // What is wrong.
  say(text) {
    this.message.textContent = text;
  }

  // What is going on: loading, or a remark about the problem.
  tell(text = this.remark) {
    this.status.textContent = text;
  }

  recording(model) {
    const { breadth, noise, damping, seed } = this.fields;
    return {
      task: this.task, inputs: this.inputs, label: null,
      model: { name: model.title, run: model.run, profile: model.profile },
      breadth: Number(breadth.value), noise: Number(noise.value),
      damping: Number(damping.value), seed: Number(seed.value), frames: [],
      verdict: this.rules.verdict(this.inputs, this.task),
    };
  }

  // New trajectories with the controls as they stand; what was being computed is forgotten.
  restart() {
    this.round += 1;
    this.started = false;
    this.say("");
    this.tell();
    const { other } = this.fields;
    this.shown = [this.model, ...(other.value === "" ? [] : [this.models[other.value]])];
    const recordings = this.shown.map((model) => this.recording(model));
    if (!this.player) {
      this.player = new Player(this.place, recordings, {
        advance: () => this.advance(), longest: this.longest, interval: 60,
        edit: (cell, token) => this.edit(cell, token),
      });
    } else {
      this.player.pause(false);
      this.player.load(recordings, this.longest);
    }
    this.player.views[0].board.root.setAttribute("aria-describedby", this.help.id);
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

  // One more iteration of what is shown; false where it could not be had, or nobody wants it any more.
  advance() {
    if (this.pending?.round !== this.round) {
      const round = this.round;
      const work = this.compute(round).finally(() => {
        if (this.pending?.round === round) this.pending = null;
      });
      this.pending = { round, work };
    }
    return this.pending.work;
  }

  async compute(round) {
    const { recordings } = this.player;
    this.say("");
    try {
      if (!this.started && !(await this.begin(round))) return false;
      const frames = [];
      for (const i of recordings.keys()) {
        frames.push(await this.solver.call("advance", { run: `${round}-${i}` }));
        if (round !== this.round) return false; // a control has changed meanwhile
      }
      recordings.forEach((recording, i) => this.append(recording, frames[i]));
      return true;
    } catch (error) {
      this.solver?.close(); // the next press begins with a new one
      this.solver = null;
      if (round === this.round) {
        this.restart();
        this.say(`The solver stopped: ${error.message}. Press Play to try again.`);
      }
      return false;
    }
  }

  // Load the models of this round and start their trajectories; false where the round has passed.
  async begin(round) {
    const { shown } = this, { recordings } = this.player;
    if (!this.solver) {
      this.solver = new Solver();
      this.tell("Loading the solver (14 MB, once) …");
    }
    const { solver } = this;
    for (const [i, model] of shown.entries()) {
      await solver.call("load", { model: model.address, facts: model.facts });
      if (round !== this.round) return false;
      const { inputs, breadth, noise, damping, seed } = recordings[i];
      const run = { run: `${round}-${i}`, model: model.address, inputs, breadth, noise, damping, seed };
      await solver.call("start", { ...run, first: i === 0 });
      if (round !== this.round) return false;
    }
    this.tell();
    this.started = true;
    return true;
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
