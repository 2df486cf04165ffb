// Shows recorded trajectories of a reasoner: board, residuals, latent plane, and a time line.
//
// A classic script, inlined by eqr/viewer/page.py, so that it runs on a page opened from a file. The
// live solver (live.mjs) uses the same classes on recordings that are still growing.
//
// A recording, as eqr/viewer/page.py writes it and the live solver builds it:
//   task      fields of the task, with height and width
//   inputs    tokens of the problem; label: those of the answer, or null
//   model     {name, run, profile}; noise, seed, and damping where it is not the own one
//   breadth   B, the number of restarts
//   verdict   of a recording without a label: answer => what the rules say, in words
//   frames    one for each outer iteration: {answers, confidence, residual, plane}, where
//             answers[b] and confidence[b] have S entries, residual has B and plane B pairs
(function () {
  "use strict";
  if (window.EqrPlay) return;

  const SYMBOLS = "123456789ABCDEFG";
  const WINDOW = 3; // iterations whose mean residual chooses a restart, as eqr.select
  const SETTLED = 0.02; // residual below which a trajectory counts as settled, as eqr.solve
  const UNSURE = 0.5; // probability below which a cell is shown as doubtful
  const SVG = "http://www.w3.org/2000/svg";

  function element(tag, attributes, ...children) {
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

  // --- what a token looks like ---------------------------------------------------------------

  const KINDS = {
    sudoku: {
      blank: 1,
      given: (token) => token > 1,
      symbols: (task) => "?." + SYMBOLS.slice(0, task.height),
      keys: (task) => "." + SYMBOLS.slice(0, task.height),
      help: "Arrow keys move, digits write, Backspace clears.",
      text: (token, task) => (token > 1 ? SYMBOLS[token - 2] || "?" : ""),
      name: (token) => (token > 1 ? SYMBOLS[token - 2] || "no digit" : "blank"),
      shade: () => "",
      edges: (row, column, task) =>
        (row % task.box_height === 0 ? "box-top " : "") +
        (column % task.box_width === 0 ? "box-left" : ""),
    },
    maze: {
      blank: 2,
      given: (token) => token !== 2,
      symbols: () => "?#.SGo",
      keys: () => "#.SG", // the path is for the answer
      help: "Arrow keys move; #, ., S and G write.",
      text: (token) => ["?", "", "", "S", "G", "●"][token],
      name: (token) => ["no token", "wall", "open", "start", "goal", "path"][token],
      shade: (token) => (token === 1 ? "wall" : ""),
      edges: () => "",
    },
  };

  // The restart whose mean residual over the last WINDOW iterations up to `depth` is smallest.
  function selected(recording, depth) {
    const frames = recording.frames.slice(Math.max(0, depth - WINDOW), depth);
    let best = 0, least = Infinity;
    for (let b = 0; b < recording.breadth; b++) {
      const sum = frames.reduce((total, frame) => total + frame.residual[b], 0);
      if (sum < least) [best, least] = [b, sum];
    }
    return best;
  }

  // Recordings are stored with a character for a token and one for a probability (36 levels).
  function decoded(stored) {
    const digits = (text, scale) => Array.from(text, (c) => parseInt(c, 36) * scale);
    return {
      ...stored,
      inputs: digits(stored.inputs, 1),
      label: stored.label ? digits(stored.label, 1) : null,
      frames: stored.frames.map((frame) => ({
        answers: frame.answers.map((text) => digits(text, 1)),
        confidence: frame.confidence.map((text) => digits(text, 1 / 35)),
        residual: frame.residual,
        plane: frame.plane,
      })),
    };
  }

  // --- views -----------------------------------------------------------------------------------

  // A table of cells. With `edit`, a grid that takes arrow keys and symbols: edit(cell, token).
  class Board {
    constructor(task, title, edit) {
      this.task = task;
      this.kind = KINDS[task.kind];
      this.edit = edit;
      this.cells = [];
      this.at = 0;
      const rows = [];
      for (let r = 0; r < task.height; r++) {
        const row = element("tr", edit ? { role: "row" } : {});
        for (let c = 0; c < task.width; c++) {
          const role = edit ? { role: "gridcell" } : {};
          const cell = element("td", { class: this.kind.edges(r, c, task), ...role });
          this.cells.push(cell);
          row.append(cell);
        }
        rows.push(row);
      }
      const label = { "aria-label": title, class: `eqr-board eqr-${task.kind}` };
      this.root = element(
        "table",
        edit ? { role: "grid", ...label } : label,
        element("tbody", {}, ...rows),
      );
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
          this.edit(this.at, this.kind.blank);
        } else if (event.key.length === 1) {
          const char = "0_".includes(event.key) ? "." : event.key.toUpperCase();
          if (!this.kind.keys(this.task).includes(char)) return;
          this.edit(this.at, this.kind.symbols(this.task).indexOf(char));
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

    // `answer` and `confidence` (S) of one restart, or null before the first iteration.
    show(inputs, answer, confidence, label) {
      this.cells.forEach((cell, i) => {
        const given = this.kind.given(inputs[i]);
        const token = given || !answer ? inputs[i] : answer[i];
        const unsure = answer && !given ? 1 - confidence[i] : 0;
        const wrong = answer && label && !given && token !== label[i];
        const classes = [given ? "given" : "found", this.kind.shade(token)];
        if (unsure > UNSURE) classes.push("doubtful");
        if (wrong) classes.push("wrong");
        const row = Math.floor(i / this.task.width), column = i % this.task.width;
        cell.className = [this.kind.edges(row, column, this.task), ...classes].join(" ").trim();
        cell.style.setProperty("--unsure", unsure.toFixed(2));
        cell.textContent = this.kind.text(token, this.task);
        const words = [this.kind.name(token)];
        if (given && token !== 1) words.push("given");
        if (answer && !given) words.push(`${Math.round(100 * confidence[i])} % sure`);
        if (wrong) words.push("wrong");
        cell.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}: ${words.join(", ")}`);
      });
    }
  }

  // Residuals of all restarts over the iterations, on a logarithmic axis.
  class Traces {
    constructor() {
      this.root = drawn("svg", { viewBox: "0 0 320 190", class: "eqr-traces", role: "img" });
    }

    show(recording, depth, restart, longest) {
      const box = { left: 42, right: 312, top: 10, bottom: 160 };
      const low = -6, high = 0.5;
      const x = (d) => box.left + ((d - 1) / Math.max(1, longest - 1)) * (box.right - box.left);
      const y = (r) => {
        const log = Math.min(high, Math.max(low, Math.log10(Math.max(r, 1e-9))));
        return box.top + ((high - log) / (high - low)) * (box.bottom - box.top);
      };
      const parts = [];
      for (let power = low; power <= 0; power += 2) {
        const at = y(10 ** power);
        parts.push(drawn("line", { x1: box.left, x2: box.right, y1: at, y2: at, class: "grid" }));
        const text = power ? `10⁻${"⁰¹²³⁴⁵⁶"[-power]}` : "1";
        parts.push(drawn("text", { x: box.left - 6, y: at + 4, class: "tick end" }, text));
      }
      const settled = y(SETTLED);
      parts.push(drawn("line", { x1: box.left, x2: box.right, y1: settled, y2: settled, class: "settled" }));
      parts.push(drawn("text", { x: box.right, y: settled - 4, class: "tick end" }, "settled below"));
      parts.push(drawn("text", { x: box.left + 4, y: box.bottom - 5, class: "tick" }, "residual"));
      for (const d of [1, Math.round((1 + longest) / 2), longest]) {
        parts.push(drawn("text", { x: x(d), y: box.bottom + 14, class: "tick middle" }, d));
      }
      parts.push(drawn("text", { x: (box.left + box.right) / 2, y: 187, class: "tick middle" }, "outer iteration"));
      const shown = recording.frames.slice(0, depth);
      const order = [...Array(recording.breadth).keys()].filter((b) => b !== restart);
      for (const b of [...order, restart]) {
        const points = shown.map((frame, i) => `${x(i + 1).toFixed(1)},${y(frame.residual[b]).toFixed(1)}`);
        const own = b === restart ? "trace chosen" : "trace";
        parts.push(drawn("polyline", { points: points.join(" "), class: own }));
      }
      if (depth) {
        const now = shown[depth - 1].residual[restart];
        parts.push(drawn("circle", { cx: x(depth), cy: y(now), r: 4, class: "now" }));
      }
      this.root.replaceChildren(...parts);
      const now = depth ? shown[depth - 1].residual[restart].toPrecision(2) : "none yet";
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
      const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
      const span = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 1e-6);
      const midX = (Math.max(...xs) + Math.min(...xs)) / 2, midY = (Math.max(...ys) + Math.min(...ys)) / 2;
      const x = (p) => (120 + ((p[0] - midX) / span) * 160).toFixed(1);
      const y = (p) => (86 - ((p[1] - midY) / span) * 160).toFixed(1);
      const parts = [drawn("text", { x: 120, y: 187, class: "tick middle" }, "latent state, two main axes")];
      const shown = recording.frames.slice(0, depth);
      const order = [...Array(recording.breadth).keys()].filter((b) => b !== restart);
      for (const b of depth ? [...order, restart] : []) {
        const own = b === restart ? " chosen" : "";
        const points = shown.map((frame) => `${x(frame.plane[b])},${y(frame.plane[b])}`);
        const last = shown[depth - 1].plane[b];
        parts.push(drawn("polyline", { points: points.join(" "), class: `trace${own}` }));
        parts.push(drawn("circle", { cx: x(last), cy: y(last), r: own ? 5 : 3.5, class: own ? "now" : "end" }));
      }
      this.root.replaceChildren(...parts);
      this.root.setAttribute(
        "aria-label",
        `Paths of ${recording.breadth} restarts through the latent space, seen in two dimensions, ` +
          `after ${depth} iterations; dots mark where they are.`,
      );
    }
  }

  // Board, traces and plane of one recording.
  class Panel {
    constructor(recording, { edit = null, small = false } = {}) {
      this.recording = recording;
      this.board = new Board(recording.task, `Board of ${recording.model.name}`, edit);
      this.traces = new Traces();
      this.plane = new Plane();
      this.caption = element("p", { class: "eqr-facts" });
      const { model, noise, damping, seed } = recording;
      const trace = [`profile ${model.profile}`, `β ${noise}`, `seed ${seed}`, model.run];
      if (damping !== undefined) trace.splice(2, 0, `λ ${damping}`);
      this.trace = element("p", { class: "eqr-trace" }, trace.join(" · "));
      this.root = element("section", { class: "eqr-panel", "aria-label": recording.model.name });
      if (!small) this.root.append(element("p", { class: "eqr-model" }, recording.model.name));
      const views = element("div", { class: "eqr-views" }, this.board.root, this.traces.root);
      if (!small) views.append(this.plane.root);
      this.root.append(views, this.caption, this.trace);
    }

    // What stands there after `depth` iterations: the facts that the status line repeats.
    show(depth, chosen, longest) {
      const { recording } = this;
      const restart = chosen === null ? selected(recording, depth) : Math.min(chosen, recording.breadth - 1);
      const frame = depth ? recording.frames[depth - 1] : null;
      const answer = frame && frame.answers[restart], confidence = frame && frame.confidence[restart];
      this.board.show(recording.inputs, answer, confidence, recording.label);
      this.traces.show(recording, depth, restart, longest);
      this.plane.show(recording, depth, restart);
      this.caption.textContent = this.facts(depth, restart, frame);
      return this.caption.textContent;
    }

    facts(depth, restart, frame) {
      const { recording } = this;
      if (!frame) return "Not started: the board shows the problem.";
      const open = recording.inputs.map((t, i) => i).filter((i) => !this.board.kind.given(recording.inputs[i]));
      const sure = open.filter((i) => frame.confidence[restart][i] > UNSURE).length;
      const rest = frame.residual[restart];
      const words = [
        `Restart ${restart + 1} of ${recording.breadth}: residual ${rest.toPrecision(2)}, ` +
          (rest < SETTLED ? "settled" : "not settled"),
        `${sure} of ${open.length} open cells are decided`,
      ];
      if (recording.label) {
        const wrong = open.filter((i) => frame.answers[restart][i] !== recording.label[i]).length;
        words.push(wrong ? `${wrong} wrong` : "all right");
        const right = frame.answers.filter((a) => open.every((i) => a[i] === recording.label[i])).length;
        if (recording.breadth > 1) words.push(`${right} of ${recording.breadth} restarts hold the answer`);
      } else {
        const own = frame.answers[restart];
        const same = frame.answers.filter((a) => open.every((i) => a[i] === own[i])).length;
        if (recording.breadth > 1) words.push(`${same} of ${recording.breadth} restarts read the same`);
        words.push(recording.verdict(own));
      }
      return words.join("; ") + ".";
    }
  }

  // --- the time line ---------------------------------------------------------------------------

  let counter = 0;

  // Plays one or two recordings side by side.
  //   advance   async () => void, computes the next iteration of each; null: all is recorded
  //   longest   iterations to play
  class Player {
    constructor(root, recordings, { advance = null, longest = null, interval = 280, ...options } = {}) {
      Object.assign(this, { root, advance, interval, options, depth: 0, chosen: null, playing: false });
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
      this.playButton = button("▶ Play", "Play", () => (this.playing ? this.pause() : this.play()));
      this.slider = element("input", { type: "range", min: 0, value: 0, id: `${this.id}-depth` });
      this.slider.addEventListener("input", () => {
        const wanted = Number(this.slider.value); // pausing shows, and writes into the slider
        this.pause();
        this.seek(wanted);
      });
      this.output = element("span", { class: "eqr-count", "aria-hidden": "true" });
      this.restart = element("select", { id: `${this.id}-restart` });
      this.restart.addEventListener("change", () => {
        this.chosen = this.restart.value === "" ? null : Number(this.restart.value);
        this.show(true);
      });
      this.controls = element(
        "div",
        { class: "eqr-controls", role: "group", "aria-label": "Time line" },
        this.playButton,
        button("Step", "Step one iteration on", () => { this.pause(); this.step(); }),
        button("Back", "Back by one iteration", () => { this.pause(); this.seek(this.depth - 1); }),
        element(
          "span",
          { class: "eqr-pair eqr-wide" },
          element("label", { for: `${this.id}-depth` }, "Iteration"),
          this.slider,
          this.output,
        ),
        element(
          "span",
          { class: "eqr-pair" },
          element("label", { for: `${this.id}-restart` }, "Show"),
          this.restart,
        ),
      );
    }

    // Replace what is shown; starts before the first iteration, without a word.
    load(recordings, longest = null) {
      this.recordings = recordings;
      this.longest = longest || Math.max(...recordings.map((r) => r.frames.length));
      const at = this.views ? this.views[0].board.at : 0;
      // One board takes the keys: with two, both models have its problem.
      this.views = recordings.map((r, i) => new Panel(r, i ? { ...this.options, edit: null } : this.options));
      if (this.options.edit) this.views[0].board.select(Math.min(at, recordings[0].inputs.length - 1));
      this.panels.replaceChildren(...this.views.map((view) => view.root));
      const breadth = Math.max(...recordings.map((r) => r.breadth));
      const names = [...Array(breadth).keys()].map((b) => element("option", { value: b }, `restart ${b + 1}`));
      this.restart.replaceChildren(element("option", { value: "" }, "selected by residual"), ...names);
      this.chosen = null;
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
      const facts = this.views.map((view) => view.show(this.depth, this.chosen, this.longest));
      this.slider.value = this.depth;
      this.slider.setAttribute("aria-valuetext", `iteration ${this.depth} of ${this.longest}`);
      this.output.textContent = `${this.depth} / ${this.longest}`;
      if (announce) {
        const names = this.recordings.length > 1 ? this.recordings.map((r) => `${r.model.name}. `) : [""];
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

  // --- replays in the page -----------------------------------------------------------------------

  // <div class="eqr-replay"> holds a JSON script: {"items": [{title, recordings}], "small": bool}.
  function startReplay(root) {
    const stored = JSON.parse(root.querySelector("script[type='application/json']").textContent);
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

  function startAll() {
    for (const root of document.querySelectorAll(".eqr-replay:not([data-started])")) {
      root.dataset.started = "";
      startReplay(root);
    }
    for (const root of document.querySelectorAll(".eqr-solver:not([data-started])")) {
      root.dataset.started = "";
      const note = root.querySelector(".eqr-wait");
      if (!location.protocol.startsWith("http")) {
        note.replaceChildren(
          "A browser runs the solver only on a page that comes from a web server: say ",
          element("code", {}, "make serve"),
          ", or read the published book. The replay above works here too.",
        );
        continue;
      }
      import(new URL(root.dataset.module, document.baseURI).href)
        .then((module) => module.start(root))
        .catch(() => {
          note.textContent =
            "The solver did not load: it runs in the built book, where its scripts lie beside the pages.";
        });
    }
  }

  window.EqrPlay = { KINDS, SYMBOLS, Panel, Player, element, selected, startAll };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
