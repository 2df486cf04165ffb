// The viewer of trajectories: a board, the residuals and the latent plane of all restarts, which of
// them are right by the rules and which one each rule of selection takes, and a time line.
//
// A plain ES module that is used in three ways:
//   replay   a page holds recorded trajectories and this text (eqr/viewer/page.py inlines it);
//   solver   the same with controls, around a model that the browser iterates (worker.mjs);
//   Jupyter  the same controls around a model in the kernel (eqr/viewer/explorer.py, anywidget).
//
// A recording, as eqr/viewer/frames.py writes it and an `Explorer` builds it:
//   task      fields of the task, with height, width and the symbol of each token
//   inputs    tokens of the problem; label: those of the answer, or null
//   model     {name, run, profile}; noise, seed, and damping (null: the model's own)
//   breadth   B, the number of restarts
//   measured  {depth, right}: how many restarts were right in the book's runs, where that is known
//   frames    one for each outer iteration: {answers, confidence, residual, margin, halt, right,
//             plane}, where answers[b] and confidence[b] have S entries, the others one for each b

const WINDOW = 3; // iterations whose mean residual chooses a restart, as eqr.select
const SETTLED = 0.02; // residual below which a trajectory counts as settled, as eqr.solve
const UNSURE = 0.5; // probability below which a cell is shown as doubtful
const LEVELS = 35; // steps of a stored probability, as eqr.viewer.frames
const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const upTo = (count) => [...Array(count).keys()];

// --- tokens and recordings -----------------------------------------------------------------------

// How a decoded symbol is drawn where it is not drawn as itself, and what it is called.
const GLYPHS = { ".": "", o: "●", "#": "■" };
const NAMES = { ".": "blank", "?": "no token", "#": "wall", o: "path", S: "start", G: "goal" };
const ONCE = "SG"; // a maze has one of each: writing it elsewhere moves it

const symbolOf = (task, token) => task.symbols[token] || "?";
const nameOf = (symbol) => NAMES[symbol] || symbol;
const isGiven = (task, token) => symbolOf(task, token) !== ".";

// What a reader may write into a problem: a path is for the answer.
const keysOf = (task) => [...task.symbols].filter((symbol) => !"?o".includes(symbol));

// A problem as text, a row a line.
function written(tokens, { width, symbols }) {
  const rows = upTo(tokens.length / width).map((r) => tokens.slice(r * width, (r + 1) * width));
  return rows.map((row) => row.map((token) => symbols[token]).join("")).join("\n");
}

// Tokens are stored as a digit in base 36, probabilities as one of 36 levels.
function unpacked(stored, scale = 1) {
  return typeof stored === "string" ? Array.from(stored, (c) => parseInt(c, 36) * scale) : stored;
}

function unpackedFrame(frame) {
  return {
    ...frame,
    answers: frame.answers.map((text) => unpacked(text)),
    confidence: frame.confidence.map((text) => unpacked(text, 1 / LEVELS)),
  };
}

export function decoded(stored) {
  const label = stored.label ? unpacked(stored.label) : null;
  return { ...stored, inputs: unpacked(stored.inputs), label, frames: stored.frames.map(unpackedFrame) };
}

// --- which restart to trust ------------------------------------------------------------------------

const largest = (values) => values.indexOf(Math.max(...values));

// Mean residual of each restart over the last WINDOW iterations up to `depth`.
function settling(recording, depth) {
  const frames = recording.frames.slice(Math.max(0, depth - WINDOW), depth);
  return upTo(recording.breadth).map((b) => frames.reduce((sum, frame) => sum + frame.residual[b], 0));
}

const same = (a, b) => a.length === b.length && a.every((token, i) => token === b[i]);

// The rules of eqr.select, by what the reader calls them: (recording, depth) => restart.
export const RULES = {
  "smallest residual": (recording, depth) => {
    const residuals = settling(recording, depth);
    return residuals.indexOf(Math.min(...residuals));
  },
  "most frequent answer": (recording, depth) => {
    const { answers } = recording.frames[depth - 1], residuals = settling(recording, depth);
    const votes = answers.map((answer) => answers.filter((other) => same(answer, other)).length);
    const most = Math.max(...votes);
    return largest(votes.map((count, b) => (count === most ? -residuals[b] : -Infinity)));
  },
  "largest margin": (recording, depth) => largest(recording.frames[depth - 1].margin),
  "halting head": (recording, depth) => largest(recording.frames[depth - 1].halt),
};

// --- views ---------------------------------------------------------------------------------------

// A table of cells. With `edit`, a grid that takes arrow keys and symbols: edit(cell, symbol).
class Board {
  constructor(task, title, edit) {
    this.task = task;
    this.edit = edit;
    this.cells = [];
    this.at = 0;
    const rows = upTo(task.height).map((r) => {
      const row = element("tr", edit ? { role: "row" } : {});
      for (let c = 0; c < task.width; c++) {
        this.cells.push(element("td", edit ? { role: "gridcell" } : {}));
        row.append(this.cells.at(-1));
      }
      return row;
    });
    const label = { "aria-label": title, class: `eqr-board eqr-${task.kind}` };
    this.root = element("table", edit ? { role: "grid", ...label } : label, element("tbody", {}, ...rows));
    this.root.style.setProperty("--columns", task.width);
    if (edit) {
      this.select(0);
      this.listen();
    }
  }

