// Runs one exported outer iteration after the other, off the page's thread: the other side of the
// viewer's Channel (viewer.mjs), whose calls it answers. The runtime, of 14 MB, is fetched with the
// first trajectories.
import { Plane, normal, truncated, uniform } from "./numbers.mjs";
import { ProblemError, RULES } from "./rules.mjs";

let models = []; // as the page describes them; each gets its session with its first trajectories
let runs = []; // the trajectories under way
let ort = null;

const tensor = (values, dims) => new ort.Tensor("float32", values, dims);

async function load(model) {
  if (!ort) {
    ort = await import("../vendor/onnxruntime/ort.wasm.bundle.min.mjs");
    ort.env.wasm.numThreads = 1; // more would need headers that a static site does not send
    ort.env.wasm.wasmPaths = {
      wasm: new URL("../vendor/onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
    };
  }
  const address = new URL(model.file, import.meta.url).href;
  model.session ??= await ort.InferenceSession.create(address, { executionProviders: ["wasm"] });
  return model.session;
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

async function begin({ runs: wanted }) {
  runs = []; // those of other settings, which nobody asks for again
  for (const { model, inputs, breadth, noise, damping, seed } of wanted) {
    const facts = models[model], session = await load(facts);
    const tokens = inputs.length, { hidden, tokens_low: low } = facts;
    const latents = starts(facts, breadth, seed);
    const x = new BigInt64Array(breadth * tokens);
    for (let i = 0; i < x.length; i++) x[i] = BigInt(inputs[i % tokens]);
    runs.push({
      session, facts, breadth, noise, depth: 0,
      damping: damping ?? facts.damping,
      right: RULES[facts.task.kind].verdict(inputs, facts.task),
      high: tensor(latents.high, [breadth, tokens, hidden]),
      low: tensor(latents.low, [breadth, low, hidden]),
      x: new ort.Tensor("int64", x, [breadth, tokens]),
      draws: Array.from({ length: breadth }, (_, b) => normal(uniform(seed, b, 1))),
      plane: new Plane((tokens + low) * hidden),
    });
  }
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

async function advance() {
  const frames = [];
  for (const now of runs) {
    const out = await now.session.run({
      z_high: now.high, z_low: now.low, x: now.x, noise: noiseOf(now),
      beta: tensor([now.noise], []), damping: tensor([now.damping], []),
    });
    now.high = out.next_high;
    now.low = out.next_low;
    now.depth += 1;
    const decoded = decode(out.logits, now.facts.normalisation);
    frames.push({
      ...decoded,
      depth: now.depth,
      residual: Array.from(out.residual.data),
      halt: Array.from(out.halt.data),
      right: decoded.answers.map(now.right),
      plane: now.plane.add(states(now)),
    });
  }
  return frames;
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

// What a logit weighs in a model's normalisation, as eqr.optim.probabilities.
const WEIGHTS = {
  softmax: (logit, best) => Math.exp(logit - best),
  stablemax: (logit) => (logit < 0 ? 1 / (1 - logit) : logit + 1),
};

// The likeliest token of each cell, its probability, and the smallest gap between the best logit of a
// cell and its second, by restart.
function decode(logits, normalisation) {
  const [breadth, tokens, words] = logits.dims;
  const answers = [], confidence = [], margin = [], weight = WEIGHTS[normalisation];
  for (let b = 0; b < breadth; b++) {
    const answer = new Array(tokens), sure = new Array(tokens);
    let gap = Infinity;
    for (let s = 0; s < tokens; s++) {
      const own = logits.data.subarray((b * tokens + s) * words, (b * tokens + s + 1) * words);
      let best = 0, total = 0;
      for (let v = 1; v < words; v++) if (own[v] > own[best]) best = v;
      for (let v = 0; v < words; v++) {
        total += weight(own[v], own[best]);
        if (v !== best) gap = Math.min(gap, own[best] - own[v]);
      }
      answer[s] = best;
      sure[s] = weight(own[best], own[best]) / total;
    }
    answers.push(answer);
    confidence.push(sure);
    margin.push(gap);
  }
  return { answers, confidence, margin };
}

// One iteration on tensors given as {name: {values, dims}}; all outputs in the same form. What a test
// compares with torch.
async function iterate({ model, inputs }) {
  const session = await load(models[model]), feeds = {};
  for (const [name, { values, dims }] of Object.entries(inputs)) {
    feeds[name] =
      name === "x"
        ? new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims)
        : tensor(Float32Array.from(values), dims);
  }
  const out = await session.run(feeds);
  return Object.fromEntries(
    Object.entries(out).map(([name, { data, dims }]) => [name, { values: Array.from(data), dims }]),
  );
}

function know({ models: described }) {
  models = described;
}

const CALLS = { know, read, begin, advance, iterate };

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
