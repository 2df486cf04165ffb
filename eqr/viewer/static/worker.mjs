// Iterates the models of a page off its thread: the other side of the viewer's Channel (viewer.mjs),
// whose calls it answers. The modules beside this one reach the browser as one script, which
// eqr/viewer/page.py makes of them; a worker that comes from a page's text works in a file as well.
import { Machine, compiled, plain } from "./machine.mjs";
import { Plane, normal, truncated, uniform } from "./numbers.mjs";
import { ProblemError, RULES } from "./rules.mjs";

let kernel = null; // the compiled one; without SIMD there is none
let models = []; // as the page describes them, each with its machine once its weights have come
let runs = []; // the trajectories under way

// The models and the kernel's bytes in base 64.
function know({ models: described, kernel: bytes }) {
  models = described;
  const code = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  kernel = WebAssembly.validate(code) ? new WebAssembly.Module(code) : null;
}

function weigh({ model, weights }) {
  const open = (size) => (kernel ? compiled(kernel, size) : plain(size));
  models[model].machine ??= new Machine(models[model], weights, open);
}

// A problem from text, with a remark; or what is wrong with it.
function read({ model, text }) {
  const { task } = models[model], rules = RULES[task.kind];
  try {
    const inputs = rules.parse(text, task), fault = rules.fault(inputs, task);
    return fault ? { fault } : { inputs, note: rules.note(inputs, task) };
  } catch (error) {
    if (error instanceof ProblemError) return { fault: error.message };
    throw error;
  }
}

// Latents of restart b before the first iteration; each restart has a stream of its own.
function starts(facts, machine, seed, b) {
  const draw = uniform(seed, b, 0), { start } = facts;
  const [high, low] = ["high", "low"].map((name) => {
    const made = new Float32Array(name === "low" && !facts.tokens_low ? 0 : machine.size);
    if (start.kind !== "random") return made.map((_, i) => start[name][i % facts.hidden]);
    const next = truncated(draw, start[`std_${name}`]);
    return made.map(next);
  });
  return { high, low, draw: normal(uniform(seed, b, 1)) };
}

function begin({ runs: wanted }) {
  // Those of other settings nobody asks for again.
  runs = wanted.map(({ model, inputs, breadth, noise, damping, seed }) => {
    const facts = models[model], { machine } = facts;
    return {
      facts, machine, inputs, noise, damping: damping ?? facts.damping, depth: 0,
      right: RULES[facts.task.kind].verdict(inputs, facts.task),
      restarts: Array.from({ length: breadth }, (_, b) => starts(facts, machine, seed, b)),
      plane: new Plane(machine.size + facts.tokens_low * facts.hidden),
    };
  });
  return true;
}

function advance() {
  return runs.map((run) => {
    const { machine, restarts, noise: beta, damping } = run, draws = new Float32Array(machine.size);
    machine.pose(run.inputs);
    const rows = restarts.map(({ high, low, draw }) => {
      const noise = beta > 0 ? () => draws.map(draw) : null;
      return machine.iterate(high, low, { noise, beta, damping });
    });
    const decoded = rows.map((row) => decode(row.logits, run.facts.normalisation));
    const all = (name, from = decoded) => from.map((row) => row[name]);
    return {
      depth: ++run.depth,
      answers: all("answer"), confidence: all("sure"), margin: all("gap"),
      residual: all("residual", rows), halt: all("halt", rows),
      right: all("answer").map(run.right),
      plane: run.plane.add(restarts.map(({ high, low }) => [...high, ...low])),
    };
  });
}

// What a logit weighs in a model's normalisation, as eqr.optim.probabilities.
const WEIGHTS = {
  softmax: (logit, best) => Math.exp(logit - best),
  stablemax: (logit) => (logit < 0 ? 1 / (1 - logit) : logit + 1),
};

// The likeliest token of each cell, its probability, and the smallest gap between the best logit of a
// cell and its second.
function decode(logits, normalisation) {
  const weight = WEIGHTS[normalisation], answer = [], sure = [];
  let gap = Infinity;
  for (const own of logits) {
    const best = own.indexOf(Math.max(...own));
    let total = 0;
    own.forEach((logit, v) => {
      total += weight(logit, own[best]);
      if (v !== best) gap = Math.min(gap, own[best] - logit);
    });
    answer.push(best);
    sure.push(weight(own[best], own[best]) / total);
  }
  return { answer, sure, gap };
}

// One iteration of one row with everything given, `noise` being the draws of one update after the
// other: what is compared with torch.
function iterate({ model, inputs, high, low, noise, beta, damping }) {
  const { machine } = models[model], latents = [high, low].map((values) => Float32Array.from(values));
  machine.pose(inputs);
  const draws = noise.map((values) => Float32Array.from(values))[Symbol.iterator]();
  const next = beta > 0 ? () => draws.next().value : null;
  const { logits, halt, residual } = machine.iterate(...latents, { noise: next, beta, damping });
  const [next_high, next_low] = latents.map((values) => Array.from(values));
  return { next_high, next_low, logits: logits.flatMap((row) => Array.from(row)), halt, residual };
}

const CALLS = { know, weigh, read, begin, advance, iterate };

self.onmessage = ({ data: { call, id, ...rest } }) => {
  try {
    self.postMessage({ id, result: CALLS[call](rest) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message || error) });
  }
};