  listen() {
    this.cells.forEach((cell, i) => cell.addEventListener("click", () => this.focus(i)));
    this.root.addEventListener("keydown", (event) => {
      const { height, width } = this.task;
      const row = Math.floor(this.at / width), column = this.at % width;
      const moves = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        Home: [0, -column], End: [0, width - 1 - column],
      };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves) {
        const [down, right] = moves[event.key];
        const r = Math.min(height - 1, Math.max(0, row + down));
        const c = Math.min(width - 1, Math.max(0, column + right));
        this.focus(r * width + c);
      } else if (["Backspace", "Delete", " "].includes(event.key)) {
        this.edit(this.at, ".");
      } else if (event.key.length === 1) {
        const symbol = "0_".includes(event.key) ? "." : event.key.toUpperCase();
        if (!keysOf(this.task).includes(symbol)) return;
        this.edit(this.at, symbol);
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  // The cell that the keys write into, marked as such.
  select(cell) {
    this.cells.forEach((one, i) => {
      one.tabIndex = i === cell ? 0 : -1;
      one.setAttribute("aria-selected", i === cell);
    });
    this.at = cell;
  }

  focus(cell) {
    this.select(cell);
    this.cells[cell].focus();
  }

  // One restart of a recording after `depth` iterations; the problem alone after none.
  show({ inputs, label, frames }, depth, restart) {
    const { task } = this, frame = depth ? frames[depth - 1] : null;
    this.cells.forEach((cell, i) => {
      const given = isGiven(task, inputs[i]), open = frame && !given;
      const token = open ? frame.answers[restart][i] : inputs[i];
      const symbol = symbolOf(task, token), sure = open ? frame.confidence[restart][i] : 1;
      const row = Math.floor(i / task.width), column = i % task.width;
      const words = [nameOf(symbol)], classes = [given ? "given" : "decoded"];
      if (given && symbol === "#") classes.push("wall");
      else if (given) words.push("given");
      if (row % task.box_height === 0) classes.push("box-top");
      if (column % task.box_width === 0) classes.push("box-left");
      if (sure < UNSURE) classes.push("doubtful");
      if (open) {
        let stays = 0; // iterations since the token was another one
        while (stays < depth - 1 && frames[depth - 2 - stays].answers[restart][i] === token) stays++;
        words.push(`${Math.round(100 * sure)} % sure`, `unchanged for ${stays}`);
        if (depth > 1 && !stays) classes.push("changed");
        if (label && token !== label[i]) {
          classes.push("wrong");
          words.push("wrong");
        }
      }
      cell.className = classes.join(" ");
      cell.style.setProperty("--unsure", (1 - sure).toFixed(2));
      cell.textContent = given && symbol === "#" ? "" : (GLYPHS[symbol] ?? symbol);
      cell.title = `row ${row + 1}, column ${column + 1}: ${words.join(", ")}`;
      cell.setAttribute("aria-label", cell.title);
    });
  }
}

// The line of one restart and its end: bold where it is shown, dashed where its answer differs from
// the shown one; a cross where the rules refuse its answer, else a disc.
function path(points, { shown, differs, right }) {
  const [x, y] = points.at(-1), at = points.map((point) => point.map((v) => v.toFixed(1)).join());
  const kind = `${shown ? " chosen" : ""}${differs ? " differs" : ""}`;
  const line = drawn("polyline", { points: at.join(" "), class: `trace${kind}` });
  const r = shown ? 5 : 3.2;
  const cross = `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;
  const end = right
    ? drawn("circle", { cx: x, cy: y, r, class: `end right${kind}` })
    : drawn("path", { d: cross, class: `end refused${kind}` });
  return [line, end];
}

// Paths of all restarts, the shown one on top; `place(frame, iteration, b)` gives x and y.
function paths(recording, depth, restart, place) {
  if (!depth) return [];
  const frames = recording.frames.slice(0, depth), { answers, right } = frames.at(-1);
  const order = upTo(recording.breadth).sort((a, b) => (a === restart) - (b === restart));
  return order.flatMap((b) =>
    path(frames.map((frame, k) => place(frame, k + 1, b)), {
      shown: b === restart, differs: !same(answers[b], answers[restart]), right: right[b],
    }),
  );
}

// Residuals of all restarts over the iterations, on a logarithmic axis that never changes, so that
// models and settings compare.
class Traces {
  constructor() {
    this.root = drawn("svg", { viewBox: "0 0 320 190", class: "eqr-traces", role: "img" });
  }

  show(recording, depth, restart, longest) {
    const box = { left: 42, right: 312, top: 10, bottom: 160 }, low = -6, high = 0.5;
    const x = (d) => box.left + ((d - 1) / Math.max(1, longest - 1)) * (box.right - box.left);
    const y = (r) => {
      const log = Math.min(high, Math.max(low, Math.log10(Math.max(r, 1e-9))));
      return box.top + ((high - log) / (high - low)) * (box.bottom - box.top);
    };
    const across = (at, kind) =>
      drawn("line", { x1: box.left, x2: box.right, y1: at, y2: at, class: kind });
    const parts = [];
    for (let power = low; power <= 0; power += 2) {
      const at = y(10 ** power), text = power ? `10⁻${"⁰¹²³⁴⁵⁶"[-power]}` : "1";
      parts.push(across(at, "grid"));
      parts.push(drawn("text", { x: box.left - 6, y: at + 4, class: "tick end" }, text));
    }
    parts.push(across(y(SETTLED), "settled"));
    parts.push(drawn("text", { x: box.right, y: y(SETTLED) - 4, class: "tick end" }, "settled below"));
    parts.push(drawn("text", { x: box.left + 4, y: box.bottom - 5, class: "tick" }, "residual"));
    for (const d of new Set([1, Math.round((1 + longest) / 2), longest])) {
      parts.push(drawn("text", { x: x(d), y: box.bottom + 14, class: "tick middle" }, d));
    }
    const middle = (box.left + box.right) / 2;
    parts.push(drawn("text", { x: middle, y: 187, class: "tick middle" }, "outer iteration"));
    parts.push(...paths(recording, depth, restart, (frame, k, b) => [x(k), y(frame.residual[b])]));
    this.root.replaceChildren(...parts);
    const now = depth ? recording.frames[depth - 1].residual[restart].toPrecision(2) : "none yet";
    this.root.setAttribute(
      "aria-label",
      `Residual of ${recording.breadth} restarts against the iteration; restart ${restart + 1}, ` +
        `drawn bold, stands at ${now} after ${depth} iterations.`,
    );
  }
}

// The latents of all restarts in the plane that shows most of them.
class Plane {
  constructor() {
    this.root = drawn("svg", { viewBox: "0 0 240 190", class: "eqr-plane", role: "img" });
  }

  show(recording, depth, restart) {
    const all = recording.frames.flatMap((frame) => frame.plane);
    const edges = (edge) => [0, 1].map((k) => edge(...all.map((point) => point[k])));
    const lows = edges(Math.min), highs = edges(Math.max);
    const span = Math.max(highs[0] - lows[0], highs[1] - lows[1], 1e-6);
    const place = (frame, _, b) => [
      120 + ((frame.plane[b][0] - (lows[0] + highs[0]) / 2) / span) * 160,
      86 - ((frame.plane[b][1] - (lows[1] + highs[1]) / 2) / span) * 160,
    ];
    const words = "latent state, two main axes";
    const parts = [drawn("text", { x: 120, y: 187, class: "tick middle" }, words)];
    for (const b of depth ? upTo(recording.breadth) : []) {
      const [cx, cy] = place(recording.frames[0], 1, b);
      parts.push(drawn("circle", { cx, cy, r: 1.6, class: "start" }));
    }
    parts.push(...paths(recording, depth, restart, place));
    this.root.replaceChildren(...parts);
    this.root.setAttribute(
      "aria-label",
      `Paths of ${recording.breadth} restarts through the latent space, seen in two dimensions, ` +
        `after ${depth} iterations; marks show where they are.`,
    );
  }
}

const LEGEND =
  "Bold: the restart on the board. Dashed: another answer than on the board. " +
  "● right by the rules, × not right.";

// Board, traces and plane of one recording.
class Panel {
  constructor(recording, { edit = null, small = false } = {}) {
    this.recording = recording;
    this.small = small;
    const { model, noise, damping, seed } = recording;
    this.board = new Board(recording.task, `Board of ${model.name}`, edit);
    this.traces = new Traces();
    this.plane = new Plane();
    this.verdict = element("p", { class: "eqr-verdict" });
    this.caption = element("p", { class: "eqr-facts" });
    this.rules = element("ul", { class: "eqr-rules", "aria-label": "Restart that each rule takes" });
    const facts = [model.profile && `profile ${model.profile}`, `β ${noise}`];
    facts.push((damping ?? null) !== null && `λ ${damping}`, `seed ${seed}`, model.run);
    const trace = element("p", { class: "eqr-trace" }, facts.filter(Boolean).join(" · "));
    this.root = element("section", { class: "eqr-panel", "aria-label": model.name });
    if (!small) this.root.append(element("p", { class: "eqr-model" }, model.name));
    const plots = element("div", { class: "eqr-plots" }, this.traces.root);
    if (!small) plots.append(this.plane.root);
    const views = element("div", { class: "eqr-views" }, this.board.root, plots);
    this.root.append(views, this.verdict, this.caption);
    if (!small) this.root.append(this.rules, element("p", { class: "eqr-help" }, LEGEND));
    this.root.append(trace);
  }

  // What stands there after `depth` iterations: the facts that the status line repeats. `chosen` is
  // the name of a rule or the number of a restart.
  show(depth, chosen, longest) {
    const { recording } = this, last = recording.breadth - 1;
    const number = chosen in RULES ? 0 : Math.min(Number(chosen), last);
    const restart = chosen in RULES && depth ? RULES[chosen](recording, depth) : number;
    this.board.show(recording, depth, restart);
    this.traces.show(recording, depth, restart, longest);
    this.plane.show(recording, depth, restart);
    this.verdict.textContent = depth ? this.judge(depth, restart) : "";
    this.verdict.classList.toggle("wrong", depth > 0 && !recording.frames[depth - 1].right[restart]);
    this.caption.textContent = depth ? this.facts(depth, restart) : "Not started: the board shows the problem.";
    this.rules.replaceChildren(...(depth && last ? this.choices(depth) : []));
    return `${this.verdict.textContent} ${this.caption.textContent}`.trim();
  }

  judge(depth, restart) {
    const { residual, right } = this.recording.frames[depth - 1];
    const state = residual[restart] < SETTLED ? "Settled, and" : "Still moving, and";
    return `${state} ${right[restart] ? "right" : "wrong"} by the rules.`;
  }

  facts(depth, restart) {
    const { inputs, label, breadth, task, frames, measured } = this.recording;
    const { answers, confidence, residual, right } = frames[depth - 1];
    const open = inputs.map((_, i) => i).filter((i) => !isGiven(task, inputs[i]));
    const sure = open.filter((i) => confidence[restart][i] > UNSURE).length;
    const words = [
      `Restart ${restart + 1} of ${breadth}: residual ${residual[restart].toPrecision(2)}`,
      `${sure} of ${open.length} open cells are decided`,
    ];
    if (label) {
      const wrong = open.filter((i) => answers[restart][i] !== label[i]).length;
      if (wrong) words.push(`${wrong} wrong`);
    }
    if (breadth > 1) {
      const alike = answers.filter((answer) => same(answer, answers[restart])).length;
      words.push(`${alike} of ${breadth} restarts have this answer`);
      words.push(`${right.filter(Boolean).length} of ${breadth} are right`);
      if (measured) words[words.length - 1] += `, ${measured.right} of ${breadth} in the book's runs at D = ${measured.depth}`;
    }
    return words.join("; ") + ".";
  }

