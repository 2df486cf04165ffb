// Random numbers and the latent plane, for the worker.

// A generator of floats in [0, 1) for one stream: sfc32, seeded by mixing the words given.
export function uniform(...words) {
  let hash = 0x9e3779b9;
  const mix = () => {
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return (hash ^= hash >>> 16) >>> 0;
  };
  for (const word of words) {
    hash ^= word >>> 0;
    mix();
  }
  let [a, b, c, d] = [mix(), mix(), mix(), 1];
  const next = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + t) | 0;
    return (t >>> 0) / 4294967296;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

// Standard normal draws, by Box and Muller.
export function normal(draw) {
  let spare = null;
  return () => {
    if (spare !== null) {
      const value = spare;
      spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - draw())), angle = 2 * Math.PI * draw();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

// A unit normal cut at 2 has this standard deviation (eqr.model.truncated_normal divides by it).
const CUT_STD = 0.8796256610342398;

// Draws from a normal cut at 2 deviations, rescaled to the standard deviation `std`.
export function truncated(draw, std) {
  const next = normal(draw);
  return () => {
    for (;;) {
      const value = next();
      if (Math.abs(value) < 2) return (value / CUT_STD) * std;
    }
  };
}

const SKETCH = 64; // numbers stored of each state

// The plane that shows most of the states seen so far. Each state is first reduced to SKETCH sums of
// its elements with random signs, every element being in one of them, which keeps distances up to some
// ten per cent; the two main axes of these come by orthogonal iteration from the axes before, so that
// the picture does not flip.
export class Plane {
  constructor(size) {
    const draw = uniform(size, 1);
    this.sums = Uint8Array.from({ length: size }, () => draw() * SKETCH);
    this.signs = Int8Array.from({ length: size }, () => (draw() < 0.5 ? -1 : 1));
    this.states = []; // one array of B sketches for each iteration
    this.axes = [0, 1].map(() => Float64Array.from({ length: SKETCH }, () => draw() - 0.5));
  }

  sketch(state) {
    const made = new Float64Array(SKETCH);
    state.forEach((value, i) => (made[this.sums[i]] += value * this.signs[i]));
    return made;
  }

  // Add the B states of one iteration; returns [x, y] of every state so far, by iteration.
  add(states) {
    this.states.push(states.map((state) => this.sketch(state)));
    const all = this.states.flat();
    const mean = new Float64Array(SKETCH);
    for (const s of all) for (let k = 0; k < SKETCH; k++) mean[k] += s[k] / all.length;
    const centred = this.states.map((row) => row.map((s) => s.map((value, k) => value - mean[k])));
    this.turn(centred.flat());
    return centred.map((row) => row.map((s) => this.axes.map((axis) => dot(axis, s))));
  }

  turn(points) {
    const covariance = Array.from({ length: SKETCH }, () => new Float64Array(SKETCH));
    for (const p of points) {
      for (let i = 0; i < SKETCH; i++) for (let j = 0; j <= i; j++) covariance[i][j] += p[i] * p[j];
    }
    for (let i = 0; i < SKETCH; i++) for (let j = 0; j < i; j++) covariance[j][i] = covariance[i][j];
    for (let round = 0; round < 30; round++) {
      const [first, second] = this.axes.map((axis) => Float64Array.from(covariance, (row) => dot(row, axis)));
      if (!(dot(first, first) > 0)) return; // all states are equal: no axis is better than another
      this.axes[0] = unit(first);
      const along = dot(second, this.axes[0]);
      const rest = second.map((value, k) => value - along * this.axes[0][k]);
      if (dot(rest, rest) > 1e-20 * dot(first, first)) this.axes[1] = unit(rest);
    }
  }
}

function dot(a, b) {
  let sum = 0;
  for (let k = 0; k < a.length; k++) sum += a[k] * b[k];
  return sum;
}

function unit(a) {
  const size = Math.sqrt(dot(a, a));
  return a.map((value) => value / size);
}
