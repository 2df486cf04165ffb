// Runs one exported outer iteration after the other, off the page's thread.
//
// Messages in: {call, id, ...}; out: {id, result} or {id, error}. Calls: `load` a model, `start`
// trajectories, `advance` them by one iteration, `iterate` on given tensors (what a test compares
// with torch).
import * as ort from "../vendor/onnxruntime/ort.wasm.bundle.min.mjs";
import { Plane, normal, truncated, uniform } from "./numbers.mjs";

ort.env.wasm.numThreads = 1; // more would need headers that a static site does not send
ort.env.wasm.wasmPaths = {
  wasm: new URL("../vendor/onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

const models = new Map(); // address -> {session, facts}
const runs = new Map(); // name of a run -> its state

const tensor = (values, dims) => new ort.Tensor("float32", values, dims);

async function load({ model, facts }) {
  if (!models.has(model)) {
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    models.set(model, { session, facts });
  }
  return true;
}

// Latents of every restart before the first iteration; restart b has a stream of its own.
function starts(facts, breadth, seed) {
  const tokens = facts.task.height * facts.task.width;
  const parts = { high: tokens * facts.hidden, low: facts.tokens_low * facts.hidden };
  const made = { high: new Float32Array(breadth * parts.high), low: new Float32Array(breadth * parts.low) };
  for (let b = 0; b < breadth; b++) {
    const draw = uniform(seed, b, 0);
    for (const name of ["high", "low"]) {
      const own = made[name].subarray(b * parts[name], (b + 1) * parts[name]);
      if (facts.start.kind === "random") {
        const next = truncated(draw, facts.start[`std_${name}`]);
        for (let i = 0; i < own.length; i++) own[i] = next();
      } else {
        const vector = facts.start[name];
        for (let i = 0; i < own.length; i++) own[i] = vector[i % facts.hidden];
      }
    }
  }
  return made;
}

function start({ run, first, model, inputs, breadth, noise, damping, seed }) {
  if (first) runs.clear(); // those of other settings, which nobody asks for again
  const { session, facts } = models.get(model);
  const tokens = inputs.length, { hidden, tokens_low: low } = facts;
  const latents = starts(facts, breadth, seed);
  const x = new BigInt64Array(breadth * tokens);
  for (let i = 0; i < x.length; i++) x[i] = BigInt(inputs[i % tokens]);
  runs.set(run, {
    session, facts, breadth, noise, damping,
    high: tensor(latents.high, [breadth, tokens, hidden]),
    low: tensor(latents.low, [breadth, low, hidden]),
    x: new ort.Tensor("int64", x, [breadth, tokens]),
    draws: Array.from({ length: breadth }, (_, b) => normal(uniform(seed, b, 1))),
    plane: new Plane((tokens + low) * hidden),
  });
  return true;
}

function noiseOf({ facts, breadth, noise, draws, x }) {
  const each = x.dims[1] * facts.hidden, rows = breadth * each;
  const values = new Float32Array(facts.updates * rows);
  if (noise > 0) {
    for (let b = 0; b < breadth; b++) {
      for (let k = 0; k < facts.updates; k++) {
        const from = k * rows + b * each;
        for (let i = 0; i < each; i++) values[from + i] = draws[b]();
      }
    }
  }
  return tensor(values, [facts.updates, breadth, x.dims[1], facts.hidden]);
}

async function advance({ run }) {
  const now = runs.get(run);
  if (!now) throw new Error("these trajectories are gone");
  const out = await now.session.run({
    z_high: now.high, z_low: now.low, x: now.x, noise: noiseOf(now),
    beta: tensor([now.noise], []), damping: tensor([now.damping], []),
  });
  now.high = out.next_high;
  now.low = out.next_low;
  return { ...read(out.logits), residual: Array.from(out.residual.data), plane: now.plane.add(states(now)) };
}

// Both latents of each restart as one vector.
function states({ high, low, breadth }) {
  const [a, b] = [high.data.length / breadth, low.data.length / breadth];
  return Array.from({ length: breadth }, (_, r) => {
    const state = new Float32Array(a + b);
    state.set(high.data.subarray(r * a, (r + 1) * a));
    state.set(low.data.subarray(r * b, (r + 1) * b), a);
    return state;
  });
}

// The likeliest token of each cell and its probability, by restart.
function read(logits) {
  const [breadth, tokens, words] = logits.dims;
  const answers = [], confidence = [];
  for (let b = 0; b < breadth; b++) {
    const answer = new Array(tokens), sure = new Array(tokens);
    for (let s = 0; s < tokens; s++) {
      const own = logits.data.subarray((b * tokens + s) * words, (b * tokens + s + 1) * words);
      let best = 0, total = 0;
      for (let v = 1; v < words; v++) if (own[v] > own[best]) best = v;
      for (let v = 0; v < words; v++) total += Math.exp(own[v] - own[best]);
      answer[s] = best;
      sure[s] = 1 / total;
    }
    answers.push(answer);
    confidence.push(sure);
  }
  return { answers, confidence };
}

// One iteration on tensors given as {name: {values, dims}}; all outputs in the same form.
async function iterate({ model, inputs }) {
  const feeds = {};
  for (const [name, { values, dims }] of Object.entries(inputs)) {
    feeds[name] =
      name === "x"
        ? new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims)
        : tensor(Float32Array.from(values), dims);
  }
  const out = await models.get(model).session.run(feeds);
  return Object.fromEntries(
    Object.entries(out).map(([name, { data, dims }]) => [name, { values: Array.from(data), dims }]),
  );
}

const CALLS = { load, start, advance, iterate };

async function answer({ call, id, ...rest }) {
  try {
    self.postMessage({ id, result: await CALLS[call](rest) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message || error) });
  }
}

// One call after the other: a session runs one batch at a time.
let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(() => answer(data));
};