  // Which restart each rule of selection takes, and whether it is right.
  choices(depth) {
    const { right } = this.recording.frames[depth - 1];
    return Object.entries(RULES).map(([name, rule]) => {
      const b = rule(this.recording, depth), kind = right[b] ? "right" : "wrong";
      return element("li", { class: kind }, `${name}: restart ${b + 1}, ${kind}`);
    });
  }
}

// --- the time line -------------------------------------------------------------------------------

let counter = 0;

// Plays one or two recordings side by side.
//   advance   async () => bool, computes the next iteration of each; null: all is recorded
//   longest   iterations to play
export class Player {
  constructor(root, recordings, { advance = null, longest = null, interval = 280, ...options } = {}) {
    Object.assign(this, { root, advance, interval, options, depth: 0, playing: false });
    this.id = `eqr-play-${++counter}`;
    this.panels = element("div", { class: "eqr-panels" });
    this.live = element("p", { class: "eqr-hidden", role: "status", "aria-live": "polite" });
    this.buildControls();
    root.append(this.panels, this.controls, this.live);
    this.load(recordings, longest);
  }

  buildControls() {
    const button = (text, label, work) => {
      const made = element("button", { type: "button", "aria-label": label }, text);
      made.addEventListener("click", work);
      return made;
    };
    const paused = (work) => () => {
      this.pause();
      work();
    };
    this.playButton = button("▶ Play", "Play", () => (this.playing ? this.pause() : this.play()));
    this.slider = element("input", { type: "range", min: 0, value: 0, id: `${this.id}-depth` });
    this.slider.addEventListener("input", () => {
      const wanted = Number(this.slider.value); // pausing shows, and writes into the slider
      this.pause();
      this.seek(wanted);
    });
    this.output = element("span", { class: "eqr-count", "aria-hidden": "true" });
    this.restart = element("select", { id: `${this.id}-restart` });
    this.restart.addEventListener("change", () => this.show(true));
    const pair = (name, input, kind, ...rest) => {
      const label = element("label", { for: input.id }, name);
      return element("span", { class: `eqr-pair ${kind}` }, label, input, ...rest);
    };
    this.controls = element(
      "div",
      { class: "eqr-controls", role: "group", "aria-label": "Time line" },
      this.playButton,
      button("Step", "Step one iteration on", paused(() => this.step())),
      button("Back", "Back by one iteration", paused(() => this.seek(this.depth - 1))),
      button("Reset", "Reset to iteration 0", paused(() => this.seek(0))),
      pair("Iteration", this.slider, "eqr-wide", this.output),
      pair("Show", this.restart, ""),
    );
  }

  // Replace what is shown; starts before the first iteration, without a word.
  load(recordings, longest = null) {
    this.recordings = recordings;
    this.longest = longest || Math.max(...recordings.map((r) => r.frames.length));
    const before = this.views?.[0].board, at = before?.at ?? 0;
    const focused = before?.root.contains(document.activeElement);
    // One board takes the keys: with two, both models have its problem.
    this.views = recordings.map((r, i) => new Panel(r, i ? { ...this.options, edit: null } : this.options));
    this.panels.replaceChildren(...this.views.map((view) => view.root));
    if (this.options.edit) {
      const { board } = this.views[0], cell = Math.min(at, recordings[0].inputs.length - 1);
      if (focused) board.focus(cell);
      else board.select(cell);
    }
    const breadth = Math.max(...recordings.map((r) => r.breadth));
    const option = (value, text) => element("option", { value }, text);
    const chosen = this.restart.value;
    this.restart.replaceChildren(
      ...Object.keys(RULES).map((name) => option(name, `by rule: ${name}`)),
      ...upTo(breadth).map((b) => option(b, `restart ${b + 1}`)),
    );
    if (chosen in RULES) this.restart.value = chosen;
    this.slider.max = this.longest;
    this.seek(0, false);
  }

  get available() {
    return Math.min(...this.recordings.map((r) => r.frames.length));
  }

  seek(depth, announce = !this.playing) {
    this.depth = Math.max(0, Math.min(depth, this.available, this.longest));
    this.show(announce);
  }

  show(announce) {
    const facts = this.views.map((view) => view.show(this.depth, this.restart.value, this.longest));
    this.slider.value = this.depth;
    this.slider.setAttribute("aria-valuetext", `iteration ${this.depth} of ${this.longest}`);
    this.output.textContent = `${this.depth} / ${this.longest}`;
    if (announce) {
      const names = this.recordings.map(({ model }) => (this.recordings.length > 1 ? `${model.name}. ` : ""));
      this.live.textContent = `Iteration ${this.depth}. ` + facts.map((f, i) => names[i] + f).join(" ");
    }
  }

  async step() {
    const { depth, recordings } = this;
    if (depth >= this.longest) return false;
    if (depth >= this.available) {
      if (!this.advance || !(await this.advance())) return false;
      if (this.depth !== depth || this.recordings !== recordings) return false; // moved meanwhile
    }
    this.seek(depth + 1);
    return true;
  }

  // `announce`: whether its end is read aloud, as what the reader did is.
  async play(announce = true) {
    if (this.depth >= this.longest) this.seek(0);
    this.setPlaying(true);
    const turn = (this.turn = Symbol("turn"));
    while (this.playing && this.turn === turn) {
      const began = performance.now();
      if (!(await this.step())) break;
      const wait = Math.max(0, this.interval - (performance.now() - began));
      await new Promise((done) => setTimeout(done, wait));
    }
    if (this.turn === turn) this.pause(announce);
  }

  pause(announce = true) {
    if (!this.playing) return;
    this.setPlaying(false);
    this.show(announce);
  }

  setPlaying(playing) {
    this.playing = playing;
    this.playButton.textContent = playing ? "❚❚ Pause" : "▶ Play";
    this.playButton.setAttribute("aria-label", playing ? "Pause" : "Play");
  }
}

// --- controls around models that are iterated now ------------------------------------------------

// Calls to whoever computes, each answered by a promise. The other side answers {id, call, ...} with
// {id, result} or {id, error}; its calls are
//   read      {model, text} => {inputs, note} of a problem written as text, or {fault}: what is wrong
//   begin     {runs: [{model, inputs, breadth, noise, damping, seed}]}: new trajectories
//   advance   {} => for each of them the next frame, with its depth and all points of the plane
export class Channel {
  constructor(post) {
    this.post = post;
    this.waiting = new Map();
    this.last = 0;
  }

  call(call, values = {}) {
    const id = ++this.last;
    return new Promise((done, failed) => {
      this.waiting.set(id, { done, failed });
      this.post({ call, id, ...values });
    });
  }

  receive({ id, result, error }) {
    const { done, failed } = this.waiting.get(id) || {};
    this.waiting.delete(id);
    if (error) failed?.(new Error(error));
    else done?.(result);
  }

  fail(words) {
    for (const { failed } of this.waiting.values()) failed(new Error(words));
    this.waiting.clear();
  }

  close() {}
}

const OWN = -0.05; // on the slider of λ: each model's own

const CONTROLS = {
  depth: ["Depth D", 1, 64, 1, (v) => `${v} iterations`],
  breadth: ["Breadth B", 1, 16, 1, (v) => (v === 1 ? "1 restart" : `${v} restarts`)],
  noise: ["Noise β", 0, 1, 0.01, (v) => v.toFixed(2)],
  damping: ["Damping λ", OWN, 0.9, 0.05, (v) => (v < 0 ? "each model's own" : v.toFixed(2))],
};

// `stored`: {title, models: [{title, run, profile, board, task}], puzzles: [{title, inputs, and, where
// it was measured, model, depth, breadth, noise and right, the number of its right restarts}],
// settings, and, where trajectories are to be shown at once, recordings of the first puzzle;
// eager: play after each change; wait: said while it loads}
export class Explorer {
  constructor(root, stored, connect) {
    Object.assign(this, { root, connect, stored, models: stored.models, round: 0, note: "" });
    this.puzzles = stored.puzzles.map((puzzle) => ({ ...puzzle, inputs: unpacked(puzzle.inputs) }));
    this.id = `eqr-explorer-${++counter}`;
    root.querySelector(".eqr-wait")?.remove();
    this.build();
    this.setValues({ ...stored.settings, damping: stored.settings.damping ?? OWN });
    this.pickPuzzle(this.puzzles[0], stored.recordings?.length > 1 ? 1 : "");
    if (stored.recordings) {
      this.player.load(stored.recordings.map(decoded), this.longest);
      this.player.seek(this.longest, false);
    }
  }

  build() {
    const option = (value, text) => element("option", { value }, text);
    const id = (name) => ({ id: `${this.id}-${name}`, class: `eqr-field-${name}` });
    const select = (name, titles) => element("select", id(name), ...titles.map((t, i) => option(i, t)));
    const f = (this.fields = {
      model: select("model", this.models.map((m) => m.title)),
      other: select("other", []),
      puzzle: select("puzzle", this.puzzles.map((p) => p.title)),
      text: element("textarea", { ...id("text"), spellcheck: "false", autocomplete: "off" }),
      seed: element("input", { type: "number", ...id("seed"), min: 0, max: 9999, step: 1, value: 0 }),
    });
    f.puzzle.append(option("", "your own"));
    const labelled = (name, text, ...rest) =>
      element("div", { class: "eqr-control" }, element("label", { for: f[name].id }, text), f[name], ...rest);
    const sliders = Object.entries(CONTROLS).map(([name, [text, min, max, step, show]]) => {
      const most = Math.max(max, this.stored.settings[name] ?? 0);
      f[name] = element("input", { type: "range", ...id(name), min, max: most, step });
      const output = element("span", { class: "eqr-value", "aria-hidden": "true" });
      f[name].said = () => {
        output.textContent = show(Number(f[name].value));
        f[name].setAttribute("aria-valuetext", output.textContent);
      };
      f[name].addEventListener("input", f[name].said);
      return labelled(name, text, output);
    });
    this.message = element("p", { class: "eqr-message", role: "alert" });
    this.status = element("p", { class: "eqr-status", role: "status" });
    this.pulse = element("p", { class: "eqr-pulse", "aria-hidden": "true" });
    const help = { class: "eqr-help", id: `${this.id}-help` };
    this.help = element("p", help, "Arrow keys move on the board; symbols write, Backspace clears.");
    this.use = element("button", { type: "button" }, "Use this problem");
    this.keys = element("div", { class: "eqr-keys", role: "group", "aria-label": "Write into the cell" });
    this.place = element("div", { class: "eqr-player" });
    const choice = [labelled("puzzle", "Problem")];
    if (this.models.length > 1) choice.push(labelled("model", "Model"), labelled("other", "Compare with"));
    this.root.append(
      element("div", { class: "eqr-form" }, ...choice),
      this.place, this.message, this.status, this.pulse, this.keys, this.help,
      element(
        "div", { class: "eqr-form" },
        ...sliders, labelled("seed", "Seed"), labelled("text", "A problem of your own", this.use),
      ),
    );
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", this.stored.title);
    const on = (name, event, work) => f[name].addEventListener(event, work);
    on("model", "change", () => this.pickModel());
    on("puzzle", "change", () => f.puzzle.value && this.pickPuzzle(this.puzzles[f.puzzle.value]));
    on("depth", "input", () => this.deepen());
    for (const name of ["other", "breadth", "noise", "damping"]) on(name, "change", () => this.restart());
    on("seed", "change", () => {
      f.seed.value = Math.min(9999, Math.max(0, Math.trunc(Number(f.seed.value)) || 0));
      this.restart();
    });
    this.use.addEventListener("click", () => this.read(f.text.value));
  }

  // Move controls without starting anything; a number goes to the nearest step of its slider.
  setValues(values) {
    for (const [name, value] of Object.entries(values)) {
      this.fields[name].value = value;
      this.fields[name].said?.();
    }
  }

  get model() {
    return this.models[this.fields.model.value];
  }

  get longest() {
    return Number(this.fields.depth.value);
  }

  // The model of the list, with the problem that is there if it can be asked it.
  pickModel(puzzle = null, other = this.fields.other.value) {
    const { fields, model, models } = this;
    const rivals = models.filter((m) => m !== model && m.board === model.board);
    fields.other.replaceChildren(element("option", { value: "" }, "no other model"));
    fields.other.append(...rivals.map((m) => element("option", { value: models.indexOf(m) }, m.title)));
    fields.other.disabled = !rivals.length;
    fields.other.value = rivals.includes(models[other]) ? other : "";
    this.keys.replaceChildren(
      ...keysOf(model.task).map((symbol) => {
        const label = `${symbol} ${nameOf(symbol)}`;
        const key = element("button", { type: "button", "aria-label": label }, symbol);
        key.addEventListener("click", () => this.edit(this.player.views[0].board.at, symbol));
        return key;
      }),
    );
    if (puzzle || this.board !== model.board) {
      const fits = (p) => (models[p.model] ?? model).board === model.board;
      puzzle ||= this.puzzles.find((p) => models[p.model] === model) || this.puzzles.find(fits);
      fields.puzzle.value = this.puzzles.indexOf(puzzle);
      this.pose(puzzle.inputs);
    } else {
      this.restart();
    }
  }

  // A problem of the list; one that was measured opens with the model and settings of its title.
  pickPuzzle(puzzle, other) {
    const { model, title, inputs, right, ...settings } = puzzle;
    if (model !== undefined) {
      this.fields.model.value = model;
      this.setValues({ ...settings, damping: OWN });
    }
    this.pickModel(puzzle, other);
  }

  pose(inputs, note = "") {
    Object.assign(this, { inputs, note, board: this.model.board });
    const { text } = this.fields, { task } = this.model;
    text.rows = Math.min(12, task.height + 1);
    text.value = written(inputs, task);
    this.restart();
  }

  // The written problem, unless it is a bad one: then a message, and the old one stays.
  async read(text) {
    const asked = (this.asked = Symbol("asked")), { model } = this;
    try {
      this.channel ||= this.connect();
      const call = { model: this.models.indexOf(model), text };
      const { inputs, note, fault } = await this.channel.call("read", call);
      if (asked !== this.asked || model !== this.model) return; // another problem meanwhile
      if (fault) {
        this.say(`Not used: ${fault}. The board keeps the problem before.`);
      } else {
        const tokens = unpacked(inputs), listed = this.puzzles.findIndex((p) => same(p.inputs, tokens));
        this.fields.puzzle.value = listed < 0 ? "" : listed;
        this.pose(tokens, note);
      }
    } catch (error) {
      this.stop(error);
    }
  }

  // Write into a cell of the board, one symbol after the other, however fast they are typed.
  edit(cell, symbol) {
    this.writing = (this.writing ?? Promise.resolve()).then(() => {
      const { task } = this.model, tokens = [...this.inputs], token = task.symbols.indexOf(symbol);
      if (ONCE.includes(symbol)) tokens[tokens.indexOf(token)] = task.symbols.indexOf(".");
      tokens[cell] = token;
      return this.read(written(tokens, task));
    });
  }

  // What is wrong.
  say(text) {
    this.message.textContent = text;
  }

  // What is going on: loading, or a remark about the problem.
  tell(text = this.note) {
    this.status.textContent = text;
  }

  recording(model) {
    const { puzzle, ...fields } = this.fields;
    const [breadth, noise, damping, seed] = ["breadth", "noise", "damping", "seed"].map((name) => Number(fields[name].value));
    const example = this.puzzles[puzzle.value] ?? {};
    const asMeasured =
      this.models[example.model] === model && example.breadth === breadth && example.noise === noise && damping < 0;
    return {
      task: model.task, inputs: this.inputs, label: null,
      model: { name: model.title, run: model.run, profile: model.profile },
      breadth, noise, seed, damping: damping < 0 ? null : damping, frames: [],
      measured: asMeasured && example.right !== undefined ? example : null,
    };
  }

  // New trajectories with the controls as they stand; what was being computed is forgotten.
  restart(play = this.stored.eager) {
    this.round += 1;
    this.say("");
    this.tell();
    const { other } = this.fields;
    this.shown = [this.model, ...(other.value === "" ? [] : [this.models[other.value]])];
    const recordings = this.shown.map((model) => this.recording(model));
    if (!this.player) {
      this.player = new Player(this.place, recordings, {
        advance: () => this.advance(), longest: this.longest, interval: 60,
        edit: (cell, symbol) => this.edit(cell, symbol),
      });
    } else {
      this.player.pause(false);
      this.player.load(recordings, this.longest);
      if (play) this.player.play(false);
    }
    this.player.views[0].board.root.setAttribute("aria-describedby", this.help.id);
  }

  // Another depth keeps what has been computed.
  deepen() {
    this.player.longest = this.longest;
    this.player.slider.max = this.longest;
    this.player.seek(this.player.depth);
    if (this.stored.eager && this.player.depth < this.longest) this.player.play(false);
  }

  // One more iteration of what is shown; false where it could not be had, or nobody wants it any more.
  advance() {
    if (this.pending?.round !== this.round) {
      const { round } = this;
      const began = performance.now();
      const beat = setInterval(() => {
        const seconds = (performance.now() - began) / 1000;
        this.pulse.textContent = `◐ this iteration: ${seconds.toFixed(1)} s`;
      }, 200);
      const work = this.compute(round).finally(() => {
        clearInterval(beat);
        if (this.pending?.round !== round) return;
        this.pending = null;
        this.pulse.textContent = "";
      });
      this.pending = { round, work };
    }
    return this.pending.work;
  }

  async compute(round) {
    const { recordings } = this.player, count = this.player.available;
    this.say("");
    try {
      this.channel ||= this.connect();
      const { channel } = this;
      if (channel.round !== round) {
        if (this.stored.wait && channel.round === undefined) this.tell(this.stored.wait);
        const runs = recordings.map(({ inputs, breadth, noise, damping, seed }, i) => ({
          model: this.models.indexOf(this.shown[i]), inputs, breadth, noise, damping, seed,
        }));
        await channel.call("begin", { runs });
        if (round !== this.round) return false; // a control has changed meanwhile
        channel.round = round;
        this.tell();
      }
      // Recordings that came with the page have no trajectory behind them: it is run up to them.
      while (this.player.available <= count) {
        const frames = await channel.call("advance");
        if (round !== this.round) return false;
        recordings.forEach((recording, i) => append(recording, frames[i]));
      }
      return true;
    } catch (error) {
      if (round === this.round) this.stop(error);
      return false;
    }
  }

  // The view is gone.
  leave() {
    this.round += 1;
    this.player.pause(false);
    this.channel?.close();
  }

  // The other side has failed: the next press begins with a new one.
  stop(error) {
    this.channel?.close();
    this.channel = null;
    this.restart(false);
    this.say(`The solver stopped: ${error.message}. Press Play to try again.`);
  }
}

// The plane turns as states come in, so every frame gets its points anew.
function append(recording, { plane, depth, ...frame }) {
  if (depth > recording.frames.length) recording.frames.push(unpackedFrame(frame));
  if (depth < recording.frames.length) return;
  plane.forEach((points, k) => (recording.frames[k].plane = points));
}

// --- the three uses ------------------------------------------------------------------------------

const storedIn = (root) => JSON.parse(root.querySelector("script[type='application/json']").textContent);

// {"items": [{title, recordings}], "small": bool}
function startReplay(root) {
  const stored = storedIn(root);
  const items = stored.items.map(({ title, recordings }) => ({ title, recordings: recordings.map(decoded) }));
  root.querySelector(".eqr-wait")?.remove();
  const place = element("div", { class: "eqr-player" });
  const player = new Player(place, items[0].recordings, { small: stored.small });
  if (items.length > 1) {
    const id = `${player.id}-item`;
    const choice = element("select", { id });
    items.forEach(({ title }, i) => choice.append(element("option", { value: i }, title)));
    choice.addEventListener("change", () => {
      player.pause();
      player.load(items[choice.value].recordings);
      player.seek(player.longest);
    });
    root.append(element("div", { class: "eqr-controls" }, element("label", { for: id }, "Problem"), choice));
  }
  root.append(place);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (stored.small && !calm) player.play(false);
  else player.seek(player.longest, false);
}

const scripts = new Map(); // those asked for, by address

// A script of the book; one that did not come can be asked for again.
function loaded(address) {
  if (!scripts.has(address)) {
    const script = element("script", { src: address });
    const work = new Promise((done, failed) => {
      script.addEventListener("load", done);
      script.addEventListener("error", () => failed(new Error(`${address} did not load`)));
    });
    scripts.set(address, work.catch((error) => {
      scripts.delete(address);
      script.remove();
      throw error;
    }));
    document.head.append(script);
  }
  return scripts.get(address);
}

// The browser computes, off the page's thread; nothing is fetched until the reader asks for it. From a
// file a page may load scripts only, so all that there is comes as such: eqr.viewer.page.install.
export function workerAt(place, models) {
  const weighed = new Set();
  let worker = null, closed = false, last = Promise.resolve();
  const begin = async () => {
    await loaded(`${place}solver.js`);
    const { code, kernel } = self.eqrSolver;
    worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => channel.receive(data);
    worker.onerror = (event) => channel.fail(event.message || "its script did not run");
    worker.postMessage({ call: "know", models, kernel });
  };
  const send = async (message) => {
    if (!worker && !closed) await begin();
    for (const { model } of message.runs ?? []) {
      if (weighed.has(model)) continue;
      const { run } = models[model];
      await loaded(`${place}${run}.js`);
      worker.postMessage({ call: "weigh", model, weights: self.eqrWeights[run] });
      weighed.add(model);
    }
    if (!closed) worker.postMessage(message);
    else worker?.terminate();
  };
  const channel = new Channel((message) => {
    last = last.then(() => send(message)).catch((error) => channel.fail(error.message));
  });
  channel.close = () => {
    closed = true;
    worker?.terminate();
  };
  return channel;
}

function startSolver(root) {
  const stored = storedIn(root), place = new URL(root.dataset.place, document.baseURI).href;
  root.explorer = new Explorer(root, stored, () => workerAt(place, stored.models));
}

// The kernel computes: messages go through the widget, which every view of it shares.
function render({ model, el }) {
  const root = element("div", { class: "eqr-viewer", "data-lm-suppress-shortcuts": "true" });
  const view = Math.random().toString(36).slice(2);
  const connect = () => {
    const channel = new Channel((message) => model.send({ ...message, view }));
    const receive = (message) => message.view === view && channel.receive(message);
    model.on("msg:custom", receive);
    channel.close = () => model.off("msg:custom", receive);
    return channel;
  };
  // JupyterLab moves between cells by the arrow keys, unless it does not hear of them.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);
  root.explorer = new Explorer(root, model.get("stored"), connect);
  return () => root.explorer.leave();
}

function startAll() {
  for (const root of document.querySelectorAll(".eqr-replay, .eqr-solver")) {
    if ("started" in root.dataset) continue;
    root.dataset.started = "";
    if (root.matches(".eqr-replay")) startReplay(root);
    else startSolver(root);
  }
}

startAll(); // a module runs when the page is parsed
export default { render };
